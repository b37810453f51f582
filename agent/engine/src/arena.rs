//! One allocation a device. Weights, cache and scratch are taken from it when a model is loaded, so what a replica holds is known to the byte
//! and no request makes it grow.

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use stowage_placement::{Bytes, Reason};

use crate::api::EngineError;
use crate::pool::{Pool, Worker};

/// What a region is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    Weights,
    Cache,
    Checkpoints,
    Compute,
}

/// Anonymous memory of a fixed size, zeroed, given out from front to back and never given back but as a whole.
pub struct Arena {
    base: NonNull<u8>,
    /// What was mapped: `size` in whole pages, and room to begin at a huge page.
    mapped: (NonNull<u8>, usize),
    size: u64,
    taken: AtomicU64,
    by_purpose: [AtomicU64; 4],
}

// SAFETY: the arena hands each byte out once, as part of one region; the memory itself is plain bytes that any thread may use.
unsafe impl Send for Arena {}
// SAFETY: as above; the counters are atomic.
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
        Ok(Arc::new(Arena { base, mapped: (mapped, length), size: size.0, taken: AtomicU64::new(0), by_purpose: Default::default() }))
    }

    /// The next `bytes` of the arena, zeroed. `bytes` is a multiple of 64, so that every region begins at a cache line.
    pub fn take(self: &Arc<Arena>, purpose: Purpose, bytes: Bytes) -> Result<Region, EngineError> {
        let start = self.taken.fetch_add(bytes.0, Ordering::Relaxed);
        let end = start.saturating_add(bytes.0);
        if !bytes.0.is_multiple_of(64) || end > self.size {
            return Err(EngineError::new(
                Reason::LoadFailed,
                format!("{} bytes were wanted from an arena of {} bytes of which {start} are taken", bytes.0, self.size),
            ));
        }
        self.by_purpose[purpose as usize].fetch_add(bytes.0, Ordering::Relaxed);
        Ok(Region { arena: Arc::clone(self), start: start as usize, length: bytes.0 as usize })
    }

    /// Has the system give every page now, so that what was promised is held from the beginning: no request finds that it can't be had.
    pub fn touch(&self, pool: &Pool) {
        pool.run(&|worker: &Worker<'_>| {
            for page in worker.share((self.size as usize).div_ceil(PAGE), 1) {
                // SAFETY: a byte of the arena, which stays as it is; while a model is loaded nobody else writes there.
                unsafe {
                    let at = self.base.as_ptr().add(page * PAGE);
                    at.write_volatile(at.read_volatile());
                }
            }
        });
    }

    pub fn taken_for(&self, purpose: Purpose) -> Bytes {
        Bytes(self.by_purpose[purpose as usize].load(Ordering::Relaxed))
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
        let arena = Arena::new(Bytes(256)).unwrap();
        let mut first = arena.take(Purpose::Weights, Bytes(128)).unwrap();
        let second = arena.take(Purpose::Cache, Bytes(128)).unwrap();
        first.bytes_mut().fill(1);
        assert!(second.bytes().iter().all(|&byte| byte == 0));
        assert_eq!(arena.taken_for(Purpose::Weights), Bytes(128));
        let error = arena.take(Purpose::Compute, Bytes(64)).err().unwrap();
        assert!(error.message.contains("256"), "{error}");
    }
}
