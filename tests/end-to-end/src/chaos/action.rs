//! What can happen.

use std::fmt;

use super::NODES;

/// A process that is killed or paused. What is gone of the control plane comes back before what needs it: in the reverse of this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    Operator(usize),
    /// Of the node with this index.
    Agent(usize),
    /// Of those that run, in the order of their replicas' names, the one with this index; it is counted round.
    Worker(usize),
    ApiServer,
    Etcd,
}

/// What a ModelDeployment is made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deployment {
    pub index: usize,
    pub policy: &'static str,
    pub num_ctx: u64,
    pub replicas: u32,
    /// Its PriorityClass; empty: it names none.
    pub priority: &'static str,
}

impl Deployment {
    pub fn name(index: usize) -> String {
        format!("m-{index}")
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Kill(Target),
    /// Starts what was killed.
    Start(Target),
    Pause(Target),
    /// Lets what was paused go on.
    Continue(Target),
    Create(Deployment),
    Delete(usize),
    Scale(usize, u32),
    Context(usize, u64),
    Policy(usize, &'static str),
    Priority(usize, &'static str),
    Cordon(usize, bool),
    /// Others use so many MiB of the node's GPU, or as many of them as are free.
    Foreign(usize, u64),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Operator(index) => write!(f, "operator {index}"),
            Target::Agent(node) => write!(f, "agent of {}", NODES[*node].0),
            Target::Worker(index) => write!(f, "worker {index}"),
            Target::ApiServer => f.write_str("kube-apiserver"),
            Target::Etcd => f.write_str("etcd"),
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, node) = (Deployment::name, |index: usize| NODES[index].0);
        match *self {
            Action::Kill(target) => write!(f, "SIGKILL {target}"),
            Action::Start(target) => write!(f, "start {target}"),
            Action::Pause(target) => write!(f, "SIGSTOP {target}"),
            Action::Continue(target) => write!(f, "SIGCONT {target}"),
            Action::Create(Deployment { index, policy, num_ctx, replicas, priority }) => {
                write!(f, "create {}: {policy}, num_ctx {num_ctx}, replicas {replicas}, priority {priority:?}", name(index))
            }
            Action::Delete(index) => write!(f, "delete {}", name(index)),
            Action::Scale(index, replicas) => write!(f, "scale {} to {replicas}", name(index)),
            Action::Context(index, num_ctx) => write!(f, "change {}: num_ctx {num_ctx}", name(index)),
            Action::Policy(index, policy) => write!(f, "change {}: {policy}", name(index)),
            Action::Priority(index, priority) => write!(f, "change {}: priority {priority:?}", name(index)),
            Action::Cordon(index, true) => write!(f, "cordon {}", node(index)),
            Action::Cordon(index, false) => write!(f, "uncordon {}", node(index)),
            Action::Foreign(index, mib) => write!(f, "others use {mib} MiB on {}", node(index)),
        }
    }
}
