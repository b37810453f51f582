//! What agent and worker say to each other: one JSON object a line, over the agent's Unix socket.
//!
//! A worker's hello carries all that it is, so a successor of the agent knows as much after it as the agent that started the worker. What follows are changes.
//! The order of a first connection: hello, welcome, may I load, go (or no), progress, loaded, ready; a heartbeat each second from the hello on.
//! A worker in a Pod has to be told its order first: join, order.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use futures::{SinkExt, StreamExt};
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use stowage_crds::model_node::{Assignment, Speed};
use stowage_engine::MeasuredDevice;
use stowage_placement::Bytes;
use tokio::net::UnixStream;
use tokio_util::codec::{Framed, LinesCodec, LinesCodecError};

use super::loaded_file::LoadedFile;
use super::process::ProcessId;
use super::record::Order;
use super::view::Refusal;
use crate::serve::Keys;

/// Of these messages. Both sides refuse another.
pub const VERSION: u32 = 1;
/// How often a worker says that it lives.
pub const HEARTBEAT: Duration = Duration::from_secs(1);
/// Of a message; assignments are the longest, by their templates.
const LONGEST_LINE: usize = 4 << 20;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum FromWorker {
    /// From a Pod: it has no order yet, and asks for it; then this connection is over. It may have to wait for it.
    Join(Join),
    Hello(Box<Hello>),
    /// Asks the agent's gate. Nothing is allocated before it says go.
    MayLoad,
    /// In bytes of the file's tensors.
    Progress {
        loaded: Bytes,
        total: Bytes,
    },
    /// All is allocated and the HTTP API listens; the self-test comes next.
    Loaded {
        measured: Vec<MeasuredDevice>,
        address: SocketAddr,
    },
    /// The self-test is passed.
    Ready {
        #[serde(default)]
        speed: Option<Speed>,
    },
    Heartbeat {
        /// What its process takes of memory that can't be reclaimed.
        #[serde(default)]
        resident: Option<Bytes>,
    },
    /// Takes no new requests.
    Draining,
    /// It could not be carried out; the worker ends.
    Failed(Refusal),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum FromAgent {
    /// What a worker that joins is to do.
    Order(Box<Order>),
    Welcome {
        version: u32,
        /// Which API keys to ask for.
        #[serde(default)]
        api_keys: Keys,
    },
    /// They have changed.
    ApiKeys {
        api_keys: Keys,
    },
    Go,
    /// The plan does not hold on this node any more; the worker ends.
    No(Refusal),
    /// New aliases, defaults or system message. Nothing is loaded anew.
    Update {
        assignment: Box<Assignment>,
    },
    /// Take no new requests, finish those that run, and wait to be ended; at the deadline, end.
    Drain {
        deadline: Timestamp,
    },
    /// Take no new requests, and end when those that run are finished, at the deadline at the latest.
    End {
        deadline: Timestamp,
    },
}

/// A worker in a Pod, which knows nothing but its assignment's uid.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Join {
    pub version: u32,
    pub assignment_uid: String,
}

/// Who connects, and how far it is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Hello {
    pub version: u32,
    pub assignment: Assignment,
    pub process: ProcessId,
    pub state: WorkerState,
    /// What it was told to load.
    #[serde(default)]
    pub file: Option<LoadedFile>,
    /// Of its Pod; empty where it is its agent's child.
    #[serde(default)]
    pub pod_uid: String,
}

/// All that a worker reports, as it stands.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkerState {
    pub phase: Phase,
    /// By device of the plan; empty until all is allocated.
    #[serde(default)]
    pub measured: Vec<MeasuredDevice>,
    /// Where the HTTP API listens.
    #[serde(default)]
    pub address: Option<SocketAddr>,
    /// As the self-test showed it.
    #[serde(default)]
    pub speed: Option<Speed>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "phase", rename_all = "camelCase")]
pub enum Phase {
    #[default]
    Asking,
    Loading {
        loaded: Bytes,
        total: Bytes,
    },
    /// Loaded; the self-test runs.
    Testing,
    Ready,
    Draining,
    Failed(Refusal),
}

/// One end of the socket. `receive` may be dropped while it waits and loses nothing.
pub struct Connection {
    lines: Framed<UnixStream, LinesCodec>,
}

impl Connection {
    pub fn new(stream: UnixStream) -> Connection {
        Connection { lines: Framed::new(stream, LinesCodec::new_with_max_length(LONGEST_LINE)) }
    }

    /// The process at the other end, as this process's namespace numbers it; `None` where it is not in that, which the kernel says with a 0.
    pub fn peer_pid(&self) -> Option<u32> {
        self.lines.get_ref().peer_cred().ok()?.pid()?.try_into().ok().filter(|pid| *pid != 0)
    }

    pub async fn send<T: Serialize>(&mut self, message: &T) -> io::Result<()> {
        let line = serde_json::to_string(message).map_err(io::Error::other)?;
        self.lines.send(line).await.map_err(broken)
    }

    /// The next message; `None` where the other end is gone. A line that is no message is left out, so that a newer peer may say more than this one knows.
    pub async fn receive<T: DeserializeOwned>(&mut self) -> io::Result<Option<T>> {
        loop {
            let Some(line) = self.lines.next().await else { return Ok(None) };
            match serde_json::from_str(&line.map_err(broken)?) {
                Ok(message) => return Ok(Some(message)),
                Err(error) => tracing::warn!(%error, "a message on the workers' socket is not understood and left out"),
            }
        }
    }
}

fn broken(error: LinesCodecError) -> io::Error {
    match error {
        LinesCodecError::Io(error) => error,
        LinesCodecError::MaxLineLengthExceeded => {
            io::Error::new(io::ErrorKind::InvalidData, format!("a message is longer than {LONGEST_LINE} bytes"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::KeyHash;
    use stowage_placement::Reason;

    #[tokio::test]
    async fn messages_arrive_as_they_were_sent_and_what_is_not_understood_is_left_out() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (mut worker, mut agent) = (Connection::new(ours), Connection::new(theirs));
        let measured = vec![MeasuredDevice { id: "host".into(), weights: Bytes(7), ..MeasuredDevice::default() }];
        let messages = [
            FromWorker::MayLoad,
            FromWorker::Progress { loaded: Bytes(1), total: Bytes(2) },
            FromWorker::Loaded { measured, address: "127.0.0.1:8000".parse().unwrap() },
            FromWorker::Ready { speed: Some(Speed { prefill_tokens_per_second: 12.5, ..Speed::default() }) },
            FromWorker::Heartbeat { resident: Some(Bytes(9)) },
            FromWorker::Failed(Refusal::new(Reason::LoadFailed, "no\nway")),
        ];
        worker.send(&serde_json::json!({"type": "fromTheFuture", "x": 1})).await.unwrap();
        for message in &messages {
            worker.send(message).await.unwrap();
        }
        worker.send(&serde_json::json!({"type": "ready"})).await.unwrap();
        worker.send(&serde_json::json!({"type": "heartbeat"})).await.unwrap();
        drop(worker);
        let earlier = [FromWorker::Ready { speed: None }, FromWorker::Heartbeat { resident: None }];
        for message in messages.into_iter().chain(earlier) {
            assert_eq!(agent.receive::<FromWorker>().await.unwrap(), Some(message));
        }
        assert_eq!(agent.receive::<FromWorker>().await.unwrap(), None);
    }

    #[tokio::test]
    async fn the_agents_messages_arrive_as_they_were_sent() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (mut worker, mut agent) = (Connection::new(ours), Connection::new(theirs));
        let deadline: Timestamp = "2030-01-02T03:04:05Z".parse().unwrap();
        let messages = [
            FromAgent::Welcome { version: VERSION, api_keys: None },
            FromAgent::ApiKeys { api_keys: Some(vec![KeyHash::of("a key")]) },
            FromAgent::Go,
            FromAgent::No(Refusal::new(Reason::DeviceChanged, "3 GiB less")),
            FromAgent::Drain { deadline },
            FromAgent::End { deadline },
        ];
        for message in messages {
            agent.send(&message).await.unwrap();
            assert_eq!(worker.receive::<FromAgent>().await.unwrap(), Some(message));
        }
    }
}
