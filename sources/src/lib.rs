//! Where model files come from.
//!
//! Two things are done with a URL: its GGUF header is read with a few range requests ([`header`]), which is all that deciding needs, and the file
//! is downloaded ([`download`]), going on from where it was when a connection drops. Both look at every address that they connect to
//! ([`AddressPolicy`]): a URL comes from whoever may create a ModelDeployment, and must not reach what only the cluster may.
//!
//! Invariant: nothing that a server sends is repeated in a message, but for names and numbers in what is a GGUF header; and nothing is allocated by a
//! length that it claims.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod address_policy;
mod client;
mod download;
mod error;
mod header;
pub mod hugging_face;
mod part_file;
mod response;

pub use address_policy::{AddressPolicy, ForbiddenAddress};
pub use client::client;
pub use download::{Download, Downloaded, Progress, download};
pub use error::SourceError;
pub use header::{RemoteFile, RemoteHeader, header, header_alone};
pub use part_file::{free_disk, still_needed};
