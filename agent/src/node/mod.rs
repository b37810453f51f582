//! This node in the cluster: what the operator assigned to it, and what is reported back.
//!
//! [`controller`] watches, reads the devices and writes; between those two ends everything is arithmetic: [`account`] says whose the bytes are,
//! [`calibration`] what loads taught of the GPUs ([`calibrator`] measures before there is one), [`check`] whether a plan holds, [`assignments`] what is to be done, [`replicas`] and [`publish`] what is to be said, [`events`] what happened,
//! [`figures`] what Prometheus is told.

pub mod account;
pub mod assignments;
pub mod calibration;
pub mod calibrator;
pub mod check;
pub mod controller;
pub mod events;
pub mod figures;
pub mod lease;
pub mod publish;
pub mod replicas;
pub mod workers;

#[cfg(test)]
pub(crate) mod testing;
