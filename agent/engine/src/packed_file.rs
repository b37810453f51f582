//! Packed weights kept in a file, so that a model that was packed once on a node begins at once the next time: the file is mapped, and read from where it lies.
//!
//! The file: [`MAGIC`], the length of what follows as u64, a description in JSON, then the tensors, each where the description says, at the beginning of
//! a page. It holds of one model what kernels of one version want; of any other it is found to be, and left aside.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::Arc;

use memmap2::Mmap;
use serde::{Deserialize, Serialize};
use stowage_placement::layout::{self, Backend as Layout};
use stowage_placement::{Bytes, Reason};

use crate::api::{EngineError, LoadProgress, LoadRequest};
use crate::file_mmap::{ModelFile, TensorView};
use crate::graph::Graph;
use crate::kernels::held::Mapped;
use crate::kernels::packing::Packing;
use crate::load;

pub use crate::kernels::packing::VERSION;

const MAGIC: &[u8; 8] = b"STOWPACK";
const PAGE: u64 = 4096;
/// Of a description; one of a model with 3,000 tensors has half a MiB.
const LONGEST: u64 = 64 << 20;

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Description {
    version: u32,
    /// See [`ModelFile::fingerprint`].
    model: String,
    tensors: BTreeMap<String, Place>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Place {
    start: u64,
    length: u64,
}

/// Why a file is of no use here.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("it is no file of packed weights, or not a whole one: {0}")]
    Broken(String),
    #[error("it is of version {found}; this build wants {VERSION}")]
    Version { found: u32 },
    #[error("it was made of another model")]
    Model,
}

/// Packed weights of one model, mapped.
pub struct PackedFile {
    map: Arc<Mmap>,
    tensors: BTreeMap<String, Place>,
}

impl PackedFile {
    /// Opens what was kept of this model.
    pub fn open(path: &Path, model: &ModelFile) -> Result<PackedFile, Unusable> {
        let broken = |why: &str| Unusable::Broken(why.to_owned());
        let file = File::open(path)?;
        // SAFETY: the mapping is read-only, and whoever keeps such files replaces and removes them as a whole.
        let map = unsafe { Mmap::map(&file)? };
        let length = map.get(8..16).filter(|_| map.starts_with(MAGIC)).and_then(|bytes| bytes.try_into().ok()).map(u64::from_le_bytes);
        let length = length.filter(|&length| length <= LONGEST).ok_or_else(|| broken("it does not begin like one"))?;
        let description = map.get(16..16 + length as usize).ok_or_else(|| broken("its description is cut off"))?;
        let description: Description = serde_json::from_slice(description).map_err(|error| Unusable::Broken(error.to_string()))?;
        if description.version != VERSION {
            return Err(Unusable::Version { found: description.version });
        }
        if description.model != model.fingerprint() {
            return Err(Unusable::Model);
        }
        let end = description.tensors.values().map(|place| place.start.saturating_add(place.length)).max().unwrap_or_default();
        if end > map.len() as u64 {
            return Err(Unusable::Broken(format!("it has {} bytes, and its description speaks of {end}", map.len())));
        }
        Ok(PackedFile { map: Arc::new(map), tensors: description.tensors })
    }

    /// What the file has of this tensor, if that takes so many bytes.
    pub fn tensor(&self, name: &str, bytes: usize) -> Option<Mapped> {
        let place = self.tensors.get(name).filter(|place| place.length == bytes as u64 && place.start.is_multiple_of(PAGE))?;
        Mapped::new(&self.map, place.start as usize, bytes)
    }
}

/// Writes, from where `to` stands to its end, what this request has on the CPU.
///
/// The plan is one that was carried out. Errors: what [`crate::LoadedModel::load`] says of a file; LoadFailed where writing fails.
pub fn pack(request: &LoadRequest, to: impl Write, progress: &mut dyn FnMut(LoadProgress)) -> Result<(), EngineError> {
    let model = ModelFile::open(&request.path)?;
    model.fetch_ahead();
    let (head, places) = describe(&model, request)?;
    let total = places.iter().map(|(_, place)| Bytes(place.length)).sum();
    let mut loaded = Bytes::ZERO;
    let failed = |error: io::Error| EngineError::new(Reason::LoadFailed, format!("writing packed weights: {error}"));
    let mut to = Padded { to: BufWriter::new(to), at: 0 };
    to.write(&head).map_err(failed)?;
    for (view, place) in places {
        to.fill_up_to(place.start).map_err(failed)?;
        let packing = Packing::of(&view, place.length as usize)?;
        let mut packed = Vec::new();
        for tiles in packing.pieces() {
            let start = packing.place(tiles.start).0;
            packed.clear();
            for tile in tiles.clone() {
                let (at, length) = packing.place(tile);
                packed.resize(at - start + length, 0);
                packing.pack(tile, &mut packed[at - start..]);
            }
            packing.let_go(tiles);
            to.write(&packed).map_err(failed)?;
            loaded = loaded.saturating_add(Bytes(packed.len() as u64));
            progress(LoadProgress { loaded, total });
        }
        to.fill_up_to(place.start + place.length).map_err(failed)?;
    }
    to.to.flush().map_err(failed)
}

/// The beginning of the file, and what comes after it, in its order.
type Described<'a> = (Vec<u8>, Vec<(TensorView<'a>, Place)>);

fn describe<'a>(model: &'a ModelFile, request: &LoadRequest) -> Result<Described<'a>, EngineError> {
    let graph = Graph::from_header(model.header(), request.request.num_ctx)?;
    let mut names = BTreeSet::new();
    let mut lengths = Vec::new();
    // In the order in which they are loaded, and brought over.
    for weight in load::host_weights(&graph, request) {
        let view = model.tensor(&weight.name)?;
        let (rows, columns) = (view.rows as u64, view.columns as u64);
        if rows > 1 && names.insert(view.name) {
            lengths.push((view, layout::weight_bytes(view.ggml_type, rows, columns, Layout::Cpu).ok_or_else(load::too_large)?.0));
        }
    }
    // Where the first tensor begins depends on how long the description is, and that on where tensors begin: it is given room for the longest numbers.
    let room: u64 = names.iter().map(|name| name.len() as u64 + 96).sum::<u64>() + 256;
    let mut next = (16 + room).next_multiple_of(PAGE);
    let mut tensors = BTreeMap::new();
    let mut places = Vec::new();
    for (view, length) in lengths {
        let place = Place { start: next, length };
        next = next.checked_add(length).and_then(|end| end.checked_next_multiple_of(PAGE)).ok_or_else(load::too_large)?;
        tensors.insert(view.name.to_owned(), place);
        places.push((view, place));
    }
    let description = Description { version: VERSION, model: model.fingerprint(), tensors };
    let description = serde_json::to_vec(&description)
        .map_err(|error| EngineError::new(Reason::LoadFailed, format!("describing packed weights: {error}")))?;
    let head = [&MAGIC[..], &(description.len() as u64).to_le_bytes(), &description].concat();
    Ok((head, places))
}

/// Writes in order, with zeros between.
struct Padded<W: Write> {
    to: BufWriter<W>,
    at: u64,
}

impl<W: Write> Padded<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.at += bytes.len() as u64;
        self.to.write_all(bytes)
    }

    fn fill_up_to(&mut self, end: u64) -> io::Result<()> {
        let zeros = end.checked_sub(self.at).ok_or_else(|| io::Error::other("a part took more bytes than were planned for it"))?;
        self.write(&vec![0; zeros as usize])
    }
}

#[cfg(test)]
mod tests;
