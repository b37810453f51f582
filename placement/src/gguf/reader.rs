//! Reads a header from bytes that come in pieces.
//!
//! What has come but can't be read yet waits in a buffer, which therefore grows by what was fed, never by what a length claims. Everything is
//! read in items (a key, a scalar, a tensor's entry), and an item whose last byte is missing is begun again when more has come.

mod cursor;
mod metadata;
mod tensors;

use std::collections::{BTreeMap, HashSet};
use std::fmt;

use crate::gguf::header::describe;
use crate::gguf::reader::cursor::Cursor;
use crate::gguf::reader::metadata::OpenArray;
use crate::gguf::{GgufError, Header, TensorInfo, Value};
use crate::units::Bytes;

/// How much of a header its reader keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// What decides sizes: arrays of more than 4096 elements and texts of more than 4 KiB (tokens, chat templates) are skipped.
    Sizing,
    /// Everything, for whoever runs the model.
    All,
}

impl Keep {
    const fn longest_array(self) -> u64 {
        match self {
            Keep::Sizing => 4096,
            Keep::All => u64::MAX,
        }
    }

    const fn longest_text(self) -> u64 {
        match self {
            Keep::Sizing => 4096,
            Keep::All => MAX_TEXT,
        }
    }

    /// What a header may make its reader hold.
    const fn budget(self) -> Bytes {
        match self {
            Keep::Sizing => Bytes::mib(64),
            Keep::All => Bytes::gib(1),
        }
    }
}

/// Whether the header has been read whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feed {
    More,
    Complete,
}

/// ggml takes keys of any length; the specification ends them here.
const MAX_KEY: u64 = 65535;
/// Real chat templates have up to 100 KiB.
const MAX_TEXT: u64 = 64 << 20;
/// ggml's own limit is 64.
const MAX_TENSOR_NAME: u64 = 1024;
const MAX_KEYS: u64 = 1 << 16;
/// The largest models have a few thousand.
const MAX_TENSORS: u64 = 1 << 20;
const MAX_DIMENSIONS: u32 = 4;
/// Fed bytes are taken in at this many at a time, so that a large piece is not copied whole.
const WINDOW: usize = 64 << 10;

const ALIGNMENT: &str = "general.alignment";
/// A key of one byte and a value of one byte.
const SHORTEST_ENTRY: u64 = 8 + 1 + 4 + 1;
/// A name of one byte and no dimension.
const SHORTEST_TENSOR: u64 = 8 + 1 + 4 + 4 + 8;

/// How many of the entries that the header claims were begun.
#[derive(Clone, Copy, Default)]
struct Count {
    begun: u64,
    of: u64,
}

impl Count {
    fn begin_next(&mut self) -> bool {
        let more = self.begun < self.of;
        self.begun += u64::from(more);
        more
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.begun, self.of)
    }
}

/// A metadata key and where it stands.
struct Key {
    name: String,
    offset: u64,
}

enum State {
    Preamble,
    /// A key, its value's type, and the value if it is a scalar or a text.
    Entry,
    ArrayElements(OpenArray),
    /// Bytes that are not kept, then what follows them.
    Skip {
        remaining: u64,
        then: Box<State>,
    },
    Tensor,
    Complete,
}

/// Reads one header. Feed it the file from its beginning, in pieces of any size, until it says [`Feed::Complete`].
pub struct HeaderReader {
    keep: Keep,
    file_size: Option<u64>,
    state: State,
    pending: Vec<u8>,
    /// Offset in the file of the first byte of `pending`.
    offset: u64,
    kept: u64,
    version: u32,
    keys: Count,
    tensor_entries: Count,
    metadata: BTreeMap<String, Value>,
    key_offsets: BTreeMap<String, u64>,
    tensors: Vec<TensorInfo>,
    /// Where each tensor's entry in the list begins.
    tensor_offsets: Vec<u64>,
    tensor_names: HashSet<String>,
    alignment: u64,
    data_offset: u64,
}

impl HeaderReader {
    pub fn new(keep: Keep) -> HeaderReader {
        HeaderReader {
            keep,
            file_size: None,
            state: State::Preamble,
            pending: Vec::new(),
            offset: 0,
            kept: 0,
            version: 0,
            keys: Count::default(),
            tensor_entries: Count::default(),
            metadata: BTreeMap::new(),
            key_offsets: BTreeMap::new(),
            tensors: Vec::new(),
            tensor_offsets: Vec::new(),
            tensor_names: HashSet::new(),
            alignment: 32,
            data_offset: 0,
        }
    }

    /// With the file's size, a length that claims more is refused at once, instead of when the file ends.
    pub fn with_file_size(mut self, file_size: Bytes) -> HeaderReader {
        self.file_size = Some(file_size.0);
        self
    }

    /// Takes the next bytes of the file. What follows the header is ignored.
    ///
    /// After an error the reader is of no further use.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<Feed, GgufError> {
        for window in bytes.chunks(WINDOW) {
            if matches!(self.state, State::Complete) {
                break;
            }
            self.pending.extend_from_slice(window);
            let pending = std::mem::take(&mut self.pending);
            let mut cursor = Cursor::new(&pending, self.offset, self.file_size);
            let read = self.read(&mut cursor);
            let consumed = cursor.consumed();
            self.pending = pending;
            self.pending.drain(..consumed);
            self.offset += consumed as u64;
            read?;
        }
        Ok(if matches!(self.state, State::Complete) { Feed::Complete } else { Feed::More })
    }

    /// The header, or where it broke off.
    pub fn into_header(self) -> Result<Header, GgufError> {
        let what = match self.state {
            State::Complete => {
                return Ok(Header {
                    version: self.version,
                    metadata: self.metadata,
                    key_offsets: self.key_offsets,
                    tensors: self.tensors,
                    alignment: self.alignment,
                    data_offset: self.data_offset,
                });
            }
            State::Preamble => "the first 24 bytes".to_owned(),
            State::Tensor => format!("tensor {} of the list", self.tensor_entries),
            State::Entry | State::ArrayElements(_) => format!("metadata entry {}", self.keys),
            State::Skip { .. } => "the metadata, in a value that is skipped".to_owned(),
        };
        Err(GgufError::Truncated { what, offset: self.offset + self.pending.len() as u64 })
    }

    /// Reads items until one is incomplete.
    fn read(&mut self, cursor: &mut Cursor<'_>) -> Result<(), GgufError> {
        loop {
            let went_on = match std::mem::replace(&mut self.state, State::Preamble) {
                State::Preamble => self.read_preamble(cursor)?,
                State::Entry => self.read_entry(cursor)?,
                State::ArrayElements(array) => self.read_array(array, cursor)?,
                State::Skip { remaining, then } => self.skip(remaining, then, cursor),
                State::Tensor => self.read_tensor(cursor)?,
                State::Complete => {
                    self.state = State::Complete;
                    false
                }
            };
            if !went_on {
                return Ok(());
            }
        }
    }

    /// Magic, version, and how many tensors and keys there are. Each part is judged as soon as it is there.
    fn read_preamble(&mut self, cursor: &mut Cursor<'_>) -> Result<bool, GgufError> {
        let mut ahead = cursor.clone();
        let Some(magic) = ahead.array::<4>() else { return Ok(false) };
        if &magic != b"GGUF" {
            return Err(GgufError::NotGguf { found: magic });
        }
        let Some(version) = ahead.u32() else { return Ok(false) };
        self.version = version;
        match version {
            2 | 3 => {}
            1 => return Err(GgufError::Version1),
            _ if version != 0 && version & 0xffff == 0 => return Err(GgufError::BigEndian { version }),
            _ => return Err(GgufError::UnknownVersion { version }),
        }
        let tensors_at = ahead.offset();
        let Some(tensors) = ahead.u64() else { return Ok(false) };
        at_most(tensors, MAX_TENSORS, "tensors", tensors_at)?;
        self.check_room(tensors, SHORTEST_TENSOR, "tensors", tensors_at)?;
        let keys_at = ahead.offset();
        let Some(keys) = ahead.u64() else { return Ok(false) };
        at_most(keys, MAX_KEYS, "metadata keys", keys_at)?;
        self.check_room(keys, SHORTEST_ENTRY, "metadata keys", keys_at)?;
        *cursor = ahead;
        self.tensor_entries = Count { begun: 0, of: tensors };
        self.keys = Count { begun: 0, of: keys };
        self.next_entry(cursor)?;
        Ok(true)
    }

    /// Whether so many entries can be behind their count at all.
    fn check_room(&self, claimed: u64, shortest: u64, what: &'static str, offset: u64) -> Result<(), GgufError> {
        let least = claimed * shortest;
        match self.file_size {
            Some(file_size) if offset + 8 + least > file_size => Err(GgufError::NoRoom { what, claimed, least, file_size, offset }),
            _ => Ok(()),
        }
    }

    /// Goes on to the next key or, after the last, to the tensors.
    fn next_entry(&mut self, cursor: &Cursor<'_>) -> Result<(), GgufError> {
        if self.keys.begin_next() {
            self.state = State::Entry;
            return Ok(());
        }
        self.read_alignment()?;
        self.next_tensor(cursor)
    }

    fn read_alignment(&mut self) -> Result<(), GgufError> {
        let Some(value) = self.metadata.get(ALIGNMENT) else { return Ok(()) };
        match value.as_u64() {
            Some(found) if found.is_power_of_two() && found <= 1 << 20 => self.alignment = found,
            _ => {
                let offset = self.key_offsets.get(ALIGNMENT).copied().unwrap_or_default();
                return Err(GgufError::BadAlignment { found: describe(value), offset });
            }
        }
        Ok(())
    }

    fn skip(&mut self, remaining: u64, then: Box<State>, cursor: &mut Cursor<'_>) -> bool {
        let remaining = remaining - cursor.skip(remaining);
        if remaining > 0 {
            self.state = State::Skip { remaining, then };
            return false;
        }
        self.state = *then;
        true
    }

    fn keep_bytes(&mut self, bytes: usize, offset: u64) -> Result<(), GgufError> {
        self.kept = self.kept.saturating_add(bytes as u64);
        let limit = self.keep.budget();
        if self.kept > limit.0 {
            return Err(GgufError::HeaderTooLarge { limit, offset });
        }
        Ok(())
    }

    fn store(&mut self, key: Key, value: Value) {
        self.key_offsets.insert(key.name.clone(), key.offset);
        self.metadata.insert(key.name, value);
    }
}

fn at_most(claimed: u64, limit: u64, what: &'static str, offset: u64) -> Result<(), GgufError> {
    if claimed > limit {
        return Err(GgufError::TooMany { what, claimed, limit, offset });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
