//! The header of a GGUF file, versions 2 and 3: metadata, and where each tensor lies.
//!
//! The reader does no I/O. Its caller feeds it bytes as they come, from a file or from HTTP ranges, and it can go on from any byte. A header
//! is input from strangers: lengths in it are claims, never sizes to allocate, and every way of being wrong has an error that says what
//! and where.
//!
//! Format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.

mod error;
#[doc(hidden)]
pub mod fuzzed;
mod ggml_type;
mod header;
mod reader;
pub mod split;
mod value;
#[doc(hidden)]
pub mod write;

pub use error::GgufError;
pub use ggml_type::GgmlType;
pub use header::{Header, TensorInfo};
pub use reader::{Feed, HeaderReader, Keep};
pub use value::{Array, Value, ValueType};
