//! Copies and fills.
//!
//! Pageable host memory is copied aside before an asynchronous call returns, and a copy to it is complete
//! by then; pinned memory is read and written when the stream comes to it (CUDA driver API,
//! "API synchronization behavior").

use crate::{
    boundary::{HostAddress, export},
    code::Code,
    state::{Handle, Session},
    work::{Pattern, Source, Work},
};

export! {
    /// Copies to the card. What is queued before on the default stream is done first.
    fn cuMemcpyHtoD_v2(driver, to: u64, from: HostAddress, bytes: usize) {
        driver.here()?;
        driver.refuse_within_reach()?;
        let stream = driver.stream(Handle::NULL)?;
        let pinned = driver.is_pinned(from, bytes);
        copy_in(driver, to, from, bytes, stream)?;
        if pinned { wait(driver, stream) } else { Ok(()) }
    }

    /// Copies to the host.
    fn cuMemcpyDtoH_v2(driver, to: HostAddress, from: u64, bytes: usize) {
        driver.here()?;
        driver.refuse_within_reach()?;
        let stream = driver.stream(Handle::NULL)?;
        check_device(driver, from, bytes)?;
        driver.issue(stream, Work::Out { to, from, bytes })?;
        wait(driver, stream)
    }

    /// Copies on the card, in the order of the default stream.
    fn cuMemcpyDtoD_v2(driver, to: u64, from: u64, bytes: usize) {
        driver.here()?;
        driver.refuse_within_reach()?;
        let stream = driver.stream(Handle::NULL)?;
        copy(driver, to, from, bytes, stream)
    }

    /// Copies to the card in the order of a stream.
    fn cuMemcpyHtoDAsync_v2(driver, to: u64, from: HostAddress, bytes: usize, stream: Handle) {
        let stream = driver.stream(stream)?;
        copy_in(driver, to, from, bytes, stream)
    }

    /// Copies to the host in the order of a stream.
    fn cuMemcpyDtoHAsync_v2(driver, to: HostAddress, from: u64, bytes: usize, stream: Handle) {
        let stream = driver.stream(stream)?;
        check_device(driver, from, bytes)?;
        let pinned = driver.is_pinned(to, bytes);
        if !pinned && driver.capture_state(stream).is_some() {
            return Err(Code::NotSupported);
        }
        driver.issue(stream, Work::Out { to, from, bytes })?;
        if pinned { Ok(()) } else { wait(driver, stream) }
    }

    /// Copies on the card in the order of a stream.
    fn cuMemcpyDtoDAsync_v2(driver, to: u64, from: u64, bytes: usize, stream: Handle) {
        let stream = driver.stream(stream)?;
        copy(driver, to, from, bytes, stream)
    }

    /// Copies between cards in the order of a stream.
    fn cuMemcpyPeerAsync(
        driver,
        to: u64,
        to_context: Handle,
        from: u64,
        from_context: Handle,
        bytes: usize,
        stream: Handle,
    ) {
        let stream = driver.stream_anywhere(stream)?;
        let to_card = driver.card_of(to_context).ok_or(Code::InvalidContext)?;
        let from_card = driver.card_of(from_context).ok_or(Code::InvalidContext)?;
        if !driver.context(to_card)?.holds(to, bytes as u64) || !driver.context(from_card)?.holds(from, bytes as u64) {
            return Err(Code::InvalidValue);
        }
        driver.issue(stream, Work::Across { to: (to_card, to), from: (from_card, from), bytes })
    }

    /// Repeats a byte, in the order of the default stream.
    fn cuMemsetD8_v2(driver, to: u64, value: u8, count: usize) {
        driver.here()?;
        driver.refuse_within_reach()?;
        fill(driver, to, &[value], count, Handle::NULL)
    }

    /// Repeats two bytes, in the order of the default stream.
    fn cuMemsetD16_v2(driver, to: u64, value: u16, count: usize) {
        driver.here()?;
        driver.refuse_within_reach()?;
        fill(driver, to, &value.to_ne_bytes(), count, Handle::NULL)
    }

    /// Repeats four bytes, in the order of the default stream.
    fn cuMemsetD32_v2(driver, to: u64, value: u32, count: usize) {
        driver.here()?;
        driver.refuse_within_reach()?;
        fill(driver, to, &value.to_ne_bytes(), count, Handle::NULL)
    }

    /// Repeats a byte, in the order of a stream.
    fn cuMemsetD8Async(driver, to: u64, value: u8, count: usize, stream: Handle) {
        fill(driver, to, &[value], count, stream)
    }

    /// Repeats two bytes, in the order of a stream.
    fn cuMemsetD16Async(driver, to: u64, value: u16, count: usize, stream: Handle) {
        fill(driver, to, &value.to_ne_bytes(), count, stream)
    }

    /// Repeats four bytes, in the order of a stream.
    fn cuMemsetD32Async(driver, to: u64, value: u32, count: usize, stream: Handle) {
        fill(driver, to, &value.to_ne_bytes(), count, stream)
    }
}

/// Nothing outside of the current card's allocations is copied.
fn check_device(driver: &Session, address: u64, bytes: usize) -> Result<(), Code> {
    let context = driver.context(driver.here()?)?;
    if bytes == 0 || context.holds(address, bytes as u64) { Ok(()) } else { Err(Code::InvalidValue) }
}

fn copy_in(
    driver: &mut Session,
    to: u64,
    from: HostAddress,
    bytes: usize,
    stream: Handle,
) -> Result<(), Code> {
    check_device(driver, to, bytes)?;
    if bytes == 0 {
        return Ok(());
    }
    let from = if driver.is_pinned(from, bytes) {
        Source::Pinned { from, bytes }
    } else if driver.capture_state(stream).is_some() {
        // The graph would read memory that is likely gone by then.
        return Err(Code::NotSupported);
    } else {
        Source::Staged(from.read(bytes)?.into())
    };
    driver.issue(stream, Work::In { to, from })
}

fn copy(driver: &mut Session, to: u64, from: u64, bytes: usize, stream: Handle) -> Result<(), Code> {
    check_device(driver, to, bytes)?;
    check_device(driver, from, bytes)?;
    if bytes == 0 { Ok(()) } else { driver.issue(stream, Work::Copy { to, from, bytes }) }
}

fn fill(driver: &mut Session, to: u64, value: &[u8], count: usize, stream: Handle) -> Result<(), Code> {
    let stream = driver.stream(stream)?;
    let width = value.len();
    let length =
        count.checked_mul(width).filter(|_| to.is_multiple_of(width as u64)).ok_or(Code::InvalidValue)?;
    check_device(driver, to, length)?;
    let mut bytes = [0; 4];
    bytes[..width].copy_from_slice(value);
    if count == 0 {
        Ok(())
    } else {
        driver.issue(stream, Work::Fill { to, pattern: Pattern { bytes, width }, count })
    }
}

fn wait(driver: &mut Session, stream: Handle) -> Result<(), Code> {
    driver.tally.synchronisations += 1;
    let mark = driver.tail(stream);
    driver.finish(mark);
    driver.here().map(|_| ())
}
