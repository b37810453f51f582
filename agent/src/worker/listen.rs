//! Where workers connect.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};

use super::control::{Mode, Shared, spawn};
use super::process::{Process, ProcessId};
use super::protocol::{Connection, FromAgent, FromWorker, Hello, Join, VERSION};
use super::replica::Command;

/// From the connection to the hello.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// Listens where an earlier agent may have listened. Who may use it is who may use the run directory's owner's files.
pub(super) fn bind(socket: &Path) -> io::Result<UnixListener> {
    match fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(socket)?;
    fs::set_permissions(socket, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Takes in workers as long as the supervisor lives.
pub(super) async fn accept(listener: UnixListener, shared: Weak<Shared>) {
    loop {
        let accepted = listener.accept().await;
        let Some(shared) = shared.upgrade() else { return };
        match accepted {
            Ok((stream, _)) => drop(tokio::spawn(welcome(stream, shared))),
            Err(error) => {
                // Too many open files, for instance; accepting again at once would only spin.
                tracing::warn!(%error, "a worker could not connect");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn welcome(stream: UnixStream, shared: Arc<Shared>) {
    let mut connection = Connection::new(stream);
    let hello = match tokio::time::timeout(HELLO_TIMEOUT, connection.receive::<FromWorker>()).await {
        Ok(Ok(Some(FromWorker::Hello(hello)))) => hello,
        Ok(Ok(Some(FromWorker::Join(join)))) => return introduce(connection, &join, &shared).await,
        other => return tracing::warn!(?other, "a connection on the workers' socket that begins with no hello is closed"),
    };
    if hello.version != VERSION {
        return tracing::warn!(
            found = hello.version,
            supported = VERSION,
            "a worker of another protocol version is left alone, and ended when its silence has lasted"
        );
    }
    let Some(process) = who(&connection, &hello, &shared) else {
        return tracing::warn!(pid = hello.process.pid, "a worker said hello and has ended");
    };
    let uid = hello.assignment.uid.clone();
    let connected = Command::Connected { hello, process, connection: Box::new(connection) };
    if let Err(Command::Connected { hello, process, connection }) = shared.connect(&uid, connected) {
        tracing::warn!(uid, pid = process.id.pid, "a worker that nobody has written down is adopted");
        spawn(&shared, hello.assignment.clone(), |replica| replica.adopt_connected(hello, process, connection));
    }
}

/// The process at the other end: as the kernel says, since the worker may count processes otherwise than the agent.
fn who(connection: &Connection, hello: &Hello, shared: &Shared) -> Option<Process> {
    let seen = connection.peer_pid().and_then(|pid| ProcessId::of(pid).ok());
    let (id, found) = match shared.config.mode {
        Mode::Process => {
            let id = seen.unwrap_or(hello.process);
            (id, Process::find(id))
        }
        Mode::Pod => {
            let id = seen.unwrap_or(ProcessId { pid: 0, ..hello.process });
            (id, Process::behind(&shared.records.lifeline(&hello.assignment.uid), id))
        }
    };
    found.inspect_err(|error| tracing::warn!(%error, pid = id.pid, "a worker's process can't be watched")).ok().flatten()
}

/// Gives a worker in a Pod its order, as soon as there is one. Nobody but the worker of an assignment of this node gets any; one that the agent does not know
/// yet asks again.
async fn introduce(mut connection: Connection, join: &Join, shared: &Shared) {
    let uid = &join.assignment_uid;
    if join.version != VERSION {
        return tracing::warn!(uid, found = join.version, supported = VERSION, "a worker of another protocol version is not let in");
    }
    if !shared.has(uid) {
        return tracing::info!(uid, "a worker of no assignment of this node is not let in");
    }
    let mut orders = shared.orders.subscribe();
    let order = tokio::select! {
        order = orders.wait_for(|orders| orders.contains_key(uid)) => order.ok().and_then(|orders| orders.get(uid).cloned()),
        // It says no more: what comes is its end.
        _ = connection.receive::<FromWorker>() => return,
    };
    if let Some(order) = order
        && let Err(error) = connection.send(&FromAgent::Order(Box::new(order))).await
    {
        tracing::info!(uid, %error, "a worker has ended before it had its order");
    }
}
