//! Which tests produce which reason of the closed set.

use std::collections::BTreeSet;
use std::thread;

use anyhow::{Result, ensure};
use stowage_placement::Reason::{self, *};

/// Tests of this crate, and the reasons that each brings into the status of a ModelDeployment or of a ModelNode, against a real API server. The cluster of
/// each is held to it when it is stopped ([`crate::Cluster::stop`]): its observer must have seen them there.
pub const TOLD: &[(&str, &[Reason])] = &[
    ("a_context_that_does_not_fit_the_gpu_says_so_with_its_numbers_and_the_largest_that_does", &[Fits, PartlyOnCPU]),
    (
        "a_replica_on_cpu_moves_to_a_gpu_that_frees_and_makes_way_for_one_of_higher_priority",
        &[RunningOnCPU, MovingUp, Preempting, Preempted],
    ),
    ("what_another_process_takes_is_told_with_its_name_and_keeps_replicas_away_until_it_is_freed", &[InsufficientVRAM]),
    ("what_others_take_of_promised_vram_is_told_with_their_names_and_the_replica_serves_on", &[VRAMTakenByOthers]),
    ("a_plan_made_on_figures_that_no_longer_hold_is_refused_with_what_was_seen_and_another_is_made", &[DeviceChanged]),
    ("a_replica_on_a_lost_gpu_is_started_elsewhere_and_it_is_said_why", &[DeviceLost]),
    (
        "each_that_has_no_place_says_why_and_goes_where_it_can_when_that_changes",
        &[NoNodes, NoUsableGPU, NoMatchingNode, InsufficientMemory, InvalidRequest, NodeUnschedulable, ScaledToZero],
    ),
    ("a_deployment_and_a_node_have_only_so_many_places", &[TooManyAssignments]),
    ("what_runs_on_a_node_whose_agent_falls_silent_serves_on_while_it_answers_and_then_elsewhere_and_is_never_doubled", &[NodeNotReady]),
    (
        "each_bad_input_is_told_by_its_reason_and_the_good_deployment_serves_on",
        &[
            UnsupportedArchitecture,
            EngineCannotRun,
            ContextBeyondTrained,
            InvalidModelFile,
            ModelNotFound,
            SourceUnavailable,
            SourceForbidden,
            DigestMismatch,
            LoadFailed,
        ],
    ),
    ("a_file_that_changes_under_a_loaded_model_is_told_and_not_loaded_again_until_it_is_whole", &[ModelFileChanged]),
    ("a_download_that_the_disk_has_no_room_for_says_so_leaves_nothing_and_goes_on_when_there_is_room", &[InsufficientDisk]),
    ("what_is_downloaded_says_so", &[Downloading]),
    ("what_is_paused_loads_or_is_rolled_out_says_so", &[Paused, Pending, Assigned, Loading, RollingOut, Serving, RolledOut, AsAsked]),
    (
        "without_room_for_both_the_old_revision_goes_first_or_the_new_one_waits_and_stops_with_the_old_one_serving",
        &[ReplacingForRoom, WaitingForRoom, ProgressDeadlineExceeded],
    ),
    ("no_request_fails_but_those_on_what_is_killed_or_paused", &[Draining, WorkerSilent, WorkerCrashed]),
    (
        "with_a_played_kubelet_a_worker_that_dies_is_made_anew_and_one_that_memory_ran_out_for_is_placed_anew_with_the_reason",
        &[WorkerStarting, OutOfMemory],
    ),
    (
        "with_a_played_scheduler_and_kubelet_a_pod_that_finds_no_room_or_can_not_start_says_so_in_its_replicas_story",
        &[PodUnschedulable, PodNotStarted],
    ),
];

const SCHEDULER: &str = "agent/engine/src/schedule/tests.rs";

/// Reasons of a single request, which no status ever has: the test of the component that gives it to whoever asked, by its file. It must assert the reason.
pub const ANSWERED: &[(Reason, &str, &str)] = &[
    (PromptTooLong, SCHEDULER, "a_prompt_that_does_not_fit_is_refused_with_both_numbers"),
    (QueueFull, SCHEDULER, "a_full_queue_says_so_and_has_room_again_when_those_who_wait_give_up"),
    (InferenceFailed, SCHEDULER, "a_panic_in_a_step_fails_what_was_being_answered_and_nothing_after"),
];

/// Name of the test that runs on this thread, as the test harness has it; elsewhere the thread's own name.
pub fn current_test() -> String {
    thread::current().name().unwrap_or_default().to_owned()
}

/// An error names the reasons that the test which runs is said to produce and did not.
pub(crate) fn check(told: &BTreeSet<Reason>) -> Result<()> {
    let test = current_test();
    let promised = TOLD.iter().filter(|(name, _)| *name == test).flat_map(|(_, reasons)| *reasons);
    let missing: Vec<&Reason> = promised.filter(|reason| !told.contains(reason)).collect();
    ensure!(missing.is_empty(), "{test} is to bring {missing:?} into a status, and it had only {told:?}");
    Ok(())
}
