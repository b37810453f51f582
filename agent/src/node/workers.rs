//! What the controller asks of whoever runs the workers: the supervisor, or a recording of it in tests.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use stowage_crds::model_node::Assignment;
use tokio::sync::{oneshot, watch};

use crate::worker::{Refusal, view::Views};

/// Gets model files, starts workers, starts them anew when they die, adopts those of a predecessor.
///
/// No call waits: what becomes of it is heard through [`Workers::views`], in which a replica stays until it is forgotten.
pub trait Workers: Send + Sync + 'static {
    fn start(&self, assignment: &Assignment);
    /// Tells a running worker its assignment as it is now.
    fn update(&self, assignment: &Assignment);
    fn drain(&self, assignment: &Assignment);
    /// Ends a worker, at the deadline whatever it does; asked again, it changes nothing but the deadline.
    fn release(&self, uid: &str, deadline: Option<Time>);
    /// A replica that is gone need not be remembered.
    fn forget(&self, uid: &str);
    /// Workers that a predecessor left running are in it from the start.
    fn views(&self) -> watch::Receiver<Views>;
}

/// A worker asks whether it may load now.
#[derive(Debug)]
pub struct GateRequest {
    pub uid: String,
    pub answer: oneshot::Sender<Result<(), Refusal>>,
}
