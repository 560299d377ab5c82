//! Memory that a device reads and writes.

use std::io;
use std::ptr::{NonNull, null_mut};

use rdma_sys as sys;

use super::made;

/// A protection domain: queue pairs reach the memory of their own domain only.
#[derive(Debug)]
pub(super) struct Domain(pub(super) NonNull<sys::ibv_pd>);

impl Drop for Domain {
    fn drop(&mut self) {
        // SAFETY: made by `ibv_alloc_pd`; its regions and queue pairs are gone.
        unsafe { sys::ibv_dealloc_pd(self.0.as_ptr()) };
    }
}

/// Pages of this process.
#[derive(Debug)]
struct Pages {
    start: NonNull<u8>,
    bytes: usize,
}

impl Pages {
    fn new(bytes: usize) -> io::Result<Self> {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let kind = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: maps new pages, and touches none that are mapped.
        let start = unsafe { libc::mmap(null_mut(), bytes, access, kind, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { start: made(start.cast())?, bytes })
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: mapped with this length; nothing refers to them, as they are lent by the copy only.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}

/// Memory registered with a device. A device, or a peer through it, may change it at any time, so it is
/// never lent as a slice: bytes are copied in and out.
#[derive(Debug)]
pub(in super::super) struct Region {
    registration: Registration,
    pages: Pages,
}

#[derive(Debug)]
struct Registration(NonNull<sys::ibv_mr>);

impl Drop for Registration {
    fn drop(&mut self) {
        // SAFETY: made by `ibv_reg_mr`. From here on the device refuses its keys.
        unsafe { sys::ibv_dereg_mr(self.0.as_ptr()) };
    }
}

// SAFETY: the pages are reached by copies of raw memory only, and registrations from any thread.
unsafe impl Send for Region {}
// SAFETY: as above; `write` is for the one who posts, which the queue pair's user sees to.
unsafe impl Sync for Region {}

impl Region {
    /// Registers `bytes` of new memory; `remote` lets the peer of a queue pair of the domain write it.
    pub(super) fn new(domain: &Domain, bytes: usize, remote: bool) -> io::Result<Self> {
        let pages = Pages::new(bytes)?;
        let mut access = sys::ibv_access_flags::IBV_ACCESS_LOCAL_WRITE;
        if remote {
            access |= sys::ibv_access_flags::IBV_ACCESS_REMOTE_WRITE;
        }
        let start = pages.start.as_ptr().cast();
        let access = access.0.cast_signed();
        // SAFETY: the pages are mapped until after the registration is dropped, as fields are in order.
        let registration = unsafe { sys::ibv_reg_mr(domain.0.as_ptr(), start, bytes, access) };
        Ok(Self { registration: Registration(made(registration)?), pages })
    }

    /// Where a peer finds it.
    pub(in super::super) fn address(&self) -> u64 {
        self.pages.start.as_ptr() as u64
    }

    /// The key with which a peer may write it.
    pub(in super::super) fn remote_key(&self) -> u32 {
        // SAFETY: the registration lives.
        unsafe { self.registration.0.as_ref().rkey }
    }

    pub(super) fn local_key(&self) -> u32 {
        // SAFETY: the registration lives.
        unsafe { self.registration.0.as_ref().lkey }
    }

    /// Copies `bytes` to `offset`.
    pub(in super::super) fn write(&self, offset: usize, bytes: &[u8]) {
        self.check(offset, bytes.len());
        // SAFETY: inside of the pages; the source is a slice, which registered pages never are.
        unsafe { self.pages.start.as_ptr().add(offset).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) }
    }

    /// A copy of `bytes` from `offset`. What a peer writes meanwhile may or may not be in it.
    pub(in super::super) fn read(&self, offset: usize, bytes: usize) -> Vec<u8> {
        self.check(offset, bytes);
        let mut copy = Vec::with_capacity(bytes);
        // SAFETY: inside of the pages, into new memory with room for all of it, which is then set.
        unsafe {
            self.pages.start.as_ptr().add(offset).copy_to_nonoverlapping(copy.as_mut_ptr(), bytes);
            copy.set_len(bytes);
        }
        copy
    }

    /// A piece to send or to receive into.
    pub(super) fn piece(&self, offset: usize, bytes: usize) -> sys::ibv_sge {
        self.check(offset, bytes);
        let length = u32::try_from(bytes).expect("regions are smaller than 4 GiB");
        sys::ibv_sge { addr: self.address() + offset as u64, length, lkey: self.local_key() }
    }

    fn check(&self, offset: usize, bytes: usize) {
        let end = offset.checked_add(bytes);
        assert!(end.is_some_and(|end| end <= self.pages.bytes), "{bytes} bytes at {offset} of a region");
    }
}
