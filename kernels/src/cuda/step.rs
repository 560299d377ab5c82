//! What differs from pass to pass, and the graphs of passes that were seen before.

use std::{collections::HashMap, sync::Arc};

use super::{
    device::CardInfo,
    driver::{Context, Graph, Memory, Pinned, Stream},
    launch::DevicePtr,
    memory::{bucket, narrow},
    ops::{
        attention::{Card, Plan},
        linear::{self, COUNTERS, SUMS},
    },
};
use crate::backend::{AttentionShape, BackendError, Batch, Faults, Operation, PAGE, Pass, Row, StepShape};

/// Bytes before the fault words: the number of rows, and three words of nothing.
const HEADER: usize = 16;
/// Most graphs of a step; past it all are forgotten.
const MAX_GRAPHS: usize = 128;
/// Most scratch of attention that a pass may take for the sake of more blocks of threads.
const MAX_PARTIALS: usize = 256 << 20;
/// Rows of a session from which on they share its keys.
const SHARING_ROWS: usize = 4;
/// What a fault word counts up to.
const OPERATIONS: [Operation; 5] = [
    Operation::Quantise,
    Operation::FloatLinear,
    Operation::KvRound,
    Operation::LayerOutput,
    Operation::Logits,
];

/// What the launches of a pass are sized for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Size {
    /// Rows.
    pub(super) bucket: u32,
    /// Positions of a session.
    context: u32,
    /// Whether rows share the keys of their sessions.
    sharing: bool,
}

/// Memory that launches use for themselves.
#[derive(Debug)]
struct Scratch {
    rows: Memory,
    sums: Memory,
    counters: Memory,
    partials: Memory,
    attention_counters: Memory,
    raw: Memory,
}

/// See the module.
#[derive(Debug)]
pub struct Step {
    shape: StepShape,
    card: Card,
    /// Number of rows, fault words, rows, sources, page tables: one behind the other.
    memory: Memory,
    staging: Pinned,
    read: Pinned,
    scratch: Scratch,
    graphs: HashMap<(Pass, Size), Graph>,
    faults: Faults,
    /// Of the pass that was begun.
    pub(super) rows: usize,
    pub(super) size: Size,
    pub(super) layer: u32,
}

impl Step {
    /// `widest` is the most values that a row's products of one operation have.
    pub(super) fn new(
        context: &Arc<Context>,
        info: &CardInfo,
        shape: StepShape,
        widest: usize,
    ) -> Result<Self, BackendError> {
        let card = Card { multiprocessors: info.multiprocessors, shared_bytes: info.shared_bytes };
        let bytes = Places::of(shape.rows).pages + shape.pages * 4;
        let memory = Memory::zeroed(context, bytes, "the rows of a step")?;
        Ok(Self {
            card,
            memory,
            staging: Pinned::new(context, bytes, "the rows of a step")?,
            read: Pinned::new(context, HEADER + bucket(shape.rows) * 4, "the faults of a step")?,
            scratch: Scratch::new(context, &shape, card, widest)?,
            graphs: HashMap::new(),
            faults: Faults::default(),
            rows: 0,
            size: Size { bucket: 1, context: 1, sharing: false },
            layer: 0,
            shape,
        })
    }

    /// Queues what the pass is over.
    pub(super) fn begin(&mut self, stream: &Stream, batch: Batch<'_>) -> Result<(), BackendError> {
        let Batch { rows, pages, sources } = batch;
        assert!(rows.len() <= self.shape.rows && pages.len() <= self.shape.pages, "the step has room");
        self.rows = rows.len();
        self.size = Size::of(rows, &self.shape);
        self.faults.reset(rows.len());
        if rows.is_empty() {
            return Ok(());
        }
        let places = Places::of(self.shape.rows);
        let bytes = self.staging.bytes()?;
        bytes[..places.rows].fill(0);
        bytes[..4].copy_from_slice(&narrow(rows.len()).to_ne_bytes());
        let words = |row: &Row| [row.position.to_ne_bytes(), narrow(row.pages.start).to_ne_bytes()].concat();
        for (to, row) in bytes[places.rows..].chunks_exact_mut(8).zip(rows) {
            to.copy_from_slice(&words(row));
        }
        bytes[places.sources..][..4 * sources.len()].copy_from_slice(bytemuck::cast_slice(sources));
        bytes[places.pages..][..4 * pages.len()].copy_from_slice(bytemuck::cast_slice(pages));
        self.staging.copy_in(stream, 0..places.pages + 4 * pages.len(), &self.memory, 0)
    }

    /// The graph of a pass, recorded from what `issue` queues if it was not seen before.
    pub(super) fn graph(
        &mut self,
        stream: &Stream,
        pass: Pass,
        issue: impl FnOnce(&mut Self),
    ) -> Result<&Graph, BackendError> {
        let key = (pass, self.size);
        if !self.graphs.contains_key(&key) {
            if self.graphs.len() >= MAX_GRAPHS {
                self.graphs.clear();
            }
            let graph = stream.capture(|| issue(self))?;
            self.graphs.insert(key.clone(), graph);
        }
        Ok(&self.graphs[&key])
    }

    /// Waits for the pass and reads its faults.
    pub(super) fn end(&mut self, stream: &Stream) -> Result<&Faults, BackendError> {
        stream.context().check()?;
        if self.rows == 0 {
            return Ok(&self.faults);
        }
        self.read.copy_out(stream, &self.memory, HEADER + 4 * self.rows)?;
        let words = self.read.bytes()?[HEADER..].as_chunks::<4>().0;
        for (row, &word) in words.iter().enumerate().take(self.rows) {
            let word = u32::from_ne_bytes(word);
            if word == 0 {
                continue;
            }
            let (layer, operation) = ((word >> 8).checked_sub(1), (word & 0xff).checked_sub(1));
            let known = operation.and_then(|operation| OPERATIONS.get(operation as usize));
            let (Some(layer), Some(&operation)) = (layer, known) else {
                let reason = format!("the card wrote {word:#x} where the fault of a row belongs");
                return Err(stream.context().lose(reason));
            };
            self.faults.record(row, layer as usize, operation);
        }
        Ok(&self.faults)
    }

    pub(super) fn profile(&self) -> crate::backend::Profile {
        self.shape.profile
    }

    /// u32: the number of rows.
    pub(super) fn count(&self) -> DevicePtr {
        self.memory.address()
    }

    /// u32 `[rows]`: fault words.
    pub(super) fn fault_words(&self) -> DevicePtr {
        self.memory.address() + HEADER as u64
    }

    /// `{u32 position, u32 first_page}` of each row.
    pub(super) fn row_words(&self) -> DevicePtr {
        self.memory.address() + Places::of(self.shape.rows).rows as u64
    }

    /// u32 `[rows]`.
    pub(super) fn sources(&self) -> DevicePtr {
        self.memory.address() + Places::of(self.shape.rows).sources as u64
    }

    /// u32: page tables.
    pub(super) fn pages(&self) -> DevicePtr {
        self.memory.address() + Places::of(self.shape.rows).pages as u64
    }

    /// The step as linear layers take it.
    pub(super) fn linear(&self) -> (linear::Step, linear::Scratch) {
        let step = linear::Step {
            rows: self.count(),
            faults: self.fault_words(),
            bucket: self.size.bucket,
            layer: self.layer,
            multiprocessors: self.card.multiprocessors,
        };
        let Scratch { rows, sums, counters, .. } = &self.scratch;
        let [rows, sums, counters] = [rows, sums, counters].map(Memory::address);
        (step, linear::Scratch { rows, sums, counters })
    }

    /// How attention of a shape is launched, with its partial sums, counters and raw rows.
    pub(super) fn attention(&self, shape: &AttentionShape) -> (Plan, [DevicePtr; 3]) {
        let Scratch { partials, attention_counters, raw, .. } = &self.scratch;
        let scratch = [partials, attention_counters, raw].map(Memory::address);
        (self.size.plan(shape, &self.shape, self.card), scratch)
    }
}

/// Offsets of the parts of a step's memory.
#[derive(Clone, Copy)]
struct Places {
    rows: usize,
    sources: usize,
    pages: usize,
}

impl Places {
    /// A graph looks at whole buckets of rows.
    fn of(rows: usize) -> Self {
        let words = bucket(rows) * 4;
        let rows = (HEADER + words).next_multiple_of(16);
        Self { rows, sources: rows + 2 * words, pages: rows + 3 * words }
    }
}

impl Size {
    fn of(rows: &[Row], shape: &StepShape) -> Self {
        if shape.attention.is_none() {
            return Self { bucket: narrow(bucket(rows.len())), context: 0, sharing: false };
        }
        let last = rows.iter().map(|row| row.position as usize + 1).max().unwrap_or(1);
        let context = last.next_power_of_two().max(PAGE).min(shape.positions.max(last));
        let sessions = 1 + rows.windows(2).filter(|pair| pair[0].pages != pair[1].pages).count();
        let sharing = rows.len() >= SHARING_ROWS * sessions;
        Self { bucket: narrow(bucket(rows.len())), context: narrow(context), sharing }
    }

    fn plan(self, shape: &AttentionShape, step: &StepShape, card: Card) -> Plan {
        let alone = Plan::decode(shape, step.profile, self.bucket, self.context, card);
        if self.sharing || alone.partial_bytes() > MAX_PARTIALS {
            return Plan::prefill(shape, step.profile, self.bucket, card);
        }
        alone
    }
}

impl Scratch {
    fn new(
        context: &Arc<Context>,
        shape: &StepShape,
        card: Card,
        widest: usize,
    ) -> Result<Self, BackendError> {
        let rows = bucket(shape.rows);
        let plans = shape.attention.iter().flat_map(|attention| {
            let positions = narrow(shape.positions.max(1));
            let buckets = (1..=rows).filter(|&rows| bucket(rows) == rows);
            let sizes = buckets.flat_map(move |rows| {
                [false, true].map(|sharing| Size { bucket: narrow(rows), context: positions, sharing })
            });
            sizes.map(move |size| size.plan(attention, shape, card))
        });
        let plans: Vec<Plan> = plans.collect();
        let partials = plans.iter().map(Plan::partial_bytes).max().unwrap_or(0);
        let counters = plans.iter().map(Plan::counters).max().unwrap_or(0);
        let query = shape.attention.map_or(0, |attention| attention.heads * attention.head_dim);
        let widest = if shape.attention.is_some() { widest } else { 0 };
        let zeroed = |bytes: usize| Memory::zeroed(context, bytes, "scratch of a step");
        Ok(Self {
            rows: zeroed(rows * widest * 4)?,
            sums: zeroed(SUMS * 4)?,
            counters: zeroed(COUNTERS * 4)?,
            partials: zeroed(partials)?,
            attention_counters: zeroed(counters * 4)?,
            raw: zeroed(rows * query * 4)?,
        })
    }
}
