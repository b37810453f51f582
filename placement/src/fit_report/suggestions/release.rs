//! Who would have to leave.
//!
//! Holders leave as a whole, and give back what they hold on every GPU of the node. One of them is better than several, and fewer bytes are better
//! than more.

use std::collections::BTreeMap;

use crate::device_plan::{Device, NodeDevices, SizedPlanner, Who};
use crate::fit_report::Suggestion;
use crate::fit_report::considered::Considered;
use crate::fit_report::suggestions::met_on;
use crate::reason::Reason;
use crate::units::Bytes;

/// Of so many holders every set is tried. Of more, the largest are taken until it fits, and of those, the largest first, the ones are left out again
/// without which it fits as well.
const EVERY_SET_OF: usize = 6;

/// The fewest bytes, in whole holders, without which the request is met as wished.
pub(super) fn of(considered: &Considered<'_>) -> Option<Suggestion> {
    if !matches!(considered.outcome.reason(), Reason::InsufficientVRAM | Reason::InsufficientMemory) {
        return None;
    }
    let planner = considered.planner();
    let holders = holders(&planner.gpus);
    if holders.is_empty() {
        return None;
    }
    let sized = planner.sized(&considered.request).ok()?;
    let wished = considered.demand.wished(sized.total_layers());
    let offers = planner.gpus.iter().map(|gpu| gpu.offered).collect();
    let chosen = Room { sized: &sized, wished, offers, holders: &holders }.fewest()?;
    let leaving: Vec<&OnNode<'_>> = chosen.iter().map(|index| &holders[*index]).collect();
    let names: Vec<String> = leaving.iter().map(|holder| name(holder.who, &holders)).collect();
    let message = message(&names, &leaving, &planner.gpus);
    met_on(&without(considered.devices, &leaving), considered, "release", names.join(", "), message)
}

/// Somebody, with all that they hold on a node.
struct OnNode<'a> {
    who: &'a Who,
    total: Bytes,
    /// By index of the GPU.
    on: Vec<(usize, Bytes)>,
}

/// Those with the fewest bytes first; equal ones are told apart by who they are.
fn holders<'a>(gpus: &[&'a Device]) -> Vec<OnNode<'a>> {
    let mut by_who: BTreeMap<&Who, Vec<(usize, Bytes)>> = BTreeMap::new();
    for (index, gpu) in gpus.iter().enumerate() {
        for holder in gpu.holders.iter().filter(|holder| holder.bytes > Bytes::ZERO) {
            by_who.entry(&holder.who).or_default().push((index, holder.bytes));
        }
    }
    let on_node = |(who, on): (&'a Who, Vec<(usize, Bytes)>)| OnNode { who, total: on.iter().map(|(_, bytes)| *bytes).sum(), on };
    let mut holders: Vec<OnNode<'a>> = by_who.into_iter().map(on_node).collect();
    holders.sort_by_key(|holder| holder.total);
    holders
}

/// What the layers wished could be given.
struct Room<'a> {
    sized: &'a SizedPlanner<'a>,
    wished: u32,
    offers: Vec<Bytes>,
    /// The smallest first.
    holders: &'a [OnNode<'a>],
}

impl Room<'_> {
    /// Whether it fits once these are gone. It still does when more are.
    fn fits_without(&self, leaving: &[usize]) -> bool {
        let mut offers = self.offers.clone();
        for (gpu, bytes) in leaving.iter().flat_map(|index| &self.holders[*index].on) {
            offers[*gpu] = offers[*gpu].saturating_add(*bytes);
        }
        self.sized.gpus_would_hold(self.wished, &offers)
    }

    fn fewest(&self) -> Option<Vec<usize>> {
        let all: Vec<usize> = (0..self.holders.len()).collect();
        if !self.sized.host_fits(self.wished) || !self.fits_without(&all) {
            return None;
        }
        let one = all.iter().map(|holder| vec![*holder]).find(|one| self.fits_without(one));
        one.or_else(|| if all.len() <= EVERY_SET_OF { self.smallest_set() } else { Some(self.large_ones(all)) })
    }

    /// The set with the fewest bytes; of equal ones, that of the fewest holders.
    fn smallest_set(&self) -> Option<Vec<usize>> {
        let count = self.holders.len();
        let members = |set: u32| (0..count).filter(move |index| set & (1 << index) != 0);
        let bytes = |set: u32| -> Bytes { members(set).map(|index| self.holders[index].total).sum() };
        let mut sets: Vec<u32> = (1..1 << count).collect();
        sets.sort_by_key(|set| (bytes(*set), set.count_ones(), *set));
        sets.into_iter().map(|set| members(set).collect()).find(|set: &Vec<usize>| self.fits_without(set))
    }

    fn large_ones(&self, mut all: Vec<usize>) -> Vec<usize> {
        all.reverse();
        let counts: Vec<usize> = (1..all.len()).collect();
        let enough = counts.partition_point(|count| !self.fits_without(&all[..*count])) + 1;
        let mut needed = all[..enough].to_vec();
        for holder in &all[..enough] {
            let others: Vec<usize> = needed.iter().copied().filter(|other| other != holder).collect();
            if self.fits_without(&others) {
                needed = others;
            }
        }
        needed
    }
}

/// The node once these are gone.
fn without(devices: &NodeDevices, leaving: &[&OnNode<'_>]) -> NodeDevices {
    let mut devices = devices.clone();
    for gpu in &mut devices.gpus {
        let leaves = |who: &Who| leaving.iter().any(|holder| holder.who == who);
        let given_back: Bytes = gpu.holders.iter().filter(|holder| leaves(&holder.who)).map(|holder| holder.bytes).sum();
        gpu.offered = gpu.offered.saturating_add(given_back);
        gpu.holders.retain(|holder| !leaves(&holder.who));
    }
    devices
}

/// `default/llama-70b`, with the replica where several are of that deployment, or `process 4711 (python3)`.
fn name(who: &Who, holders: &[OnNode<'_>]) -> String {
    match who {
        Who::Process { pid, name } => format!("process {pid} ({name})"),
        Who::Replica { namespace, deployment, replica } => {
            let beside =
                |other: &Who| matches!(other, Who::Replica { namespace: n, deployment: d, .. } if n == namespace && d == deployment);
            match holders.iter().filter(|holder| beside(holder.who)).count() {
                1 => format!("{namespace}/{deployment}"),
                _ => format!("{namespace}/{deployment} ({replica})"),
            }
        }
    }
}

/// "stops default/llama-70b, which gives back 20.0 GiB on gpu0 and 3.00 GiB on gpu1; process 4711 (python3), which gives back 512.0 MiB on gpu0"
fn message(names: &[String], leaving: &[&OnNode<'_>], gpus: &[&Device]) -> String {
    let on = |(gpu, bytes): &(usize, Bytes)| format!("{bytes} on {}", gpus[*gpu].id);
    let one = |(name, holder): (&String, &&OnNode<'_>)| {
        format!("{name}, which gives back {}", holder.on.iter().map(on).collect::<Vec<_>>().join(" and "))
    };
    format!("stops {}", names.iter().zip(leaving).map(one).collect::<Vec<_>>().join("; "))
}

#[cfg(test)]
mod tests;
