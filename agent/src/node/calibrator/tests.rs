use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::*;
use crate::devices::GpuProcess;

fn gpu(free_mib: u64) -> Gpu {
    Gpu {
        uuid: "GPU-a".into(),
        name: "T4".into(),
        driver: "580".into(),
        backend: DeviceBackend::Simulated,
        total: Bytes::gib(16),
        free: Bytes::mib(free_mib),
        own_process_ids: true,
        ..Gpu::default()
    }
}

fn reading(gpu: Gpu) -> Reading {
    Reading { gpus: vec![gpu], ..Reading::default() }
}

/// Starts a script in place of the agent.
fn calibrator(folder: &Path, script: &str) -> Calibrator {
    let executable = folder.join("agent");
    std::fs::write(&executable, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&executable, std::fs::Permissions::from_mode(0o700)).unwrap();
    let settings =
        Settings { executable, folder: folder.join("models"), unfinished: folder.join("unfinished.json"), confine: Confine::Off };
    Calibrator::new(Some(settings))
}

fn begin(calibrator: &mut Calibrator) {
    calibrator.begin(&reading(gpu(8192)), &Calibrations::default(), &BTreeSet::new());
}

fn pid(calibrator: &Calibrator) -> u32 {
    calibrator.under_way.as_ref().unwrap().pid
}

#[tokio::test]
async fn what_its_process_holds_is_measured_after_every_kernel_was_run_and_counts_as_free() {
    let folder = tempfile::tempdir().unwrap();
    let mut calibrator = calibrator(folder.path(), "echo '{\"allocated\":4194304}'; cat");
    begin(&mut calibrator);
    let pid = pid(&calibrator);
    let process = GpuProcess { pid, name: "stowage-agent".into(), bytes: Some(Bytes::mib(304)) };
    let with = || reading(Gpu { processes: vec![process.clone()], ..gpu(8000) });

    let mut early = with();
    calibrator.take_out(&mut early, None);
    assert_eq!((early.gpus[0].free, early.gpus[0].processes.len()), (Bytes::mib(8304), 0));
    assert_eq!(calibrator.ended().await, None, "it had not said that it was through");

    calibrator.changed().await;
    let said = calibrator.said();
    calibrator.take_out(&mut with(), said);
    let ending = calibrator.ended().await.unwrap();
    let Ending::Measured { held, allocated, .. } = &ending else { panic!("{ending:?}") };
    assert_eq!((*held, *allocated), (Bytes::mib(304), Bytes::mib(4)));
    assert!(ending.event().note.unwrap().ends_with("300.0 MiB is what its driver takes"));
    assert_eq!(calibrator.on(), None);
    assert!(!Path::new(&format!("/proc/{pid}")).exists(), "its process has ended");
    assert!(!folder.path().join("models").exists() && !folder.path().join("unfinished.json").exists());
}

#[tokio::test]
async fn one_that_fails_is_told_with_why_and_not_tried_again() {
    let folder = tempfile::tempdir().unwrap();
    for (script, why) in [("echo '{\"failed\":\"no kernels\"}'", "no kernels"), ("exit 1", "without a word")] {
        let mut calibrator = calibrator(folder.path(), script);
        begin(&mut calibrator);
        calibrator.changed().await;
        let ending = calibrator.ended().await.unwrap();
        assert!(ending.event().note.unwrap().contains(why), "{ending:?}");
        begin(&mut calibrator);
        assert_eq!(calibrator.on(), None);
    }
}

#[tokio::test]
async fn it_makes_way_at_once_and_may_be_begun_again() {
    let folder = tempfile::tempdir().unwrap();
    let mut calibrator = calibrator(folder.path(), "cat");
    begin(&mut calibrator);
    let first = pid(&calibrator);
    calibrator.make_way().await;
    assert!(!Path::new(&format!("/proc/{first}")).exists());
    begin(&mut calibrator);
    assert_ne!(pid(&calibrator), first);
}

#[tokio::test]
async fn an_agent_that_ended_in_the_midst_of_it_twice_leaves_it_alone() {
    let folder = tempfile::tempdir().unwrap();
    for expected in [true, true, false] {
        let mut calibrator = calibrator(folder.path(), "cat");
        begin(&mut calibrator);
        assert_eq!(calibrator.on().is_some(), expected);
    }
}

#[test]
fn only_a_gpu_is_calibrated_that_is_computed_on_has_room_and_of_which_nothing_is_known() {
    let nothing = Calibrations::default();
    assert!(is_wanted(&gpu(8192), &nothing));
    assert!(!is_wanted(&gpu(500), &nothing));
    assert!(!is_wanted(&Gpu { backend: DeviceBackend::None, ..gpu(8192) }, &nothing));
    assert!(!is_wanted(&Gpu { own_process_ids: false, ..gpu(8192) }, &nothing), "whose bytes are whose can't be told");
    let mut known = Calibrations::default();
    known.learn_from_process(&gpu(8192), 7, Bytes::mib(304), Bytes::mib(4));
    assert!(!is_wanted(&gpu(8192), &known));
    let calibration = known.of(&gpu(8192)).unwrap();
    assert_eq!((calibration.overhead_bytes, calibration.last_error_bytes), (Bytes::mib(300), -(Bytes::mib(212).0 as i64)));
}
