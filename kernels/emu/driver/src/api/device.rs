//! Starting, errors and cards.

use std::ffi::c_char;

use crate::{
    boundary::{HostAddress, Out, export},
    code::Code,
};

export! {
    /// Starts the driver.
    fn cuInit(driver, flags: u32) {
        if flags != 0 {
            return Err(Code::InvalidValue);
        }
        driver.initialise()
    }

    /// The CUDA version of the driver.
    fn cuDriverGetVersion(driver, version: Out<u32>) {
        version.put(driver.settings.driver_version)
    }

    /// The name of a result.
    fn cuGetErrorName(_driver, error: u32, name: Out<*const c_char>) {
        let (text, _) = Code::describe(error).ok_or(Code::InvalidValue)?;
        name.put(text.as_ptr())
    }

    /// The meaning of a result.
    fn cuGetErrorString(_driver, error: u32, meaning: Out<*const c_char>) {
        let (_, text) = Code::describe(error).ok_or(Code::InvalidValue)?;
        meaning.put(text.as_ptr())
    }

    /// How many cards there are.
    fn cuDeviceGetCount(driver, count: Out<u32>) {
        if !driver.initialised {
            return Err(Code::NotInitialised);
        }
        count.put(driver.cards.len() as u32)
    }

    /// A card by its number.
    fn cuDeviceGet(driver, device: Out<i32>, ordinal: i32) {
        driver.card(ordinal)?;
        device.put(ordinal)
    }

    /// Its name.
    fn cuDeviceGetName(driver, name: HostAddress, capacity: i32, device: i32) {
        let card = driver.card(device)?;
        let capacity = usize::try_from(capacity).map_err(|_| Code::InvalidValue)?;
        name.write_text(&driver.cards[card].model.name, capacity).map(|_| ())
    }

    /// A property of it.
    fn cuDeviceGetAttribute(driver, value: Out<u32>, attribute: u32, device: i32) {
        let card = driver.card(device)?;
        value.put(driver.cards[card].model.attribute(attribute, card)?)
    }

    /// An identity that no other card has.
    fn cuDeviceGetUuid(driver, uuid: Out<[u8; 16]>, device: i32) {
        let card = driver.card(device)?;
        uuid.put(identity(card))
    }

    /// An identity that no other card has.
    fn cuDeviceGetUuid_v2(driver, uuid: Out<[u8; 16]>, device: i32) {
        let card = driver.card(device)?;
        uuid.put(identity(card))
    }

    /// Where it is on the bus.
    fn cuDeviceGetPCIBusId(driver, place: HostAddress, capacity: i32, device: i32) {
        let card = driver.card(device)?;
        let capacity = usize::try_from(capacity).map_err(|_| Code::InvalidValue)?;
        place.write_text(&format!("0000:{:02X}:00.0", card + 1), capacity).map(|_| ())
    }

    /// Bytes of its memory.
    fn cuDeviceTotalMem_v2(driver, bytes: Out<usize>, device: i32) {
        let card = driver.card(device)?;
        bytes.put(driver.cards[card].memory_bytes as usize)
    }

    /// Whether a card can read another's memory: no.
    fn cuDeviceCanAccessPeer(driver, can: Out<i32>, device: i32, peer: i32) {
        driver.card(device)?;
        driver.card(peer)?;
        if device == peer {
            return Err(Code::InvalidDevice);
        }
        can.put(0)
    }

    /// How two cards are connected: not.
    fn cuDeviceGetP2PAttribute(driver, value: Out<i32>, attribute: u32, from: i32, to: i32) {
        let (from, to) = (driver.card(from)?, driver.card(to)?);
        if from == to {
            return Err(Code::InvalidDevice);
        }
        match attribute {
            1..=4 => value.put(0),
            _ => Err(Code::InvalidValue),
        }
    }

    /// Lets the current card read another's memory: it cannot.
    fn cuCtxEnablePeerAccess(driver, _context: usize, _flags: u32) {
        driver.here()?;
        Err(Code::PeerAccessUnsupported)
    }
}

fn identity(card: usize) -> [u8; 16] {
    let mut identity = *b"stand-in card   ";
    identity[14] = (card >> 8) as u8;
    identity[15] = card as u8;
    identity
}
