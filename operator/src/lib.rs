//! The cluster side of Stowage: one leader decides where each replica goes, and writes it down.
//!
//! Watches feed an assumed [`state`]; [`decide`] is the one serial task that acts on it. What it does with one object is a pure function from state to a
//! [`step::Step`]: [`model_node`] makes and removes ModelNodes and writes promises into them, [`model_deployment`] claims places, tells how it stands, and
//! keeps Service and EndpointSlices, [`workers`] keeps the Pods of workers where they are in Pods. Every write is conditional on the version that it was planned on, so that an operator that wrongly believes it leads
//! can do no harm.
//!
//! Invariant: this crate knows nothing of the agent but the API objects.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod cache;
pub mod clock;
pub mod decide;
pub mod events;
pub mod heartbeats;
pub mod in_flight;
pub mod leader;
pub mod ledger;
pub mod metrics;
pub mod model_deployment;
pub mod model_node;
pub mod options;
pub mod roll_call;
pub mod state;
pub mod step;
pub mod term;
pub mod waits;
mod wanted_tasks;
pub mod watch;
pub mod workers;

#[cfg(test)]
mod testing;
