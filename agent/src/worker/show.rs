//! A worker in the words of a status.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use stowage_crds::model_deployment::ReplicaState;
use stowage_placement::{Bytes, HOST, Reason};

use super::attend::{Exit, Worker};
use super::process::Process;
use super::protocol::Phase;
use super::replica::Wanted;
use super::view::{Refusal, WorkerView};

/// Shows the worker as it is.
pub(super) fn show_worker(view: &mut WorkerView, worker: &Worker, wanted: Wanted, advertised: &str) {
    (view.runs, view.pid) = (true, worker.process.pid());
    // Of one that can be seen, the kernel's count is asked for. In whole MiB, for whoever looks at a view is woken by each change.
    view.resident = if view.pid.is_none() { Bytes(worker.resident.0.next_multiple_of(1 << 20)) } else { Bytes::ZERO };
    if let Some(state) = &worker.state {
        if view.held != state.measured || view.status.devices.is_empty() {
            view.holds(state.measured.clone());
        }
        view.status.speed.clone_from(&state.speed);
        view.http_address = state.address.map(reached_here);
        view.status.address = state.address.map(|address| reached_by_others(address, advertised, worker)).unwrap_or_default();
    }
    if let Some(refusal) = &worker.refused {
        return view.state(ReplicaState::Refused, None, Some(refusal.clone()));
    }
    if wanted != Wanted::Serve {
        return view.state(ReplicaState::Draining, None, None);
    }
    if let Some(silence) = worker.silent_for.filter(|_| worker.process.is_elsewhere()) {
        let why = format!("{} has said nothing for {} s; its Pod is ended and made anew", shown(&worker.process), silence.as_secs());
        return view.state(ReplicaState::Failed, None, Some(Refusal::new(Reason::WorkerCrashed, why)));
    }
    match worker.phase() {
        // Of an earlier agent's worker, what that agent wrote down stands until it says hello.
        None if worker.child.is_none() => {}
        None | Some(Phase::Asking) => view.state(ReplicaState::Loading, None, None),
        Some(Phase::Loading { loaded, total }) => view.state(ReplicaState::Loading, Some(percent(loaded.0, total.0)), None),
        Some(Phase::Testing) => view.state(ReplicaState::Loading, Some(100), None),
        Some(Phase::Ready) if worker.silent => {
            let why = Refusal::new(Reason::WorkerSilent, "the worker has said nothing for seconds");
            view.state(ReplicaState::Failed, None, Some(why));
        }
        Some(Phase::Ready) => {
            let changed = worker.file_change.clone().map(|change| Refusal::new(Reason::ModelFileChanged, change));
            view.state(ReplicaState::Ready, None, changed);
        }
        Some(Phase::Draining) => view.state(ReplicaState::Draining, None, None),
        Some(Phase::Failed(why)) => view.state(ReplicaState::Failed, None, Some(why.clone())),
    }
}

/// Of a worker that the kernel ended: what it held, which is more than there was. The operator decides anew, counting with it.
pub(super) fn show_out_of_memory(view: &mut WorkerView, pid: u32, held: Bytes) {
    let host = view.status.devices.iter_mut().find(|on| on.id == HOST);
    let planned = host.map(|on| {
        on.measured_bytes = Some(held);
        on.predicted_bytes
    });
    let planned = planned.map(|planned| format!(", {planned} planned")).unwrap_or_default();
    let message = format!("the kernel ended the worker (process {pid}), for memory ran out; it held {held} of host memory{planned}");
    view.state(ReplicaState::Refused, None, Some(Refusal::new(Reason::OutOfMemory, message)));
}

/// A worker in a Pod listens at its Pod's address; one that listens for this machine alone, or everywhere, is reached where this agent is.
fn reached_by_others(listens: SocketAddr, advertised: &str, worker: &Worker) -> String {
    let own = worker.process.is_elsewhere() && !listens.ip().is_loopback() && !listens.ip().is_unspecified();
    if own { listens.to_string() } else { endpoint(advertised, listens.port()) }
}

/// A worker in words.
pub(super) fn shown(process: &Process) -> String {
    match process.pid() {
        Some(pid) => format!("the worker (process {pid})"),
        None => "the worker".to_owned(),
    }
}

/// Where something that listens at this address is reached on the same machine.
fn reached_here(mut listens: SocketAddr) -> SocketAddr {
    match listens.ip() {
        IpAddr::V4(address) if address.is_unspecified() => listens.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(address) if address.is_unspecified() => listens.set_ip(Ipv6Addr::LOCALHOST.into()),
        IpAddr::V4(_) | IpAddr::V6(_) => {}
    }
    listens
}

fn endpoint(address: &str, port: u16) -> String {
    if address.contains(':') && !address.starts_with('[') { format!("[{address}]:{port}") } else { format!("{address}:{port}") }
}

fn percent(part: u64, whole: u64) -> u32 {
    let percent = u128::from(part) * 100 / u128::from(whole.max(1));
    u32::try_from(percent.min(100)).unwrap_or(100)
}

/// What a process's end was, as a clause after its name.
pub(super) fn shown_exit(exit: Exit) -> String {
    use std::os::unix::process::ExitStatusExt;
    let Some(status) = exit else { return "ended, how is not known (an earlier agent started it),".to_owned() };
    match (status.code(), status.signal()) {
        (_, Some(9)) => "was killed (signal 9, SIGKILL: out of memory, or by hand)".to_owned(),
        (_, Some(7)) => "died of signal 7 (SIGBUS: the model file was cut off while it was read, or its disk failed)".to_owned(),
        (_, Some(signal)) => format!("died of signal {signal}"),
        (Some(code), None) => format!("ended with exit status {code}"),
        (None, None) => "ended".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_with_an_ipv6_address_can_be_told_from_its_port() {
        assert_eq!(endpoint("192.0.2.1", 80), "192.0.2.1:80");
        assert_eq!(endpoint("2001:db8::1", 80), "[2001:db8::1]:80");
        assert_eq!(endpoint("[2001:db8::1]", 80), "[2001:db8::1]:80");
    }

    #[test]
    fn a_worker_that_listens_everywhere_is_reached_by_loopback() {
        assert_eq!(reached_here("0.0.0.0:80".parse().unwrap()).to_string(), "127.0.0.1:80");
        assert_eq!(reached_here("[::]:80".parse().unwrap()).to_string(), "[::1]:80");
        assert_eq!(reached_here("192.0.2.1:80".parse().unwrap()).to_string(), "192.0.2.1:80");
    }

    #[test]
    fn a_percentage_never_leaves_its_range() {
        assert_eq!((percent(0, 0), percent(1, 3), percent(u64::MAX, 1)), (0, 33, 100));
    }
}
