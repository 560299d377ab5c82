//! The card's global memory.

use std::collections::VecDeque;

use thiserror::Error;

/// Where the first allocation lies.
const FIRST: u64 = 0x7f00_0000_0000;
/// Allocations begin at multiples of it.
const ALIGNMENT: u64 = 256;
/// Least space between allocations, so that what runs over one meets nothing.
const GUARD: u64 = 4096;
/// Freed allocations that are remembered, to name them when they are used.
const REMEMBERED: usize = 1024;

/// Why memory could not be had, freed, read or written.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum MemoryError {
    /// The card is full.
    #[error("{requested} bytes do not fit into the {free} bytes that are free")]
    OutOfMemory {
        /// Bytes asked for.
        requested: u64,
        /// Bytes left.
        free: u64,
    },
    /// Nothing was allocated with this address.
    #[error("{address:#x} is no allocation's address")]
    NotAllocated {
        /// The address.
        address: u64,
    },
    /// The bytes are not all in one live allocation.
    #[error("{bytes} bytes at {address:#x} are not within one allocation: {nearest}")]
    OutOfBounds {
        /// The first byte's address.
        address: u64,
        /// How many.
        bytes: u64,
        /// What lies there, or near.
        nearest: String,
    },
}

/// The card's global memory: separate allocations with space between them.
pub struct Memory {
    capacity: u64,
    used: u64,
    next: u64,
    /// Ascending by base.
    pub(crate) live: Vec<Allocation>,
    freed: VecDeque<(u64, u64)>,
}

/// One allocation.
pub(crate) struct Allocation {
    pub(crate) base: u64,
    pub(crate) bytes: u64,
    /// The contents, complemented: fresh memory reads as ones (NaN in every float format, -1 in every integer), at
    /// no cost where it is never touched.
    complement: Vec<u8>,
    /// A bit for each byte: whether it was ever written.
    written: Vec<u64>,
}

impl Memory {
    /// A card with `capacity` bytes of memory.
    pub fn new(capacity: u64) -> Self {
        Self::at(FIRST, capacity)
    }

    /// A card whose addresses begin at `first`, so that they are not another card's.
    pub fn at(first: u64, capacity: u64) -> Self {
        let next = first.next_multiple_of(ALIGNMENT);
        Self { capacity, used: 0, next, live: Vec::new(), freed: VecDeque::new() }
    }

    /// Bytes that are allocated.
    pub fn used(&self) -> u64 {
        self.used
    }

    /// Allocates `bytes` bytes, aligned to 256, with undefined contents; none is an allocation as well.
    ///
    /// # Errors
    /// [`MemoryError::OutOfMemory`].
    pub fn allocate(&mut self, bytes: u64) -> Result<u64, MemoryError> {
        let free = self.capacity - self.used;
        let out_of_memory = MemoryError::OutOfMemory { requested: bytes, free };
        let Some(end) = self.next.checked_add(bytes).filter(|_| bytes <= free) else {
            return Err(out_of_memory);
        };
        let Ok(length) = usize::try_from(bytes) else { return Err(out_of_memory) };
        let base = self.next;
        self.next = (end + GUARD).next_multiple_of(ALIGNMENT);
        self.used += bytes;
        let (complement, written) = (vec![0; length], vec![0; length.div_ceil(64)]);
        self.live.push(Allocation { base, bytes, complement, written });
        Ok(base)
    }

    /// Frees an allocation.
    ///
    /// # Errors
    /// [`MemoryError::NotAllocated`].
    pub fn free(&mut self, address: u64) -> Result<(), MemoryError> {
        let found = self.live.binary_search_by_key(&address, |allocation| allocation.base);
        let index = found.map_err(|_| MemoryError::NotAllocated { address })?;
        let allocation = self.live.remove(index);
        self.used -= allocation.bytes;
        self.freed.push_back((allocation.base, allocation.bytes));
        if self.freed.len() > REMEMBERED {
            self.freed.pop_front();
        }
        Ok(())
    }

    /// Reads bytes from `address` on; those never written are ones.
    ///
    /// # Errors
    /// [`MemoryError::OutOfBounds`].
    pub fn read(&self, address: u64, to: &mut [u8]) -> Result<(), MemoryError> {
        let (index, offset) = self.range(address, to.len())?;
        let from = &self.live[index].complement[offset..][..to.len()];
        for (to, from) in to.iter_mut().zip(from) {
            *to = !from;
        }
        Ok(())
    }

    /// Writes bytes from `address` on.
    ///
    /// # Errors
    /// [`MemoryError::OutOfBounds`].
    pub fn write(&mut self, address: u64, from: &[u8]) -> Result<(), MemoryError> {
        let (index, offset) = self.range(address, from.len())?;
        let allocation = &mut self.live[index];
        for (to, from) in allocation.complement[offset..].iter_mut().zip(from) {
            *to = !from;
        }
        allocation.mark_written(offset, from.len());
        Ok(())
    }

    fn range(&self, address: u64, bytes: usize) -> Result<(usize, usize), MemoryError> {
        let found = self.locate(address, bytes as u64);
        found.ok_or_else(|| MemoryError::OutOfBounds {
            address,
            bytes: bytes as u64,
            nearest: self.describe(address),
        })
    }

    /// The allocation that holds all the bytes, and the first one's offset in it.
    pub(crate) fn locate(&self, address: u64, bytes: u64) -> Option<(usize, usize)> {
        let after = self.live.partition_point(|allocation| allocation.base <= address);
        let index = after.checked_sub(1)?;
        let offset = self.live[index].offset(address, bytes)?;
        Some((index, offset))
    }

    /// What lies at an address where nothing should be read.
    pub(crate) fn describe(&self, address: u64) -> String {
        let freed = self.freed.iter().rev().find(|(base, bytes)| (*base..base + bytes).contains(&address));
        if let Some((base, bytes)) = freed {
            return format!("it was byte {} of a freed allocation of {bytes} bytes", address - base);
        }
        let after = self.live.partition_point(|allocation| allocation.base <= address);
        let before = after.checked_sub(1).map(|index| &self.live[index]);
        let after = self.live.get(after);
        let before = before.map(|a| (address - a.base, a.bytes));
        let after = after.map(|a| (a.base - address, a.bytes));
        match (before, after) {
            (Some((past, bytes)), after)
                if after.is_none_or(|(ahead, _)| past.saturating_sub(bytes) <= ahead) =>
            {
                format!("nearest is byte {past} of an allocation of {bytes} bytes")
            }
            (_, Some((ahead, bytes))) => {
                format!("nearest is an allocation of {bytes} bytes, {ahead} bytes on")
            }
            _ => "nothing is allocated".to_owned(),
        }
    }
}

impl Allocation {
    /// Where `address` is, if `bytes` bytes from there on are all within.
    #[inline(always)]
    pub(crate) fn offset(&self, address: u64, bytes: u64) -> Option<usize> {
        let offset = address.wrapping_sub(self.base);
        (offset <= self.bytes && bytes <= self.bytes - offset).then_some(offset as usize)
    }

    /// `N` bytes that are within.
    #[inline(always)]
    pub(crate) fn get<const N: usize>(&self, offset: usize) -> [u8; N] {
        let mut bytes = [0; N];
        bytes.copy_from_slice(&self.complement[offset..offset + N]);
        bytes.map(|byte| !byte)
    }

    /// Overwrites `N` bytes that are within, at most 64 and aligned to their number.
    #[inline(always)]
    pub(crate) fn put<const N: usize>(&mut self, offset: usize, bytes: [u8; N]) {
        self.complement[offset..offset + N].copy_from_slice(&bytes.map(|byte| !byte));
        self.written[offset / 64] |= (u64::MAX >> (64 - N)) << (offset % 64);
    }

    /// Whether all of `bytes` bytes, at most 64 and aligned to their number, were written.
    #[inline(always)]
    pub(crate) fn is_written(&self, offset: usize, bytes: usize) -> bool {
        is_within(&self.written, offset, bytes)
    }

    /// Notes that bytes were written.
    #[inline(always)]
    pub(crate) fn mark_written(&mut self, offset: usize, bytes: usize) {
        let (mut at, end) = (offset, offset + bytes);
        while at < end {
            let run = (64 - at % 64).min(end - at);
            self.written[at / 64] |= (u64::MAX >> (64 - run)) << (at % 64);
            at += run;
        }
    }
}

/// Whether a set of bits holds all of `bytes` bytes, at most 64 and aligned to their number.
#[inline(always)]
pub(crate) fn is_within(bits: &[u64], offset: usize, bytes: usize) -> bool {
    let mask = (u64::MAX >> (64 - bytes)) << (offset % 64);
    bits[offset / 64] & mask == mask
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_kept_apart() {
        let mut memory = Memory::new(1000);
        let [a, b] = [100, 40].map(|bytes| memory.allocate(bytes).unwrap());
        assert!(a.is_multiple_of(256) && b.is_multiple_of(256) && b >= a + 100 + GUARD);
        memory.write(a + 90, &[7; 10]).unwrap();
        let mut read = [0; 12];
        memory.read(a + 88, &mut read).unwrap();
        assert_eq!(read, [255, 255, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7]);
        let error = memory.write(a + 91, &[7; 10]).unwrap_err();
        assert!(error.to_string().ends_with("nearest is byte 91 of an allocation of 100 bytes"), "{error}");
        assert!(matches!(memory.allocate(861), Err(MemoryError::OutOfMemory { requested: 861, free: 860 })));
        memory.free(a).unwrap();
        assert_eq!(memory.free(a), Err(MemoryError::NotAllocated { address: a }));
        let error = memory.read(a + 3, &mut read).unwrap_err();
        assert!(error.to_string().ends_with("it was byte 3 of a freed allocation of 100 bytes"), "{error}");
        assert_eq!(memory.used(), 40);
    }

    #[test]
    fn written_bytes_are_remembered() {
        let mut memory = Memory::new(1000);
        let address = memory.allocate(300).unwrap();
        memory.write(address + 60, &[0; 70]).unwrap();
        let allocation = &memory.live[0];
        assert!(
            allocation.is_written(60, 4) && allocation.is_written(64, 64) && allocation.is_written(128, 2)
        );
        assert!(
            !allocation.is_written(56, 8) && !allocation.is_written(128, 4) && !allocation.is_written(130, 1)
        );
    }
}
