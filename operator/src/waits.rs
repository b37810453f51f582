//! How long users wait: from the moment at which this leader sees a new generation of a ModelDeployment until every replica has a place, and until all serve.

use std::collections::BTreeMap;

use k8s_openapi::jiff::Timestamp;
use stowage_crds::ModelDeployment;
use stowage_crds::conditions::{ConditionType, find};

use crate::cache::Key;
use crate::metrics::Metrics;
use crate::state::State;

const AWAITED: [ConditionType; 2] = [ConditionType::Scheduled, ConditionType::Ready];

/// The waits that go on.
#[derive(Default)]
pub struct Waits {
    waits: BTreeMap<Key, Wait>,
}

struct Wait {
    uid: Option<String>,
    generation: Option<i64>,
    since: Timestamp,
    /// Of [`AWAITED`], what has come.
    reached: [bool; AWAITED.len()],
}

impl Wait {
    fn is_for(&self, deployment: &ModelDeployment) -> bool {
        (&self.uid, self.generation) == (&deployment.metadata.uid, deployment.metadata.generation)
    }
}

/// Whether the condition is true of the spec as it is now.
fn has(deployment: &ModelDeployment, condition: ConditionType) -> bool {
    let found = deployment.status.as_ref().and_then(|status| find(&status.conditions, condition));
    found.is_some_and(|found| found.status == "True" && found.observed_generation == deployment.metadata.generation)
}

impl Waits {
    /// Before deciding: waits begin with generations that were not seen before. What is there already was not waited for.
    pub fn begin(&mut self, state: &State, now: Timestamp) {
        self.waits.retain(|key, wait| state.deployments.get(key).is_some_and(|deployment| wait.is_for(deployment)));
        for (key, deployment) in state.deployments.iter() {
            self.waits.entry(key.clone()).or_insert_with(|| {
                let (uid, generation) = (deployment.metadata.uid.clone(), deployment.metadata.generation);
                Wait { uid, generation, since: now, reached: AWAITED.map(|condition| has(deployment, condition)) }
            });
        }
    }

    /// After deciding: what has come is counted.
    pub fn end(&mut self, state: &State, now: Timestamp, metrics: &Metrics) {
        for (key, wait) in &mut self.waits {
            let Some(deployment) = state.deployments.get(key).filter(|deployment| wait.is_for(deployment)) else { continue };
            for (condition, reached) in AWAITED.into_iter().zip(&mut wait.reached) {
                if !*reached && has(deployment, condition) {
                    *reached = true;
                    metrics.waited(condition, now.duration_since(wait.since).as_secs_f64());
                }
            }
        }
    }
}
