//! Where workers connect.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};

use super::control::{Shared, spawn};
use super::process::{Process, ProcessId};
use super::protocol::{Connection, FromWorker, Hello, VERSION};
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
        other => return tracing::warn!(?other, "a connection on the workers' socket that begins with no hello is closed"),
    };
    if hello.version != VERSION {
        return tracing::warn!(
            found = hello.version,
            supported = VERSION,
            "a worker of another protocol version is left alone, and ended when its silence has lasted"
        );
    }
    let Some(process) = who(&connection, &hello) else {
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
fn who(connection: &Connection, hello: &Hello) -> Option<Process> {
    let id = connection.peer_pid().and_then(|pid| ProcessId::of(pid).ok()).unwrap_or(hello.process);
    Process::find(id).inspect_err(|error| tracing::warn!(%error, pid = id.pid, "a worker's process can't be watched")).ok().flatten()
}
