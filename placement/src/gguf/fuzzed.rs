//! What must hold of any bytes that are taken for a header. The fuzzer, and the test that runs its corpus, call this.

use crate::gguf::split::Joining;
use crate::gguf::{Feed, GgufError, Header, HeaderReader, Keep};
use crate::model_summary::ModelSummary;
use crate::units::Bytes;

/// Reads the bytes in every way that Stowage does.
///
/// # Panics
/// Where something does not hold: a header or an error depends on the pieces that the bytes came in, an error has no offset, or something within
/// panics.
pub fn header(bytes: &[u8]) {
    for keep in [Keep::Sizing, Keep::All] {
        let whole = read(HeaderReader::new(keep), bytes, bytes.len().max(1));
        let pieces = read(HeaderReader::new(keep), bytes, 1 + bytes.len() % 61);
        if whole != pieces {
            // NaN differs from itself, and its text does not.
            assert_eq!(format!("{whole:?}"), format!("{pieces:?}"), "read in pieces it differs");
        }
        match whole {
            Ok(header) => use_it(header, Bytes(bytes.len() as u64)),
            Err(error) => check_error(&error),
        }
    }
    let sized = HeaderReader::new(Keep::Sizing).with_file_size(Bytes(bytes.len() as u64));
    if let Err(error) = read(sized, bytes, 1 << 10) {
        check_error(&error);
    }
}

fn read(mut reader: HeaderReader, bytes: &[u8], piece: usize) -> Result<Header, GgufError> {
    for piece in bytes.chunks(piece) {
        if reader.feed(piece)? == Feed::Complete {
            break;
        }
    }
    reader.into_header()
}

fn check_error(error: &GgufError) {
    let text = error.to_string();
    assert!(text.contains("offset "), "an error that does not say where: {text}");
    assert!(!text.contains(char::is_control), "an error that a terminal would obey: {text:?}");
    assert!(text.len() < 4096, "an error of {} bytes", text.len());
}

fn use_it(header: Header, size: Bytes) {
    let end = header.data_end();
    assert!(header.tensors.iter().all(|tensor| tensor.bytes() <= end && tensor.rows().checked_mul(tensor.columns()).is_some()));
    assert_eq!(header.check_file_size(size).is_ok(), size >= end || header.tensors.is_empty());
    if let Ok(summary) = ModelSummary::from_header(&header, size) {
        let _ = (summary.total_layers(), summary.describe());
    }
    for key in header.metadata.keys() {
        let _ = (header.u64(key), header.f64(key), header.bool(key), header.string(key), header.strings(key), header.u64_per_layer(key, 3));
    }
    join(header, size);
}

/// With itself as the second part, which no model is, and whatever else it claims to be a part of.
fn join(header: Header, size: Bytes) {
    let Ok(mut joining) = Joining::new("m-00001-of-00002.gguf", header.clone(), size) else { return };
    if joining.next_part().is_some() {
        assert!(joining.add(header, size).is_err(), "a part was joined with itself");
        return;
    }
    let joined = joining.finish().unwrap_or_else(|error| panic!("a model that is not split was not joined: {error}"));
    for tensor in &joined.header.tensors {
        let (part, at) = joined.locate(tensor);
        assert!(part == 0 && at == joined.header.data_offset + tensor.offset);
    }
}
