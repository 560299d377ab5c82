//! Loads and stores.

use super::{
    LOCAL_WINDOW, Machine, Outcome, PARAM_WINDOW, SHARED_WINDOW,
    clock::Kind,
    race::{Access, Area},
    registers::{Doubles, LANES, lanes},
    stop,
    warp::Warp,
};
use crate::{
    Fault,
    memory::is_within,
    module::DATA_WINDOW,
    program::{AnyReg, Extend, Load, Scope, Space, Store},
};

/// The bytes that each lane reads or writes.
pub(super) type Bytes<const N: usize> = [[u8; N]; LANES];

/// Where a global address leads.
enum Place {
    /// Allocation and offset.
    Memory(usize, usize),
    /// Offset among the module's variables.
    Data(usize),
}

impl Machine<'_> {
    pub(super) fn load(&mut self, warp: &mut Warp, load: &Load, mask: u32) -> Outcome<()> {
        match load.bytes * load.d.count {
            1 => self.load_bytes::<1>(warp, load, mask),
            2 => self.load_bytes::<2>(warp, load, mask),
            4 => self.load_bytes::<4>(warp, load, mask),
            8 => self.load_bytes::<8>(warp, load, mask),
            _ => self.load_bytes::<16>(warp, load, mask),
        }
    }

    fn load_bytes<const N: usize>(&mut self, warp: &mut Warp, load: &Load, mask: u32) -> Outcome<()> {
        let addresses = warp.registers.addresses(&load.address);
        let access = match load.strong {
            Some(_) => Access::Read(Kind::Strong),
            None if load.constant => Access::ReadConstant,
            None => Access::Read(Kind::Plain),
        };
        let values: Bytes<N> = self.read(warp, load.space, &addresses, mask, access)?;
        if load.acquire {
            self.fence(warp, Scope::Device, mask);
        }
        deliver(warp, load, &values, mask);
        Ok(())
    }

    pub(super) fn store(&mut self, warp: &mut Warp, store: &Store, mask: u32) -> Outcome<()> {
        match store.bytes * store.a.count {
            1 => self.store_bytes::<1>(warp, store, mask),
            2 => self.store_bytes::<2>(warp, store, mask),
            4 => self.store_bytes::<4>(warp, store, mask),
            8 => self.store_bytes::<8>(warp, store, mask),
            _ => self.store_bytes::<16>(warp, store, mask),
        }
    }

    fn store_bytes<const N: usize>(&mut self, warp: &mut Warp, store: &Store, mask: u32) -> Outcome<()> {
        let addresses = warp.registers.addresses(&store.address);
        let size = usize::from(store.bytes);
        let mut values = [[0; N]; LANES];
        for (i, register) in store.a.regs.iter().take(store.a.count.into()).enumerate() {
            let Some(register) = *register else { continue };
            for (lane, value) in values.iter_mut().enumerate() {
                let from = warp.registers.lane(register, lane).to_le_bytes();
                value[i * size..(i + 1) * size].copy_from_slice(&from[..size]);
            }
        }
        if store.release {
            self.fence(warp, Scope::Device, mask);
        }
        let kind = if store.strong.is_some() { Kind::Strong } else { Kind::Plain };
        self.write(warp, store.space, &addresses, &values, mask, kind)
    }

    /// Reads `N` bytes in each lane.
    pub(super) fn read<const N: usize>(
        &mut self,
        warp: &mut Warp,
        space: Space,
        addresses: &Doubles,
        mask: u32,
        access: Access,
    ) -> Outcome<Bytes<N>> {
        let mut values = [[0; N]; LANES];
        match space {
            Space::Generic => {
                for (space, addresses, mask) in by_space(addresses, mask) {
                    let part: Bytes<N> = self.read(warp, space, &addresses, mask, access)?;
                    lanes(mask).for_each(|lane| values[lane] = part[lane]);
                }
            }
            Space::Global | Space::Const => self.read_global(warp, addresses, &mut values, mask, access)?,
            Space::Shared => self.read_shared(warp, addresses, &mut values, mask, access)?,
            Space::Param => {
                for lane in lanes(mask) {
                    let at = addresses[lane];
                    aligned("parameter", at, N, lane)?;
                    let from = usize::try_from(at).ok().and_then(|at| self.params.get(at..)?.get(..N));
                    let there = || format!("{} bytes are there", self.params.len());
                    let Some(from) = from else { return outside("parameter", at, N, lane, there) };
                    values[lane].copy_from_slice(from);
                }
            }
            Space::Local => {
                for lane in lanes(mask) {
                    let at = self.local_place(addresses[lane], N, lane)?;
                    values[lane].copy_from_slice(&warp.local[at..at + N]);
                }
            }
        }
        Ok(values)
    }

    fn read_global<const N: usize>(
        &mut self,
        warp: &mut Warp,
        addresses: &Doubles,
        values: &mut Bytes<N>,
        mask: u32,
        access: Access,
    ) -> Outcome<()> {
        self.counts.global_read.add::<N>(addresses, mask);
        for lane in lanes(mask) {
            let address = addresses[lane];
            match self.global_place(address, N, lane)? {
                Place::Memory(index, offset) => {
                    let allocation = &self.memory.live[index];
                    values[lane] = allocation.get(offset);
                    if self.race.is_some() {
                        if !allocation.is_written(offset, N) {
                            return stop(lane, Fault::Uninitialised { space: "global", address });
                        }
                        self.watch(warp, lane, Area::Global(index), (address, offset, N), access)?;
                    }
                }
                Place::Data(at) => values[lane].copy_from_slice(&self.module.data[at..at + N]),
            }
        }
        Ok(())
    }

    fn read_shared<const N: usize>(
        &mut self,
        warp: &mut Warp,
        addresses: &Doubles,
        values: &mut Bytes<N>,
        mask: u32,
        access: Access,
    ) -> Outcome<()> {
        self.counts.shared_read.add::<N>(addresses, mask);
        for lane in lanes(mask) {
            let at = self.shared_place(addresses[lane], N, lane)?;
            if !is_within(&self.shared_written, at, N) {
                return stop(lane, Fault::Uninitialised { space: "shared", address: addresses[lane] });
            }
            values[lane].copy_from_slice(&self.shared[at..at + N]);
            self.watch(warp, lane, Area::Shared, (addresses[lane], at, N), access)?;
        }
        Ok(())
    }

    /// Writes `N` bytes in each lane, in ascending order of lanes.
    pub(super) fn write<const N: usize>(
        &mut self,
        warp: &mut Warp,
        space: Space,
        addresses: &Doubles,
        values: &Bytes<N>,
        mask: u32,
        kind: Kind,
    ) -> Outcome<()> {
        match space {
            Space::Generic => {
                for (space, addresses, mask) in by_space(addresses, mask) {
                    self.write(warp, space, &addresses, values, mask, kind)?;
                }
            }
            Space::Global | Space::Const => {
                self.counts.global_written.add::<N>(addresses, mask);
                let alone = self.alone("global", addresses, values, mask)?;
                for lane in lanes(mask) {
                    let address = addresses[lane];
                    match self.global_place(address, N, lane)? {
                        Place::Memory(index, offset) => {
                            self.memory.live[index].put(offset, values[lane]);
                            if alone >> lane & 1 == 1 {
                                let range = (address, offset, N);
                                self.watch(warp, lane, Area::Global(index), range, Access::Write(kind))?;
                            }
                        }
                        Place::Data(_) => return stop(lane, Fault::Constant { address }),
                    }
                }
            }
            Space::Param => {
                let lane = lanes(mask).next().unwrap_or(0);
                return stop(lane, Fault::Constant { address: addresses[lane] });
            }
            Space::Shared => {
                self.counts.shared_written.add::<N>(addresses, mask);
                let alone = self.alone("shared", addresses, values, mask)?;
                for lane in lanes(mask) {
                    let at = self.shared_place(addresses[lane], N, lane)?;
                    self.put_shared(at, &values[lane]);
                    if alone >> lane & 1 == 1 {
                        let range = (addresses[lane], at, N);
                        self.watch(warp, lane, Area::Shared, range, Access::Write(kind))?;
                    }
                }
            }
            Space::Local => {
                for lane in lanes(mask) {
                    let at = self.local_place(addresses[lane], N, lane)?;
                    warp.local[at..at + N].copy_from_slice(&values[lane]);
                }
            }
        }
        Ok(())
    }

    /// Overwrites shared memory.
    #[inline(always)]
    pub(super) fn put_shared(&mut self, at: usize, bytes: &[u8]) {
        self.shared[at..at + bytes.len()].copy_from_slice(bytes);
        self.shared_written[at / 64] |= (u64::MAX >> (64 - bytes.len())) << (at % 64);
    }

    #[inline(always)]
    fn global_place(&mut self, address: u64, bytes: usize, lane: usize) -> Outcome<Place> {
        aligned("global", address, bytes, lane)?;
        let recent = self.memory.live.get(self.recent);
        if let Some(offset) = recent.and_then(|allocation| allocation.offset(address, bytes as u64)) {
            return Ok(Place::Memory(self.recent, offset));
        }
        self.other_place(address, bytes, lane)
    }

    #[inline(never)]
    fn other_place(&mut self, address: u64, bytes: usize, lane: usize) -> Outcome<Place> {
        if let Some((index, offset)) = self.memory.locate(address, bytes as u64) {
            self.recent = index;
            return Ok(Place::Memory(index, offset));
        }
        let data = address.wrapping_sub(DATA_WINDOW);
        if data.saturating_add(bytes as u64) <= self.module.data.len() as u64 {
            return Ok(Place::Data(data as usize));
        }
        outside("global", address, bytes, lane, || self.memory.describe(address))
    }

    #[inline(always)]
    pub(super) fn shared_place(&self, address: u64, bytes: usize, lane: usize) -> Outcome<usize> {
        aligned("shared", address, bytes, lane)?;
        let total = self.shape.total_shared;
        if address.saturating_add(bytes as u64) > u64::from(total) {
            return outside("shared", address, bytes, lane, || format!("a block has {total} bytes"));
        }
        Ok(address as usize)
    }

    /// The place in a warp's local memory.
    fn local_place(&self, address: u64, bytes: usize, lane: usize) -> Outcome<usize> {
        aligned("local", address, bytes, lane)?;
        let size = self.kernel.local;
        if address.saturating_add(bytes as u64) > u64::from(size) {
            return outside("local", address, bytes, lane, || format!("a thread has {size} bytes"));
        }
        Ok(lane * size as usize + address as usize)
    }
}

/// Generic addresses, taken apart by the spaces that they lead to.
pub(super) fn by_space(addresses: &Doubles, mask: u32) -> impl Iterator<Item = (Space, Doubles, u32)> {
    let window = |space: Space| match space {
        Space::Shared => SHARED_WINDOW,
        Space::Local => LOCAL_WINDOW,
        Space::Param => PARAM_WINDOW,
        _ => 0,
    };
    let space = |address: u64| match address & !0xff_ffff_ffff {
        SHARED_WINDOW => Space::Shared,
        LOCAL_WINDOW => Space::Local,
        PARAM_WINDOW => Space::Param,
        _ => Space::Global,
    };
    let addresses = *addresses;
    [Space::Global, Space::Shared, Space::Local, Space::Param].into_iter().filter_map(move |wanted| {
        let there = lanes(mask).filter(|&lane| space(addresses[lane]) == wanted);
        let there = there.fold(0, |mask, lane| mask | 1_u32 << lane);
        let own = addresses.map(|address| address.wrapping_sub(window(wanted)));
        (there != 0).then_some((wanted, own, there))
    })
}

#[inline(always)]
fn aligned(space: &'static str, address: u64, bytes: usize, lane: usize) -> Outcome<()> {
    if address & (bytes as u64 - 1) == 0 {
        return Ok(());
    }
    stop(lane, Fault::Misaligned { space, address, bytes: bytes as u64 })
}

#[inline(never)]
fn outside<T>(
    space: &'static str,
    address: u64,
    bytes: usize,
    lane: usize,
    nearest: impl Fn() -> String,
) -> Outcome<T> {
    stop(lane, Fault::OutOfBounds { space, address, bytes: bytes as u64, nearest: nearest() })
}

/// Puts what was read into registers.
#[inline(always)]
fn deliver<const N: usize>(warp: &mut Warp, load: &Load, values: &Bytes<N>, mask: u32) {
    let size = usize::from(load.bytes);
    for (i, register) in load.d.regs.iter().take(load.d.count.into()).enumerate() {
        match *register {
            None => {}
            Some(AnyReg::Word(w)) if size == 4 => {
                let words = std::array::from_fn(|lane| {
                    let mut word = [0; 4];
                    word.copy_from_slice(&values[lane][4 * i..4 * i + 4]);
                    u32::from_le_bytes(word)
                });
                warp.registers.set_w(w, &words, mask);
            }
            Some(register) => {
                for lane in lanes(mask) {
                    let mut bytes = [0; 8];
                    bytes[..size].copy_from_slice(&values[lane][i * size..(i + 1) * size]);
                    let value = extended(u64::from_le_bytes(bytes), 8 * size as u32, load.extend);
                    warp.registers.set_lane(register, lane, value);
                }
            }
        }
    }
}

fn extended(value: u64, bits: u32, extend: Extend) -> u64 {
    let signed = (value << (64 - bits)) as i64 >> (64 - bits);
    match extend {
        Extend::Zero => value,
        Extend::To16 => u64::from(signed as u16),
        Extend::To32 => u64::from(signed as u32),
        Extend::To64 => signed as u64,
    }
}
