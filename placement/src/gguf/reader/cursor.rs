//! A place in the bytes that have come so far. Every read says `None` where too few are there, and then leaves the place as it was.

use crate::gguf::GgufError;

#[derive(Clone)]
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    position: usize,
    /// Offset in the file of `bytes[0]`.
    base: u64,
    file_size: Option<u64>,
}

/// A text: all of it, or that more bytes are needed, or (where it is longer than its reader keeps) that `length` bytes are to be skipped.
pub(super) enum Text<'a> {
    Whole(&'a [u8]),
    Skipped { length: u64 },
}

impl Text<'_> {
    /// The same text, of which nothing is kept (one of length 0 is both).
    pub fn skipped(self) -> Self {
        match self {
            Text::Whole(bytes) => Text::Skipped { length: bytes.len() as u64 },
            skipped @ Text::Skipped { .. } => skipped,
        }
    }
}

impl<'a> Cursor<'a> {
    pub fn new(bytes: &'a [u8], base: u64, file_size: Option<u64>) -> Cursor<'a> {
        Cursor { bytes, position: 0, base, file_size }
    }

    pub fn consumed(&self) -> usize {
        self.position
    }

    /// Offset in the file of the next byte.
    pub fn offset(&self) -> u64 {
        self.base + self.position as u64
    }

    pub fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let taken = self.bytes.get(self.position..self.position.checked_add(length)?)?;
        self.position += length;
        Some(taken)
    }

    pub fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    pub fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    /// As many of `length` bytes as are there.
    pub fn skip(&mut self, length: u64) -> u64 {
        let skipped = length.min((self.bytes.len() - self.position) as u64);
        self.position += skipped as usize;
        skipped
    }

    /// Refuses a claim of bytes that lie beyond the end of the file.
    pub fn check_claim(&self, what: &'static str, claimed: u64) -> Result<(), GgufError> {
        match self.file_size {
            Some(file_size) if self.offset().saturating_add(claimed) > file_size => {
                Err(GgufError::BeyondEndOfFile { what, claimed, file_size, offset: self.offset() })
            }
            _ => Ok(()),
        }
    }

    /// A length and as many bytes: kept up to `keep` bytes, refused beyond `limit`.
    pub fn text(&mut self, what: &'static str, keep: u64, limit: u64) -> Result<Option<Text<'a>>, GgufError> {
        let mut ahead = self.clone();
        let Some(length) = ahead.u64() else { return Ok(None) };
        if length > limit {
            return Err(GgufError::TooLong { what, claimed: length, limit, offset: self.offset() });
        }
        ahead.check_claim(what, length)?;
        let text = if length > keep {
            Text::Skipped { length }
        } else {
            // `length` is at most `keep`, and those limits fit into a usize.
            let Some(bytes) = ahead.take(length as usize) else { return Ok(None) };
            Text::Whole(bytes)
        };
        *self = ahead;
        Ok(Some(text))
    }

    /// A name, which is kept whole and must be text.
    pub fn name(&mut self, what: &'static str, limit: u64) -> Result<Option<String>, GgufError> {
        let offset = self.offset();
        let Some(Text::Whole(bytes)) = self.text(what, limit, limit)? else { return Ok(None) };
        if bytes.is_empty() {
            return Err(GgufError::EmptyName { what, offset });
        }
        match std::str::from_utf8(bytes) {
            Ok(name) => Ok(Some(name.to_owned())),
            Err(error) => {
                let at = error.valid_up_to();
                // The bytes stand behind their length, a u64.
                Err(GgufError::NotUtf8 { what, byte: bytes[at], byte_offset: offset + 8 + at as u64, offset })
            }
        }
    }
}
