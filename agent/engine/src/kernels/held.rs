//! Where a matrix's bytes are: in memory of the model's own or, at first, in a file that has them packed.
//!
//! A file in the page cache is there at once, where memory of one's own has to be cleared and filled first. But its pages are small on many file systems, and go
//! when memory is short. So a model that begins with a file is brought over, piece by piece, while it serves.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use memmap2::{Advice, Mmap};

use crate::arena::Region;
use crate::file_mmap::let_go;
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

    fn bytes(&self) -> &[u8] {
        &self.map[self.start..self.start + self.length]
    }

    /// Has it all in memory, as pages of the file.
    pub fn read(&self, pool: &Pool) {
        pool.run(&|worker: &Worker<'_>| {
            let share = worker.share(self.length, PAGE);
            self.read_part(share.start, share.len());
        });
    }

    fn read_part(&self, start: usize, length: usize) {
        if length == 0 || self.map.advise_range(Advice::PopulateRead, self.start + start, length).is_ok() {
            return;
        }
        // Linux before 5.14 can't be asked for that.
        let touched = self.bytes()[start..start + length].iter().step_by(PAGE).fold(0, |sum: u8, byte| sum.wrapping_add(*byte));
        std::hint::black_box(touched);
    }
}

/// The bytes, wherever they are, and the region that is theirs.
pub struct Held {
    region: Region,
    /// Where they were at first, if not in the region.
    file: Option<Mapped>,
    /// Bytes that are in the region.
    brought: AtomicUsize,
}

impl Held {
    /// The region has them.
    pub fn here(region: Region) -> Held {
        Held { brought: AtomicUsize::new(region.len()), region, file: None }
    }

    /// A file has them, of as many bytes as the region.
    pub fn mapped(file: Mapped, region: Region) -> Held {
        debug_assert_eq!(file.length, region.len());
        Held { region, file: Some(file), brought: AtomicUsize::new(0) }
    }

    /// Some of the bytes.
    pub fn part(&self, start: usize, length: usize) -> &[u8] {
        let all = match &self.file {
            // Whoever sees that they are in the region sees them there.
            Some(file) if self.brought.load(Ordering::Acquire) < start + length => file.bytes(),
            _ => self.region.bytes(),
        };
        &all[start..start + length]
    }

    /// Bytes that are in the file as yet.
    pub fn in_file(&self) -> usize {
        self.region.len() - self.brought.load(Ordering::Relaxed)
    }

    /// Brings over so many more bytes, or what is left, and lets go of the file's pages with them. Returns how many it were; 0: all are in the region.
    /// One thread at a time calls it.
    pub fn bring_over(&self, at_most: usize, pool: &Pool) -> usize {
        let Some(file) = &self.file else { return 0 };
        let done = self.brought.load(Ordering::Relaxed);
        let count = at_most.min(self.in_file());
        if count == 0 {
            return 0;
        }
        pool.run(&|worker: &Worker<'_>| {
            let share = worker.share(count, PAGE);
            let from = &file.bytes()[done + share.start..done + share.end];
            // SAFETY: within the region, of which nobody reads what is not brought over yet; each thread has its own share.
            unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), self.region.as_ptr().add(done + share.start), share.len()) };
        });
        self.brought.store(done + count, Ordering::Release);
        let_go(&file.map, file.start + done..file.start + done + count);
        count
    }
}
