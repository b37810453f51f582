//! What a decision can be: nothing, a closer look first, or one write.

use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::jiff::Timestamp;
use stowage_crds::ModelDeploymentStatus;
use stowage_crds::model_node::Assignment;
use stowage_placement::{Bytes, Reason, Refusal};

use crate::cache::{Key, Revision};
use crate::state::{Memory, Refused, Rejected};

/// What a step is made for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Item {
    /// Whether a node has the ModelNode that it should have.
    NodeMembership(String),
    /// The promises in a ModelNode.
    Promises(String),
    /// Places and status of a ModelDeployment.
    Deployment(Key),
    /// Its Service and EndpointSlices.
    Endpoints(Key),
    /// The Pod of the worker that carries out the assignment of this uid.
    Worker(String),
}

/// The next thing to do for one item.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// It is as it should be.
    Done,
    /// Read this uncached first: what is known of it may be older than what is known of the object it is joined with, which was written at `as_of`.
    Confirm {
        target: Target,
        as_of: Revision,
    },
    Write(Box<Decision>),
    /// Nothing is written; it is remembered, and the next step is made knowing it.
    Remember(Remark),
}

/// What one leader remembers for itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Remark {
    /// A GPU has room for a replica of the ModelDeployment of this uid that runs on CPU, in part or wholly.
    RoomAbove { uid: String },
    /// It has none any more.
    NoRoomAbove { uid: String },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    Deployment(Key),
    ModelNode(String),
    Slice(Key),
    Pod(Key),
}

/// One write, and what follows once it succeeded.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    pub write: Write,
    pub notices: Vec<Notice>,
    pub refusals: Vec<RefusalSeen>,
}

impl Step {
    pub fn write(write: Write) -> Step {
        Step::Write(Box::new(Decision { write, notices: Vec::new(), refusals: Vec::new() }))
    }
}

/// A write; conditional on the version where it changes what exists.
#[derive(Clone, Debug, PartialEq)]
pub enum Write {
    MakeModelNode {
        name: String,
        node_uid: String,
    },
    RemoveModelNode {
        name: String,
        uid: String,
        version: String,
    },
    /// All assignments of a ModelNode.
    Promises(Box<Promises>),
    /// All of a ModelDeployment's status.
    Status {
        key: Key,
        version: String,
        status: Box<ModelDeploymentStatus>,
    },
    Service {
        key: Key,
        /// Of the Service that is there; `None` where none is known.
        version: Option<String>,
        service: Box<Service>,
    },
    Slice {
        key: Key,
        /// Of the slice that is there; `None` where there is to be none yet.
        version: Option<String>,
        slice: Box<EndpointSlice>,
    },
    RemoveSlice {
        key: Key,
        uid: String,
        version: String,
    },
    MakePod {
        pod: Box<Pod>,
        /// The ServiceAccount of its namespace that it goes with.
        owner: String,
    },
    RemovePod {
        key: Key,
        uid: String,
    },
}

#[derive(Clone, Debug, PartialEq)]
pub struct Promises {
    pub node: String,
    pub version: String,
    pub assignments: Vec<Assignment>,
    /// See [`crate::model_node::promises`].
    pub withdrawn: String,
}

/// Something to tell users as an Event of a ModelDeployment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    pub key: Key,
    pub uid: String,
    pub warning: bool,
    pub reason: Reason,
    pub message: String,
}

/// An agent refused a replica of this ModelDeployment, and that was acted upon.
#[derive(Clone, Debug, PartialEq)]
pub struct RefusalSeen {
    pub uid: String,
    pub revision: String,
    pub refusal: Refusal,
    /// Host memory that it was seen to take beyond what was planned, where memory ran out.
    pub beyond_plan: Bytes,
}

impl Memory {
    pub fn remember(&mut self, remark: Remark, now: Timestamp) {
        match remark {
            Remark::RoomAbove { uid } => drop(self.room_above.insert(uid, now)),
            Remark::NoRoomAbove { uid } => drop(self.room_above.remove(&uid)),
        }
    }

    /// Delays the next decision for the ModelDeployment, longer each time.
    pub fn refused(&mut self, seen: RefusalSeen, now: Timestamp) {
        let RefusalSeen { uid, revision, refusal, beyond_plan } = seen;
        let previous = self.refusals.get(&uid).filter(|previous| previous.revision == revision);
        let recent = previous.filter(|previous| previous.remembered_until() > now);
        let times = recent.map_or(1, |previous| previous.times.saturating_add(1));
        let until = crate::clock::after(now, delay(times));
        let out_of_memory = previous.map_or(0, |previous| previous.out_of_memory) + u32::from(refusal.reason == Reason::OutOfMemory);
        let beyond_plan = previous.map_or(Bytes::ZERO, |previous| previous.beyond_plan).max(beyond_plan);
        self.refusals.insert(uid, Refused { revision, times, until, refusal, out_of_memory, beyond_plan });
    }

    /// Delays the next try of a write that the API server rejected.
    pub fn rejected(&mut self, item: Item, message: String, now: Timestamp) {
        let times = self.rejected.get(&item).map_or(1, |rejected| rejected.times.saturating_add(1));
        self.rejected.insert(item, Rejected { message, times, until: crate::clock::after(now, delay(times)) });
    }

    pub fn is_held_back(&self, item: &Item, now: Timestamp) -> bool {
        self.rejected.get(item).is_some_and(|rejected| now < rejected.until)
    }
}

/// Seconds to wait after so many failures: 1, 2, 4, … 60.
fn delay(times: u32) -> i64 {
    (1 << times.saturating_sub(1).min(6)).min(60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_refusal_waits_longer_than_the_one_before_until_it_is_forgiven() {
        let now = Timestamp::from_second(1000).unwrap();
        let refusal = Refusal { reason: Reason::DeviceChanged, message: String::new() };
        let seen = RefusalSeen { uid: "u".into(), revision: "r".into(), refusal, beyond_plan: Bytes::ZERO };
        let mut memory = Memory::default();
        let mut waits = Vec::new();
        for _ in 0..8 {
            memory.refused(seen.clone(), now);
            waits.push(memory.refusals["u"].until.as_second() - 1000);
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60]);
        memory.refused(RefusalSeen { revision: "other".into(), ..seen.clone() }, now);
        assert_eq!(memory.refusals["u"].times, 1);
        memory.refused(seen.clone(), now);
        memory.refused(seen, Timestamp::from_second(10_000).unwrap());
        assert_eq!(memory.refusals["u"].times, 1);
    }
}
