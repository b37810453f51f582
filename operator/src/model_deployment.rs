//! From what a user asks for to where it runs, in the order of the steps: what is wanted ([`validate`]), which model that is ([`models`], whose headers
//! [`fetch`] reads), where each replica stands ([`slots`]), what moves ([`rollout`], choosing among [`candidates`]; to a better place, [`moving_up`]; in the place of others,
//! [`preemption`]), how it stands ([`status`], told by
//! [`notices`]), and by which address it is reached ([`endpoints`]). [`controller`] drives them, [`apply`] sends what they decided.

pub mod apply;
pub mod candidates;
pub mod controller;
pub mod endpoints;
pub mod fetch;
pub mod models;
pub mod moving_up;
pub mod notices;
pub mod preemption;
pub mod reserved;
pub mod rollout;
pub mod slots;
pub mod status;
pub mod validate;
