//! What was asked of the API server and is not answered yet.
//!
//! Other decisions are made meanwhile. They count on what such a write takes, and not on what it gives: that counts once it is written.

use std::collections::BTreeMap;
use std::sync::Arc;

use stowage_crds::ModelDeploymentStatus;

use crate::cache::Key;
use crate::step::{Decision, Item, Write};

/// By what is waited for. At most one request of each, and at most one write of each object.
#[derive(Default)]
pub struct InFlight {
    requests: BTreeMap<Item, Option<Arc<Decision>>>,
}

impl InFlight {
    /// Whether the item's next step has to wait for an answer.
    pub fn is_busy(&self, item: &Item) -> bool {
        self.requests.contains_key(item) || same_object(item).is_some_and(|other| self.requests.contains_key(&other))
    }

    pub fn writes(&mut self, item: Item, decision: Arc<Decision>) {
        self.requests.insert(item, Some(decision));
    }

    pub fn reads(&mut self, item: Item) {
        self.requests.insert(item, None);
    }

    /// It is answered, or is known never to be.
    pub fn ended(&mut self, item: &Item) {
        self.requests.remove(item);
    }

    fn write(&self, item: &Item) -> Option<&Write> {
        self.requests.get(item)?.as_ref().map(|decision| &decision.write)
    }

    /// The statuses that ModelDeployments are about to have.
    pub fn statuses(&self) -> BTreeMap<&Key, &ModelDeploymentStatus> {
        let writes = self.requests.values().flatten().map(|decision| &decision.write);
        writes.filter_map(|write| if let Write::Status { key, status, .. } = write { Some((key, status.as_ref())) } else { None }).collect()
    }

    /// Whether a replica of this ModelDeployment is about to get this slice.
    pub fn makes_slice(&self, owner: &Key, name: &str) -> bool {
        matches!(self.write(&Item::Endpoints(owner.clone())), Some(Write::Slice { key, .. }) if key.name == name)
    }

    /// Whether the worker of this assignment is about to get its Pod.
    pub fn makes_pod(&self, assignment_uid: &str) -> bool {
        matches!(self.write(&Item::Worker(assignment_uid.to_owned())), Some(Write::MakePod { .. }))
    }
}

/// Another item whose steps write the same object.
fn same_object(item: &Item) -> Option<Item> {
    match item {
        Item::NodeMembership(name) => Some(Item::Promises(name.clone())),
        Item::Promises(name) => Some(Item::NodeMembership(name.clone())),
        Item::Deployment(_) | Item::Endpoints(_) | Item::Worker(_) => None,
    }
}
