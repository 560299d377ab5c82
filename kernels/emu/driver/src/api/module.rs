//! Modules, their kernels, and how many fit on a card.

use std::{collections::BTreeMap, fs, sync::Arc};

use crate::{
    boundary::{HostAddress, Out, Text, export},
    card::Model,
    code::Code,
    ptx::{Kernel, Program, Rejected},
    state::{Function, Handle, Module, Session},
};

export! {
    /// Loads PTX from a file.
    fn cuModuleLoad(driver, module: Out<Handle>, path: Text) {
        let text = fs::read_to_string(path.read()?).map_err(|_| Code::FileNotFound)?;
        module.put(load(driver, &text, Logs::default())?)
    }

    /// Loads PTX.
    fn cuModuleLoadData(driver, module: Out<Handle>, image: Text) {
        module.put(load(driver, &image.read()?, Logs::default())?)
    }

    /// Loads PTX and says what is wrong with it.
    fn cuModuleLoadDataEx(
        driver,
        module: Out<Handle>,
        image: Text,
        count: u32,
        options: HostAddress,
        values: HostAddress,
    ) {
        let logs = Logs::read(count as usize, options, values)?;
        module.put(load(driver, &image.read()?, logs)?)
    }

    /// Unloads a module once the card is done.
    fn cuModuleUnload(driver, module: Handle) {
        let card = driver.here()?;
        driver.refuse_within_reach()?;
        let context = driver.context(card)?.handle;
        driver.modules.get(&module).filter(|live| live.context == context).ok_or(Code::InvalidHandle)?;
        driver.finish_card(card);
        driver.modules.remove(&module);
        driver.functions.retain(|_, function| function.module != module);
        driver.here().map(|_| ())
    }

    /// A kernel by its name.
    fn cuModuleGetFunction(driver, function: Out<Handle>, module: Handle, name: Text) {
        let card = driver.here()?;
        let context = driver.context(card)?.handle;
        let name = name.read()?;
        let live = driver.modules.get(&module).filter(|live| live.context == context);
        let live = live.ok_or(Code::InvalidHandle)?;
        let program = Arc::clone(&live.program);
        if let Some(&known) = live.functions.get(&name) {
            return function.put(known);
        }
        if !program.kernels.contains_key(&name) {
            return Err(Code::NotFound);
        }
        let handle = driver.mint();
        let kernel = name.as_str().into();
        let made = Function { module, context, program, kernel, most_shared: None };
        driver.functions.insert(handle, made);
        if let Some(live) = driver.modules.get_mut(&module) {
            live.functions.insert(name, handle);
        }
        function.put(handle)
    }

    /// A property of a kernel, as far as its PTX has it: registers are not known before it is assembled.
    fn cuFuncGetAttribute(driver, value: Out<i32>, attribute: u32, function: Handle) {
        let (model, function) = find(driver, function)?;
        let kernel = declared(function)?;
        value.put(match attribute {
            0 => kernel.threads.ok_or(Code::NotSupported)?.into_iter().product::<u32>() as i32,
            1 => kernel.shared as i32,
            2 | 7 => 0,
            3 => kernel.local as i32,
            5 => function.program.target as i32,
            6 => (model.capability.0 * 10 + model.capability.1) as i32,
            8 => most_shared(function)? as i32,
            9 => -1,
            4 | 10..=16 => return Err(Code::NotSupported),
            _ => return Err(Code::InvalidValue),
        })
    }

    /// Sets how much dynamic shared memory launches of a kernel may have, or a preference.
    fn cuFuncSetAttribute(driver, function: Handle, attribute: u32, value: i32) {
        const MOST_SHARED: u32 = 8;
        const CARVEOUT: u32 = 9;
        let (model, live) = find(driver, function)?;
        let most = model.shared_per_block() - declared(live)?.shared.min(model.shared_per_block());
        match attribute {
            MOST_SHARED => {
                let value = u32::try_from(value).ok().filter(|&value| value <= most).ok_or(Code::InvalidValue)?;
                let function = driver.functions.get_mut(&function).ok_or(Code::InvalidHandle)?;
                function.most_shared = Some(value);
                Ok(())
            }
            CARVEOUT if (-1..=100).contains(&value) => Ok(()),
            10..=16 => Err(Code::NotSupported),
            _ => Err(Code::InvalidValue),
        }
    }

    /// Prefers L1 cache or shared memory; nothing here depends on it.
    fn cuFuncSetCacheConfig(driver, function: Handle, preference: u32) {
        find(driver, function)?;
        if preference <= 3 { Ok(()) } else { Err(Code::InvalidValue) }
    }

    /// Blocks of a kernel that are sure to be active at once on a multiprocessor.
    fn cuOccupancyMaxActiveBlocksPerMultiprocessor(
        driver,
        blocks: Out<i32>,
        function: Handle,
        threads: i32,
        shared: usize,
    ) {
        blocks.put(active_blocks(driver, function, threads, shared)?)
    }

    /// Blocks of a kernel that are sure to be active at once on a multiprocessor.
    fn cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
        driver,
        blocks: Out<i32>,
        function: Handle,
        threads: i32,
        shared: usize,
        flags: u32,
    ) {
        if flags > 1 {
            return Err(Code::InvalidValue);
        }
        blocks.put(active_blocks(driver, function, threads, shared)?)
    }

    /// Bytes of dynamic shared memory that leave room for a number of blocks on a multiprocessor.
    fn cuOccupancyAvailableDynamicSMemPerBlock(
        driver,
        shared: Out<usize>,
        function: Handle,
        blocks: i32,
        threads: i32,
    ) {
        let (model, function) = find(driver, function)?;
        let fixed = declared(function)?.shared + model.shared_reserved();
        let blocks = u32::try_from(blocks).ok().filter(|&blocks| blocks > 0 && threads > 0);
        let each = model.shared_per_multiprocessor() / blocks.ok_or(Code::InvalidValue)?;
        shared.put(each.saturating_sub(fixed).min(model.shared_per_block()) as usize)
    }
}

/// Where the caller wants the compiler's messages.
#[derive(Default)]
struct Logs {
    /// Buffer, its size, and the option whose value becomes the length written.
    errors: Option<(HostAddress, usize)>,
    sizes: Vec<(HostAddress, usize)>,
    error_size: Option<(HostAddress, usize)>,
}

impl Logs {
    fn read(count: usize, options: HostAddress, values: HostAddress) -> Result<Self, Code> {
        let mut logs = Self::default();
        let (mut buffer, mut size) = (None, 0);
        for index in 0..count {
            match options.number_at(index)? {
                4 => logs.sizes.push((values, index)),
                5 => buffer = Some(values.at_word(index)?),
                6 => {
                    size = values.word(index)?;
                    logs.error_size = Some((values, index));
                }
                // The rest steers a compiler that is not here: registers, optimisation, debug information.
                0..=3 | 7..=15 => {}
                _ => return Err(Code::NotSupported),
            }
        }
        logs.errors = buffer.map(|buffer| (buffer, size));
        Ok(logs)
    }

    fn write(&self, log: &str) -> Result<(), Code> {
        for &(values, index) in &self.sizes {
            values.set_word(index, 0)?;
        }
        let written = match self.errors {
            Some((buffer, size)) if size > 0 && !buffer.is_null() => buffer.write_text(log, size)?,
            _ => 0,
        };
        self.error_size.map_or(Ok(()), |(values, index)| values.set_word(index, written))
    }
}

fn load(driver: &mut Session, text: &str, logs: Logs) -> Result<Handle, Code> {
    let card = driver.here()?;
    driver.refuse_within_reach()?;
    let capability = driver.cards[card].model.capability;
    let program = match Program::load(text, capability, driver.settings.driver_version) {
        Ok(program) => Arc::new(program),
        Err(Rejected { code, log }) => {
            eprintln!("stand-in driver: module: {log}");
            logs.write(&log)?;
            return Err(code);
        }
    };
    logs.write("")?;
    let context = driver.context(card)?.handle;
    let handle = driver.mint();
    driver.modules.insert(handle, Module { context, program, functions: BTreeMap::new() });
    driver.tally.modules += 1;
    Ok(handle)
}

/// A function of the current context, with the card's model.
pub(super) fn find(driver: &Session, function: Handle) -> Result<(&Model, &Function), Code> {
    let card = driver.here()?;
    let context = driver.context(card)?.handle;
    let live = driver.functions.get(&function).filter(|live| live.context == context);
    Ok((&driver.cards[card].model, live.ok_or(Code::InvalidHandle)?))
}

/// What a function's kernel declares.
pub(super) fn declared(function: &Function) -> Result<&Kernel, Code> {
    function.program.kernels.get(&*function.kernel).ok_or(Code::NotFound)
}

/// Most bytes of dynamic shared memory of a launch.
pub(super) fn most_shared(function: &Function) -> Result<u32, Code> {
    let fixed = declared(function)?.shared;
    Ok(function.most_shared.unwrap_or(Model::SHARED_DEFAULT.saturating_sub(fixed)))
}

/// Registers are not known here. A kernel that declares how many blocks fit was compiled to that, so
/// as many do where threads and shared memory allow; of others nothing can be said.
fn active_blocks(driver: &Session, function: Handle, threads: i32, shared: usize) -> Result<i32, Code> {
    let (model, function) = find(driver, function)?;
    let kernel = declared(function)?;
    let threads = u32::try_from(threads).ok().filter(|&threads| threads > 0).ok_or(Code::InvalidValue)?;
    let promised = kernel.blocks.filter(|_| kernel.takes([threads, 1, 1])).ok_or(Code::NotSupported)?;
    let shared = u32::try_from(shared).map_err(|_| Code::InvalidValue)?;
    let shared = u64::from(shared) + u64::from(kernel.shared + model.shared_reserved());
    let by_shared = u64::from(model.shared_per_multiprocessor()) / shared.max(1);
    let by_threads = model.threads_per_multiprocessor() / threads.next_multiple_of(32);
    let blocks = promised.min(by_threads).min(model.blocks_per_multiprocessor());
    Ok(u64::from(blocks).min(by_shared) as i32)
}
