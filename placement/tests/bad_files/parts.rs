//! Split models whose parts don't belong together.

use stowage_placement::gguf::split::{Joining, SplitError};

use crate::file::{F32, File, begin};
use crate::read;

/// Parts by name, the first one first, and what must be said of them.
pub struct PartsCase {
    pub name: &'static str,
    pub parts: Vec<File>,
    pub file_name: &'static str,
    pub said: &'static str,
}

/// The metadata of one part, and one tensor.
fn part(number: u16, count: u16, tensors: i32) -> File {
    begin(1, 3).split(number, count, tensors).tensor(&format!("t{number}"), &[8], F32, 0).padded()
}

impl File {
    fn split(self, number: u16, count: u16, tensors: i32) -> File {
        let file = self.key("split.no", 2).raw(&number.to_le_bytes()).key("split.count", 2).raw(&count.to_le_bytes());
        file.key("split.tensors.count", 5).raw(&tensors.to_le_bytes())
    }
}

pub fn cases() -> Vec<PartsCase> {
    let first = || part(0, 2, 2);
    let case = |name, file_name, parts, said| PartsCase { name, parts, file_name, said };
    let named = "m-00001-of-00002.gguf";
    let without_number = begin(0, 1).key("split.count", 2).raw(&[2, 0]);
    let without_total = begin(0, 2).key("split.no", 2).raw(&[0, 0]).key("split.count", 2).raw(&[2, 0]);
    vec![
        case("the second part taken for the model", "m-00002-of-00002.gguf", vec![part(1, 2, 2)], "(split.no at offset 24)"),
        case("a first part under another name", "model.gguf", vec![first()], "(split.count at offset 46)"),
        case("a first part named as the second", "m-00002-of-00002.gguf", vec![first()], "must end in -00001-of-00002.gguf"),
        case("a first part named as one of three", "m-00001-of-00003.gguf", vec![first()], "must end in -00001-of-00002.gguf"),
        case(
            "more parts than are taken",
            "m-00001-of-02000.gguf",
            vec![part(0, 2000, 2)],
            "offset 46 that it is one of 2000 parts; at most 1024",
        ),
        case("a part without its number", named, vec![without_number], "`split.no` is missing"),
        case("parts without a total", named, vec![without_total], "`split.tensors.count` is missing"),
        case("a count of parts in words", named, vec![begin(0, 1).string("split.count", "2")], "`split.count` at offset 24 is a text"),
        case("a negative total", named, vec![part(0, 2, -1)], "`split.tensors.count` at offset 71 is -1 (i32)"),
        case("a missing part", named, vec![first()], "m-00002-of-00002.gguf, one of 2 parts of a split model, is missing"),
        case("the first part twice", named, vec![first(), first()], "split.no at offset 24 is 0; 1 was needed"),
        case("a part of a model of three", named, vec![first(), part(1, 3, 2)], "split.count at offset 46 is 3; 2 was needed"),
        case("a part with another total", named, vec![first(), part(1, 2, 3)], "split.tensors.count at offset 71 is 3; 2 was needed"),
        case(
            "a whole model as second part",
            named,
            vec![first(), begin(0, 0)],
            "m-00002-of-00002.gguf: metadata key `split.count` is missing",
        ),
        case("too few tensors", named, vec![part(0, 2, 3), part(1, 2, 3)], "offset 71 that all parts have 3 tensors; they have 2"),
        case("too many tensors", named, vec![part(0, 2, 1), part(1, 2, 1)], "offset 71 that all parts have 1 tensors; they have 2"),
        case(
            "a tensor in two parts",
            named,
            vec![first(), begin(1, 3).split(1, 2, 2).tensor("t0", &[8], F32, 0)],
            "m-00002-of-00002.gguf: tensor `t0` is in a part before it too",
        ),
        case(
            "parts of exabytes",
            named,
            vec![begin(1, 3).split(0, 2, 2).tensor("a", &[1 << 60], F32, 0), begin(1, 3).split(1, 2, 2).tensor("b", &[1 << 60], F32, 0)],
            "promise more bytes than 63 bits can count",
        ),
    ]
}

/// What the parts' joiner says.
pub fn joined(case: &PartsCase) -> Result<(), SplitError> {
    let mut headers = case.parts.iter().map(|part| read(&part.bytes));
    let first = headers.next().expect("every case has a first part");
    let size = |_: &File| stowage_placement::Bytes::ZERO;
    let mut joining = Joining::new(case.file_name, first, size(&case.parts[0]))?;
    for header in headers {
        joining.add(header, stowage_placement::Bytes::ZERO)?;
    }
    joining.finish().map(drop)
}
