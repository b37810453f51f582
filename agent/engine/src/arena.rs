//! One allocation a device. Weights, cache and scratch are taken from it when a model is loaded, so what a replica holds is known to the byte
//! and no request makes it grow.

use std::ops::Range;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use stowage_placement::{Bytes, Reason};

use crate::api::EngineError;
use crate::pool::{Pool, Worker};

/// What a region is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Matrices.
    Weights,
    /// Weights of one row, and small tables.
    Vectors,
    Cache,
    Checkpoints,
    Compute,
}

/// Anonymous memory of a fixed size, zeroed, given out in parts and never given back but as a whole.
pub struct Arena {
    base: NonNull<u8>,
    /// What was mapped: `size` in whole pages, and room to begin at a huge page.
    mapped: (NonNull<u8>, usize),
    size: u64,
    /// What was taken: matrices, which may come later, from the front on and all else from the back, so that huge pages have the one or the other.
    taken: Mutex<Vec<(Purpose, Range<u64>)>>,
}

// SAFETY: the arena hands each byte out once, as part of one region; the memory itself is plain bytes that any thread may use.
unsafe impl Send for Arena {}
// SAFETY: as above; the list has a lock.
unsafe impl Sync for Arena {}

const HUGE_PAGE: usize = 2 << 20;
const PAGE: usize = 4096;

impl Arena {
    /// Maps `size` bytes. Errors: LoadFailed where the system refuses.
    pub fn new(size: Bytes) -> Result<Arc<Arena>, EngineError> {
        let failed = |why: String| EngineError::new(Reason::LoadFailed, format!("allocating an arena of {size} failed: {why}"));
        let length = usize::try_from(size.0).ok().and_then(|size| size.checked_add(HUGE_PAGE)).ok_or_else(|| failed("too large".into()))?;
        // SAFETY: a fresh private mapping at an address of the system's choice; nothing else refers to it.
        let mapped = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if mapped == libc::MAP_FAILED {
            return Err(failed(std::io::Error::last_os_error().to_string()));
        }
        let mapped = NonNull::new(mapped.cast::<u8>()).ok_or_else(|| failed("mapped at address 0".into()))?;
        let skip = mapped.as_ptr().align_offset(HUGE_PAGE);
        // SAFETY: `skip` is below HUGE_PAGE, which the mapping has more than `size`.
        let base = unsafe { mapped.add(skip) };
        let whole_huge_pages = size.0 as usize / HUGE_PAGE * HUGE_PAGE;
        if whole_huge_pages > 0 {
            // SAFETY: the range lies in the mapping. Advice alone: its failure changes nothing but speed.
            unsafe { libc::madvise(base.as_ptr().cast(), whole_huge_pages, libc::MADV_HUGEPAGE) };
        }
        Ok(Arc::new(Arena { base, mapped: (mapped, length), size: size.0, taken: Mutex::default() }))
    }

    fn taken(&self) -> MutexGuard<'_, Vec<(Purpose, Range<u64>)>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next `bytes` of the arena, zeroed. `bytes` is a multiple of 64, as the arena's size is, so that every region begins at a cache line.
    pub fn take(self: &Arc<Arena>, purpose: Purpose, bytes: Bytes) -> Result<Region, EngineError> {
        let mut taken = self.taken();
        let taken_so_far = |front: bool| {
            let side = taken.iter().filter(|(purpose, _)| (*purpose == Purpose::Weights) == front);
            side.map(|(_, range)| range.end - range.start).sum::<u64>()
        };
        let (front, back) = (taken_so_far(true), taken_so_far(false));
        let left = self.size - front - back;
        if !bytes.0.is_multiple_of(64) || bytes.0 > left {
            return Err(EngineError::new(
                Reason::LoadFailed,
                format!("{} bytes were wanted from an arena of {} bytes of which {} are taken", bytes.0, self.size, front + back),
            ));
        }
        let start = if purpose == Purpose::Weights { front } else { self.size - back - bytes.0 };
        taken.push((purpose, start..start + bytes.0));
        Ok(Region { arena: Arc::clone(self), start: start as usize, length: bytes.0 as usize })
    }

    /// Has the system give every page that is not for weights now, so that what was promised is held from the beginning: no request finds that it can't be
    /// had. The pages of weights are given as these are written.
    pub fn touch(&self, pool: &Pool) {
        let regions: Vec<Range<u64>> =
            self.taken().iter().filter(|(purpose, _)| *purpose != Purpose::Weights).map(|(_, range)| range.clone()).collect();
        pool.run(&|worker: &Worker<'_>| {
            for region in &regions {
                let pages = region.start as usize / PAGE..(region.end as usize).div_ceil(PAGE);
                for page in worker.share(pages.len(), 1) {
                    // SAFETY: a byte of the arena, whose mapping is of whole pages; it stays as it is. While a model is loaded nobody else writes there.
                    unsafe {
                        let at = self.base.as_ptr().add((pages.start + page) * PAGE);
                        at.write_volatile(at.read_volatile());
                    }
                }
            }
        });
    }

    pub fn taken_for(&self, purpose: Purpose) -> Bytes {
        self.taken().iter().filter(|(of, _)| *of == purpose).map(|(_, range)| Bytes(range.end - range.start)).sum()
    }

    pub fn size(&self) -> Bytes {
        Bytes(self.size)
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: the whole mapping, made in `new`; regions keep the arena alive, so none is left.
        unsafe { libc::munmap(self.mapped.0.as_ptr().cast(), self.mapped.1) };
    }
}

/// Part of an arena, aligned to 64 bytes, that nobody else has.
pub struct Region {
    arena: Arc<Arena>,
    start: usize,
    length: usize,
}

impl Region {
    pub fn len(&self) -> usize {
        self.length
    }

    /// The region's first byte. Threads that write through it agree among themselves who writes what.
    pub fn as_ptr(&self) -> *mut u8 {
        // SAFETY: `take` made sure that the region lies in the arena.
        unsafe { self.arena.base.as_ptr().add(self.start) }
    }

    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the region is mapped, initialised (to zero at least) and this one's alone.
        unsafe { std::slice::from_raw_parts(self.as_ptr(), self.length) }
    }

    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and `self` is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.as_ptr(), self.length) }
    }

    pub fn floats(&self) -> &[f32] {
        // SAFETY: as in `bytes`; aligned to 64 bytes, and any bits are an f32.
        unsafe { std::slice::from_raw_parts(self.as_ptr().cast(), self.length / 4) }
    }

    pub fn floats_mut(&mut self) -> &mut [f32] {
        // SAFETY: as in `floats`, and `self` is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.as_ptr().cast(), self.length / 4) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_do_not_overlap_and_the_arena_ends_where_it_says() {
        let arena = Arena::new(Bytes(384)).unwrap();
        let purposes = [Purpose::Weights, Purpose::Cache, Purpose::Weights, Purpose::Compute];
        let mut regions = purposes.map(|purpose| arena.take(purpose, Bytes(if purpose == Purpose::Cache { 128 } else { 64 })).unwrap());
        for (number, region) in regions.iter_mut().enumerate() {
            region.bytes_mut().fill(number as u8 + 1);
        }
        assert!(regions.iter().zip(1..).all(|(region, number)| region.bytes().iter().all(|byte| *byte == number)));
        assert_eq!(arena.taken_for(Purpose::Weights), Bytes(128));
        let error = arena.take(Purpose::Compute, Bytes(128)).err().unwrap();
        assert!(error.message.contains("384 bytes of which 320"), "{error}");
    }
}
