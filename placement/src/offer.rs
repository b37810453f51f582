//! What a device offers to the next replica. The operator's ledger and the agent's check use this one function.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::units::Bytes;

/// What is assumed of devices of which nobody says otherwise. Every report shows it, so that its numbers can be had again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Defaults {
    /// Percent of a device that is left free.
    pub margin_percent: u32,
    /// At least so much is left free.
    pub least_margin_bytes: Bytes,
    /// What a GPU's driver and libraries take for one replica, until an agent has measured it on that kind of GPU.
    pub overhead_bytes: Bytes,
}

/// 2 % and at least 256 MiB are left free; 512 MiB for driver and libraries. The margin is also the movement of free VRAM below which an agent
/// publishes nothing, so it is never set lower.
impl Default for Defaults {
    fn default() -> Defaults {
        Defaults { margin_percent: 2, least_margin_bytes: Bytes::mib(256), overhead_bytes: Bytes::mib(512) }
    }
}

impl Defaults {
    /// What is left free on a device of this size.
    pub fn margin(&self, total: Bytes) -> Bytes {
        let share = u128::from(total.0) * u128::from(self.margin_percent) / 100;
        self.least_margin_bytes.max(Bytes(u64::try_from(share).unwrap_or(u64::MAX)))
    }

    /// How far an overhead that nobody has measured may be off, up or down. CUDA contexts with their libraries were seen to take between a half and
    /// the whole of the default.
    pub fn uncertainty(&self) -> Bytes {
        Bytes(self.overhead_bytes.0 / 2)
    }

    /// What a device of this size offers where nothing else is on it.
    pub fn offered_by(&self, total: Bytes) -> Bytes {
        total.saturating_sub(self.margin(total))
    }

    /// The smallest GPU, in whole GiB, that offers this much where nothing else is on it. `None`: there is none that 64 bits can count.
    pub fn smallest_gpu(&self, needed: Bytes) -> Option<Bytes> {
        const GIB: u64 = 1 << 30;
        let kept = u64::from(100u32.checked_sub(self.margin_percent).filter(|kept| *kept > 0)?);
        let by_share = u64::try_from((u128::from(needed.0) * 100).div_ceil(u128::from(kept))).ok()?;
        let size = by_share.max(needed.checked_add(self.least_margin_bytes)?.0).checked_next_multiple_of(GIB)?;
        // The margin is rounded down, so a GPU of one less may just do.
        let smaller = Bytes(size.saturating_sub(GIB));
        let does = smaller > Bytes::ZERO && self.offered_by(smaller) >= needed;
        Some(if does { smaller } else { Bytes(size) })
    }
}

/// `total - used by others - sum over replicas of max(promised, held) - margin`, at least 0.
///
/// `holdings` is `(promised, held)` for each replica: what its assignment was promised on this device (0 for a worker without an assignment),
/// and what it really holds. `used_by_others` is what no replica of ours holds.
pub fn offer(total: Bytes, used_by_others: Bytes, holdings: impl Iterator<Item = (Bytes, Bytes)>, margin: Bytes) -> Bytes {
    total.saturating_sub(taken(used_by_others, holdings, margin))
}

/// What must be given back on this device, in bytes, before it offers any: 0 where it is not more than full. Somebody who holds more than this gives
/// back what they hold less this; see [`crate::device_plan::Holder`]. The arguments are those of [`offer`].
pub fn overdrawn(total: Bytes, used_by_others: Bytes, holdings: impl Iterator<Item = (Bytes, Bytes)>, margin: Bytes) -> Bytes {
    taken(used_by_others, holdings, margin).saturating_sub(total)
}

fn taken(used_by_others: Bytes, holdings: impl Iterator<Item = (Bytes, Bytes)>, margin: Bytes) -> Bytes {
    let holdings: Bytes = holdings.map(|(promised, held)| promised.max(held)).sum();
    used_by_others.saturating_add(holdings).saturating_add(margin)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_margin_is_two_percent_and_at_least_256_mib() {
        assert_eq!(Defaults::default().margin(Bytes::gib(8)), Bytes::mib(256));
        assert_eq!(Defaults::default().margin(Bytes::gib(100)), Bytes::gib(2));
    }

    #[test]
    fn a_replica_counts_what_it_was_promised_or_holds_whichever_is_more() {
        let holdings = [(Bytes::gib(4), Bytes::gib(1)), (Bytes::gib(1), Bytes::gib(2)), (Bytes::ZERO, Bytes::gib(3))];
        assert_eq!(offer(Bytes::gib(24), Bytes::gib(1), holdings.into_iter(), Bytes::gib(1)), Bytes::gib(24 - 1 - 4 - 2 - 3 - 1));
    }

    #[test]
    fn a_device_that_is_more_than_full_offers_nothing() {
        let holdings = [(Bytes::gib(20), Bytes::gib(1)), (Bytes::MAX, Bytes::ZERO)];
        assert_eq!(offer(Bytes::gib(24), Bytes::gib(30), holdings.into_iter(), Bytes::gib(1)), Bytes::ZERO);
    }

    proptest! {
        #[test]
        fn what_holders_give_back_is_never_more_than_is_offered_once_they_are_gone(
            total in 0u64..100,
            used_by_others in 0u64..50,
            holdings in proptest::collection::vec((0u64..50, 0u64..50), 1..6),
            leaving in any::<u32>(),
        ) {
            let holdings: Vec<(Bytes, Bytes)> = holdings.into_iter().map(|(promised, held)| (Bytes(promised), Bytes(held))).collect();
            let offered = |of: &[(Bytes, Bytes)]| offer(Bytes(total), Bytes(used_by_others), of.iter().copied(), Bytes(3));
            let overdrawn = overdrawn(Bytes(total), Bytes(used_by_others), holdings.iter().copied(), Bytes(3));
            let leaves = |index: usize| leaving & (1 << index) != 0;
            let gone: Vec<Bytes> = (0..holdings.len()).filter(|i| leaves(*i)).map(|i| holdings[i].0.max(holdings[i].1)).collect();
            let staying: Vec<(Bytes, Bytes)> = (0..holdings.len()).filter(|i| !leaves(*i)).map(|i| holdings[i]).collect();
            let given_back: Bytes = gone.iter().map(|bytes| bytes.saturating_sub(overdrawn)).sum();
            let said = offered(&holdings).saturating_add(given_back);
            prop_assert!(said <= offered(&staying));
            prop_assert!(said == offered(&staying) || gone.len() > 1 && overdrawn > Bytes::ZERO);
        }

        #[test]
        fn the_smallest_gpu_offers_what_is_needed_and_one_of_a_gib_less_does_not(
            needed in prop_oneof![1u64..1 << 38, (1u64..200).prop_map(|gib| gib << 30)],
            margin_percent in 0u32..100,
            least_mib in 0u64..2000,
        ) {
            let defaults = Defaults { margin_percent, least_margin_bytes: Bytes::mib(least_mib), ..Defaults::default() };
            let size = defaults.smallest_gpu(Bytes(needed)).unwrap();
            prop_assert!(size.0.is_multiple_of(1 << 30) && defaults.offered_by(size) >= Bytes(needed));
            prop_assert!(defaults.offered_by(size.saturating_sub(Bytes::gib(1))) < Bytes(needed));
        }
    }

    #[test]
    fn no_gpu_is_large_enough_for_more_than_64_bits_hold_or_where_everything_is_left_free() {
        assert_eq!(Defaults::default().smallest_gpu(Bytes::MAX), None);
        assert_eq!(Defaults { margin_percent: 100, ..Defaults::default() }.smallest_gpu(Bytes(1)), None);
    }
}
