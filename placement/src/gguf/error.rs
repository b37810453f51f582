//! What can be wrong with a GGUF header.

use crate::gguf::{GgmlType, ValueType};
use crate::units::Bytes;

/// Why a header was not taken. Each message names what is wrong, where in the file, and what was expected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GgufError {
    #[error("not a GGUF file: it begins with {}, not with \"GGUF\"", shown(found))]
    NotGguf { found: [u8; 4] },
    #[error("GGUF version 1 is not supported (versions 2 and 3 are); convert the file again with a newer llama.cpp")]
    Version1,
    #[error("the file is big-endian (version field {version:#010x} at offset 4); only little-endian GGUF files are supported")]
    BigEndian { version: u32 },
    #[error("GGUF version {version} at offset 4 is not known; versions 2 and 3 are")]
    UnknownVersion { version: u32 },
    #[error("the header at offset {offset} claims {claimed} {what}; at most {limit} are accepted")]
    TooMany { what: &'static str, claimed: u64, limit: u64, offset: u64 },
    #[error("the {what} at offset {offset} claims a length of {claimed} bytes; at most {limit} are accepted")]
    TooLong { what: &'static str, claimed: u64, limit: u64, offset: u64 },
    #[error("the {what} at offset {offset} claims {claimed} bytes, but the file ends at {file_size}")]
    BeyondEndOfFile { what: &'static str, claimed: u64, file_size: u64, offset: u64 },
    #[error("the header ends early, at offset {offset}, in {what}")]
    Truncated { what: &'static str, offset: u64 },
    #[error("the {what} at offset {offset} is not valid UTF-8")]
    NotUtf8 { what: &'static str, offset: u64 },
    #[error("the {what} at offset {offset} is empty")]
    EmptyName { what: &'static str, offset: u64 },
    #[error("metadata key `{key}` at offset {offset} stands there twice")]
    DuplicateKey { key: String, offset: u64 },
    #[error("metadata key `{key}`: value type {id} at offset {offset} is not known")]
    UnknownValueType { key: String, id: u32, offset: u64 },
    #[error("metadata key `{key}`: an array of arrays at offset {offset}, which no GGUF file has")]
    NestedArray { key: String, offset: u64 },
    #[error("metadata key `{key}`: {value} at offset {offset} is no boolean (0 or 1)")]
    NotABool { key: String, value: u8, offset: u64 },
    #[error("the header holds more than {limit} of metadata and tensor names (at offset {offset})")]
    HeaderTooLarge { limit: Bytes, offset: u64 },
    #[error("metadata key `general.alignment` is {found}; it must be a power of two of at most 1 MiB")]
    BadAlignment { found: u64 },
    #[error("tensor `{tensor}` at offset {offset} stands there twice")]
    DuplicateTensor { tensor: String, offset: u64 },
    #[error("tensor `{tensor}` at offset {offset} claims {found} dimensions; at most 4 are possible")]
    TooManyDimensions { tensor: String, found: u32, offset: u64 },
    #[error("tensor `{tensor}` at offset {offset} has dimensions {dimensions:?}, whose product overflows")]
    TensorTooLarge { tensor: String, dimensions: Vec<u64>, offset: u64 },
    #[error("tensor `{tensor}` at offset {offset} has type {id}, which is not known")]
    UnknownTensorType { tensor: String, id: u32, offset: u64 },
    #[error("tensor `{tensor}` at offset {offset}: rows of {columns} elements are no whole number of {ggml_type} blocks of {}", ggml_type.block_elements())]
    PartialBlock { tensor: String, ggml_type: GgmlType, columns: u64, offset: u64 },
    #[error("tensor `{tensor}` lies at offset {found} of the data, which is no multiple of the alignment {alignment}")]
    Misaligned { tensor: String, found: u64, alignment: u64 },
    #[error("tensor `{tensor}` of {size} bytes at offset {found} of the data ends beyond what 64 bits can address")]
    OffsetOverflow { tensor: String, found: u64, size: u64 },
    #[error("tensors `{first}` and `{second}` overlap: one ends at offset {end} of the data, the other begins at {begin}")]
    Overlap { first: String, second: String, end: u64, begin: u64 },
    #[error("data shorter than the header promises: file has {file_size} bytes, tensors end at {data_end}")]
    DataTruncated { file_size: u64, data_end: u64 },
    #[error("metadata key `{key}` is missing")]
    MissingKey { key: String },
    #[error("metadata key `{key}` is {found}; expected {expected}")]
    WrongType { key: String, expected: &'static str, found: String },
    #[error("metadata key `{key}` was not kept: it holds {length} {element} values")]
    NotKept { key: String, element: ValueType, length: u64 },
}

fn shown(bytes: &[u8; 4]) -> String {
    if bytes.iter().all(|b| b.is_ascii_graphic() || *b == b' ') {
        format!("\"{}\"", String::from_utf8_lossy(bytes))
    } else {
        format!("the bytes {:02x} {:02x} {:02x} {:02x}", bytes[0], bytes[1], bytes[2], bytes[3])
    }
}
