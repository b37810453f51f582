//! What happened to a replica, for `kubectl describe`. Events follow from two statuses, the one before and the one after; so what an earlier agent
//! told already is not told again.

use stowage_crds::model_deployment::ReplicaState;
use stowage_crds::model_node::ReplicaStatus;

use kube::runtime::events::{Event, EventType};
use stowage_placement::Reason;

/// Percent between two Events of a download.
const DOWNLOAD_STEP: u32 = 25;
/// Longest note that the API server takes, less room for a character cut in half.
const MAX_NOTE: usize = 1000;

/// What there is to tell of a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Happening {
    DownloadProgress(u32),
    Loaded,
    Refused,
    Failed,
    WorkerCrashed,
    Released,
}

impl Happening {
    /// The Event's reason.
    const fn reason(self) -> &'static str {
        match self {
            Happening::DownloadProgress(_) => "DownloadProgress",
            Happening::Loaded => "Loaded",
            Happening::Refused => "Refused",
            Happening::Failed => "Failed",
            Happening::WorkerCrashed => "WorkerCrashed",
            Happening::Released => "Released",
        }
    }

    /// Events of one reason and action are folded into one with a count; a step of a download is none of the others.
    fn action(self) -> String {
        match self {
            Happening::DownloadProgress(percent) => format!("Download{percent}Percent"),
            Happening::Loaded | Happening::Failed => "Load".to_owned(),
            Happening::Refused => "Check".to_owned(),
            Happening::WorkerCrashed => "Restart".to_owned(),
            Happening::Released => "Release".to_owned(),
        }
    }

    const fn event_type(self) -> EventType {
        match self {
            Happening::DownloadProgress(_) | Happening::Loaded | Happening::Released => EventType::Normal,
            Happening::Refused | Happening::Failed | Happening::WorkerCrashed => EventType::Warning,
        }
    }
}

/// What happened between two statuses of a node, in the order of `after`.
pub fn happenings<'a>(before: &[ReplicaStatus], after: &'a [ReplicaStatus]) -> Vec<(Happening, &'a ReplicaStatus)> {
    let mut all = Vec::new();
    for replica in after {
        let previous = before.iter().find(|previous| previous.uid == replica.uid);
        all.extend(crash(previous, replica).into_iter().chain(transition(previous, replica)).map(|happening| (happening, replica)));
    }
    all
}

fn crash(before: Option<&ReplicaStatus>, after: &ReplicaStatus) -> Option<Happening> {
    (after.restarts > before.map_or(0, |before| before.restarts)).then_some(Happening::WorkerCrashed)
}

fn transition(before: Option<&ReplicaStatus>, after: &ReplicaStatus) -> Option<Happening> {
    let entered = before.is_none_or(|before| before.state != after.state);
    match after.state {
        ReplicaState::Ready if entered => Some(Happening::Loaded),
        ReplicaState::Refused if entered => Some(Happening::Refused),
        // A worker that died is told as its restart.
        ReplicaState::Failed if entered && after.reason != Some(Reason::WorkerCrashed) => Some(Happening::Failed),
        ReplicaState::Gone if entered && before.is_some_and(|before| before.state != ReplicaState::Refused) => Some(Happening::Released),
        ReplicaState::Downloading => {
            let step = |status: &ReplicaStatus| status.percent.unwrap_or(0) / DOWNLOAD_STEP * DOWNLOAD_STEP;
            let told = before.filter(|before| before.state == ReplicaState::Downloading).map_or(0, step);
            (step(after) > told).then(|| Happening::DownloadProgress(step(after)))
        }
        _ => None,
    }
}

/// The Event in Kubernetes' form.
pub fn event(happening: Happening, replica: &ReplicaStatus) -> Event {
    let name = &replica.replica;
    let note = match happening {
        Happening::DownloadProgress(percent) => format!("{name}: {percent} % of the model file is here"),
        Happening::Loaded => format!("{name}: loaded, {}, num_ctx {}, serves at {}", replica.processor, replica.num_ctx, replica.address),
        Happening::Refused => format!("{name}: refused: {}", replica.message),
        Happening::Failed => format!("{name}: failed: {}", replica.message),
        Happening::WorkerCrashed => {
            format!("{name}: its worker ended and is started anew, {} times so far: {}", replica.restarts, replica.message)
        }
        Happening::Released => format!("{name}: ended, its bytes are free"),
    };
    Event {
        type_: happening.event_type(),
        reason: happening.reason().to_owned(),
        note: Some(cut(note)),
        action: happening.action(),
        secondary: None,
    }
}

/// As much of a note as the API server takes.
pub fn cut(mut note: String) -> String {
    if note.len() > MAX_NOTE {
        let end = (0..=MAX_NOTE).rev().find(|end| note.is_char_boundary(*end)).unwrap_or(0);
        note.truncate(end);
    }
    note
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replica(state: ReplicaState, percent: u32) -> ReplicaStatus {
        ReplicaStatus { uid: "u".into(), replica: "smol-0".into(), state, percent: Some(percent), ..ReplicaStatus::default() }
    }

    fn told(before: &[ReplicaStatus], after: &ReplicaStatus) -> Vec<Happening> {
        happenings(before, std::slice::from_ref(after)).into_iter().map(|(happening, _)| happening).collect()
    }

    #[test]
    fn a_replica_that_became_ready_is_told_once() {
        let ready = replica(ReplicaState::Ready, 100);
        assert_eq!(told(&[replica(ReplicaState::Loading, 90)], &ready), [Happening::Loaded]);
        assert_eq!(told(std::slice::from_ref(&ready), &ready), []);
    }

    #[test]
    fn a_download_is_told_in_steps_of_a_quarter() {
        let at = |percent| replica(ReplicaState::Downloading, percent);
        assert_eq!(told(&[], &at(10)), []);
        assert_eq!(told(&[at(10)], &at(24)), []);
        assert_eq!(told(&[at(24)], &at(60)), [Happening::DownloadProgress(50)]);
        assert_eq!(told(&[at(60)], &at(70)), []);
    }

    #[test]
    fn a_crash_is_told_even_if_the_worker_is_up_again() {
        let again = ReplicaStatus { restarts: 1, ..replica(ReplicaState::Ready, 100) };
        assert_eq!(told(&[replica(ReplicaState::Ready, 100)], &again), [Happening::WorkerCrashed]);
    }

    #[test]
    fn a_refusals_note_carries_the_numbers_and_is_cut_to_what_the_api_server_takes() {
        let refused = ReplicaStatus { message: "ä".repeat(2000), ..replica(ReplicaState::Refused, 0) };
        let note = event(Happening::Refused, &refused).note.unwrap();
        assert!(note.starts_with("smol-0: refused: ä") && note.len() <= MAX_NOTE);
    }
}
