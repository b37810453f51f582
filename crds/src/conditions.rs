//! Conditions: which there are, and how one is set so that `lastTransitionTime` moves only when the status does.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use stowage_placement::Reason;

/// The conditions that a ModelDeployment has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ConditionType {
    /// As many replicas serve as are asked for.
    Ready,
    /// Every replica that is asked for has a place.
    Scheduled,
    /// The model's file lies on every node that it was placed on.
    ModelCached,
    /// A rollout goes on, or is complete; False when it can't go on.
    Progressing,
    /// It serves, but not as was preferred.
    Degraded,
}

impl ConditionType {
    pub const fn as_str(self) -> &'static str {
        match self {
            ConditionType::Ready => "Ready",
            ConditionType::Scheduled => "Scheduled",
            ConditionType::ModelCached => "ModelCached",
            ConditionType::Progressing => "Progressing",
            ConditionType::Degraded => "Degraded",
        }
    }
}

/// One condition's new value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observation {
    pub condition: ConditionType,
    pub status: bool,
    pub reason: Reason,
    pub message: String,
}

/// Sets the conditions to what was observed of `generation` at `now`. A condition whose status did not change keeps its transition time.
pub fn set(conditions: &mut Vec<Condition>, observations: &[Observation], generation: Option<i64>, now: Time) {
    for Observation { condition, status, reason, message } in observations {
        let status = if *status { "True" } else { "False" };
        let previous = conditions.iter().position(|c| c.type_ == condition.as_str());
        let last_transition_time = match previous {
            Some(index) if conditions[index].status == status => conditions[index].last_transition_time.clone(),
            _ => now.clone(),
        };
        let new = Condition {
            type_: condition.as_str().to_owned(),
            status: status.to_owned(),
            reason: reason.as_str().to_owned(),
            message: message.clone(),
            observed_generation: generation,
            last_transition_time,
        };
        match previous {
            Some(index) => conditions[index] = new,
            None => conditions.push(new),
        }
    }
}

pub fn find(conditions: &[Condition], condition: ConditionType) -> Option<&Condition> {
    conditions.iter().find(|c| c.type_ == condition.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(second: i64) -> Time {
        Time(k8s_openapi::jiff::Timestamp::from_second(second).unwrap())
    }

    fn ready(status: bool, message: &str) -> Observation {
        Observation { condition: ConditionType::Ready, status, reason: Reason::Serving, message: message.to_owned() }
    }

    #[test]
    fn the_transition_time_moves_only_when_the_status_does() {
        let mut conditions = Vec::new();
        set(&mut conditions, &[ready(true, "a")], Some(1), time(1));
        set(&mut conditions, &[ready(true, "b")], Some(2), time(2));
        assert_eq!(conditions[0].last_transition_time, time(1));
        assert_eq!(conditions[0].message, "b");
        set(&mut conditions, &[ready(false, "c")], Some(2), time(3));
        assert_eq!(conditions[0].last_transition_time, time(3));
        assert_eq!(conditions.len(), 1);
    }
}
