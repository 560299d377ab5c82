//! Where C ends: exported functions, and the caller's pointers as types.
//!
//! A value of a pointer type here is made by the caller of an exported function alone, who promises what
//! the driver's interface asks of that argument: a place of the type, a terminated string, an array of the
//! length given. All reading and writing through those pointers is here.

use std::{
    alloc::{Layout, alloc, dealloc},
    ffi::{CStr, c_char},
    panic::{AssertUnwindSafe, catch_unwind},
    ptr,
};

use crate::{
    code::Code,
    state::{self, Session},
};

/// Exports functions of the driver: `fn cuName(driver, argument: Type, ..) { body }`. The body
/// runs with the driver's state locked and ends in `Result<(), Code>`.
macro_rules! export {
    ($($(#[$doc:meta])* fn $name:ident($driver:ident $(, $arg:ident: $type:ty)* $(,)?) $body:block)+) => {$(
        $(#[$doc])*
        #[unsafe(no_mangle)]
        extern "C" fn $name($($arg: $type),*) -> u32 {
            $crate::boundary::call(stringify!($name), move |$driver| $body)
        }
    )+};
}

/// Exports names of the driver that answer that they are not supported.
macro_rules! export_unsupported {
    ($($name:ident)+) => {$(
        #[unsafe(no_mangle)]
        extern "C" fn $name() -> u32 {
            $crate::boundary::call(stringify!($name), |_| Err($crate::code::Code::NotSupported))
        }
    )+};
}

pub(crate) use export;
pub(crate) use export_unsupported;

/// Runs the body of an exported function. A panic of ours becomes an error: it must not reach C.
pub(crate) fn call(name: &str, body: impl FnOnce(&mut Session) -> Result<(), Code>) -> u32 {
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let mut session = state::lock();
        let trace = session.settings.trace;
        let outcome = body(&mut session);
        session.changed();
        if trace {
            eprintln!("stand-in driver: {name}: {outcome:?}");
        }
        outcome
    }));
    match outcome {
        Ok(Ok(())) => 0,
        Ok(Err(code)) => code as u32,
        Err(_) => Code::Unknown as u32,
    }
}

/// Where the caller wants an answer.
#[repr(transparent)]
pub(crate) struct Out<T>(*mut T);

impl<T> Out<T> {
    pub(crate) fn put(self, value: T) -> Result<(), Code> {
        if self.0.is_null() {
            return Err(Code::InvalidValue);
        }
        // SAFETY: the caller passed a place for a `T`.
        unsafe { self.0.write(value) };
        Ok(())
    }

    pub(crate) fn put_if_asked(self, value: T) {
        if !self.0.is_null() {
            // SAFETY: the caller passed a place for a `T`.
            unsafe { self.0.write(value) };
        }
    }

    pub(crate) fn is_null(&self) -> bool {
        self.0.is_null()
    }
}

/// Text from the caller.
#[repr(transparent)]
pub(crate) struct Text(*const c_char);

impl Text {
    pub(crate) fn read(&self) -> Result<String, Code> {
        if self.0.is_null() {
            return Err(Code::InvalidValue);
        }
        // SAFETY: the caller passed a string that ends with zero.
        let text = unsafe { CStr::from_ptr(self.0) };
        Ok(String::from_utf8_lossy(text.to_bytes()).into_owned())
    }
}

/// An address in the host's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(transparent)]
pub(crate) struct HostAddress(usize);

impl HostAddress {
    pub(crate) fn number(self) -> usize {
        self.0
    }

    /// Copies `bytes` bytes from here.
    pub(crate) fn read(self, bytes: usize) -> Result<Vec<u8>, Code> {
        if bytes == 0 {
            return Ok(Vec::new());
        }
        if self.0 == 0 {
            return Err(Code::InvalidValue);
        }
        let mut copy = Vec::new();
        copy.try_reserve_exact(bytes).map_err(|_| Code::OutOfMemory)?;
        // SAFETY: the caller promised that many bytes here, during the call or, where the memory is
        // pinned, until it is unpinned, which runs what is queued first. The vector has room for them.
        unsafe {
            ptr::copy_nonoverlapping(ptr::with_exposed_provenance::<u8>(self.0), copy.as_mut_ptr(), bytes);
            copy.set_len(bytes);
        }
        Ok(copy)
    }

    /// Copies `from` to here.
    pub(crate) fn write(self, from: &[u8]) -> Result<(), Code> {
        if from.is_empty() {
            return Ok(());
        }
        if self.0 == 0 {
            return Err(Code::InvalidValue);
        }
        // SAFETY: as for `read`.
        unsafe {
            ptr::copy_nonoverlapping(from.as_ptr(), ptr::with_exposed_provenance_mut(self.0), from.len())
        };
        Ok(())
    }

    /// Writes `text` here, ended by zero and cut to `capacity` bytes with it. Returns the bytes written.
    pub(crate) fn write_text(self, text: &str, capacity: usize) -> Result<usize, Code> {
        let kept = text.len().min(capacity.checked_sub(1).ok_or(Code::InvalidValue)?);
        let mut bytes = text.as_bytes()[..kept].to_vec();
        bytes.push(0);
        self.write(&bytes)?;
        Ok(bytes.len())
    }

    /// Element `index` of the array of words that begins here.
    pub(crate) fn word(self, index: usize) -> Result<usize, Code> {
        let bytes = self.element(index, size_of::<usize>())?.read(size_of::<usize>())?;
        bytes.try_into().map(usize::from_ne_bytes).map_err(|_| Code::InvalidValue)
    }

    /// What a word that is an address points at.
    pub(crate) fn at_word(self, index: usize) -> Result<Self, Code> {
        self.word(index).map(Self)
    }

    pub(crate) fn set_word(self, index: usize, value: usize) -> Result<(), Code> {
        self.element(index, size_of::<usize>())?.write(&value.to_ne_bytes())
    }

    fn element(self, index: usize, bytes: usize) -> Result<Self, Code> {
        let offset = index.checked_mul(bytes).filter(|_| !self.is_null()).ok_or(Code::InvalidValue)?;
        self.0.checked_add(offset).map(Self).ok_or(Code::InvalidValue)
    }

    /// Element `index` of the array of 32-bit numbers that begins here.
    pub(crate) fn number_at(self, index: usize) -> Result<u32, Code> {
        let bytes = self.element(index, size_of::<u32>())?.read(size_of::<u32>())?;
        bytes.try_into().map(u32::from_ne_bytes).map_err(|_| Code::InvalidValue)
    }

    pub(crate) fn is_null(self) -> bool {
        self.0 == 0
    }
}

/// Pinned memory that the driver allocated.
pub(crate) struct Pages {
    address: usize,
    layout: Layout,
}

impl Pages {
    const ALIGNMENT: usize = 4096;
    /// What fresh memory holds, to be noticed.
    const FRESH: u8 = 0xA5;

    pub(crate) fn allocate(bytes: usize) -> Result<Self, Code> {
        let layout = Layout::from_size_align(bytes, Self::ALIGNMENT).map_err(|_| Code::OutOfMemory)?;
        if bytes == 0 {
            return Err(Code::InvalidValue);
        }
        // SAFETY: the layout has a size.
        let memory = unsafe { alloc(layout) };
        if memory.is_null() {
            return Err(Code::OutOfMemory);
        }
        // SAFETY: the allocation has this many bytes.
        unsafe { memory.write_bytes(Self::FRESH, bytes) };
        Ok(Self { address: memory.expose_provenance(), layout })
    }

    pub(crate) fn address(&self) -> HostAddress {
        HostAddress(self.address)
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: allocated by `allocate` with this layout, and given back here alone.
        unsafe { dealloc(ptr::with_exposed_provenance_mut(self.address), self.layout) };
    }
}
