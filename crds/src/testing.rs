//! Objects for the tests of several crates. Nothing else uses them.

use stowage_placement::{DevicePlan, Request};

use crate::model_deployment::Parameters;
use crate::model_node::{AssignedSource, Assignment, AssignmentState, ModelDeploymentReference};

/// A replica that is to serve, of a ModelDeployment `smol` in namespace `default`, with a plan of no devices and nothing that says how it is asked.
pub fn assignment(uid: &str) -> Assignment {
    Assignment {
        uid: uid.to_owned(),
        replica: "smol-0123456789-0".into(),
        model_deployment: ModelDeploymentReference { namespace: "default".into(), name: "smol".into(), uid: "m".into() },
        revision: "0123456789".into(),
        state: AssignmentState::Serve,
        deadline: None,
        source: AssignedSource::default(),
        request: Request::default(),
        plan: DevicePlan::default(),
        max_num_ctx_on_gpu: None,
        max_num_ctx: None,
        parameters: Parameters::default(),
        system: String::new(),
        template: String::new(),
        aliases: Vec::new(),
        termination_grace_period_seconds: 30,
    }
}
