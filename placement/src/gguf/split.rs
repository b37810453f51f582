//! Models whose tensors lie in several files, as llama.cpp's `gguf-split` writes them.
//!
//! Part N of M is `NAME-0000N-of-0000M.gguf`. The first part has all of the metadata; each part has `split.no` (counted from 0), `split.count`,
//! `split.tensors.count` (of all parts together), and the list of its own tensors. The model is named by its first part.
//!
//! Source: `tools/gguf-split/gguf-split.cpp`, `llama_split_path` and the checks in `src/llama-model-loader.cpp` of llama.cpp.

mod error;
mod part_name;

use std::collections::HashSet;

pub use error::SplitError;
pub use part_name::PartName;

use crate::gguf::{GgufError, Header, TensorInfo};
use crate::units::Bytes;

const NUMBER: &str = "split.no";
const COUNT: &str = "split.count";
const TENSORS: &str = "split.tensors.count";

/// The largest models that are published have fewer than 200 parts; a header that claims more would only make its reader fetch.
pub const MAX_PARTS: u32 = 1024;
/// What the lists of tensors of all parts together may take in memory.
const MAX_HELD: Bytes = Bytes::mib(64);

/// A model of one file or of several, which reads like one file: that of all parts laid end to end.
#[derive(Clone, Debug, PartialEq)]
pub struct Joined {
    /// The first part's metadata and the tensors of all parts, their offsets counting from the first part's data through all files.
    pub header: Header,
    /// Size of each part's file, in order; at least what its header promises.
    pub parts: Vec<Bytes>,
}

impl Joined {
    /// All files together.
    pub fn size(&self) -> Bytes {
        self.parts.iter().copied().sum()
    }

    /// Which part a tensor of [`Joined::header`] lies in, counted from 0, and at which byte of that part's file.
    pub fn locate(&self, tensor: &TensorInfo) -> (usize, u64) {
        let mut at = self.header.data_offset.saturating_add(tensor.offset);
        for (index, size) in self.parts.iter().enumerate() {
            if at < size.0 {
                return (index, at);
            }
            at -= size.0;
        }
        // A tensor of no bytes may lie at the very end.
        (self.parts.len() - 1, at.saturating_add(self.parts.last().map_or(0, |size| size.0)))
    }
}

/// Joins the headers of a model's parts, which its caller reads one after another: while [`Joining::next_part`] names a file, read its header
/// and [`Joining::add`] it. A model that is not split has one part, and is joined at once.
#[derive(Debug)]
pub struct Joining {
    joined: Joined,
    name: Option<PartName>,
    count: u32,
    /// Of all parts, as the first one says.
    tensors: u64,
    names: HashSet<String>,
    held: u64,
}

/// What a part says of itself.
struct Split {
    number: u64,
    count: u64,
    tensors: Option<u64>,
}

impl Split {
    /// `None`: the file is no part of a split model.
    fn of(header: &Header) -> Result<Option<Split>, GgufError> {
        let Some(count) = header.u64(COUNT)?.filter(|count| *count > 1) else { return Ok(None) };
        Ok(Some(Split { number: header.required(NUMBER, Header::u64)?, count, tensors: header.u64(TENSORS)? }))
    }
}

impl Joining {
    /// Begins with the file that names the model. `file_name` may have folders before it; `size` is the file's.
    pub fn new(file_name: &str, header: Header, size: Bytes) -> Result<Joining, SplitError> {
        let split = Split::of(&header).map_err(|source| SplitError::part(file_name, source))?;
        let (name, count, tensors) = match split {
            None => (None, 1, header.tensors.len() as u64),
            Some(split) => first_part(file_name, &header, &split)?,
        };
        let size = size.max(header.data_end());
        let mut joining = Joining { joined: Joined { header, parts: vec![size] }, name, count, tensors, names: HashSet::new(), held: 0 };
        if count > 1 {
            let own = std::mem::take(&mut joining.joined.header.tensors);
            joining.take(file_name, own)?;
        }
        Ok(joining)
    }

    /// The name of the file that is to be read next, with the folders that the first one's had; `None` where all are there.
    pub fn next_part(&self) -> Option<String> {
        let number = self.joined.parts.len() as u32 + 1;
        self.name.as_ref().filter(|_| number <= self.count).map(|name| name.of(number))
    }

    /// How many files the model has.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Adds the part that [`Joining::next_part`] named.
    pub fn add(&mut self, header: Header, size: Bytes) -> Result<(), SplitError> {
        let Some(file_name) = self.next_part() else {
            return Err(SplitError::AllThere { count: self.count });
        };
        self.check_part(&file_name, &header)?;
        let begin = self.joined.size();
        let size = size.max(header.data_end());
        // What all parts together promise must fit as one file's promises would.
        let end = begin.checked_add(size).filter(|end| i64::try_from(end.0).is_ok());
        if end.is_none() {
            return Err(SplitError::TooLarge { name: file_name });
        }
        let moved = begin.0 + header.data_offset - self.joined.header.data_offset;
        let tensors = header.tensors.into_iter().map(|tensor| TensorInfo { offset: tensor.offset + moved, ..tensor });
        self.take(&file_name, tensors.collect())?;
        self.joined.parts.push(size);
        Ok(())
    }

    /// The model, if all of its tensors are there.
    pub fn finish(self) -> Result<Joined, SplitError> {
        if let Some(missing) = self.next_part() {
            return Err(SplitError::PartMissing { name: missing, count: self.count });
        }
        let found = self.joined.header.tensors.len() as u64;
        match &self.name {
            Some(name) if found != self.tensors => Err(SplitError::TensorsMissing {
                name: name.of(1),
                needed: self.tensors,
                found,
                offset: offset(&self.joined.header, TENSORS),
            }),
            _ => Ok(self.joined),
        }
    }

    fn check_part(&self, name: &str, header: &Header) -> Result<(), SplitError> {
        let expect = |key: &'static str, needed: u64, found: Option<u64>| match found {
            Some(found) if found != needed => {
                Err(SplitError::OtherPart { name: name.into(), key, found, needed, offset: offset(header, key) })
            }
            _ => Ok(()),
        };
        let of_part = |source| SplitError::part(name, source);
        expect(COUNT, self.count.into(), Some(header.required(COUNT, Header::u64).map_err(of_part)?))?;
        expect(NUMBER, self.joined.parts.len() as u64, Some(header.required(NUMBER, Header::u64).map_err(of_part)?))?;
        expect(TENSORS, self.tensors, header.u64(TENSORS).map_err(of_part)?)
    }

    /// Takes tensors over, whose offsets count from the first part's data.
    fn take(&mut self, file_name: &str, tensors: Vec<TensorInfo>) -> Result<(), SplitError> {
        for tensor in tensors {
            self.held += (2 * tensor.name.len() + size_of::<TensorInfo>() + 64) as u64;
            if self.held > MAX_HELD.0 {
                return Err(SplitError::TooManyTensors { name: file_name.into(), limit: MAX_HELD });
            }
            if !self.names.insert(tensor.name.clone()) {
                return Err(SplitError::DuplicateTensor { name: file_name.into(), tensor: tensor.name });
            }
            self.joined.header.tensors.push(tensor);
        }
        Ok(())
    }
}

/// What the first part says of all, if it is the first one and named like one.
fn first_part(file_name: &str, header: &Header, split: &Split) -> Result<(Option<PartName>, u32, u64), SplitError> {
    let named = PartName::parse(file_name);
    let Ok(count) = u32::try_from(split.count).map_err(drop).and_then(|count| if count <= MAX_PARTS { Ok(count) } else { Err(()) }) else {
        return Err(SplitError::TooManyParts {
            name: file_name.into(),
            found: split.count,
            limit: MAX_PARTS,
            offset: offset(header, COUNT),
        });
    };
    if split.number != 0 {
        let first = named.map(|name| name.of(1));
        let offset = offset(header, NUMBER);
        return Err(SplitError::NotFirst { name: file_name.into(), number: split.number.saturating_add(1), count, first, offset });
    }
    let Some(name) = named.filter(|name| (name.number(), name.count()) == (1, count)) else {
        return Err(SplitError::Misnamed { name: file_name.into(), count, offset: offset(header, COUNT) });
    };
    let missing = || SplitError::part(file_name, GgufError::MissingKey { key: TENSORS.into() });
    Ok((Some(name), count, split.tensors.ok_or_else(missing)?))
}

fn offset(header: &Header, key: &str) -> u64 {
    header.key_offset(key).unwrap_or_default()
}

#[cfg(test)]
mod tests;
