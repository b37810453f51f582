//! What somebody would try who had taken over a worker, for the tests of its confinement. No release has this.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;

use libc::c_long;
use rustix::net::{AddressFamily, SendFlags, SocketType};
use rustix::process::Pid;
use serde::{Deserialize, Serialize};
use tokio::net::TcpSocket;

use super::seccomp::{REFUSED, REFUSED_ON_X86};

/// One thing to try.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Attempt {
    Read(PathBuf),
    List(PathBuf),
    /// Opened for writing; nothing is written.
    Write(PathBuf),
    /// A new file, which is removed again.
    Make(PathBuf),
    ConnectUnix(PathBuf),
    ConnectTcp(SocketAddr),
    /// With the socket that it was to listen on.
    ConnectOwnPort(SocketAddr),
    /// With the same, by a first message that makes the connection (TCP fast open).
    SendFromOwnPort(SocketAddr),
    BindTcp(SocketAddr),
    SendUdp(SocketAddr),
    Netlink,
    /// A program, in a process of its own.
    Run(PathBuf),
    Fork,
    /// Whether a signal could be sent.
    Signal(i32),
    /// To debug a process.
    Trace(i32),
    /// Memory of a process, as a debugger reads it: its own.
    ReadMemory,
    Unshare,
    /// All system calls that are refused whatever their arguments, each with arguments that make no sense. Done where any got as far as to say so.
    SystemCalls,
}

/// How it went: `None`, or the error's number (0 where it has none).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    pub attempt: Attempt,
    pub errno: Option<i32>,
    pub message: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Attempts(pub Vec<Attempt>);

impl Attempts {
    /// On a thread of its own, as nearly all of a worker runs. Prints an [`Outcome`] a line.
    pub fn try_all(self, own_port: TcpSocket) {
        let trying = std::thread::spawn(move || {
            for attempt in self.0 {
                let (errno, message) = match attempt.run(own_port.as_fd()) {
                    Ok(()) => (None, "done".to_owned()),
                    Err(error) => (Some(error.raw_os_error().unwrap_or_default()), error.to_string()),
                };
                let outcome = serde_json::to_string(&Outcome { attempt, errno, message });
                println!("{}", outcome.unwrap_or_else(|error| error.to_string()));
            }
        });
        // A panic is in the log, and its outcomes are missing.
        let _ = trying.join();
    }
}

impl Attempt {
    fn run(&self, own_port: BorrowedFd<'_>) -> io::Result<()> {
        match self {
            Attempt::Read(path) => io::copy(&mut File::open(path)?, &mut io::sink()).map(drop),
            Attempt::List(path) => fs::read_dir(path).map(drop),
            Attempt::Write(path) => OpenOptions::new().append(true).open(path).map(drop),
            Attempt::Make(path) => File::create_new(path).and_then(|_| fs::remove_file(path)),
            Attempt::ConnectUnix(path) => UnixStream::connect(path).map(drop),
            Attempt::ConnectTcp(address) => TcpStream::connect(address).map(drop),
            Attempt::ConnectOwnPort(address) => connected(rustix::net::connect(own_port, address)),
            Attempt::SendFromOwnPort(address) => connected(rustix::net::sendto(own_port, b"?", FAST_OPEN, address).map(drop)),
            Attempt::BindTcp(address) => TcpListener::bind(address).map(drop),
            Attempt::SendUdp(address) => UdpSocket::bind(("127.0.0.1", 0)).and_then(|socket| socket.send_to(b"?", address)).map(drop),
            Attempt::Netlink => Ok(rustix::net::socket(AddressFamily::NETLINK, SocketType::RAW, None).map(drop)?),
            Attempt::Run(path) => Command::new(path).status().map(drop),
            Attempt::Signal(pid) => Ok(rustix::process::test_kill_process(Pid::from_raw(*pid).ok_or(io::ErrorKind::InvalidInput)?)?),
            Attempt::Fork => fork(),
            // SAFETY: it takes no pointers. The process runs on, and is let go when this thread ends.
            Attempt::Trace(pid) => checked(unsafe { libc::ptrace(libc::PTRACE_SEIZE, *pid, NOTHING, NOTHING) }),
            Attempt::ReadMemory => read_memory(),
            // SAFETY: it takes no pointers, and other threads go on with their files.
            Attempt::Unshare => checked(unsafe { libc::unshare(libc::CLONE_FILES) }.into()),
            Attempt::SystemCalls => system_calls(),
        }
    }
}

const NOTHING: *mut libc::c_void = std::ptr::null_mut();
const FAST_OPEN: SendFlags = SendFlags::from_bits_retain(libc::MSG_FASTOPEN as u32);

/// The socket doesn't wait for an answer.
fn connected(result: rustix::io::Result<()>) -> io::Result<()> {
    match result {
        Err(rustix::io::Errno::INPROGRESS) => Ok(()),
        other => Ok(other?),
    }
}

fn checked(result: c_long) -> io::Result<()> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn fork() -> io::Result<()> {
    // SAFETY: the child ends at once, by a call that a forked process with threads may make.
    match unsafe { libc::fork() } {
        // SAFETY: as above.
        0 => unsafe { libc::_exit(0) },
        child => checked(child.into()),
    }
}

fn read_memory() -> io::Result<()> {
    let (from, mut into) = ([7u8; 8], [0u8; 8]);
    let remote = libc::iovec { iov_base: from.as_ptr().cast_mut().cast(), iov_len: from.len() };
    let local = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() };
    let own = std::process::id() as libc::pid_t;
    // SAFETY: both point to arrays that live, and what is written is the local one.
    checked(unsafe { libc::process_vm_readv(own, &local, 1, &remote, 1, 0) } as c_long)
}

fn system_calls() -> io::Result<()> {
    // Those that make a process take no arguments that could be wrong.
    let calls = REFUSED.iter().chain(REFUSED_ON_X86).filter(|(name, _)| !name.ends_with("fork"));
    let got_through = calls.filter(|(_, call)| {
        let nonsense: c_long = -1;
        // SAFETY: no address is valid of those that any of them could read or write at.
        let result = unsafe { libc::syscall(*call, nonsense, nonsense, nonsense, nonsense, nonsense, nonsense) };
        !(result == -1 && io::Error::last_os_error().raw_os_error() == Some(libc::EPERM))
    });
    let names: Vec<_> = got_through.map(|(name, _)| *name).collect();
    if names.is_empty() {
        return Err(io::Error::from_raw_os_error(libc::EPERM));
    }
    println!("# got through: {}", names.join(" "));
    Ok(())
}
