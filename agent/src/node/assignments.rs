//! From what the operator assigned and what is known of each replica, what is to be done next. Pure: the controller carries it out.

use std::collections::BTreeMap;

use stowage_crds::model_node::{Assignment, AssignmentState};

/// What the agent knows of one replica.
#[derive(Clone, Debug, PartialEq)]
pub enum Known {
    /// Its plan did not hold; the operator decides again, and sends another assignment.
    Refused,
    /// Nothing of it is left.
    Gone,
    /// The supervisor has it, and was last told this; `None` for a worker that was found running.
    Held(Option<Box<Assignment>>),
    /// The supervisor has it, and was told to end it because nobody assigned it.
    Ending,
}

/// One thing to do, with the assignment that asks for it.
#[derive(Clone, Debug, PartialEq)]
pub enum Action<'a> {
    /// Get the file, load it, serve it.
    Start(&'a Assignment),
    /// Serve on with other defaults.
    Update(&'a Assignment),
    /// Take no new requests.
    Drain(&'a Assignment),
    /// Take no new requests, and end it by its deadline.
    Release(&'a Assignment),
    /// End a worker that nobody assigned.
    End(&'a str),
    /// Nothing of it is left, and that is to be reported.
    ReportGone(&'a str),
    /// The operator dropped the assignment: nothing more is to be said of it.
    Forget(&'a str),
}

/// What is to be done, in the order of the assignments, what gives bytes back first.
pub fn actions<'a>(assignments: &'a [Assignment], known: &'a BTreeMap<String, Known>) -> Vec<Action<'a>> {
    let mut actions: Vec<Action<'a>> = known
        .iter()
        .filter(|(uid, _)| !assignments.iter().any(|assignment| &assignment.uid == *uid))
        .filter_map(|(uid, known)| match known {
            // A worker whose assignment is gone is nobody's.
            Known::Held(_) => Some(Action::End(uid)),
            Known::Refused | Known::Gone => Some(Action::Forget(uid)),
            Known::Ending => None,
        })
        .collect();
    actions.extend(assignments.iter().filter_map(|assignment| action(assignment, known.get(&assignment.uid))));
    actions.sort_by_key(|action| matches!(action, Action::Start(_)));
    actions
}

fn action<'a>(assignment: &'a Assignment, known: Option<&Known>) -> Option<Action<'a>> {
    use AssignmentState::{Drain, Release, Serve};
    match (assignment.state, known) {
        (Serve, None) => Some(Action::Start(assignment)),
        (Serve, Some(Known::Held(Some(told)))) => (told.as_ref() != assignment).then_some(Action::Update(assignment)),
        (Serve, Some(Known::Held(None))) => Some(Action::Update(assignment)),
        // A refusal stands until the operator has decided anew.
        (Serve, Some(Known::Refused | Known::Gone)) | (Drain | Release, Some(Known::Gone)) | (_, Some(Known::Ending)) => None,
        // Nothing was ever loaded, or it ended while no agent ran: no bytes to wait for.
        (Drain | Release, None) | (Release, Some(Known::Refused)) => Some(Action::ReportGone(&assignment.uid)),
        (Drain, Some(Known::Refused)) => None,
        (Drain, Some(Known::Held(told))) => differs(assignment, told.as_deref()).then_some(Action::Drain(assignment)),
        (Release, Some(Known::Held(told))) => differs(assignment, told.as_deref()).then_some(Action::Release(assignment)),
    }
}

/// Whether the state or its deadline is news.
fn differs(assignment: &Assignment, told: Option<&Assignment>) -> bool {
    told.is_none_or(|told| told.state != assignment.state || told.deadline != assignment.deadline)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::testing::assignment;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    fn in_state(uid: &str, state: AssignmentState) -> Assignment {
        Assignment { state, ..assignment(uid) }
    }

    fn known(uid: &str, known: Known) -> BTreeMap<String, Known> {
        BTreeMap::from([(uid.to_owned(), known)])
    }

    fn held(assignment: &Assignment) -> Known {
        Known::Held(Some(Box::new(assignment.clone())))
    }

    #[test]
    fn a_new_assignment_is_started_and_one_that_is_served_as_told_needs_nothing() {
        let serve = [assignment("a")];
        assert_eq!(actions(&serve, &BTreeMap::new()), [Action::Start(&serve[0])]);
        assert_eq!(actions(&serve, &known("a", held(&serve[0]))), []);
    }

    #[test]
    fn other_defaults_update_a_replica_that_runs() {
        let changed = [Assignment { system: "Be brief.".into(), ..assignment("a") }];
        assert_eq!(actions(&changed, &known("a", held(&assignment("a")))), [Action::Update(&changed[0])]);
    }

    #[test]
    fn a_worker_that_was_found_running_is_told_its_assignment() {
        let serve = [assignment("a")];
        assert_eq!(actions(&serve, &known("a", Known::Held(None))), [Action::Update(&serve[0])]);
    }

    #[test]
    fn a_refused_assignment_is_not_tried_again_and_once_released_it_is_gone() {
        let refused = known("a", Known::Refused);
        assert_eq!(actions(&[assignment("a")], &refused), []);
        assert_eq!(actions(&[in_state("a", AssignmentState::Release)], &refused), [Action::ReportGone("a")]);
    }

    #[test]
    fn a_release_is_told_once_and_its_end_reported_until_the_assignment_is_dropped() {
        let release = [in_state("a", AssignmentState::Release)];
        let serving = known("a", held(&assignment("a")));
        assert_eq!(actions(&release, &serving), [Action::Release(&release[0])]);
        assert_eq!(actions(&release, &known("a", held(&release[0]))), []);
        assert_eq!(actions(&release, &known("a", Known::Gone)), []);
        assert_eq!(actions(&[], &known("a", Known::Gone)), [Action::Forget("a")]);
    }

    #[test]
    fn releasing_what_never_started_reports_it_gone() {
        assert_eq!(actions(&[in_state("a", AssignmentState::Release)], &BTreeMap::new()), [Action::ReportGone("a")]);
        assert_eq!(actions(&[in_state("a", AssignmentState::Drain)], &BTreeMap::new()), [Action::ReportGone("a")]);
    }

    #[test]
    fn a_drain_is_told_once_and_again_when_its_deadline_moves() {
        let drain = [in_state("a", AssignmentState::Drain)];
        assert_eq!(actions(&drain, &known("a", held(&assignment("a")))), [Action::Drain(&drain[0])]);
        assert_eq!(actions(&drain, &known("a", held(&drain[0]))), []);
        let moved = [Assignment { deadline: Some(Time(jiff::Timestamp::UNIX_EPOCH)), ..drain[0].clone() }];
        assert_eq!(actions(&moved, &known("a", held(&drain[0]))), [Action::Drain(&moved[0])]);
    }

    #[test]
    fn a_worker_without_an_assignment_is_ended_before_anything_is_started() {
        let serve = [assignment("new")];
        let orphan = known("old", Known::Held(None));
        assert_eq!(actions(&serve, &orphan), [Action::End("old"), Action::Start(&serve[0])]);
        assert_eq!(actions(&[], &known("old", Known::Ending)), []);
    }
}
