//! What can be wrong with a split model.

use crate::gguf::GgufError;
use crate::units::Bytes;

/// Why parts are no model. Each message names the file, what was found at which byte of it, and what was needed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SplitError {
    #[error("{name}: {source}")]
    Part { name: String, source: Box<GgufError> },
    #[error(
        "{name} is part {number} of {count} of a split model (split.no at offset {offset}); a split model is named by its first part{}",
        first.as_ref().map(|first| format!(", {first}")).unwrap_or_default()
    )]
    NotFirst { name: String, number: u64, count: u32, first: Option<String>, offset: u64 },
    #[error(
        "{name} is the first of {count} parts (split.count at offset {offset}), whose names must end in -00001-of-{count:05}.gguf and so on; this one's does not, so the others can't be found"
    )]
    Misnamed { name: String, count: u32, offset: u64 },
    #[error("{name} says at offset {offset} that it is one of {found} parts; at most {limit} are accepted")]
    TooManyParts { name: String, found: u64, limit: u32, offset: u64 },
    #[error("{name}: {key} at offset {offset} is {found}; {needed} was needed for it to belong to the parts before it")]
    OtherPart { name: String, key: &'static str, found: u64, needed: u64, offset: u64 },
    #[error("{name} says at offset {offset} that all parts have {needed} tensors; they have {found}")]
    TensorsMissing { name: String, needed: u64, found: u64, offset: u64 },
    #[error("{name}: tensor `{}` is in a part before it too", crate::gguf::error::named(tensor))]
    DuplicateTensor { name: String, tensor: String },
    #[error("{name}: the lists of tensors of the parts up to this one take more than {limit} of memory")]
    TooManyTensors { name: String, limit: Bytes },
    #[error("{name}: the parts up to this one promise more bytes than 63 bits can count")]
    TooLarge { name: String },
    #[error("{name}, one of {count} parts of a split model, is missing")]
    PartMissing { name: String, count: u32 },
    #[error("all {count} parts of the model are there already")]
    AllThere { count: u32 },
}

impl SplitError {
    pub(super) fn part(name: &str, source: GgufError) -> SplitError {
        SplitError::Part { name: name.into(), source: Box::new(source) }
    }
}
