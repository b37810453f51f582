//! A model's file, or the files of a split one, mapped into memory while its weights are copied out of them.

use std::ffi::OsStr;
use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use memmap2::{Advice, Mmap, UncheckedAdvice};
use stowage_placement::gguf::split::{Joined, Joining};
use stowage_placement::gguf::{Feed, GgmlType, Header, HeaderReader, Keep};
use stowage_placement::{Bytes, Reason};

use crate::api::EngineError;

/// A GGUF file whose header was read and whose data is all there; of a split model, the files of all parts.
pub struct ModelFile {
    /// One a part.
    maps: Vec<Arc<Mmap>>,
    joined: Joined,
}

/// One tensor as it lies in the file.
#[derive(Clone, Copy)]
pub struct TensorView<'a> {
    pub name: &'a str,
    pub ggml_type: GgmlType,
    pub rows: usize,
    pub columns: usize,
    pub data: &'a [u8],
    /// The mapping that the data lie in, where they do.
    pub map: Option<&'a Arc<Mmap>>,
}

impl<'a> TensorView<'a> {
    /// Lets go of some of the data, which are read no more: as pages of the file they stay in the page cache, but they count as this process's memory no more.
    /// Who reads them all the same gets them from the file again.
    pub fn let_go(&self, bytes: Range<usize>) {
        if let Some((map, start)) = self.place() {
            let_go(map, start + bytes.start..start + bytes.end);
        }
    }

    /// The mapping, and where the data begin in it.
    pub fn place(&self) -> Option<(&'a Arc<Mmap>, usize)> {
        self.map.map(|map| (map, self.data.as_ptr() as usize - map.as_ptr() as usize))
    }
}

/// See [`TensorView::let_go`]; of some bytes of a mapping.
pub fn let_go(map: &Mmap, bytes: Range<usize>) {
    // SAFETY: the mapping is of a file and read-only, so a page that is dropped comes back as it was. Only advice: where it fails, nothing is lost.
    let _ = unsafe { map.unchecked_advise_range(UncheckedAdvice::DontNeed, bytes.start, bytes.len()) };
}

impl ModelFile {
    /// Opens a model in one file, or a split one by its first part, beside which the others lie.
    ///
    /// Errors: ModelNotFound where there is no file; InvalidModelFile where it is no GGUF file, or shorter than its header says, or where parts don't
    /// belong together.
    pub fn open(path: &Path) -> Result<ModelFile, EngineError> {
        let invalid = |error| EngineError::new(Reason::InvalidModelFile, format!("reading {}: {error}", path.display()));
        let size = |map: &Mmap| Bytes(map.len() as u64);
        let (map, header) = map_file(path)?;
        let name = path.file_name().map(OsStr::to_string_lossy).unwrap_or_default();
        let mut joining = Joining::new(&name, header, size(&map)).map_err(invalid)?;
        let mut maps = vec![Arc::new(map)];
        while let Some(next) = joining.next_part() {
            let (map, header) = map_file(&path.with_file_name(next))?;
            joining.add(header, size(&map)).map_err(invalid)?;
            maps.push(Arc::new(map));
        }
        Ok(ModelFile { maps, joined: joining.finish().map_err(invalid)? })
    }

    pub fn header(&self) -> &Header {
        &self.joined.header
    }

    /// All files together.
    pub fn size(&self) -> Bytes {
        self.joined.size()
    }

    /// One a part.
    pub fn maps(&self) -> &[Arc<Mmap>] {
        &self.maps
    }

    pub fn into_header(self) -> Header {
        self.joined.header
    }

    /// Tells the system that all is wanted, so that while one tensor is packed the next are fetched. Only advice: without it the file is read all the same.
    pub fn fetch_ahead(&self) {
        for map in &self.maps {
            let _ = map.advise(Advice::Sequential).and_then(|()| map.advise(Advice::WillNeed));
        }
    }

    /// Errors: InvalidModelFile where the file has no such tensor.
    pub fn tensor(&self, name: &str) -> Result<TensorView<'_>, EngineError> {
        let missing = || EngineError::new(Reason::InvalidModelFile, format!("the file has no tensor `{name}`, or only part of it"));
        let info = self.joined.header.tensor(name).ok_or_else(missing)?;
        let (part, start) = self.joined.locate(info);
        let end = start.checked_add(info.bytes().0).ok_or_else(missing)?;
        let map = &self.maps[part];
        let data = map.get(start as usize..end as usize).ok_or_else(missing)?;
        let (rows, columns) = (info.rows() as usize, info.columns() as usize);
        Ok(TensorView { name: &info.name, ggml_type: info.ggml_type, rows, columns, data, map: Some(map) })
    }
}

/// One file, whose data is all there, and its header.
fn map_file(path: &Path) -> Result<(Mmap, Header), EngineError> {
    let not_found = |error: std::io::Error| EngineError::new(Reason::ModelNotFound, format!("opening {}: {error}", path.display()));
    let invalid = |why: String| EngineError::new(Reason::InvalidModelFile, format!("reading {}: {why}", path.display()));
    let file = File::open(path).map_err(not_found)?;
    let size = file.metadata().map_err(not_found)?.len();
    if size == 0 {
        return Err(invalid("the file is empty".into()));
    }
    // SAFETY: the mapping is read-only. That the file isn't changed or cut off while it is mapped is asked of whoever keeps model files: the
    // agent's store replaces files by renaming and never writes into one.
    let map = unsafe { Mmap::map(&file) }.map_err(|error| invalid(format!("mapping it failed: {error}")))?;
    let header = read_header(&map).map_err(invalid)?;
    header.check_file_size(Bytes(size)).map_err(|error| invalid(error.to_string()))?;
    let_go(&map, 0..map.len());
    Ok((map, header))
}

fn read_header(bytes: &[u8]) -> Result<Header, String> {
    let mut reader = HeaderReader::new(Keep::All);
    for part in bytes.chunks(1 << 20) {
        if let Feed::Complete = reader.feed(part).map_err(|error| error.to_string())? {
            break;
        }
    }
    reader.into_header().map_err(|error| error.to_string())
}
