//! Workers: the processes in which replicas are loaded and served.
//!
//! A worker loads one replica, serves its HTTP API on a port of its own, and speaks with the agent over a Unix socket ([`protocol`]). The agent
//! listens and workers connect, so a worker outlives its agent and is adopted by the agent's successor with its model still loaded.
//!
//! The agent's side is the [`Supervisor`] ([`control`]): one task for each assignment (`replica`, `attend`), which fetches the file, starts the
//! process ([`launch`]), asks the gate, and calls a replica gone only when its process really is ([`process`]). The worker's side is [`run`](mod@run),
//! which confines its process ([`confine`]) before it touches the model.
//!
//! Where workers are in Pods of their own, which the operator makes and ends, the agent starts no process: a worker joins (`join`) and is told its order, and
//! the [`lifeline`] that it holds is how its end is seen.

mod attend;
pub mod confine;
pub mod control;
mod join;
pub mod launch;
pub mod lifeline;
mod link;
mod listen;
pub mod loaded_file;
pub mod memory;
pub mod process;
pub mod protocol;
pub mod record;
mod replica;
pub mod run;
mod serving;
mod show;
mod speed;
pub mod view;

pub use confine::Confine;
pub use control::{Gate, Mode, Supervisor, SupervisorConfig, SupervisorError};
pub use launch::{LastLines, WorkerLog};
pub use run::{HEARD_BY, WorkerArguments, WorkerError};
pub use view::{Refusal, WorkerView};
