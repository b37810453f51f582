//! Parts that belong together, and parts that don't.

use super::*;
use crate::gguf::write::HeaderWriter;
use crate::gguf::{GgmlType, HeaderReader, Keep};

fn read(bytes: &[u8]) -> Header {
    let mut reader = HeaderReader::new(Keep::All);
    reader.feed(bytes).unwrap();
    reader.into_header().unwrap()
}

/// Three parts with one tensor each, of 128, 256 and 384 bytes.
fn part(number: u16) -> HeaderWriter {
    let writer = if number == 0 { HeaderWriter::architecture("llama").u32("llama.block_count", 1) } else { HeaderWriter::new() };
    writer.split(number, 3, 3).tensor(&format!("tensor.{number}"), GgmlType::F32, &[32 * (u64::from(number) + 1)])
}

fn file(number: u16) -> (Header, Bytes) {
    let bytes = part(number).file(|_, _| 0);
    (read(&bytes), Bytes(bytes.len() as u64))
}

fn begin(name: &str, writer: &HeaderWriter) -> Result<Joining, SplitError> {
    Joining::new(name, read(&writer.header()), Bytes(writer.file_size()))
}

fn begun() -> Joining {
    begin("m-00001-of-00003.gguf", &part(0)).unwrap()
}

#[test]
fn a_model_of_one_file_is_joined_at_once() {
    let writer = HeaderWriter::architecture("llama").tensor("t", GgmlType::F32, &[8]);
    for writer in [writer.clone(), writer.split(0, 1, 1)] {
        let joining = begin("m.gguf", &writer).unwrap();
        assert_eq!((joining.next_part(), joining.count()), (None, 1));
        let joined = joining.finish().unwrap();
        assert_eq!((joined.header, joined.parts), (read(&writer.header()), vec![Bytes(writer.file_size())]));
    }
}

#[test]
fn parts_read_like_one_file_laid_end_to_end() {
    let mut joining = begin("models/m-00001-of-00003.gguf", &part(0)).unwrap();
    for number in 1..3 {
        assert_eq!(joining.next_part(), Some(format!("models/m-0000{}-of-00003.gguf", number + 1)));
        let (header, size) = file(number);
        joining.add(header, size).unwrap();
    }
    let joined = joining.finish().unwrap();
    let sizes: Vec<Bytes> = (0..3).map(|number| file(number).1).collect();
    assert_eq!((joined.size(), &joined.parts), (sizes.iter().copied().sum(), &sizes));
    assert_eq!(joined.header.data_end(), joined.size());
    joined.header.check_file_size(joined.size()).unwrap();
    for (number, tensor) in joined.header.tensors.iter().enumerate() {
        let (header, _) = file(number as u16);
        assert_eq!(tensor.name, format!("tensor.{number}"));
        assert_eq!(joined.locate(tensor), (number, header.data_offset));
    }
    assert_eq!(joined.header.u64("llama.block_count").unwrap(), Some(1));
}

#[test]
fn parts_of_which_only_the_headers_are_there_are_sized_by_what_they_promise() {
    let mut joining = Joining::new("m-00001-of-00003.gguf", file(0).0, Bytes::ZERO).unwrap();
    joining.add(file(1).0, Bytes(7)).unwrap();
    joining.add(file(2).0, Bytes::ZERO).unwrap();
    assert_eq!(joining.finish().unwrap().size(), (0..3).map(|number| file(number).1).sum());
}

#[test]
fn a_split_model_is_named_by_its_first_part() {
    let error = begin("m-00002-of-00003.gguf", &part(1)).unwrap_err().to_string();
    assert!(error.contains("is part 2 of 3") && error.contains("named by its first part, m-00001-of-00003.gguf"), "{error}");
    let error = begin("model.gguf", &part(0)).unwrap_err().to_string();
    assert!(error.contains("must end in -00001-of-00003.gguf"), "{error}");
    assert!(matches!(begin("m-00001-of-00004.gguf", &part(0)), Err(SplitError::Misnamed { .. })));
}

#[test]
fn more_parts_than_a_model_has_are_refused_before_they_are_asked_for() {
    let many = HeaderWriter::new().split(0, 60_000, 3);
    let error = begin("m-00001-of-60000.gguf", &many).unwrap_err().to_string();
    assert!(error.contains("one of 60000 parts; at most 1024"), "{error}");
}

#[test]
fn a_part_of_another_model_is_named_with_what_was_needed() {
    for (other, said) in [
        (HeaderWriter::new().split(1, 4, 3), "m-00002-of-00003.gguf: split.count at offset 46 is 4; 3 was needed"),
        (HeaderWriter::new().split(2, 3, 3), "split.no at offset 24 is 2; 1 was needed"),
        (HeaderWriter::new().split(1, 3, 9), "split.tensors.count at offset 71 is 9; 3 was needed"),
        (HeaderWriter::new(), "m-00002-of-00003.gguf: metadata key `split.count` is missing"),
        (part(1).tensor("tensor.0", GgmlType::F32, &[1]), "m-00002-of-00003.gguf: tensor `tensor.0` is in a part before it too"),
    ] {
        let error = begun().add(read(&other.header()), Bytes::ZERO).unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
}

#[test]
fn missing_parts_and_missing_tensors_are_told() {
    assert_eq!(begun().finish().unwrap_err().to_string(), "m-00002-of-00003.gguf, one of 3 parts of a split model, is missing");
    let mut joining = begun();
    joining.add(file(1).0, Bytes::ZERO).unwrap();
    joining.add(read(&HeaderWriter::new().split(2, 3, 3).header()), Bytes::ZERO).unwrap();
    let error = joining.finish().unwrap_err().to_string();
    assert!(error.contains("that all parts have 3 tensors; they have 2"), "{error}");
    let no_total = HeaderWriter::new().raw("split.no", 2, &[0, 0]).raw("split.count", 2, &[3, 0]);
    assert!(begin("m-00001-of-00003.gguf", &no_total).unwrap_err().to_string().contains("`split.tensors.count` is missing"));
}

#[test]
fn parts_that_together_are_too_large_or_too_many_are_refused() {
    let huge = |number: u16| HeaderWriter::new().split(number, 3, 3).tensor(&format!("tensor.{number}"), GgmlType::F32, &[1 << 60]);
    let mut joining = begin("m-00001-of-00003.gguf", &huge(0)).unwrap();
    assert!(matches!(joining.add(read(&huge(1).header()), Bytes::ZERO), Err(SplitError::TooLarge { .. })));
    let mut joining = begun();
    joining.held = MAX_HELD.0;
    assert!(matches!(joining.add(file(1).0, Bytes::ZERO), Err(SplitError::TooManyTensors { .. })));
}
