//! What can be wrong with a GGUF header.

use crate::gguf::{GgmlType, ValueType};
use crate::units::Bytes;

/// Why a header was not taken. Each message names what was found, at which byte of the file, and what was needed.
///
/// An `offset` is where the field begins that is wrong. Keys and tensors' names come from the file: messages show them escaped and cut short.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GgufError {
    #[error("not a GGUF file: it begins with {} at offset 0, not with \"GGUF\"", shown(found))]
    NotGguf { found: [u8; 4] },
    #[error("GGUF version 1 at offset 4 is not supported (versions 2 and 3 are); convert the file again with a newer llama.cpp")]
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
    #[error(
        "the header at offset {offset} claims {claimed} {what}, which take at least {least} bytes, but the file ends at {file_size}: it is cut off or damaged"
    )]
    NoRoom { what: &'static str, claimed: u64, least: u64, file_size: u64, offset: u64 },
    #[error("the header ends early, at offset {offset}, in {what}; more bytes were needed")]
    Truncated { what: String, offset: u64 },
    #[error("the {what} at offset {offset} is not valid UTF-8: byte {byte:#04x} at offset {byte_offset}")]
    NotUtf8 { what: &'static str, byte: u8, byte_offset: u64, offset: u64 },
    #[error("the {what} at offset {offset} is empty; at least one byte is needed")]
    EmptyName { what: &'static str, offset: u64 },
    #[error("metadata key `{}` at offset {offset} stands there twice", named(key))]
    DuplicateKey { key: String, offset: u64 },
    #[error("metadata key `{}`: value type {id} at offset {offset} is not known; types 0 to 12 are", named(key))]
    UnknownValueType { key: String, id: u32, offset: u64 },
    #[error(
        "metadata key `{}`: an array of arrays at offset {offset}, which ggml does not take either; its elements must be plain values",
        named(key)
    )]
    NestedArray { key: String, offset: u64 },
    #[error("metadata key `{}`: {value} at offset {offset} is no boolean (0 or 1)", named(key))]
    NotABool { key: String, value: u8, offset: u64 },
    #[error("the header holds more than {limit} of metadata and tensor names (at offset {offset})")]
    HeaderTooLarge { limit: Bytes, offset: u64 },
    #[error("metadata key `general.alignment` at offset {offset} is {found}; it must be a power of two of at most 1 MiB")]
    BadAlignment { found: String, offset: u64 },
    #[error("tensor `{}` at offset {offset} stands there twice", named(tensor))]
    DuplicateTensor { tensor: String, offset: u64 },
    #[error("tensor `{}` claims {found} dimensions at offset {offset}; at most 4 are possible", named(tensor))]
    TooManyDimensions { tensor: String, found: u32, offset: u64 },
    #[error(
        "tensor `{}` has dimensions {dimensions:?} at offset {offset}, whose product overflows what 63 bits can count in bytes",
        named(tensor)
    )]
    TensorTooLarge { tensor: String, dimensions: Vec<u64>, offset: u64 },
    #[error("tensor `{}` has type {id} at offset {offset}, which is not known or no longer in use", named(tensor))]
    UnknownTensorType { tensor: String, id: u32, offset: u64 },
    #[error(
        "tensor `{}`: rows of {columns} elements (at offset {offset}) are no whole number of {ggml_type} blocks of {}",
        named(tensor),
        ggml_type.block_elements()
    )]
    PartialBlock { tensor: String, ggml_type: GgmlType, columns: u64, offset: u64 },
    #[error(
        "tensor `{}` (listed at offset {offset}) lies at offset {found} of the data, which is no multiple of the alignment {alignment}",
        named(tensor)
    )]
    Misaligned { tensor: String, found: u64, alignment: u64, offset: u64 },
    #[error(
        "tensor `{}` of {size} bytes (listed at offset {offset}) at offset {found} of the data ends beyond what 63 bits can address",
        named(tensor)
    )]
    OffsetOverflow { tensor: String, found: u64, size: u64, offset: u64 },
    #[error(
        "tensors `{}` and `{}` overlap: one ends at offset {end} of the data, the other begins at {begin} (and is listed at offset {offset})",
        named(first),
        named(second)
    )]
    Overlap { first: String, second: String, end: u64, begin: u64, offset: u64 },
    #[error(
        "data shorter than the header promises: file has {file_size} bytes, tensors end at {data_end}; `{}` at offset {offset} is the first that is not whole",
        named(tensor)
    )]
    DataTruncated { file_size: u64, data_end: u64, tensor: String, offset: u64 },
    #[error("metadata key `{}` is missing", named(key))]
    MissingKey { key: String },
    #[error("metadata key `{}`{} is {found}; expected {expected}", named(key), at(*offset))]
    WrongType { key: String, expected: &'static str, found: String, offset: Option<u64> },
    #[error("metadata key `{}` was not kept: it holds {length} {element} values", named(key))]
    NotKept { key: String, element: ValueType, length: u64 },
}

/// Longest part of a name that a message shows, in characters.
const LONGEST_SHOWN: usize = 64;

/// A name from a file as a message may show it: nothing in it that a terminal would obey, and not all of 64 KiB.
pub(super) fn named(name: &str) -> String {
    let mut shown: String = name.chars().take(LONGEST_SHOWN).flat_map(char::escape_debug).collect();
    if name.chars().nth(LONGEST_SHOWN).is_some() {
        shown += &format!("… ({} bytes)", name.len());
    }
    shown
}

fn at(offset: Option<u64>) -> String {
    offset.map(|offset| format!(" at offset {offset}")).unwrap_or_default()
}

fn shown(bytes: &[u8; 4]) -> String {
    if bytes.iter().all(|b| b.is_ascii_graphic() || *b == b' ') {
        format!("\"{}\"", String::from_utf8_lossy(bytes))
    } else {
        format!("the bytes {:02x} {:02x} {:02x} {:02x}", bytes[0], bytes[1], bytes[2], bytes[3])
    }
}
