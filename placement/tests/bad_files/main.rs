//! Files that are wrong, each in its own way: every one is refused with what is wrong and where, however it is read.
#![allow(clippy::unwrap_used)]

mod arrays;
mod beginning;
mod file;
mod metadata;
mod parts;
mod tensors;
mod values;

use std::collections::HashSet;

use stowage_placement::Bytes;
use stowage_placement::gguf::{Feed, GgufError, Header, HeaderReader, Keep};

use file::File;

/// One bad file and what must be said of it.
#[derive(Clone)]
pub struct Case {
    name: String,
    file: File,
    /// A piece of the message; all of them name [`File::wrong_at`] too.
    said: String,
    check: Check,
}

/// How the mistake comes out.
#[derive(Clone, Copy)]
enum Check {
    /// Whatever is kept.
    Read,
    ReadKeeping(Keep),
    /// By a reader that knows the file's size.
    ReadSized(u64),
    /// The header is good; the file is too short for its data.
    Data(u64),
    /// The header is good; a value is not what is needed.
    Ask(fn(&Header) -> Result<(), GgufError>),
}

pub fn case(name: &str, file: File, said: &str) -> Case {
    Case { name: name.into(), file, said: said.into(), check: Check::Read }
}

impl Case {
    fn said(self, said: &str) -> Case {
        Case { said: said.into(), ..self }
    }

    fn wrong_at(mut self, offset: u64) -> Case {
        self.file.wrong_at = offset;
        self
    }

    fn keep(self, keep: Keep) -> Case {
        Case { check: Check::ReadKeeping(keep), ..self }
    }

    fn sized(self, size: u64) -> Case {
        Case { check: Check::ReadSized(size), ..self }
    }

    fn data_in(self, size: u64) -> Case {
        Case { check: Check::Data(size), ..self }
    }

    fn asked(self, ask: fn(&Header) -> Result<(), GgufError>) -> Case {
        Case { check: Check::Ask(ask), ..self }
    }

    fn readers(&self) -> Vec<HeaderReader> {
        match self.check {
            Check::ReadKeeping(keep) => vec![HeaderReader::new(keep)],
            Check::ReadSized(size) => vec![HeaderReader::new(Keep::Sizing).with_file_size(Bytes(size))],
            _ => vec![HeaderReader::new(Keep::Sizing), HeaderReader::new(Keep::All)],
        }
    }

    /// The errors that the file gives, however it is read and in whatever pieces.
    fn errors(&self) -> Vec<String> {
        let mut errors = Vec::new();
        for piece in [usize::MAX, 1, 7] {
            for reader in self.readers() {
                let read = in_pieces(reader, &self.file.bytes, piece);
                errors.push(self.error_of(read));
            }
        }
        errors
    }

    fn error_of(&self, read: Result<Header, GgufError>) -> String {
        let checked = match self.check {
            Check::Data(size) => read.and_then(|header| header.check_file_size(Bytes(size))),
            Check::Ask(ask) => read.and_then(|header| ask(&header)),
            _ => read.map(drop),
        };
        checked.err().map(|error| error.to_string()).unwrap_or_else(|| panic!("{}: no error", self.name))
    }
}

fn in_pieces(mut reader: HeaderReader, bytes: &[u8], piece: usize) -> Result<Header, GgufError> {
    for piece in bytes.chunks(piece) {
        if reader.feed(piece)? == Feed::Complete {
            break;
        }
    }
    reader.into_header()
}

/// A header that is known to be good.
pub fn read(bytes: &[u8]) -> Header {
    in_pieces(HeaderReader::new(Keep::All), bytes, usize::MAX).unwrap()
}

fn cases() -> Vec<Case> {
    [beginning::cases(), metadata::cases(), arrays::cases(), tensors::cases(), values::cases()].concat()
}

/// Whether a message names this offset.
fn names_offset(error: &str, offset: u64) -> bool {
    let digits = |after: &str| after.split(|c: char| !c.is_ascii_digit()).next() == Some(offset.to_string().as_str());
    error.split("offset ").skip(1).any(digits)
}

#[test]
fn every_bad_file_is_refused_with_what_is_wrong_and_where() {
    let mut wrong = Vec::new();
    for case in cases() {
        let at = case.file.wrong_at;
        let unsaid = case.errors().into_iter().filter(|error| !error.contains(&case.said) || !names_offset(error, at));
        wrong.extend(unsaid.map(|error| format!("{}: it should say `{}` and name offset {at}: {error}", case.name, case.said)));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_set_of_parts_that_is_no_model_is_refused_with_what_is_wrong_and_where() {
    for case in parts::cases() {
        let error = parts::joined(&case).err().map(|error| error.to_string()).unwrap_or_else(|| panic!("{}: no error", case.name));
        assert!(error.contains(case.said), "{}: {error}", case.name);
    }
}

#[test]
fn there_are_more_than_200_bad_files_and_no_two_are_the_same() {
    let (cases, parts) = (cases(), parts::cases());
    assert!(cases.len() + parts.len() >= 200, "{} and {}", cases.len(), parts.len());
    println!("{} files, {} sets of parts", cases.len(), parts.len());
    let names: HashSet<&str> = cases.iter().map(|case| case.name.as_str()).chain(parts.iter().map(|case| case.name)).collect();
    assert_eq!(names.len(), cases.len() + parts.len());
    let mut seen: HashSet<(&[u8], &str)> = HashSet::new();
    for case in &cases {
        assert!(seen.insert((&case.file.bytes, &case.said)), "{}: another file has the same bytes", case.name);
    }
}
