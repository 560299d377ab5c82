//! Device memory and pinned host memory.

use crate::{
    boundary::{HostAddress, Out, Pages, export},
    card::Allocation,
    code::Code,
    state::{Handle, Pinned, Session},
    stream::strikes,
    work::Work,
};

export! {
    /// Allocates device memory.
    fn cuMemAlloc_v2(driver, address: Out<u64>, bytes: usize) {
        let card = driver.here()?;
        driver.refuse_within_reach()?;
        if bytes == 0 {
            return Err(Code::InvalidValue);
        }
        address.put(allocate(driver, card, bytes as u64)?)
    }

    /// Frees device memory once the card is done.
    fn cuMemFree_v2(driver, address: u64) {
        let card = driver.here()?;
        driver.refuse_within_reach()?;
        check_allocation(driver, card, address)?;
        driver.finish_card(card);
        driver.here()?;
        driver.perform(card, &Work::Free(address))
    }

    /// Allocates device memory for a stream.
    fn cuMemAllocAsync(driver, address: Out<u64>, bytes: usize, stream: Handle) {
        let stream = driver.stream(stream)?;
        let card = driver.here()?;
        if driver.capture_state(stream).is_some() {
            return Err(Code::NotSupported);
        }
        driver.check_implicit(stream)?;
        if bytes == 0 {
            return address.put(0);
        }
        address.put(allocate(driver, card, bytes as u64)?)
    }

    /// Frees device memory when a stream comes to it.
    fn cuMemFreeAsync(driver, address: u64, stream: Handle) {
        let stream = driver.stream(stream)?;
        let card = driver.here()?;
        if driver.capture_state(stream).is_some() {
            return Err(Code::NotSupported);
        }
        if address == 0 {
            return Ok(());
        }
        check_allocation(driver, card, address)?;
        if let Some(allocation) = driver.context_mut(card)?.allocations.get_mut(&address) {
            allocation.freed = true;
        }
        driver.issue(stream, Work::Free(address))
    }

    /// Bytes of device memory that are free, and all.
    fn cuMemGetInfo_v2(driver, free: Out<usize>, total: Out<usize>) {
        let card = driver.here()?;
        let all = driver.cards[card].memory_bytes;
        free.put((all - driver.context(card)?.memory.used()) as usize)?;
        total.put(all as usize)
    }

    /// The allocation that an address belongs to.
    fn cuMemGetAddressRange_v2(driver, base: Out<u64>, bytes: Out<usize>, address: u64) {
        let card = driver.here()?;
        let context = driver.context(card)?;
        let found = context.allocations.range(..=address).next_back();
        let found = found.filter(|(start, allocation)| address - *start < allocation.bytes);
        let (start, allocation) = found.ok_or(Code::NotFound)?;
        base.put_if_asked(*start);
        bytes.put_if_asked(allocation.bytes as usize);
        Ok(())
    }

    /// Allocates pinned host memory.
    fn cuMemHostAlloc(driver, address: Out<HostAddress>, bytes: usize, flags: u32) {
        driver.here()?;
        driver.refuse_within_reach()?;
        pin(driver, &address, bytes, flags).and_then(|pages| address.put(pages))
    }

    /// Allocates pinned host memory.
    fn cuMemAllocHost_v2(driver, address: Out<HostAddress>, bytes: usize) {
        driver.here()?;
        driver.refuse_within_reach()?;
        pin(driver, &address, bytes, 0).and_then(|pages| address.put(pages))
    }

    /// Frees pinned host memory that the driver allocated, once all cards are done.
    fn cuMemFreeHost(driver, address: HostAddress) {
        driver.current_card()?;
        driver.refuse_within_reach()?;
        if driver.pinned.get(&address).is_none_or(|pinned| pinned.pages.is_none()) {
            return Err(Code::InvalidValue);
        }
        unpin(driver, address);
        driver.here().map(|_| ())
    }

    /// Pins memory of the host.
    fn cuMemHostRegister_v2(driver, address: HostAddress, bytes: usize, flags: u32) {
        driver.here()?;
        driver.refuse_within_reach()?;
        let end = address.number().checked_add(bytes).filter(|_| bytes > 0 && !address.is_null());
        let end = end.filter(|_| flags <= 1).ok_or(Code::InvalidValue)?;
        let overlaps = |(start, pinned): (&HostAddress, &Pinned)| {
            start.number() < end && address.number() < start.number() + pinned.bytes
        };
        if driver.pinned.iter().any(overlaps) {
            return Err(Code::HostMemoryAlreadyRegistered);
        }
        driver.pinned.insert(address, Pinned { bytes, pages: None });
        Ok(())
    }

    /// Unpins it.
    fn cuMemHostUnregister(driver, address: HostAddress) {
        driver.current_card()?;
        driver.refuse_within_reach()?;
        if driver.pinned.get(&address).is_none_or(|pinned| pinned.pages.is_some()) {
            return Err(Code::HostMemoryNotRegistered);
        }
        unpin(driver, address);
        driver.here().map(|_| ())
    }
}

/// Allocates, if need be when frees that are queued are done.
fn allocate(driver: &mut Session, card: usize, bytes: u64) -> Result<u64, Code> {
    if strikes(&mut driver.coming.oom_at) {
        return Err(Code::OutOfMemory);
    }
    let mut address = driver.context_mut(card)?.memory.allocate(bytes);
    if address.is_err() {
        driver.finish_card(card);
        driver.here()?;
        address = driver.context_mut(card)?.memory.allocate(bytes);
    }
    let address = address.map_err(|_| Code::OutOfMemory)?;
    driver.context_mut(card)?.allocations.insert(address, Allocation { bytes, freed: false });
    driver.tally.allocations += 1;
    Ok(address)
}

/// An address that may be freed: an allocation's, and once.
fn check_allocation(driver: &Session, card: usize, address: u64) -> Result<(), Code> {
    let allocation = driver.context(card)?.allocations.get(&address);
    allocation.filter(|allocation| !allocation.freed).map(|_| ()).ok_or(Code::InvalidValue)
}

fn pin(
    driver: &mut Session,
    place: &Out<HostAddress>,
    bytes: usize,
    flags: u32,
) -> Result<HostAddress, Code> {
    // Portable and write-combined memory is pinned memory here; mapped memory would be read by kernels.
    const MAPPED: u32 = 2;
    const ALL: u32 = 7;
    if place.is_null() || flags & !ALL != 0 {
        return Err(Code::InvalidValue);
    }
    if flags & MAPPED != 0 {
        return Err(Code::NotSupported);
    }
    let pages = Pages::allocate(bytes)?;
    let address = pages.address();
    driver.pinned.insert(address, Pinned { bytes, pages: Some(pages) });
    Ok(address)
}

/// Queued copies may still go there.
fn unpin(driver: &mut Session, address: HostAddress) {
    for card in 0..driver.cards.len() {
        driver.finish_card(card);
    }
    driver.pinned.remove(&address);
}
