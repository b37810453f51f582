//! Where a matrix's bytes are: in memory of the model's own or, at first, in a file: one that has them packed, or the model's own.
//!
//! A file in the page cache is there at once, where memory of one's own has to be cleared and filled first. But its pages are small on many file systems, and go
//! when memory is short; and rows of the model's own file have to be packed each time. So a model that begins with a file is brought over, piece by piece, while
//! it serves.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use memmap2::{Advice, Mmap};

use crate::arena::Region;
use crate::file_mmap::{TensorView, let_go};
use crate::pool::{Pool, Worker};

const PAGE: usize = 4096;

/// Bytes of a mapped file. The file isn't changed or cut off while it is mapped: whoever keeps such files replaces and removes them as a whole.
#[derive(Clone)]
pub struct Mapped {
    map: Arc<Mmap>,
    start: usize,
    length: usize,
}

impl Mapped {
    /// `None`: the file has no such bytes.
    pub fn new(map: &Arc<Mmap>, start: usize, length: usize) -> Option<Mapped> {
        map.get(start..start.checked_add(length)?)?;
        Some(Mapped { map: Arc::clone(map), start, length })
    }

    pub fn len(&self) -> usize {
        self.length
    }

    fn bytes(&self) -> &[u8] {
        &self.map[self.start..self.start + self.length]
    }

    /// A tensor in its own file. `None`: it is in none, or lies there where numbers can't be read in place.
    pub fn of(view: &TensorView<'_>) -> Option<Mapped> {
        let (map, start) = view.place()?;
        if start.is_multiple_of(align_of::<f32>()) { Mapped::new(map, start, view.data.len()) } else { None }
    }

    /// Has it all in memory, as pages of the file. By one thread: what the system reads ahead of two would not be what either comes to next.
    pub fn read(self) -> Mapped {
        // Linux before 5.14 can't be asked for that.
        if self.map.advise_range(Advice::PopulateRead, self.start, self.length).is_err() {
            let touched = self.bytes().iter().step_by(PAGE).fold(0, |sum: u8, byte| sum.wrapping_add(*byte));
            std::hint::black_box(touched);
        }
        self
    }
}

/// The bytes of a matrix, wherever they are, and the region that is theirs.
pub struct Held {
    region: Region,
    /// Where they were at first, if not in the region.
    file: Option<(Mapped, Form)>,
    /// Bytes that are in the region.
    brought: AtomicUsize,
}

/// In what form a file has the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// As the region.
    Packed,
    /// As the model's own file, so that they are packed each time that they are read, and as they are brought over. A piece is what is packed at once: so many
    /// bytes of either; of the last the file may have fewer.
    Rows { piece: usize },
}

/// Some of the bytes, as they were found.
pub enum Found<'a> {
    Packed(&'a [u8]),
    Rows(&'a [u8]),
}

impl Held {
    /// The region has them.
    pub fn here(region: Region) -> Held {
        Held { brought: AtomicUsize::new(region.len()), region, file: None }
    }

    /// A file has them.
    pub fn mapped(file: Mapped, form: Form, region: Region) -> Held {
        Held { region, file: Some((file, form)), brought: AtomicUsize::new(0) }
    }

    /// Some of the bytes; of rows it is one piece.
    pub fn part(&self, start: usize, length: usize) -> Found<'_> {
        match &self.file {
            // Whoever sees that they are in the region sees them there.
            Some((file, form)) if self.brought.load(Ordering::Acquire) < start + length => match form {
                Form::Packed => Found::Packed(&file.bytes()[start..start + length]),
                Form::Rows { .. } => Found::Rows(&file.bytes()[start..file.length.min(start + length)]),
            },
            _ => Found::Packed(&self.region.bytes()[start..start + length]),
        }
    }

    /// Bytes that are in the file as yet.
    pub fn in_file(&self) -> usize {
        self.file.as_ref().map_or(0, |(file, _)| file.length.saturating_sub(self.brought.load(Ordering::Relaxed)))
    }

    /// Brings over so many more bytes or a little more, or what is left, and lets go of the file's pages with them. Returns how many it were; 0: all are in the
    /// region. One thread at a time calls it. `pack` is for rows, of a piece to its place.
    pub fn bring_over(&self, at_most: usize, pool: &Pool, pack: &(dyn Fn(&[u8], &mut [u8]) + Sync)) -> usize {
        let Some((file, form)) = &self.file else { return 0 };
        let (done, left) = (self.brought.load(Ordering::Relaxed), self.in_file());
        let piece = match form {
            Form::Packed => PAGE,
            Form::Rows { piece } => *piece,
        };
        let pieces = left.min(at_most).div_ceil(piece);
        let count = left.min(pieces * piece);
        if count == 0 {
            return 0;
        }
        pool.run(&|worker: &Worker<'_>| {
            for start in worker.share(pieces, 1).map(|index| done + index * piece) {
                let from = &file.bytes()[start..file.length.min(start + piece)];
                // The last piece has its rows filled up.
                let room = if *form == Form::Packed { from.len() } else { piece };
                // SAFETY: within the region, of which nobody reads what is not brought over yet; each thread has its own pieces.
                let to = unsafe { std::slice::from_raw_parts_mut(self.region.as_ptr().add(start), room) };
                if *form == Form::Packed { to.copy_from_slice(from) } else { pack(from, to) }
            }
        });
        let all = done + count == file.length;
        self.brought.store(if all { self.region.len() } else { done + count }, Ordering::Release);
        let_go(&file.map, file.start + done..file.start + done + count);
        count
    }
}
