//! What a replica takes beside what it was predicted to take.

use stowage_placement::Bytes;

/// How far `measured` is from `predicted`, with the share of what was predicted: `40.0 MiB less than predicted (5.7 %)`.
pub fn difference(predicted: Bytes, measured: Bytes) -> String {
    let off = Bytes(measured.0.abs_diff(predicted.0));
    if off == Bytes::ZERO {
        return "as predicted".to_owned();
    }
    let direction = if measured > predicted { "more" } else { "less" };
    // Of what was predicted to take nothing, there is no share.
    let share = if predicted == Bytes::ZERO { String::new() } else { format!(" ({:.1} %)", off.0 as f64 * 100.0 / predicted.0 as f64) };
    format!("{off} {direction} than predicted{share}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_told_with_its_direction_and_its_share_of_what_was_predicted() {
        let of = |predicted, measured| difference(Bytes::mib(predicted), Bytes::mib(measured));
        assert_eq!(of(700, 660), "40.0 MiB less than predicted (5.7 %)");
        assert_eq!(of(700, 707), "7.00 MiB more than predicted (1.0 %)");
        assert_eq!(of(700, 700), "as predicted");
        assert_eq!(of(0, 7), "7.00 MiB more than predicted");
    }
}
