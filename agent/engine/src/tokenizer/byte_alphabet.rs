//! GPT-2's alphabet: every byte as a printable character, so that any bytes can be written as a token's text.
//!
//! Source: `bytes_to_unicode` of OpenAI's `gpt-2/src/encoder.py`; the `tokenizers` crate writes by the same table but has no way back for one token.

/// The character that stands for a byte: itself where it is printable in Latin-1, else one counted up from U+0100.
pub fn to_char(byte: u8) -> char {
    let stands_for_itself = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if stands_for_itself(byte) {
        return char::from(byte);
    }
    let rank = (0..byte).filter(|&b| !stands_for_itself(b)).count() as u32;
    char::from_u32(0x100 + rank).unwrap_or(char::REPLACEMENT_CHARACTER)
}

/// The way back, for characters of the alphabet.
pub struct Bytes {
    by_code: [Option<u8>; 0x144],
}

impl Bytes {
    pub fn new() -> Bytes {
        let mut by_code = [None; 0x144];
        for byte in 0..=u8::MAX {
            by_code[to_char(byte) as usize] = Some(byte);
        }
        Bytes { by_code }
    }

    /// The bytes of a token's text. A character outside the alphabet stands for its own UTF-8, as some vocabularies' added tokens have it.
    pub fn of(&self, text: &str) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(text.len());
        for character in text.chars() {
            match self.by_code.get(character as usize).copied().flatten() {
                Some(byte) => bytes.push(byte),
                None => bytes.extend(character.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_space_a_newline_and_a_byte_of_utf8_are_written_as_gpt2_writes_them() {
        assert_eq!([to_char(b' '), to_char(b'\n'), to_char(b'a'), to_char(0xad), to_char(0xff)], ['Ġ', 'Ċ', 'a', 'Ń', 'ÿ']);
    }

    #[test]
    fn every_byte_is_found_again() {
        let alphabet: String = (0..=u8::MAX).map(to_char).collect();
        assert_eq!(Bytes::new().of(&alphabet), (0..=u8::MAX).collect::<Vec<_>>());
    }

    #[test]
    fn a_character_outside_the_alphabet_is_itself() {
        assert_eq!(Bytes::new().of("▁a"), "▁a".as_bytes());
    }
}
