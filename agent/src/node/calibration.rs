//! What loads show of a kind of GPU: how much a replica takes there beside what the engine allocates, and how far that was from what was predicted.
//!
//! The driver's context and its libraries take what they take; nobody can compute it beforehand, but one load measures it for all that follow. It is
//! learnt by kind of GPU and driver, kept in a file that outlives the agent, and published for the operator to plan with.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use stowage_crds::model_node::{Assignment, Calibration};
use stowage_placement::{Bytes, Defaults};

use crate::devices::{Gpu, Reading};

/// Loads of a kind of GPU that are remembered; older ones may be of another version of the engine.
const REMEMBERED: usize = 16;
/// In place of an assignment's uid, of a process that was started to be measured.
const CALIBRATION: &str = "calibration";
/// How far a prediction from one load alone may be off; with each further load less.
const DOUBT: Bytes = Bytes::mib(64);

/// A replica that has loaded, and the process in which it is.
pub struct Loaded<'a> {
    pub assignment: &'a Assignment,
    pub pid: u32,
}

/// By kind of GPU and driver, what the last loads showed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Calibrations {
    kinds: BTreeMap<String, VecDeque<Load>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Load {
    /// Of the assignment and of its process: a load is learnt from once.
    uid: String,
    pid: u32,
    device: String,
    overhead_bytes: Bytes,
    /// Measured less predicted.
    error_bytes: i64,
}

impl Calibrations {
    /// What the file holds; nothing where there is none.
    pub fn read(path: &Path) -> io::Result<Calibrations> {
        match std::fs::read(path) {
            Ok(text) => Ok(serde_json::from_slice(&text)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Calibrations::default()),
            Err(error) => Err(error),
        }
    }

    /// Replaces the file.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let partial: PathBuf = path.with_extension("partial");
        std::fs::write(&partial, serde_json::to_vec_pretty(self)?)?;
        std::fs::rename(partial, path)
    }

    /// Learns from the loads that it hasn't seen yet; says whether there were any.
    pub fn learn(&mut self, reading: &Reading, loaded: &[Loaded<'_>]) -> bool {
        let mut learnt = false;
        for gpu in &reading.gpus {
            for load in loaded.iter().filter_map(|loaded| measured(gpu, loaded)) {
                learnt |= self.add(gpu, load);
            }
        }
        learnt
    }

    /// Learns from a process that has run every kernel and allocated so much of what it holds.
    pub fn learn_from_process(&mut self, gpu: &Gpu, pid: u32, held: Bytes, allocated: Bytes) {
        let overhead_bytes = held.saturating_sub(allocated);
        let error_bytes = overhead_bytes.0.checked_signed_diff(Defaults::default().overhead_bytes.0).unwrap_or(i64::MAX);
        self.add(gpu, Load { uid: CALIBRATION.to_owned(), pid, device: gpu.uuid.clone(), overhead_bytes, error_bytes });
    }

    /// Whether the load was a new one.
    fn add(&mut self, gpu: &Gpu, load: Load) -> bool {
        let loads = self.kinds.entry(kind(gpu)).or_default();
        if loads.iter().any(|known| (&known.uid, known.pid, &known.device) == (&load.uid, load.pid, &load.device)) {
            return false;
        }
        loads.push_back(load);
        while loads.len() > REMEMBERED {
            loads.pop_front();
        }
        true
    }

    /// What is known of this kind of GPU.
    pub fn of(&self, gpu: &Gpu) -> Option<Calibration> {
        let loads = self.kinds.get(&kind(gpu))?;
        let overheads = loads.iter().map(|load| load.overhead_bytes);
        let (least, most) = (overheads.clone().min()?, overheads.max()?);
        Some(Calibration {
            loads: loads.len() as u32,
            overhead_bytes: most,
            uncertainty_bytes: most.saturating_sub(least).saturating_add(Bytes(DOUBT.0 / loads.len() as u64)),
            last_error_bytes: loads.back()?.error_bytes,
        })
    }
}

/// What is learnt of one holds for the others of its kind.
pub fn kind(gpu: &Gpu) -> String {
    format!("{}, driver {}", gpu.name, gpu.driver)
}

/// What NVML says that the replica's process holds, where it can be told which that is, laid against its plan.
fn measured(gpu: &Gpu, loaded: &Loaded<'_>) -> Option<Load> {
    let Loaded { assignment, pid } = loaded;
    let planned = assignment.plan.devices.iter().find(|on| on.id == gpu.uuid && on.total_bytes > Bytes::ZERO)?;
    let process = gpu.processes.iter().find(|process| gpu.own_process_ids && process.pid == *pid)?;
    let held = process.bytes?;
    let allocated = planned.total_bytes.saturating_sub(planned.overhead_bytes);
    Some(Load {
        uid: assignment.uid.clone(),
        pid: *pid,
        device: gpu.uuid.clone(),
        overhead_bytes: held.saturating_sub(allocated),
        error_bytes: held.0.checked_signed_diff(planned.total_bytes.0)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::GpuProcess;
    use crate::node::testing::{allocation, assignment};

    /// A GPU on which processes hold so many MiB.
    fn gpu(held: &[(u32, u64)]) -> Gpu {
        let process = |(pid, mib): &(u32, u64)| GpuProcess { pid: *pid, name: "worker".into(), bytes: Some(Bytes::mib(*mib)) };
        Gpu {
            uuid: "GPU-a".into(),
            name: "T4".into(),
            driver: "580".into(),
            processes: held.iter().map(process).collect(),
            own_process_ids: true,
            ..Gpu::default()
        }
    }

    /// Planned with 1 GiB of allocations and 512 MiB of overhead.
    fn planned(uid: &str) -> Assignment {
        let mut assignment = assignment(uid);
        let mut on_gpu = allocation("GPU-a", 1);
        on_gpu.overhead_bytes = Bytes::mib(512);
        on_gpu.total_bytes = Bytes::mib(1024 + 512);
        assignment.plan.devices = vec![on_gpu];
        assignment
    }

    fn learn(calibrations: &mut Calibrations, gpu: &Gpu, loads: &[(&Assignment, u32)]) -> bool {
        let loaded: Vec<Loaded<'_>> = loads.iter().map(|(assignment, pid)| Loaded { assignment, pid: *pid }).collect();
        calibrations.learn(&Reading { gpus: vec![gpu.clone()], ..Reading::default() }, &loaded)
    }

    #[test]
    fn the_first_load_shows_what_the_driver_takes_and_how_wrong_the_default_was() {
        let mut calibrations = Calibrations::default();
        let gpu = gpu(&[(7, 1024 + 300)]);
        assert_eq!(calibrations.of(&gpu), None);
        assert!(learn(&mut calibrations, &gpu, &[(&planned("a"), 7)]));
        let expected = Calibration {
            loads: 1,
            overhead_bytes: Bytes::mib(300),
            uncertainty_bytes: DOUBT,
            last_error_bytes: -(Bytes::mib(212).0 as i64),
        };
        assert_eq!(calibrations.of(&gpu), Some(expected));
    }

    #[test]
    fn further_loads_narrow_it_as_far_as_they_agree() {
        let mut calibrations = Calibrations::default();
        let loads = [("a", 7, 300u64), ("b", 8, 310), ("c", 9, 306), ("d", 10, 304)];
        for (uid, pid, overhead) in loads {
            learn(&mut calibrations, &gpu(&[(pid, 1024 + overhead)]), &[(&planned(uid), pid)]);
        }
        let found = calibrations.of(&gpu(&[])).unwrap();
        assert_eq!((found.loads, found.overhead_bytes), (4, Bytes::mib(310)));
        assert_eq!(found.uncertainty_bytes, Bytes(Bytes::mib(10).0 + DOUBT.0 / 4));
    }

    #[test]
    fn a_load_is_learnt_from_once_and_a_worker_that_started_anew_is_another() {
        let mut calibrations = Calibrations::default();
        let assignment = planned("a");
        assert!(learn(&mut calibrations, &gpu(&[(7, 1400)]), &[(&assignment, 7)]));
        assert!(!learn(&mut calibrations, &gpu(&[(7, 1500)]), &[(&assignment, 7)]));
        assert!(learn(&mut calibrations, &gpu(&[(8, 1400)]), &[(&assignment, 8)]));
        for pid in 100..200 {
            learn(&mut calibrations, &gpu(&[(pid, 1400)]), &[(&assignment, pid)]);
        }
        assert_eq!(calibrations.of(&gpu(&[])).unwrap().loads, REMEMBERED as u32);
    }

    #[test]
    fn nothing_is_learnt_where_it_can_not_be_told_what_the_process_holds() {
        let mut calibrations = Calibrations::default();
        let unmatched = Gpu { own_process_ids: false, ..gpu(&[(7, 1400)]) };
        assert!(!learn(&mut calibrations, &unmatched, &[(&planned("a"), 7)]));
        assert!(!learn(&mut calibrations, &gpu(&[(8, 1400)]), &[(&planned("a"), 7)]));
        assert!(!learn(&mut calibrations, &gpu(&[(7, 1400)]), &[(&assignment("on-host"), 7)]));
    }

    #[test]
    fn what_was_learnt_is_there_after_a_restart_and_holds_for_its_kind_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("calibration.json");
        assert_eq!(Calibrations::read(&path).unwrap(), Calibrations::default());
        let mut calibrations = Calibrations::default();
        learn(&mut calibrations, &gpu(&[(7, 1400)]), &[(&planned("a"), 7)]);
        calibrations.write(&path).unwrap();
        let later = Calibrations::read(&path).unwrap();
        assert_eq!(later, calibrations);
        assert_eq!(later.of(&Gpu { driver: "590".into(), ..gpu(&[]) }), None);
        std::fs::write(&path, "not JSON").unwrap();
        assert!(Calibrations::read(&path).is_err());
    }
}
