//! Where the bytes of a model go.
//!
//! A GGUF header becomes a [`ModelSummary`], that and a [`Request`] become a [`Footprint`], the footprint and a node's devices become a
//! [`DevicePlan`], several nodes become a choice, and the whole becomes a [`FitReport`] that a person can read.
//!
//! Invariant: everything here is pure. No async, no client, no clock, no environment, no randomness, no file access. Same input, same plan.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod architecture;
pub mod capability;
pub mod compute;
pub mod device_plan;
pub mod fit_report;
pub mod footprint;
pub mod gguf;
pub mod layout;
pub mod model_summary;
pub mod node_choice;
pub mod offer;
pub mod process;
pub mod reason;
pub mod request;
#[doc(hidden)]
pub mod testing;
pub mod units;

pub use device_plan::{Device, DeviceAllocation, DeviceKind, DevicePlan, HOST, Holder, NodeDevices, Who};
pub use fit_report::{Decision, FitReport, PlanReport, Refusal, Suggestion, decide, decide_for};
pub use footprint::{Footprint, LayerFootprint};
pub use model_summary::{ModelSummary, SummaryError};
pub use node_choice::{Choice, Node, choose};
pub use offer::Defaults;
pub use reason::Reason;
pub use request::{Asked, ContextPolicy, KvCacheType, PlacementPolicy, Request};
pub use units::{Bytes, LayerCount, Tokens};
