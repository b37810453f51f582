//! Writes small GGUF files for tests, here and in other crates: real architectures without their data, and files that are wrong on purpose.

use crate::gguf::GgmlType;

const ALIGNMENT: u64 = 32;

/// Builds a GGUF file in memory. What it writes is well formed unless asked otherwise ([`HeaderWriter::claim_tensors`], [`HeaderWriter::version`]).
#[derive(Clone, Debug)]
pub struct HeaderWriter {
    version: u32,
    claimed_tensors: Option<u64>,
    claimed_keys: Option<u64>,
    keys: Vec<Vec<u8>>,
    tensors: Vec<(String, Vec<u64>, GgmlType)>,
}

impl Default for HeaderWriter {
    fn default() -> HeaderWriter {
        HeaderWriter::new()
    }
}

impl HeaderWriter {
    pub fn new() -> HeaderWriter {
        HeaderWriter { version: 3, claimed_tensors: None, claimed_keys: None, keys: Vec::new(), tensors: Vec::new() }
    }

    /// With `general.architecture`.
    pub fn architecture(name: &str) -> HeaderWriter {
        HeaderWriter::new().string("general.architecture", name)
    }

    pub fn version(mut self, version: u32) -> HeaderWriter {
        self.version = version;
        self
    }

    /// Says that there are this many tensors, whatever there is.
    pub fn claim_tensors(mut self, count: u64) -> HeaderWriter {
        self.claimed_tensors = Some(count);
        self
    }

    pub fn claim_keys(mut self, count: u64) -> HeaderWriter {
        self.claimed_keys = Some(count);
        self
    }

    pub fn string(self, key: &str, value: &str) -> HeaderWriter {
        self.raw(key, 8, &text(value))
    }

    pub fn u32(self, key: &str, value: u32) -> HeaderWriter {
        self.raw(key, 4, &value.to_le_bytes())
    }

    pub fn u64(self, key: &str, value: u64) -> HeaderWriter {
        self.raw(key, 10, &value.to_le_bytes())
    }

    /// The keys of part `number` (counted from 0, as in the file) of `count`, with the types that llama.cpp's `gguf-split` gives them.
    pub fn split(self, number: u16, count: u16, tensors: i32) -> HeaderWriter {
        let parts = self.raw("split.no", 2, &number.to_le_bytes()).raw("split.count", 2, &count.to_le_bytes());
        parts.raw("split.tensors.count", 5, &tensors.to_le_bytes())
    }

    /// The same model as `gguf-split` would split it: its tensors spread over so many files, the metadata in the first.
    pub fn into_parts(self, count: u16) -> Vec<HeaderWriter> {
        let tensors = self.tensors.len();
        let a_part = tensors.div_ceil(usize::from(count)).max(1);
        let own = |number: u16| self.tensors.iter().skip(usize::from(number) * a_part).take(a_part).cloned().collect();
        let part = |number: u16| {
            let keys = if number == 0 { self.keys.clone() } else { Vec::new() };
            HeaderWriter { keys, tensors: own(number), ..self.clone() }.split(number, count, tensors as i32)
        };
        (0..count).map(part).collect()
    }

    pub fn f32(self, key: &str, value: f32) -> HeaderWriter {
        self.raw(key, 6, &value.to_le_bytes())
    }

    pub fn bool(self, key: &str, value: bool) -> HeaderWriter {
        self.raw(key, 7, &[value.into()])
    }

    pub fn strings<'a>(self, key: &str, values: impl IntoIterator<Item = &'a str>) -> HeaderWriter {
        let values: Vec<_> = values.into_iter().collect();
        let elements: Vec<u8> = values.iter().flat_map(|value| text(value)).collect();
        self.array(key, 8, values.len() as u64, &elements)
    }

    pub fn u32s(self, key: &str, values: &[u32]) -> HeaderWriter {
        let elements: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.array(key, 4, values.len() as u64, &elements)
    }

    pub fn i32s(self, key: &str, values: &[i32]) -> HeaderWriter {
        let elements: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.array(key, 5, values.len() as u64, &elements)
    }

    pub fn f32s(self, key: &str, values: &[f32]) -> HeaderWriter {
        let elements: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.array(key, 6, values.len() as u64, &elements)
    }

    /// An array as its bytes; `claimed` need not be true.
    pub fn array(self, key: &str, element_type: u32, claimed: u64, elements: &[u8]) -> HeaderWriter {
        let mut value = element_type.to_le_bytes().to_vec();
        value.extend(claimed.to_le_bytes());
        value.extend(elements);
        self.raw(key, 9, &value)
    }

    /// Any value type with any bytes.
    pub fn raw(mut self, key: &str, value_type: u32, value: &[u8]) -> HeaderWriter {
        let mut entry = text(key);
        entry.extend(value_type.to_le_bytes());
        entry.extend(value);
        self.keys.push(entry);
        self
    }

    /// A tensor in ggml's order of dimensions: `[columns, rows]`.
    pub fn tensor(mut self, name: &str, ggml_type: GgmlType, dimensions: &[u64]) -> HeaderWriter {
        self.tensors.push((name.into(), dimensions.into(), ggml_type));
        self
    }

    /// The header, padded to where the data would begin.
    pub fn header(&self) -> Vec<u8> {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(self.version.to_le_bytes());
        bytes.extend(self.claimed_tensors.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        bytes.extend(self.claimed_keys.unwrap_or(self.keys.len() as u64).to_le_bytes());
        bytes.extend(self.keys.concat());
        let mut offset = 0u64;
        for (name, dimensions, ggml_type) in &self.tensors {
            bytes.extend(text(name));
            bytes.extend((dimensions.len() as u32).to_le_bytes());
            bytes.extend(dimensions.iter().flat_map(|dimension| dimension.to_le_bytes()));
            bytes.extend(ggml_type.id().to_le_bytes());
            bytes.extend(offset.to_le_bytes());
            offset = offset.saturating_add(file_bytes(dimensions, *ggml_type));
        }
        bytes.resize(bytes.len().next_multiple_of(ALIGNMENT as usize), 0);
        bytes
    }

    /// The header and the data of all tensors, byte after byte of each as `data` gives it.
    pub fn file(&self, mut data: impl FnMut(&str, u64) -> u8) -> Vec<u8> {
        let mut bytes = self.header();
        for (name, dimensions, ggml_type) in &self.tensors {
            let size = ggml_type.bytes(dimensions.iter().product()).map_or(0, |bytes| bytes.0);
            bytes.extend((0..size).map(|i| data(name, i)));
            bytes.resize(bytes.len().next_multiple_of(ALIGNMENT as usize), 0);
        }
        bytes
    }

    /// What a whole file would measure.
    pub fn file_size(&self) -> u64 {
        self.tensors.iter().fold(self.header().len() as u64, |size, (_, dimensions, ty)| size.saturating_add(file_bytes(dimensions, *ty)))
    }
}

fn file_bytes(dimensions: &[u64], ggml_type: GgmlType) -> u64 {
    let elements = dimensions.iter().fold(1u64, |product, dimension| product.saturating_mul(*dimension));
    ggml_type.bytes(elements).map_or(0, |bytes| bytes.0.saturating_add(ALIGNMENT - 1) & !(ALIGNMENT - 1))
}

fn text(value: &str) -> Vec<u8> {
    let mut bytes = (value.len() as u64).to_le_bytes().to_vec();
    bytes.extend(value.as_bytes());
    bytes
}
