//! When a GPU of which nothing is known is measured, and what becomes of that.

use std::collections::BTreeSet;

use super::{Controller, Workers};
use crate::devices::Reading;
use crate::node::calibrator::Ending;
use kube::Resource;
use stowage_placement::{Bytes, DeviceKind};

impl<W: Workers> Controller<W> {
    /// Ends a calibration on a GPU on which something is promised, before anybody asks what that GPU has.
    pub(super) async fn make_way(&mut self, leaving: bool) {
        if self.parts.calibrator.on().is_some_and(|gpu| leaving || self.promised_on().contains(gpu)) {
            tracing::info!("a calibration makes way");
            self.parts.calibrator.make_way().await;
        }
    }

    /// Takes in what came of one, or begins one. Without a ModelNode nobody knows what is promised, nor which GPUs are to be left alone.
    pub(super) async fn calibrate(&mut self, reading: &Reading) {
        if self.object.is_none() {
            return;
        }
        let Some(ending) = self.parts.calibrator.ended().await else {
            let promised_on = self.promised_on();
            return self.parts.calibrator.begin(reading, &self.calibrations, &promised_on);
        };
        match &ending {
            Ending::Measured { gpu, pid, held, allocated } => {
                tracing::info!(gpu = gpu.uuid, %held, %allocated, "a GPU is calibrated");
                self.calibrations.learn_from_process(gpu, *pid, *held, *allocated);
                self.keep_calibrations();
            }
            Ending::Failed { gpu, why } => {
                tracing::warn!(gpu, why, "a GPU could not be calibrated; loads will teach what its driver takes");
            }
        }
        let regarding = self.object.as_ref().map(|object| object.object_ref(&()));
        self.send(regarding.map(|regarding| (ending.event(), regarding)).into_iter().collect());
    }

    /// GPUs on which something is promised or held, or that admins keep Stowage off.
    fn promised_on(&self) -> BTreeSet<String> {
        let spec = self.object.as_ref().map(|object| &object.spec);
        let planned = spec.into_iter().flat_map(|spec| &spec.assignments).flat_map(|assignment| &assignment.plan.devices);
        let planned = planned.filter(|on| on.kind == DeviceKind::Gpu && on.total_bytes > Bytes::ZERO).map(|on| on.id.clone());
        let kept_off = spec.into_iter().flat_map(|spec| &spec.devices).filter(|policy| !policy.managed).map(|policy| policy.uuid.clone());
        let held = self.replicas.holdings().into_iter().flat_map(|holding| {
            let reported = holding.reported.unwrap_or_default();
            holding.promised.into_iter().chain(reported).filter(|(_, bytes)| *bytes > Bytes::ZERO).map(|(device, _)| device)
        });
        planned.chain(kept_off).chain(held).collect()
    }
}
