//! One step for a ModelDeployment: see where its replicas stand, move them, and write the status if that changed it.

use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;

use crate::cache::Key;
use crate::model_deployment::rollout::Situation;
use crate::model_deployment::validate::Wanted;
use crate::model_deployment::{models, notices, rollout, slots, status};
use crate::state::{State, is_live};
use crate::step::{Decision, Step, Write};

pub fn step(state: &State, key: &Key, now: Timestamp) -> Step {
    // One that is being deleted is looked after by the steps of the ModelNodes alone.
    let Some(deployment) = state.deployments.get(key).filter(|deployment| is_live(deployment)) else { return Step::Done };
    let wanted = Wanted::of(deployment);
    let observed = match slots::observe(state, deployment, &wanted, now) {
        Ok(observed) => observed,
        Err(confirm) => return confirm,
    };
    let found = models::find(state, &wanted.origin);
    let situation = Situation { state, deployment, wanted: &wanted, found: &found, now };
    let outcome = rollout::advance(&situation, observed);
    if let Some(remark) = outcome.remark {
        return Step::Remember(remark);
    }
    let status = status::compute(deployment, &wanted, &found, &outcome, now);
    let previous = deployment.status.clone().unwrap_or_default();
    if status::in_order(status.clone()) == status::in_order(previous.clone()) {
        return Step::Done;
    }
    let notices = notices::between(&wanted, &previous, &status);
    let version = deployment.resource_version().unwrap_or_default();
    let write = Write::Status { key: key.clone(), version, status: Box::new(status) };
    Step::Write(Box::new(Decision { write, notices, refusals: outcome.refusals }))
}
