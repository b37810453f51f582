//! Why not: the closed set of reasons that a decision, a refusal or a failure can carry.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// A reason, in PascalCase wherever it is shown: in conditions, in Events, in `agent plan`. What each one means stands in [`Reason::meaning`].
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
        pub enum Reason { $($name,)+ }

        impl Reason {
            pub const ALL: &'static [Reason] = &[$(Reason::$name,)+];

            pub const fn as_str(self) -> &'static str {
                match self { $(Reason::$name => stringify!($name),)+ }
            }

            /// The reason of this name.
            pub fn named(name: &str) -> Option<Reason> {
                Reason::ALL.iter().copied().find(|reason| reason.as_str() == name)
            }

            /// What happened, in a sentence for someone who sees the reason for the first time.
            pub const fn meaning(self) -> &'static str {
                match self { $(Reason::$name => concat!($($doc),+),)+ }
            }
        }
    };
}

reasons! {
    /// It fits as asked.
    Fits,
    /// The devices together offer less VRAM than the request demands.
    InsufficientVRAM,
    /// The host offers less memory than the layers that stay there need.
    InsufficientMemory,
    /// No GPU that the engine can use is on the node.
    NoUsableGPU,
    /// The placement asks for a GPU, and runs wholly on CPU.
    RunningOnCPU,
    /// The placement asks for a GPU, and some layers run on CPU.
    PartlyOnCPU,
    /// No node matches the nodeSelector or the deviceSelector.
    NoMatchingNode,
    /// No node is known.
    NoNodes,
    /// The node's agent has been silent for too long.
    NodeNotReady,
    /// The node is cordoned.
    NodeUnschedulable,
    /// The node holds as many assignments as it may.
    TooManyAssignments,
    /// The model's architecture is not known; nothing is guessed.
    UnsupportedArchitecture,
    /// The model can be sized, but the engine cannot run it.
    EngineCannotRun,
    /// num_ctx is beyond the context that the model was trained for.
    ContextBeyondTrained,
    /// The request contradicts itself or asks for what can't be.
    InvalidRequest,
    /// The file is not a GGUF file, or its header is damaged.
    InvalidModelFile,
    /// The model file was not found.
    ModelNotFound,
    /// Others use VRAM that was promised to replicas.
    VRAMTakenByOthers,
    /// A GPU that the replica is on is lost, or its driver reported a critical error.
    DeviceLost,
    /// The model file was changed, or is gone, since it was loaded or planned with.
    ModelFileChanged,
    /// The model's source did not answer as needed.
    SourceUnavailable,
    /// The source's address is one that Stowage does not read from unless allowed.
    SourceForbidden,
    /// The file's sha256 is not the one that was asked for.
    DigestMismatch,
    /// The disk has less free than the model file needs.
    InsufficientDisk,
    /// The device had less free when the agent looked than when the operator planned.
    DeviceChanged,
    /// Loading the model failed.
    LoadFailed,
    /// The worker ended unexpectedly and is started again, with a growing delay.
    WorkerCrashed,
    /// The worker has stopped answering; it is ended and started again if it does not go on.
    WorkerSilent,
    /// The kernel ended the worker because memory ran out; it is placed again, counting what it really took.
    OutOfMemory,
    /// The prompt does not fit the replica's num_ctx.
    PromptTooLong,
    /// The replica's queue of requests is full.
    QueueFull,
    /// A step of inference failed; the request that it was for is lost.
    InferenceFailed,
    /// Waiting to be decided.
    Pending,
    /// A place is claimed; the node's agent has not answered yet.
    Assigned,
    /// The model file is on its way.
    Downloading,
    /// The model file is there, and the worker's Pod is not yet.
    WorkerStarting,
    /// The scheduler finds no room for the worker's Pod on the node that the replica was placed on.
    PodUnschedulable,
    /// The kubelet can't start the worker's Pod.
    PodNotStarted,
    /// The model is being loaded.
    Loading,
    /// The replica is loaded and answers.
    Serving,
    /// The replica finishes its answers and takes no new ones.
    Draining,
    /// The new revision waits until its bytes are free.
    WaitingForRoom,
    /// The old revision went first, because no node has room for both.
    ReplacingForRoom,
    /// Replicas of lower priority make way for it.
    Preempting,
    /// A replica of higher priority took its bytes.
    Preempted,
    /// A GPU has had room for the whole replica for a while, so it moves there.
    MovingUp,
    /// The new revision is being rolled out.
    RollingOut,
    /// The rollout has not come a step further for as long as progressDeadlineSeconds allows.
    ProgressDeadlineExceeded,
    /// All replicas run the newest revision.
    RolledOut,
    /// Changes are not acted upon, as the spec asks.
    Paused,
    /// No replica is asked for.
    ScaledToZero,
    /// All is as asked.
    AsAsked,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
