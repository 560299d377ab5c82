//! Primary contexts, and which one is a thread's.

use std::collections::BTreeMap;

use ptx_machine::Memory;

use crate::{
    boundary::{Out, export},
    card::Context,
    code::Code,
    state::{self, Handle, Session},
    stream::Stream,
};

export! {
    /// Holds a card's context, which begins with the first holder.
    fn cuDevicePrimaryCtxRetain(driver, context: Out<Handle>, device: i32) {
        let card = driver.card(device)?;
        if driver.cards[card].lost {
            return Err(Code::DeviceUnavailable);
        }
        if driver.cards[card].context.is_none() {
            begin(driver, card);
        }
        let live = driver.context_mut(card)?;
        live.references += 1;
        context.put(live.handle)
    }

    /// Lets go of it. It ends with its last holder, and everything in it.
    fn cuDevicePrimaryCtxRelease_v2(driver, device: i32) {
        let card = driver.card(device)?;
        let context = driver.context_mut(card).map_err(|_| Code::InvalidContext)?;
        context.references -= 1;
        if context.references == 0 {
            driver.finish_card(card);
            driver.destroy_context(card);
        }
        Ok(())
    }

    /// Whether somebody holds it.
    fn cuDevicePrimaryCtxGetState(driver, device: i32, flags: Out<u32>, active: Out<i32>) {
        let card = driver.card(device)?;
        flags.put(0)?;
        active.put(i32::from(driver.cards[card].context.is_some()))
    }

    /// Makes a context the thread's.
    fn cuCtxSetCurrent(driver, context: Handle) {
        if !driver.initialised {
            return Err(Code::NotInitialised);
        }
        if context != Handle::NULL {
            driver.card_of(context).ok_or(Code::InvalidContext)?;
        }
        state::set_current(context);
        Ok(())
    }

    /// The thread's context.
    fn cuCtxGetCurrent(driver, context: Out<Handle>) {
        if !driver.initialised {
            return Err(Code::NotInitialised);
        }
        context.put(state::current())
    }

    /// The card of the thread's context.
    fn cuCtxGetDevice(driver, device: Out<i32>) {
        let card = driver.current_card()?;
        device.put(card as i32)
    }

    /// Waits for everything that the card has to do.
    fn cuCtxSynchronize(driver) {
        let card = driver.here()?;
        let context = driver.context(card)?.handle;
        driver.refuse_captures(context)?;
        driver.tally.synchronisations += 1;
        driver.finish_card(card);
        driver.here().map(|_| ())
    }

    /// The range of stream priorities.
    fn cuCtxGetStreamPriorityRange(driver, least: Out<i32>, greatest: Out<i32>) {
        driver.here()?;
        least.put_if_asked(0);
        greatest.put_if_asked(-5);
        Ok(())
    }
}

/// Begins a card's context.
fn begin(driver: &mut Session, card: usize) {
    // Each context has addresses of its own: another's are nothing here.
    const FIRST: u64 = 0x7e00_0000_0000;
    const REACH: u64 = 1 << 36;
    let (handle, stream) = (driver.mint(), driver.mint());
    driver.begun += 1;
    let memory = Memory::at(FIRST + driver.begun % 4096 * REACH, driver.cards[card].memory_bytes);
    driver.streams.insert(stream, Stream::new(card, handle, true, 0));
    let allocations = BTreeMap::new();
    driver.cards[card].context =
        Some(Context { handle, references: 0, error: None, memory, allocations, stream });
}
