//! A card that is the PTX machine.

use std::{
    collections::HashMap,
    sync::{Arc, LazyLock, Mutex},
};

use bytemuck::Pod;
use kernels::cuda::launch::{DevicePtr, Launch, Level, Source};
use ptx_machine::{Copies, Counts, Memory, Module, Options, Order, Trap};

/// Bytes of the card's memory.
const CAPACITY: u64 = 4 << 30;

/// Instructions of one launch (of a warp each) after which it counts as endless.
const BUDGET: u64 = 1 << 32;

/// Runs a test's body on a fresh card of every level and every schedule that the machine is asked for.
pub(crate) fn on_every_card(body: impl Fn(&mut Card)) {
    let schedules = [
        (Order::Ascending, Copies::Late),
        (Order::Descending, Copies::Eager),
        (Order::Shuffled(0x5eed), Copies::Late),
    ];
    for level in Level::ALL {
        for (order, copies) in schedules {
            body(&mut Card::new(level, order, copies));
        }
    }
}

/// A card's memory, and how it runs what is launched.
pub(crate) struct Card {
    level: Level,
    options: Options,
    memory: Memory,
    /// What runs instead of a source's PTX.
    replaced: Option<(Source, Arc<Module>)>,
}

impl Card {
    /// A card on which races, and reads of what was never written, are errors.
    pub(crate) fn new(level: Level, order: Order, copies: Copies) -> Self {
        let options = Options { order, copies, races: true, budget: Some(BUDGET) };
        Self { level, options, memory: Memory::new(CAPACITY), replaced: None }
    }

    /// A card that runs `ptx` for what `source` was compiled to.
    pub(crate) fn replacing(source: Source, ptx: &str) -> Self {
        let module = Module::parse(ptx).unwrap_or_else(|error| panic!("{}: {error}", source.name()));
        let card = Self::new(Level::Ampere, Order::Ascending, Copies::Late);
        Self { replaced: Some((source, Arc::new(module))), ..card }
    }

    /// The compute capability whose PTX this card runs.
    pub(crate) fn level(&self) -> Level {
        self.level
    }

    /// Memory that holds `values`.
    pub(crate) fn upload<T: Pod>(&mut self, values: &[T]) -> DevicePtr {
        let address = self.blank::<T>(values.len());
        self.write(address, values);
        address
    }

    /// Memory for `count` zeros.
    pub(crate) fn zeros<T: Pod>(&mut self, count: usize) -> DevicePtr {
        self.upload(&vec![T::zeroed(); count])
    }

    /// Memory for `count` values that a kernel is to write: reading them before is an error.
    pub(crate) fn blank<T: Pod>(&mut self, count: usize) -> DevicePtr {
        let bytes = (count * size_of::<T>()) as u64;
        self.memory.allocate(bytes).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Writes into memory that is there already.
    pub(crate) fn write<T: Pod>(&mut self, address: DevicePtr, values: &[T]) {
        let bytes = bytemuck::cast_slice(values);
        self.memory.write(address, bytes).unwrap_or_else(|error| panic!("{error}"));
    }

    /// Reads `count` values.
    pub(crate) fn download<T: Pod>(&self, address: DevicePtr, count: usize) -> Vec<T> {
        let mut values = vec![T::zeroed(); count];
        let bytes = bytemuck::cast_slice_mut(&mut values);
        self.memory.read(address, bytes).unwrap_or_else(|error| panic!("{error}"));
        values
    }

    /// Runs a launch to its end; a trap fails the test with what it says.
    #[track_caller]
    pub(crate) fn launch(&mut self, launch: &Launch) -> Counts {
        let Options { order, copies, .. } = self.options;
        self.try_launch(launch)
            .unwrap_or_else(|trap| panic!("{:?}, {order:?}, {copies:?}: {trap}", self.level()))
    }

    /// Runs a launch.
    pub(crate) fn try_launch(&mut self, launch: &Launch) -> Result<Counts, Trap> {
        let module = match &self.replaced {
            Some((source, module)) if *source == launch.source => module.clone(),
            _ => module(launch.source, self.level),
        };
        let launch = ptx_machine::Launch {
            kernel: launch.kernel,
            grid: launch.grid,
            block: [launch.threads, 1, 1],
            shared: launch.shared,
            params: launch.params(),
        };
        ptx_machine::run(&module, &mut self.memory, &launch, &self.options)
    }
}

type Modules = HashMap<(Source, Level), Arc<Module>>;

/// A source's PTX, parsed once in a process.
fn module(source: Source, level: Level) -> Arc<Module> {
    static MODULES: LazyLock<Mutex<Modules>> = LazyLock::new(Mutex::default);
    let mut modules = MODULES.lock().unwrap();
    let parsed = modules.entry((source, level)).or_insert_with(|| {
        let module = Module::parse(source.ptx(level));
        Arc::new(module.unwrap_or_else(|error| panic!("{}.ptx, {level:?}: {error}", source.name())))
    });
    parsed.clone()
}
