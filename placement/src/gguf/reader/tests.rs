//! The reader against files that are right, wrong, and hostile.

use proptest::prelude::*;

use super::*;
use crate::gguf::write::HeaderWriter;
use crate::gguf::{Array, GgmlType, ValueType};
use crate::testing::SMOLLM2_135M;

fn read_all(bytes: &[u8], keep: Keep) -> Result<Header, GgufError> {
    let mut reader = HeaderReader::new(keep);
    reader.feed(bytes)?;
    reader.into_header()
}

fn read(bytes: &[u8]) -> Result<Header, GgufError> {
    read_all(bytes, Keep::All)
}

fn error(writer: &HeaderWriter) -> String {
    read(&writer.header()).unwrap_err().to_string()
}

fn varied() -> HeaderWriter {
    HeaderWriter::architecture("llama")
        .u32("a.u32", 7)
        .u64("a.u64", 1 << 40)
        .f32("a.f32", 0.5)
        .bool("a.bool", true)
        .raw("a.i8", 1, &[0xff])
        .raw("a.i16", 3, &(-2i16).to_le_bytes())
        .raw("a.i64", 11, &(-3i64).to_le_bytes())
        .raw("a.f64", 12, &2.5f64.to_le_bytes())
        .strings("a.texts", ["one", "", "three"])
        .u32s("a.numbers", &[1, 2, 3])
        .i32s("a.more", &[-1, 1])
        .f32s("a.scores", &[0.25])
        .tensor("blk.0.attn_q.weight", GgmlType::Q4_K, &[256, 3])
        .tensor("output_norm.weight", GgmlType::F32, &[256])
}

#[test]
fn a_header_is_read_with_all_its_types() {
    for version in [2, 3] {
        let header = read(&varied().version(version).header()).unwrap();
        assert_eq!(header.version, version);
        assert_eq!(header.architecture().unwrap(), "llama");
        assert_eq!(header.u64("a.u32").unwrap(), Some(7));
        assert_eq!(header.u64("a.u64").unwrap(), Some(1 << 40));
        assert_eq!(header.f64("a.f32").unwrap(), Some(0.5));
        assert_eq!(header.bool("a.bool").unwrap(), Some(true));
        assert_eq!(header.get("a.i16"), Some(&Value::I16(-2)));
        assert_eq!(header.strings("a.texts").unwrap().unwrap(), ["one", "", "three"]);
        assert_eq!(header.u64_per_layer("a.numbers", 3).unwrap(), Some(vec![1, 2, 3]));
        assert_eq!(header.u64_per_layer("a.u32", 2).unwrap(), Some(vec![7, 7]));
        let tensor = header.tensor("blk.0.attn_q.weight").unwrap();
        assert_eq!((tensor.rows(), tensor.columns(), tensor.bytes()), (3, 256, Bytes(3 * 144)));
        assert_eq!(header.data_offset % 32, 0);
        assert_eq!(header.data_end().0, varied().version(version).file_size());
    }
}

#[test]
fn getters_say_what_they_found_instead() {
    let header = read(&varied().header()).unwrap();
    let error = header.u64("a.i16").unwrap_err().to_string();
    assert_eq!(error, "metadata key `a.i16` at offset 172 is -2 (i16); expected a whole number of at least 0");
    let error = header.u64_per_layer("a.numbers", 4).unwrap_err().to_string();
    assert!(error.contains("an array of 3 for 4 layers"), "{error}");
    let error = header.required("b", Header::u64).unwrap_err().to_string();
    assert_eq!(error, "metadata key `b` is missing");
}

#[test]
fn for_sizing_alone_long_arrays_and_texts_are_skipped() {
    let tokens: Vec<String> = (0..5000).map(|i| format!("token {i}")).collect();
    let writer = HeaderWriter::architecture("llama")
        .strings("tokens", tokens.iter().map(String::as_str))
        .f32s("scores", &vec![1.0; 5000])
        .string("template", &"x".repeat(70_000))
        .u32("after", 9)
        .tensor("t", GgmlType::F32, &[4]);
    let header = read_all(&writer.header(), Keep::Sizing).unwrap();
    assert_eq!(header.get("tokens"), Some(&Value::Array(Array::Skipped { element: ValueType::String, length: 5000 })));
    assert_eq!(header.get("scores"), Some(&Value::Array(Array::Skipped { element: ValueType::F32, length: 5000 })));
    assert_eq!(header.get("template"), Some(&Value::SkippedString(70_000)));
    assert_eq!(header.u64("after").unwrap(), Some(9));
    assert_eq!(header.tensors.len(), 1);
    assert!(matches!(header.strings("tokens"), Err(GgufError::NotKept { length: 5000, .. })));
    let header = read(&writer.header()).unwrap();
    assert_eq!(header.strings("tokens").unwrap().unwrap().len(), 5000);
    assert_eq!(header.string("template").unwrap().unwrap().len(), 70_000);
}

#[test]
fn what_is_not_gguf_is_named_by_how_it_begins() {
    assert_eq!(
        read(b"<!doctype html>").unwrap_err().to_string(),
        "not a GGUF file: it begins with \"<!do\" at offset 0, not with \"GGUF\""
    );
    assert!(read(&[0x80, 2, 0, 0]).unwrap_err().to_string().contains("80 02 00 00"));
    assert!(error(&varied().version(1)).contains("version 1 at offset 4 is not supported"));
    assert!(error(&varied().version(3u32.swap_bytes())).contains("big-endian"));
    assert!(error(&varied().version(4)).contains("version 4 at offset 4"));
}

#[test]
fn claims_are_refused_before_anything_is_read_for_them() {
    assert_eq!(
        error(&varied().claim_tensors(1 << 60)),
        "the header at offset 8 claims 1152921504606846976 tensors; at most 1048576 are accepted"
    );
    assert!(error(&varied().claim_keys(1 << 60)).contains("at offset 16 claims 1152921504606846976 metadata keys"));
    let long_text = HeaderWriter::new().raw("k", 8, &u64::MAX.to_le_bytes());
    assert!(error(&long_text).contains("claims a length of 18446744073709551615 bytes"));
    let long_array = HeaderWriter::new().array("k", 4, u64::MAX, &[]);
    assert!(error(&long_array).contains("18446744073709551615 array elements"));
    let nested = HeaderWriter::new().array("k", 9, 1, &[]);
    assert!(error(&nested).contains("an array of arrays at offset"));
}

#[test]
fn with_the_files_size_a_claim_beyond_its_end_is_refused_at_once() {
    let writer = HeaderWriter::new().array("k", 4, 1 << 40, &[]);
    let mut reader = HeaderReader::new(Keep::Sizing).with_file_size(Bytes(1000));
    let error = reader.feed(&writer.header()).unwrap_err();
    assert!(matches!(error, GgufError::BeyondEndOfFile { file_size: 1000, .. }), "{error}");
}

#[test]
fn damaged_entries_are_named_with_their_key_or_tensor() {
    assert!(error(&HeaderWriter::new().u32("k", 1).u32("k", 2)).contains("`k` at offset 41 stands there twice"));
    assert!(error(&HeaderWriter::new().raw("k", 13, &[])).contains("`k`: value type 13"));
    assert!(error(&HeaderWriter::new().raw("k", 7, &[2])).contains("2 at offset"));
    assert!(error(&HeaderWriter::new().u32("general.alignment", 48)).contains("alignment` at offset 24 is the number 48"));
    assert!(error(&HeaderWriter::new().u32("general.alignment", 0)).contains("alignment` at offset 24 is the number 0"));
    let tensor = |ty, dimensions: &[u64]| error(&HeaderWriter::new().tensor("t", ty, dimensions));
    assert!(tensor(GgmlType::F32, &[1 << 40, 1 << 40]).contains("product overflows"));
    assert!(tensor(GgmlType::F32, &[0, 1 << 40, 1 << 40]).contains("product overflows"));
    assert!(tensor(GgmlType::Q4_K, &[255]).contains("rows of 255 elements (at offset 37) are no whole number of Q4_K blocks of 256"));
    assert!(tensor(GgmlType::F32, &[1; 5]).contains("claims 5 dimensions at offset 33"));
    let twice = HeaderWriter::new().tensor("t", GgmlType::F32, &[1]).tensor("t", GgmlType::F32, &[1]);
    assert!(error(&twice).contains("`t` at offset"));
}

/// Overwrites the little-endian number that stands `from_end` bytes before the end of the unpadded header.
fn with_last_offset(writer: &HeaderWriter, offset: u64) -> Vec<u8> {
    let bytes = writer.header();
    let end = bytes.len();
    let name = b"second".as_slice();
    let at = bytes.windows(name.len()).rposition(|window| window == name).unwrap() + name.len() + 4 + 8 + 4;
    let mut bytes = bytes;
    assert!(at + 8 <= end);
    bytes[at..at + 8].copy_from_slice(&offset.to_le_bytes());
    bytes
}

#[test]
fn tensors_that_overlap_or_lie_askew_are_refused() {
    let writer = HeaderWriter::new().tensor("first", GgmlType::F32, &[32]).tensor("second", GgmlType::F32, &[32]);
    assert!(read(&with_last_offset(&writer, 128)).is_ok());
    assert!(read(&with_last_offset(&writer, 32)).unwrap_err().to_string().contains("`first` and `second` overlap"));
    assert!(read(&with_last_offset(&writer, 130)).unwrap_err().to_string().contains("no multiple of the alignment 32"));
    assert!(matches!(read(&with_last_offset(&writer, u64::MAX - 63)), Err(GgufError::OffsetOverflow { .. })));
}

#[test]
fn a_truncated_header_says_where_it_ends() {
    let bytes = varied().header();
    let error = read(&bytes[..100]).unwrap_err().to_string();
    assert_eq!(error, "the header ends early, at offset 100, in metadata entry 3 of 13; more bytes were needed");
    assert!(read(b"GGUF").unwrap_err().to_string().contains("in the first 24 bytes"));
}

#[test]
fn a_file_shorter_than_its_tensors_is_told_by_its_size() {
    let header = read(&varied().header()).unwrap();
    let error = header.check_file_size(Bytes(700)).unwrap_err().to_string();
    let end = varied().file_size();
    let first = "`blk.0.attn_q.weight` at offset 544 is the first that is not whole";
    assert_eq!(error, format!("data shorter than the header promises: file has 700 bytes, tensors end at {end}; {first}"));
    assert!(header.check_file_size(Bytes(end)).is_ok());
}

#[test]
fn fed_byte_by_byte_a_header_is_the_same() {
    for keep in [Keep::Sizing, Keep::All] {
        for bytes in [varied().header(), SMOLLM2_135M.writer().header()] {
            let whole = read_all(&bytes, keep).unwrap();
            let mut reader = HeaderReader::new(keep);
            let fed = bytes.iter().take_while(|byte| reader.feed(&[**byte]).unwrap() == Feed::More).count();
            assert!(fed < bytes.len());
            assert_eq!(reader.into_header().unwrap(), whole);
        }
    }
}

/// Feeds in pieces of these sizes, again and again.
fn in_pieces(bytes: &[u8], sizes: &[usize], keep: Keep) -> Result<Header, GgufError> {
    let mut reader = HeaderReader::new(keep);
    let (mut rest, mut sizes) = (bytes, sizes.iter().cycle());
    while !rest.is_empty() {
        let (piece, after) = rest.split_at((*sizes.next().unwrap()).clamp(1, rest.len()));
        rest = after;
        if reader.feed(piece)? == Feed::Complete {
            break;
        }
    }
    reader.into_header()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2000), magic in any::<bool>()) {
        let mut bytes = bytes;
        if magic && bytes.len() >= 24 {
            bytes[..8].copy_from_slice(b"GGUF\x03\0\0\0");
            bytes[8..24].copy_from_slice(&[1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
        }
        let _ = read_all(&bytes, Keep::Sizing);
        let _ = read_all(&bytes, Keep::All);
    }

    #[test]
    fn a_changed_header_gives_the_same_answer_in_any_pieces(
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 0..6),
        sizes in proptest::collection::vec(1usize..90, 1..5),
        cut in any::<proptest::sample::Index>(),
        sizing in any::<bool>(),
    ) {
        let keep = if sizing { Keep::Sizing } else { Keep::All };
        let mut bytes = varied().string("long", &"y".repeat(5000)).header();
        for (index, value) in changes {
            let at = index.index(bytes.len());
            bytes[at] = value;
        }
        bytes.truncate(cut.index(bytes.len() * 4).min(bytes.len()));
        let (whole, pieces) = (read_all(&bytes, keep), in_pieces(&bytes, &sizes, keep));
        if let Ok(header) = &whole {
            let _ = crate::ModelSummary::from_header(header, Bytes(0));
        }
        // NaN differs from itself, so the text is compared.
        prop_assert_eq!(format!("{whole:?}"), format!("{pieces:?}"));
    }
}
