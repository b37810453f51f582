//! Writes files byte by byte, and remembers where in them the mistake is.

/// A file that is wrong at one place.
#[derive(Clone, Default)]
pub struct File {
    pub bytes: Vec<u8>,
    /// Offset that the error must name.
    pub wrong_at: u64,
}

pub const STRING: u32 = 8;
pub const ARRAY: u32 = 9;
pub const F32: u32 = 0;

/// An empty file.
pub fn empty() -> File {
    File::default()
}

/// Magic, version 3, and how many tensors and keys there are to be.
pub fn begin(tensors: u64, keys: u64) -> File {
    empty().raw(b"GGUF").u32(3).u64(tensors).u64(keys)
}

impl File {
    /// Here is what's wrong.
    pub fn here(mut self) -> File {
        self.wrong_at = self.bytes.len() as u64;
        self
    }

    pub fn raw(mut self, bytes: &[u8]) -> File {
        self.bytes.extend(bytes);
        self
    }

    pub fn u32(self, value: u32) -> File {
        self.raw(&value.to_le_bytes())
    }

    pub fn u64(self, value: u64) -> File {
        self.raw(&value.to_le_bytes())
    }

    pub fn zeros(self, count: usize) -> File {
        self.raw(&vec![0; count])
    }

    pub fn text(self, text: &str) -> File {
        self.bytes_as_text(text.as_bytes())
    }

    pub fn bytes_as_text(self, bytes: &[u8]) -> File {
        self.u64(bytes.len() as u64).raw(bytes)
    }

    /// A key and the type of its value.
    pub fn key(self, name: &str, value_type: u32) -> File {
        self.text(name).u32(value_type)
    }

    /// A whole entry, with a value of type u32.
    pub fn number(self, name: &str, value: u32) -> File {
        self.key(name, 4).u32(value)
    }

    pub fn string(self, name: &str, value: &str) -> File {
        self.key(name, STRING).text(value)
    }

    /// A key, that its value is an array, the elements' type, and how many there are.
    pub fn array(self, name: &str, element: u32, length: u64) -> File {
        self.key(name, ARRAY).u32(element).u64(length)
    }

    /// A tensor's name and dimensions.
    pub fn dimensions(self, name: &str, dimensions: &[u64]) -> File {
        let file = self.text(name).u32(dimensions.len() as u32);
        dimensions.iter().fold(file, |file, dimension| file.u64(*dimension))
    }

    pub fn tensor(self, name: &str, dimensions: &[u64], ggml_type: u32, offset: u64) -> File {
        self.dimensions(name, dimensions).u32(ggml_type).u64(offset)
    }

    /// To where the data would begin.
    pub fn padded(mut self) -> File {
        self.bytes.resize(self.bytes.len().next_multiple_of(32), 0);
        self
    }
}
