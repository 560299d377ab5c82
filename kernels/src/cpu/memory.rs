//! Memory for what is read in long streams, weights and KV pages: in pages of two megabytes where the
//! system has them. A stream through pages of four kilobytes stops at each for its address, which inside
//! a virtual machine is two tables deep, and starts the hardware's prefetch anew.

use std::{
    mem::MaybeUninit,
    ops::{Deref, DerefMut},
    ptr::NonNull,
    sync::{Arc, Mutex, PoisonError},
};

use memmap2::MmapMut;

use super::rows::allocate;
use crate::backend::BackendError;

/// A large page.
const PAGE_BYTES: usize = 1 << 21;
/// Bytes of a mapping that several allocations share; a quarter of it and more gets one of its own.
const SHARED_BYTES: usize = 1 << 26;
/// Smaller allocations come from the heap.
const LEAST_BYTES: usize = 1 << 18;
/// Where an allocation starts in its mapping: on a cache line.
const ALIGN: usize = 64;

/// Hands out memory. What it handed out may outlive it.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    shared: Mutex<Option<Shared>>,
}

/// A mapping in use up to `used`.
#[derive(Debug)]
struct Shared {
    start: NonNull<u8>,
    /// Bytes of the mapping. To ask it would take a reference to all of it, parts that were handed out included.
    len: usize,
    map: Arc<MmapMut>,
    used: usize,
}

// SAFETY: `start` is the address of `map`, which may go to any thread.
unsafe impl Send for Shared {}

/// A slice of its own, on the heap or in a mapping.
#[derive(Debug)]
pub(crate) enum Slab<T> {
    Heap(Vec<T>),
    Mapped(Mapped<T>),
}

/// A part of a mapping that nothing else reaches.
#[derive(Debug)]
pub(crate) struct Mapped<T> {
    start: NonNull<T>,
    len: usize,
    /// Keeps the mapping.
    _map: Arc<MmapMut>,
}

// SAFETY: it owns its elements, as a `Vec` does.
unsafe impl<T: Send> Send for Mapped<T> {}
// SAFETY: as above; a shared reference gives shared references to the elements alone.
unsafe impl<T: Sync> Sync for Mapped<T> {}

impl Memory {
    /// `count` zeroed elements, or the typed refusal.
    pub(crate) fn allocate<T: bytemuck::Pod>(
        &self,
        count: Option<usize>,
        what: &'static str,
    ) -> Result<Slab<T>, BackendError> {
        let bytes = count.and_then(|count| count.checked_mul(size_of::<T>()));
        match (count, bytes) {
            (Some(len), Some(bytes)) if (LEAST_BYTES..=isize::MAX as usize / 2).contains(&bytes) => {
                let refusal = |_| BackendError::OutOfMemory { what, bytes };
                let mut mapped = self.map(len, bytes).map_err(refusal)?;
                // Writing to it makes the system find the pages now.
                mapped.fill(MaybeUninit::zeroed());
                // SAFETY: all of it was just written, and zeroes are a value of a `Pod`.
                Ok(Slab::Mapped(unsafe { mapped.assume_init() }))
            }
            _ => Ok(Slab::Heap(allocate(count, what)?)),
        }
    }

    fn map<T>(&self, len: usize, bytes: usize) -> std::io::Result<Mapped<MaybeUninit<T>>> {
        assert!(align_of::<T>() <= ALIGN, "elements start on a cache line at most");
        if bytes >= SHARED_BYTES / 4 {
            let Shared { start, map, .. } = Shared::new(bytes)?;
            return Ok(Mapped { start: start.cast(), len, _map: map });
        }
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        let current = match shared.take() {
            Some(current) if current.len - current.used >= bytes => current,
            _ => Shared::new(SHARED_BYTES)?,
        };
        let current = shared.insert(current);
        // SAFETY: `used + bytes` is at most the length of the mapping.
        let start = unsafe { current.start.add(current.used) };
        // The length is a multiple of the alignment, so that this stays within it.
        current.used += bytes.next_multiple_of(ALIGN);
        Ok(Mapped { start: start.cast(), len, _map: Arc::clone(&current.map) })
    }
}

impl Shared {
    /// A fresh mapping of at least `bytes`.
    fn new(bytes: usize) -> std::io::Result<Self> {
        // Only a mapping of whole large pages starts on one.
        let mut map = MmapMut::map_anon(bytes.next_multiple_of(PAGE_BYTES))?;
        // Without large pages it is slower and no less right.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        let (len, start) = (map.len(), NonNull::from(&mut map[..]).cast());
        Ok(Self { start, len, map: Arc::new(map), used: 0 })
    }
}

impl<T> Mapped<MaybeUninit<T>> {
    /// # Safety
    /// Every element was written.
    unsafe fn assume_init(self) -> Mapped<T> {
        Mapped { start: self.start.cast(), len: self.len, _map: self._map }
    }
}

impl<T> Deref for Mapped<T> {
    type Target = [T];

    #[inline(always)]
    fn deref(&self) -> &[T] {
        // SAFETY: the elements lie in the mapping, which lives as long, and nothing else reaches them.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl<T> DerefMut for Mapped<T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as for a shared reference, and `self` is borrowed for as long.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl<T> Deref for Slab<T> {
    type Target = [T];

    #[inline(always)]
    fn deref(&self) -> &[T] {
        match self {
            Self::Heap(elements) => elements,
            Self::Mapped(elements) => elements,
        }
    }
}

impl<T> DerefMut for Slab<T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [T] {
        match self {
            Self::Heap(elements) => elements,
            Self::Mapped(elements) => elements,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::simd::Line;

    /// Sizes around every bound, each filled with its own byte.
    #[test]
    fn allocations_are_zero_aligned_and_apart() {
        let memory = Memory::default();
        let lines = |bytes: usize| bytes / size_of::<Line>();
        let sizes = [0, 1, lines(LEAST_BYTES) - 1, lines(LEAST_BYTES), lines(LEAST_BYTES) + 1]
            .into_iter()
            .chain([lines(SHARED_BYTES / 4) - 1; 6])
            .chain([lines(SHARED_BYTES / 4), lines(SHARED_BYTES) + 1]);
        let mut slabs: Vec<Slab<Line>> = Vec::new();
        for (i, size) in sizes.enumerate() {
            let mut slab: Slab<Line> = memory.allocate(Some(size), "a test").unwrap();
            assert_eq!(slab.len(), size);
            assert!(slab.iter().all(|line| line.0 == [0; 64]));
            slab.fill(Line([i as u8 + 1; 64]));
            slabs.push(slab);
        }
        let odd: Slab<u16> = memory.allocate(Some(LEAST_BYTES + 3), "a test").unwrap();
        let after: Slab<Line> = memory.allocate(Some(lines(LEAST_BYTES)), "a test").unwrap();
        assert!(odd.iter().all(|&x| x == 0) && after.iter().all(|line| line.0 == [0; 64]));
        drop(memory);
        for (i, slab) in slabs.iter().enumerate() {
            assert!(slab.iter().all(|line| line.0 == [i as u8 + 1; 64]));
        }
    }

    #[test]
    fn sizes_past_the_address_space_are_refused() {
        let memory = Memory::default();
        for count in [None, Some(usize::MAX), Some(usize::MAX / 64), Some(isize::MAX as usize / 128)] {
            let refused = memory.allocate::<Line>(count, "a test");
            assert!(matches!(refused, Err(BackendError::OutOfMemory { what: "a test", .. })), "{count:?}");
        }
    }
}
