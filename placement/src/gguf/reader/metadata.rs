//! Metadata entries: a key, a type, a value.

use super::cursor::{Cursor, Text};
use super::{HeaderReader, Key, MAX_KEY, MAX_TEXT, State};
use crate::gguf::{Array, GgufError, Value, ValueType};

/// An array of which some elements were read.
pub(super) struct OpenArray {
    key: Key,
    element: ValueType,
    length: u64,
    remaining: u64,
    /// `None`: it is too long to be kept.
    kept: Option<Array>,
}

impl Key {
    /// About what an entry holds in memory beside its value: its name twice, and what the maps take.
    fn held(&self) -> usize {
        2 * self.name.len() + 160
    }
}

impl HeaderReader {
    pub(super) fn read_entry(&mut self, cursor: &mut Cursor<'_>) -> Result<bool, GgufError> {
        let mut ahead = cursor.clone();
        let Some((key, value_type)) = self.read_key(&mut ahead)? else {
            self.state = State::Entry;
            return Ok(false);
        };
        let read = match value_type {
            ValueType::Array => self.open_array(key, &mut ahead)?,
            ValueType::String => self.read_text(key, &mut ahead)?,
            scalar => self.read_scalar(key, scalar, &mut ahead)?,
        };
        if read {
            *cursor = ahead;
        } else {
            self.state = State::Entry;
        }
        Ok(read)
    }

    fn read_key(&self, cursor: &mut Cursor<'_>) -> Result<Option<(Key, ValueType)>, GgufError> {
        let offset = cursor.offset();
        let Some(name) = cursor.name("metadata key", MAX_KEY)? else { return Ok(None) };
        if self.metadata.contains_key(&name) {
            return Err(GgufError::DuplicateKey { key: name, offset });
        }
        Ok(read_type(&name, cursor)?.map(|value_type| (Key { name, offset }, value_type)))
    }

    fn read_scalar(&mut self, key: Key, value_type: ValueType, cursor: &mut Cursor<'_>) -> Result<bool, GgufError> {
        let Some(value) = scalar(&key.name, value_type, cursor)? else { return Ok(false) };
        self.keep_bytes(key.held(), cursor.offset())?;
        self.store(key, value);
        self.next_entry(cursor)?;
        Ok(true)
    }

    fn read_text(&mut self, key: Key, cursor: &mut Cursor<'_>) -> Result<bool, GgufError> {
        let Some(text) = cursor.text("text", self.keep.longest_text(), MAX_TEXT)? else { return Ok(false) };
        match text {
            Text::Whole(bytes) => {
                self.keep_bytes(key.held() + bytes.len(), cursor.offset())?;
                self.store(key, Value::String(String::from_utf8_lossy(bytes).into_owned()));
                self.next_entry(cursor)?;
            }
            Text::Skipped { length } => {
                self.keep_bytes(key.held(), cursor.offset())?;
                self.store(key, Value::SkippedString(length));
                self.next_entry(cursor)?;
                let then = std::mem::replace(&mut self.state, State::Preamble);
                self.state = State::Skip { remaining: length, then: Box::new(then) };
            }
        }
        Ok(true)
    }

    fn open_array(&mut self, key: Key, cursor: &mut Cursor<'_>) -> Result<bool, GgufError> {
        let type_offset = cursor.offset();
        let Some(element) = read_type(&key.name, cursor)? else { return Ok(false) };
        if element == ValueType::Array {
            return Err(GgufError::NestedArray { key: key.name, offset: type_offset });
        }
        let length_offset = cursor.offset();
        let Some(length) = cursor.u64() else { return Ok(false) };
        // A text takes at least the 8 bytes of its length.
        let claimed = length.checked_mul(element.fixed_size().unwrap_or(8)).filter(|bytes| *bytes < 1 << 62);
        let Some(claimed) = claimed else {
            return Err(GgufError::TooMany { what: "array elements", claimed: length, limit: 1 << 59, offset: length_offset });
        };
        cursor.check_claim("array", claimed)?;
        self.keep_bytes(key.held(), length_offset)?;
        let keeps = length <= self.keep.longest_array();
        if let (false, Some(_)) = (keeps, element.fixed_size()) {
            self.store(key, Value::Array(Array::Skipped { element, length }));
            self.next_entry(cursor)?;
            let then = std::mem::replace(&mut self.state, State::Preamble);
            self.state = State::Skip { remaining: claimed, then: Box::new(then) };
            return Ok(true);
        }
        let kept = keeps.then(|| empty(element));
        self.state = State::ArrayElements(OpenArray { key, element, length, remaining: length, kept });
        Ok(true)
    }

    /// As many elements as are there, then on to the next entry.
    pub(super) fn read_array(&mut self, mut array: OpenArray, cursor: &mut Cursor<'_>) -> Result<bool, GgufError> {
        while array.remaining > 0 {
            if array.kept.is_none() {
                let Some(Text::Skipped { length }) = cursor.text("text", 0, MAX_TEXT)?.map(Text::skipped) else {
                    self.state = State::ArrayElements(array);
                    return Ok(false);
                };
                array.remaining -= 1;
                let remaining = length - cursor.skip(length);
                if remaining > 0 {
                    self.state = State::Skip { remaining, then: Box::new(State::ArrayElements(array)) };
                    return Ok(true);
                }
                continue;
            }
            if !self.read_element(&mut array, cursor)? {
                self.state = State::ArrayElements(array);
                return Ok(false);
            }
            array.remaining -= 1;
        }
        let OpenArray { key, element, length, remaining: _, kept } = array;
        self.store(key, Value::Array(kept.unwrap_or(Array::Skipped { element, length })));
        self.next_entry(cursor)?;
        Ok(true)
    }

    fn read_element(&mut self, array: &mut OpenArray, cursor: &mut Cursor<'_>) -> Result<bool, GgufError> {
        let offset = cursor.offset();
        let size = match array.kept.as_mut() {
            Some(Array::String(texts)) => {
                let Some(Text::Whole(bytes)) = cursor.text("text", MAX_TEXT, MAX_TEXT)? else { return Ok(false) };
                texts.push(String::from_utf8_lossy(bytes).into_owned());
                bytes.len() + size_of::<String>()
            }
            Some(kept) => {
                let Some(value) = scalar(&array.key.name, array.element, cursor)? else { return Ok(false) };
                push(kept, &value);
                8
            }
            None => 0,
        };
        self.keep_bytes(size, offset)?;
        Ok(true)
    }
}

fn read_type(key: &str, cursor: &mut Cursor<'_>) -> Result<Option<ValueType>, GgufError> {
    let offset = cursor.offset();
    let Some(id) = cursor.u32() else { return Ok(None) };
    ValueType::from_id(id).map(Some).ok_or_else(|| GgufError::UnknownValueType { key: key.into(), id, offset })
}

/// A value of fixed size; `None` where its bytes are not all there (and for texts and arrays, which are read elsewhere).
fn scalar(key: &str, value_type: ValueType, cursor: &mut Cursor<'_>) -> Result<Option<Value>, GgufError> {
    let offset = cursor.offset();
    Ok(match value_type {
        ValueType::U8 => cursor.u8().map(Value::U8),
        ValueType::I8 => cursor.array().map(|b| Value::I8(i8::from_le_bytes(b))),
        ValueType::U16 => cursor.array().map(|b| Value::U16(u16::from_le_bytes(b))),
        ValueType::I16 => cursor.array().map(|b| Value::I16(i16::from_le_bytes(b))),
        ValueType::U32 => cursor.u32().map(Value::U32),
        ValueType::I32 => cursor.array().map(|b| Value::I32(i32::from_le_bytes(b))),
        ValueType::F32 => cursor.array().map(|b| Value::F32(f32::from_le_bytes(b))),
        ValueType::U64 => cursor.u64().map(Value::U64),
        ValueType::I64 => cursor.array().map(|b| Value::I64(i64::from_le_bytes(b))),
        ValueType::F64 => cursor.array().map(|b| Value::F64(f64::from_le_bytes(b))),
        ValueType::Bool => match cursor.u8() {
            Some(value @ 2..) => return Err(GgufError::NotABool { key: key.into(), value, offset }),
            byte => byte.map(|byte| Value::Bool(byte == 1)),
        },
        ValueType::String | ValueType::Array => None,
    })
}

fn empty(element: ValueType) -> Array {
    match element {
        ValueType::U8 => Array::U8(Vec::new()),
        ValueType::I8 => Array::I8(Vec::new()),
        ValueType::U16 => Array::U16(Vec::new()),
        ValueType::I16 => Array::I16(Vec::new()),
        ValueType::U32 => Array::U32(Vec::new()),
        ValueType::I32 => Array::I32(Vec::new()),
        ValueType::F32 => Array::F32(Vec::new()),
        ValueType::Bool => Array::Bool(Vec::new()),
        ValueType::U64 => Array::U64(Vec::new()),
        ValueType::I64 => Array::I64(Vec::new()),
        ValueType::F64 => Array::F64(Vec::new()),
        // An array of arrays was refused before this.
        ValueType::String | ValueType::Array => Array::String(Vec::new()),
    }
}

/// Adds a value to an array of its type; [`empty`] and [`scalar`] are given the same one.
fn push(array: &mut Array, value: &Value) {
    match (array, value) {
        (Array::U8(values), Value::U8(v)) => values.push(*v),
        (Array::I8(values), Value::I8(v)) => values.push(*v),
        (Array::U16(values), Value::U16(v)) => values.push(*v),
        (Array::I16(values), Value::I16(v)) => values.push(*v),
        (Array::U32(values), Value::U32(v)) => values.push(*v),
        (Array::I32(values), Value::I32(v)) => values.push(*v),
        (Array::F32(values), Value::F32(v)) => values.push(*v),
        (Array::Bool(values), Value::Bool(v)) => values.push(*v),
        (Array::U64(values), Value::U64(v)) => values.push(*v),
        (Array::I64(values), Value::I64(v)) => values.push(*v),
        (Array::F64(values), Value::F64(v)) => values.push(*v),
        _ => debug_assert!(false, "an array holds elements of the type that it was opened with"),
    }
}
