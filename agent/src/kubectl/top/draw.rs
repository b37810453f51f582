//! A bar for each device, readable without colour.

use stowage_placement::{Bytes, HOST};

use super::snapshot::{DeviceUse, NodeUse, Snapshot};
use crate::kubectl::difference::difference;
use crate::plan::printable;

/// Cells of a bar: with what stands around it, a line is 80 columns wide.
const CELLS: usize = 40;
const HELD: char = '#';
const PROMISED: char = '+';
const OTHERS: char = 'x';
const MARGIN: char = '.';
const LEGEND: &str = "# held by replicas  + promised to them  x used by others  . margin";

pub fn render(snapshot: &Snapshot) -> String {
    if snapshot.nodes.is_empty() {
        return "There is no ModelNode: no agent has reported yet.\n".to_owned();
    }
    let nodes: Vec<String> = snapshot.nodes.iter().map(node).collect();
    printable(&format!("{LEGEND}\n\n{}", nodes.join("\n")))
}

fn node(node: &NodeUse) -> String {
    let message = if node.message.is_empty() { String::new() } else { format!("  {}\n", node.message) };
    format!("{}\n{message}{}", node.node, node.devices.iter().map(device).collect::<String>())
}

fn device(device: &DeviceUse) -> String {
    let simulated = if device.simulated { ", simulated: computed on the CPU" } else { "" };
    let name = if device.name.is_empty() { String::new() } else { format!(" ({}{simulated})", device.name) };
    let taken = device.held_bytes.saturating_add(device.promised_bytes).saturating_add(device.others_bytes);
    let free = if device.unused.is_empty() { format!("{} free", device.free_bytes) } else { "not used".to_owned() };
    let unused = if device.unused.is_empty() { String::new() } else { format!("    {}\n", device.unused) };
    format!(
        "  {}{name}\n  [{}] {taken} of {}, {free}\n{unused}{}{}",
        device.id,
        bar(device),
        device.total_bytes,
        replicas(device),
        others(device)
    )
}

fn replicas(device: &DeviceUse) -> String {
    let longest = device.replicas.iter().map(|replica| replica.replica.chars().count()).max().unwrap_or(0);
    let line = |replica: &super::snapshot::ReplicaUse| {
        let held = if replica.held_bytes == Bytes::ZERO { "-".to_owned() } else { replica.held_bytes.to_string() };
        let difference = replica.measured().map(|measured| format!(", {}", difference(replica.promised_bytes, measured)));
        format!(
            "    {:<longest$}  promised {:>9}  held {held:>9}  {:?}{}\n",
            replica.replica,
            replica.promised_bytes.to_string(),
            replica.state,
            difference.unwrap_or_default()
        )
    };
    device.replicas.iter().map(line).collect()
}

/// Who the others are, of a GPU, as far as that can be seen.
fn others(device: &DeviceUse) -> String {
    let known: Bytes = device.others.iter().map(|process| process.bytes).sum();
    let processes = device.others.iter().map(|process| format!("    {} (process {})  {}\n", process.name, process.pid, process.bytes));
    let rest = device.others_bytes.saturating_sub(known);
    let rest = (rest > Bytes::ZERO && device.id != HOST).then(|| format!("    others that can't be told apart  {rest}\n"));
    processes.chain(rest).collect()
}

/// What is stacked is rounded where it ends, so that rounding never adds up. The margin is what is left in the end.
fn bar(device: &DeviceUse) -> String {
    let stacked = [(HELD, device.held_bytes), (PROMISED, device.promised_bytes), (OTHERS, device.others_bytes)];
    let mut end = Bytes::ZERO;
    let ends = stacked.map(|(glyph, bytes)| {
        end = end.saturating_add(bytes);
        (glyph, cells(end, device.total_bytes))
    });
    let margin = CELLS - cells(device.margin_bytes, device.total_bytes);
    let glyph = |cell: usize| match ends.into_iter().find(|(_, end)| cell < *end) {
        Some((glyph, _)) => glyph,
        None if cell >= margin => MARGIN,
        None => ' ',
    };
    (0..CELLS).map(glyph).collect()
}

fn cells(bytes: Bytes, total: Bytes) -> usize {
    let total = u128::from(total.0.max(1));
    let cells = (u128::from(bytes.0) * CELLS as u128 + total / 2) / total;
    usize::try_from(cells).unwrap_or(CELLS).min(CELLS)
}
