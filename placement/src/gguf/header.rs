//! A header that was read whole.

use std::collections::BTreeMap;

use crate::gguf::{Array, GgmlType, GgufError, Value};
use crate::units::Bytes;

/// A GGUF header: what the file says of itself, and where its tensors are.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Header {
    pub version: u32,
    pub metadata: BTreeMap<String, Value>,
    /// Where in the file each key stands, for messages.
    pub(super) key_offsets: BTreeMap<String, u64>,
    /// In the order of the file.
    pub tensors: Vec<TensorInfo>,
    /// Data of each tensor begins at a multiple of this.
    pub alignment: u64,
    /// Where in the file the tensors' data begin; their offsets count from here.
    pub data_offset: u64,
}

/// One tensor. Its sizes were checked when the header was read, so they can't overflow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    pub name: String,
    /// ggml's order: `dimensions[0]` is the length of a row, contiguous in memory.
    pub dimensions: Vec<u64>,
    pub ggml_type: GgmlType,
    /// From the beginning of the tensors' data.
    pub offset: u64,
}

impl TensorInfo {
    pub fn elements(&self) -> u64 {
        self.dimensions.iter().product()
    }

    /// Length of a row, in elements.
    pub fn columns(&self) -> u64 {
        self.dimensions.first().copied().unwrap_or(1)
    }

    pub fn rows(&self) -> u64 {
        self.dimensions.iter().skip(1).product()
    }

    /// Bytes in the file.
    pub fn bytes(&self) -> Bytes {
        self.ggml_type.bytes(self.elements()).unwrap_or(Bytes::MAX)
    }
}

impl Header {
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.metadata.get(key)
    }

    /// Where in the file a key stands; `None` for one that was not read from a file.
    pub fn key_offset(&self, key: &str) -> Option<u64> {
        self.key_offsets.get(key).copied()
    }

    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.iter().find(|tensor| tensor.name == name)
    }

    /// `general.architecture`, without which nothing else has a meaning.
    pub fn architecture(&self) -> Result<&str, GgufError> {
        self.required("general.architecture", Header::string)
    }

    pub fn string(&self, key: &str) -> Result<Option<&str>, GgufError> {
        self.typed(key, "a text", Value::as_str)
    }

    pub fn u64(&self, key: &str) -> Result<Option<u64>, GgufError> {
        self.typed(key, "a whole number of at least 0", Value::as_u64)
    }

    pub fn f64(&self, key: &str) -> Result<Option<f64>, GgufError> {
        self.typed(key, "a floating-point number", Value::as_f64)
    }

    pub fn bool(&self, key: &str) -> Result<Option<bool>, GgufError> {
        self.typed(key, "a boolean", Value::as_bool)
    }

    /// One number for each layer: the file has either an array or one number for all of them.
    pub fn u64_per_layer(&self, key: &str, layers: u32) -> Result<Option<Vec<u64>>, GgufError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        if let Some(number) = value.as_u64() {
            return Ok(Some(vec![number; layers as usize]));
        }
        let wrong = |found: String| self.wrong_type(key, "a whole number, or one for each layer", found);
        let array = value.as_array().ok_or_else(|| wrong(describe(value)))?;
        if array.len() != u64::from(layers) {
            return Err(wrong(format!("an array of {} for {layers} layers", array.len())));
        }
        array.to_u64s().map(Some).ok_or_else(|| wrong("an array of other values".into()))
    }

    pub fn strings(&self, key: &str) -> Result<Option<&[String]>, GgufError> {
        self.typed(key, "an array of texts", |value| value.as_array().and_then(|array| array.as_strings()))
    }

    /// What `getter` finds, or the error that the key is missing: `header.required("llama.block_count", Header::u64)`.
    pub fn required<'a, T>(&'a self, key: &str, getter: impl Fn(&'a Header, &str) -> Result<Option<T>, GgufError>) -> Result<T, GgufError> {
        getter(self, key)?.ok_or_else(|| GgufError::MissingKey { key: key.into() })
    }

    fn typed<'a, T>(&'a self, key: &str, expected: &'static str, convert: impl Fn(&'a Value) -> Option<T>) -> Result<Option<T>, GgufError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        if let Some(converted) = convert(value) {
            return Ok(Some(converted));
        }
        if let Value::Array(Array::Skipped { element, length }) = value {
            return Err(GgufError::NotKept { key: key.into(), element: *element, length: *length });
        }
        Err(self.wrong_type(key, expected, describe(value)))
    }

    pub(super) fn wrong_type(&self, key: &str, expected: &'static str, found: String) -> GgufError {
        GgufError::WrongType { key: key.into(), expected, found, offset: self.key_offset(key) }
    }

    /// Where the last tensor ends, from the beginning of the file.
    pub fn data_end(&self) -> Bytes {
        let ends = self.tensors.iter().map(|t| self.data_offset.saturating_add(t.offset).saturating_add(t.bytes().0));
        Bytes(ends.max().unwrap_or(self.data_offset))
    }

    /// Whether a file of this size holds all the tensors that its header names. A header alone is enough to plan; loading needs this.
    pub fn check_file_size(&self, file_size: Bytes) -> Result<(), GgufError> {
        let begin_and_end = |tensor: &TensorInfo| {
            let begin = self.data_offset.saturating_add(tensor.offset);
            (begin, begin.saturating_add(tensor.bytes().0))
        };
        let cut_off = self.tensors.iter().filter(|tensor| begin_and_end(tensor).1 > file_size.0);
        let Some(first) = cut_off.min_by_key(|tensor| begin_and_end(tensor)) else { return Ok(()) };
        let (offset, tensor) = (begin_and_end(first).0, first.name.clone());
        Err(GgufError::DataTruncated { file_size: file_size.0, data_end: self.data_end().0, tensor, offset })
    }
}

pub(super) fn describe(value: &Value) -> String {
    match value {
        Value::String(_) | Value::SkippedString(_) => "a text".into(),
        Value::Array(array) => format!("an array of {}", array.len()),
        Value::I8(v) => format!("{v} (i8)"),
        Value::I16(v) => format!("{v} (i16)"),
        Value::I32(v) => format!("{v} (i32)"),
        Value::I64(v) => format!("{v} (i64)"),
        Value::F32(v) => format!("{v} (f32)"),
        Value::F64(v) => format!("{v} (f64)"),
        Value::Bool(v) => format!("{v}"),
        Value::U8(_) | Value::U16(_) | Value::U32(_) | Value::U64(_) => format!("the number {}", value.as_u64().unwrap_or_default()),
    }
}
