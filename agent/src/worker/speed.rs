//! A measured speed in the words of a status.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use stowage_crds::model_node::Speed;
use stowage_engine::MeasuredSpeed;

/// What is reported of a speed that was measured at `at`, to three digits: more would be noise.
pub(super) fn reported(measured: MeasuredSpeed, at: Timestamp) -> Speed {
    let MeasuredSpeed { prefill, decode, threads } = measured;
    Speed {
        prefill_tokens_per_second: three_digits(prefill),
        decode_tokens_per_second: decode.map(three_digits),
        threads,
        // To the second, as Kubernetes writes times: what comes back from the cluster is what was sent.
        measured_at: Timestamp::from_second(at.as_second()).ok().map(Time),
    }
}

fn three_digits(value: f64) -> f64 {
    // The text of a number is read as the number next to it, so what a status says is the same after a journey as JSON.
    format!("{value:.2e}").parse().unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reported_speed_has_three_digits_and_is_the_same_after_a_journey_as_json() {
        let measured = MeasuredSpeed { prefill: 1234.567, decode: Some(0.098765), threads: 2 };
        let speed = reported(measured, "2030-01-02T03:04:05.678Z".parse().unwrap());
        assert_eq!((speed.prefill_tokens_per_second, speed.decode_tokens_per_second), (1230.0, Some(0.0988)));
        let json = serde_json::to_string(&speed).unwrap();
        assert_eq!(serde_json::from_str::<Speed>(&json).unwrap(), speed, "{json}");
    }
}
