//! What a device offers to the next replica. The operator's ledger and the agent's check use this one function.

use crate::units::Bytes;

/// What a GPU's driver and libraries take for one replica until an agent has measured it. The host has none.
pub const DEFAULT_OVERHEAD: Bytes = Bytes::mib(512);

/// Smallest margin; also the movement of free VRAM below which an agent publishes nothing, so a margin is never below it.
const SMALLEST_MARGIN: Bytes = Bytes::mib(256);

/// What is left free on a device of this size: 2 %, at least 256 MiB.
pub fn default_margin(total: Bytes) -> Bytes {
    SMALLEST_MARGIN.max(Bytes(total.0 / 50))
}

/// `total - used by others - sum over replicas of max(promised, held) - margin`, at least 0.
///
/// `holdings` is `(promised, held)` for each replica: what its assignment was promised on this device (0 for a worker without an assignment),
/// and what it really holds. `used_by_others` is what no replica of ours holds.
pub fn offer(total: Bytes, used_by_others: Bytes, holdings: impl Iterator<Item = (Bytes, Bytes)>, margin: Bytes) -> Bytes {
    let holdings: Bytes = holdings.map(|(promised, held)| promised.max(held)).sum();
    total.saturating_sub(used_by_others).saturating_sub(holdings).saturating_sub(margin)
}

/// The smallest GPU, in whole GiB, that offers this much where nothing else is on it. `None`: more than 64 bits hold.
pub fn smallest_gpu(needed: Bytes) -> Option<Bytes> {
    const GIB: u64 = 1 << 30;
    // What is left after a margin of 2 % is 49 parts of 50.
    let by_share = needed.0.div_ceil(49).checked_mul(50)?;
    let size = by_share.max(needed.checked_add(SMALLEST_MARGIN)?.0).checked_next_multiple_of(GIB)?;
    // The margin is rounded down, so a GPU of one less may just do.
    let smaller = Bytes(size.saturating_sub(GIB));
    let does = smaller.saturating_sub(default_margin(smaller)) >= needed;
    Some(if does && smaller > Bytes::ZERO { smaller } else { Bytes(size) })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_margin_is_two_percent_and_at_least_256_mib() {
        assert_eq!(default_margin(Bytes::gib(8)), Bytes::mib(256));
        assert_eq!(default_margin(Bytes::gib(100)), Bytes::gib(2));
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
        fn the_smallest_gpu_offers_what_is_needed_and_one_of_a_gib_less_does_not(needed in prop_oneof![1u64..1 << 38, (1u64..200).prop_map(|gib| gib << 30)]) {
            let offered = |size: Bytes| offer(size, Bytes::ZERO, std::iter::empty(), default_margin(size));
            let size = smallest_gpu(Bytes(needed)).unwrap();
            prop_assert!(size.0.is_multiple_of(1 << 30) && offered(size) >= Bytes(needed));
            prop_assert!(offered(size.saturating_sub(Bytes::gib(1))) < Bytes(needed));
        }
    }

    #[test]
    fn no_gpu_is_large_enough_for_more_than_64_bits_hold() {
        assert_eq!(smallest_gpu(Bytes::MAX), None);
    }
}
