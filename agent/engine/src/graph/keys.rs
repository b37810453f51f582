//! Numbers of a header by the names that GGUF gives them after the architecture's.

use stowage_placement::gguf::Header;

use super::{Weight, cannot_run, invalid};
use crate::api::EngineError;

/// The keys and tensors of one file.
pub(super) struct Keys<'a> {
    pub header: &'a Header,
    pub architecture: &'a str,
}

impl<'a> Keys<'a> {
    pub fn new(header: &'a Header, architecture: &'a str) -> Keys<'a> {
        Keys { header, architecture }
    }

    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture)
    }

    pub fn required(&self, name: &str) -> Result<usize, EngineError> {
        let key = self.key(name);
        self.header.required(&key, Header::u64).map_err(invalid).and_then(|value| bounded(&key, value))
    }

    pub fn optional(&self, name: &str) -> Result<Option<usize>, EngineError> {
        let key = self.key(name);
        self.header.u64(&key).map_err(invalid)?.map(|value| bounded(&key, value)).transpose()
    }

    pub fn float(&self, name: &str) -> Result<Option<f64>, EngineError> {
        self.header.f64(&self.key(name)).map_err(invalid)
    }

    pub fn required_float(&self, name: &str) -> Result<f64, EngineError> {
        self.header.required(&self.key(name), Header::f64).map_err(invalid)
    }

    pub fn flag(&self, name: &str) -> Result<Option<bool>, EngineError> {
        self.header.bool(&self.key(name)).map_err(invalid)
    }

    pub fn text(&self, name: &str) -> Result<&'a str, EngineError> {
        Ok(self.header.string(&self.key(name)).map_err(invalid)?.unwrap_or_default())
    }

    /// Whether the file has this tensor.
    pub fn has(&self, tensor: &str) -> bool {
        self.header.tensor(tensor).is_some()
    }

    /// The vector of this name, where the file has it.
    pub fn vector(&self, name: &str, length: usize) -> Option<Weight> {
        self.has(name).then(|| vector(name, length))
    }
}

/// A tensor of one row.
pub(super) fn vector(name: &str, length: usize) -> Weight {
    Weight { name: name.into(), rows: 1, columns: length }
}

/// Sizes come from a file that anyone may have written: with this bound, products of two of them can't overflow.
fn bounded(key: &str, value: u64) -> Result<usize, EngineError> {
    const MOST: u64 = 1 << 24;
    if value > MOST {
        return Err(cannot_run(format!("{key} is {value}; the engine takes at most {MOST}")));
    }
    Ok(value as usize)
}
