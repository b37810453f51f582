//! Workers in Pods of their own: one for each assignment that is to serve, in the system namespace, on the node of its ModelNode.
//!
//! [`settings`] is what the chart says of them all, [`pods`] builds one, [`step`](mod@step) makes and removes them, and [`story`] is what one says of its
//! replica that no agent can see: that no room was found for it, that it can't be started, how it ended.
//!
//! A Pod is named after its assignment, so there is one at a time whoever makes it, and an assignment is not dropped before its Pod has ended.

pub mod pods;
pub mod settings;
pub mod step;
pub mod story;

pub use settings::Settings;
