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

#[cfg(test)]
mod tests {
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
}
