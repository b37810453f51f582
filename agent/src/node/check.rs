//! Does an assignment's plan hold on the devices as they are now? The agent plans nothing: yes, or no with a reason and the numbers.

use std::collections::BTreeMap;

use stowage_crds::model_node::{Assignment, DeviceBackend, DevicePolicy, DeviceProcess};
use stowage_placement::offer::offer;
use stowage_placement::{Bytes, Defaults, DeviceAllocation, DeviceKind, Reason};

use super::account::{Account, DeviceAccount, Holding};
use crate::devices::Reading;
use crate::worker::Refusal;

/// Processes that a refusal names at most.
const NAMED: usize = 3;

/// What the check looks at.
pub struct Live<'a> {
    pub reading: &'a Reading,
    pub account: &'a Account,
    /// Replicas that were let in before; that of the assignment itself does not count.
    pub holdings: &'a [Holding],
    /// What admins say of the devices.
    pub policies: &'a [DevicePolicy],
}

/// Checks each device of the plan.
pub fn check(assignment: &Assignment, live: &Live<'_>) -> Result<(), Refusal> {
    assignment.plan.devices.iter().try_for_each(|allocation| check_device(assignment, allocation, live))
}

fn check_device(assignment: &Assignment, allocation: &DeviceAllocation, live: &Live<'_>) -> Result<(), Refusal> {
    let Some(device) = live.account.device(&allocation.id) else {
        return Err(Refusal::new(
            Reason::DeviceChanged,
            format!("the plan puts {} on {}, which this node does not have", need(allocation), allocation.id),
        ));
    };
    if let Some(message) = unusable(allocation, live) {
        return Err(Refusal::new(Reason::NoUsableGPU, message));
    }
    let offered = offered(device, &assignment.uid, live);
    if offered >= allocation.total_bytes {
        return Ok(());
    }
    Err(short(allocation, device, offered))
}

/// What the device offers to the replica now.
///
/// The operator kept a margin because published figures lag behind by as much; what the margin is for must not be held against its plan, so of it
/// only what an admin asked for beyond that counts here.
fn offered(device: &DeviceAccount, uid: &str, live: &Live<'_>) -> Bytes {
    let policy = live.policies.iter().find(|policy| policy.uuid == device.id);
    let lag = Defaults::default().margin(device.total);
    let margin = policy.and_then(|policy| policy.margin_bytes).unwrap_or_default().saturating_sub(lag);
    let others = live.holdings.iter().filter(|holding| holding.uid != uid);
    let holdings = others.map(|holding| (promised(&holding.promised, &device.id), live.account.held(&holding.uid, &device.id)));
    offer(device.total, device.used_by_others, holdings, margin)
}

fn promised(promised: &BTreeMap<String, Bytes>, device: &str) -> Bytes {
    promised.get(device).copied().unwrap_or_default()
}

/// Why the engine or an admin keeps replicas off a GPU.
fn unusable(allocation: &DeviceAllocation, live: &Live<'_>) -> Option<String> {
    if allocation.kind == DeviceKind::Host {
        return None;
    }
    if live.policies.iter().any(|policy| policy.uuid == allocation.id && !policy.managed) {
        return Some(format!("the plan puts {} on {}, which spec.devices keeps Stowage off", need(allocation), allocation.id));
    }
    let gpu = live.reading.gpus.iter().find(|gpu| gpu.uuid == allocation.id)?;
    (gpu.backend == DeviceBackend::None)
        .then(|| format!("the plan puts {} on {} ({}): {}", need(allocation), gpu.uuid, gpu.name, gpu.message))
}

fn short(allocation: &DeviceAllocation, device: &DeviceAccount, offered: Bytes) -> Refusal {
    let planned = allocation.free_bytes;
    let reason = match allocation.kind {
        _ if offered < planned => Reason::DeviceChanged,
        DeviceKind::Gpu => Reason::InsufficientVRAM,
        DeviceKind::Host => Reason::InsufficientMemory,
    };
    let missing = allocation.total_bytes.saturating_sub(offered);
    let message = format!(
        "{} needs {} and offers {offered}, {missing} too little: {planned} were on offer when it was planned; others use {} of {}{}",
        device.id,
        allocation.total_bytes,
        device.used_by_others,
        device.total,
        who(device)
    );
    Refusal::new(reason, message)
}

/// The largest of the others, where it can be seen who they are.
fn who(device: &DeviceAccount) -> String {
    let holds = |process: &DeviceProcess| {
        let name = if process.name.is_empty() { "a process without a name" } else { &process.name };
        format!("{name} (process {}) holds {}", process.pid, process.bytes)
    };
    let listed: Vec<String> = device.used_by.iter().take(NAMED).map(holds).collect();
    if listed.is_empty() { String::new() } else { format!(": {}", listed.join(", ")) }
}

fn need(allocation: &DeviceAllocation) -> String {
    allocation.total_bytes.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::{Gpu, GpuProcess, HostReading};
    use crate::node::account::account;
    use crate::node::testing::{allocation, assignment};

    /// A usable GPU of 24 GiB, and 64 GiB of memory.
    fn reading(free_gib: u64) -> Reading {
        let gpu = Gpu {
            uuid: "GPU-a".into(),
            name: "Simulated".into(),
            backend: DeviceBackend::Simulated,
            total: Bytes::gib(24),
            free: Bytes::gib(free_gib),
            own_process_ids: true,
            ..Gpu::default()
        };
        let host = HostReading { memory: Bytes::gib(64), ..HostReading::default() };
        Reading { gpus: vec![gpu], host, ..Reading::default() }
    }

    fn on(device: &str, gib: u64) -> Assignment {
        let mut assignment = assignment("new");
        assignment.plan.devices = vec![allocation(device, gib)];
        assignment
    }

    fn checked(assignment: &Assignment, reading: &Reading, holdings: &[Holding], policies: &[DevicePolicy]) -> Result<(), Refusal> {
        check(assignment, &Live { reading, account: &account(reading, holdings), holdings, policies })
    }

    fn promise(uid: &str, gib: u64) -> Holding {
        Holding { uid: uid.into(), promised: BTreeMap::from([("GPU-a".to_owned(), Bytes::gib(gib))]), ..Holding::default() }
    }

    #[test]
    fn a_plan_that_holds_is_carried_out_to_the_last_byte() {
        assert_eq!(checked(&on("GPU-a", 20), &reading(20), &[], &[]), Ok(()));
    }

    #[test]
    fn a_device_that_others_filled_since_is_refused_with_the_numbers() {
        let refusal = checked(&on("GPU-a", 16), &reading(12), &[], &[]).unwrap_err();
        assert_eq!(refusal.reason, Reason::DeviceChanged);
        let expected = "GPU-a needs 16.0 GiB and offers 12.0 GiB, 4.00 GiB too little: 20.0 GiB were on offer when it was planned; others use 12.0 GiB of 24.0 GiB";
        assert_eq!(refusal.message, expected);
    }

    #[test]
    fn a_refusal_names_who_holds_the_most_where_that_can_be_seen() {
        let mut crowded = reading(12);
        let process = |pid, gib| GpuProcess { pid, name: format!("p{pid}"), bytes: Some(Bytes::gib(gib)) };
        crowded.gpus[0].processes = vec![process(1, 2), process(2, 7), process(3, 1), process(4, 2)];
        let message = checked(&on("GPU-a", 16), &crowded, &[], &[]).unwrap_err().message;
        assert!(
            message.ends_with("of 24.0 GiB: p2 (process 2) holds 7.00 GiB, p1 (process 1) holds 2.00 GiB, p4 (process 4) holds 2.00 GiB"),
            "{message}"
        );
    }

    #[test]
    fn what_was_let_in_before_counts_though_it_holds_nothing_yet_and_its_own_promise_does_not() {
        assert_eq!(checked(&on("GPU-a", 16), &reading(24), &[promise("earlier", 8)], &[]), Ok(()));
        assert!(checked(&on("GPU-a", 16), &reading(24), &[promise("earlier", 9)], &[]).is_err());
        assert_eq!(checked(&on("GPU-a", 16), &reading(24), &[promise("new", 16)], &[]), Ok(()));
    }

    #[test]
    fn a_device_that_is_not_there_or_not_to_be_used_is_refused() {
        assert_eq!(checked(&on("GPU-b", 1), &reading(24), &[], &[]).unwrap_err().reason, Reason::DeviceChanged);
        let keep_off = [DevicePolicy { uuid: "GPU-a".into(), managed: false, margin_bytes: None }];
        assert_eq!(checked(&on("GPU-a", 1), &reading(24), &[], &keep_off).unwrap_err().reason, Reason::NoUsableGPU);
        let mut no_backend = reading(24);
        no_backend.gpus[0].backend = DeviceBackend::None;
        assert_eq!(checked(&on("GPU-a", 1), &no_backend, &[], &[]).unwrap_err().reason, Reason::NoUsableGPU);
    }

    #[test]
    fn of_the_margin_only_what_an_admin_asked_for_beyond_the_lag_of_published_figures_is_kept() {
        let policy = |gib| [DevicePolicy { uuid: "GPU-a".into(), managed: true, margin_bytes: Some(Bytes::gib(gib)) }];
        assert_eq!(checked(&on("GPU-a", 20), &reading(20), &[], &policy(0)), Ok(()));
        assert!(checked(&on("GPU-a", 20), &reading(20), &[], &policy(2)).is_err());
    }

    #[test]
    fn memory_is_checked_as_vram_is() {
        let refusal = checked(&on(stowage_placement::HOST, 65), &reading(24), &[], &[]).unwrap_err();
        assert_eq!(refusal.reason, Reason::InsufficientMemory);
    }
}
