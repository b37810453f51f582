//! The ModelNodes: [`membership`] makes and removes them, [`promises`] keeps what is promised in them.

pub mod membership;
pub mod promises;
