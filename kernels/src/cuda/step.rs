//! What differs from pass to pass, and the graphs of passes that were seen before.

use std::{collections::HashMap, sync::Arc};

use super::{
    device::CardInfo,
    driver::{Context, Graph, Memory, Pinned, Stream},
    launch::{DevicePtr, Launch},
    memory::{bucket, narrow},
    ops::{
        attention::{Card, Plan},
        draw,
        linear::{self, COUNTERS, SUMS},
    },
};
use crate::{
    backend::{
        AttentionShape, BackendError, Batch, Faults, Operation, PAGE, Pass, Profile, Question, Row, StepShape,
    },
    reference::{Change, Choice, Edit, LEAST_TEMPERATURE},
};

/// Bytes before the fault words: the number of rows, and three words of nothing.
const HEADER: usize = 16;
/// Most graphs of a step; past it all are forgotten.
const MAX_GRAPHS: usize = 128;
/// Most scratch of attention that a pass may take for the sake of more blocks of threads.
const MAX_PARTIALS: usize = 256 << 20;
/// Rows of a session from which on they share its keys.
const SHARING_ROWS: usize = 4;
/// Edits of a draw that there is room for from the start.
const FIRST_EDITS: usize = 4096;
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
    drawing: Option<Drawing>,
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
            drawing: (shape.vocabulary > 0)
                .then(|| Drawing::new(context, bucket(shape.rows), shape.vocabulary))
                .transpose()?,
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

    /// Queues the questions of a draw from `logits`, and gives its launches.
    pub(super) fn draw(
        &mut self,
        stream: &Stream,
        logits: DevicePtr,
        questions: &[Question],
    ) -> Result<Vec<Launch>, BackendError> {
        assert_eq!(questions.len(), self.rows, "one question for each row");
        let (count, faults) = (self.count(), self.fault_words());
        let (bucket, layer) = (self.size.bucket, self.layer);
        let drawing = self.drawing.as_mut().expect("the step was made for draws");
        let params = draw::Draw { count, logits, faults, layer, ..drawing.ask(stream, questions)? };
        let greedy = questions.iter().all(|question| question.choice.temperature < LEAST_TEMPERATURE);
        Ok(draw::draw(params, bucket, greedy))
    }

    /// The tokens drawn in a pass that is over.
    pub(super) fn drawn(&mut self, stream: &Stream, tokens: &mut Vec<u32>) -> Result<(), BackendError> {
        tokens.clear();
        if self.rows == 0 {
            return Ok(());
        }
        let drawing = self.drawing.as_mut().expect("the step was made for draws");
        let bytes = 4 * self.rows;
        drawing.read.copy_out(stream, &drawing.tokens, bytes)?;
        tokens.extend(
            drawing.read.bytes()?[..bytes].as_chunks().0.iter().map(|&word| u32::from_ne_bytes(word)),
        );
        Ok(())
    }

    pub(super) fn profile(&self) -> Profile {
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

/// What draws need beside the logits.
#[derive(Debug)]
struct Drawing {
    context: Arc<Context>,
    vocabulary: usize,
    rows: usize,
    /// Questions, then edits.
    asked: Memory,
    staging: Pinned,
    scratch: Memory,
    tokens: Memory,
    read: Pinned,
}

impl Drawing {
    fn new(context: &Arc<Context>, rows: usize, vocabulary: usize) -> Result<Self, BackendError> {
        let (what, asked_bytes) = ("a draw", Self::asked_bytes(rows, FIRST_EDITS));
        Ok(Self {
            context: context.clone(),
            vocabulary,
            rows,
            asked: Memory::zeroed(context, asked_bytes, what)?,
            staging: Pinned::new(context, asked_bytes, what)?,
            scratch: Memory::zeroed(context, draw::scratch_bytes(rows, vocabulary), what)?,
            tokens: Memory::zeroed(context, rows * 4, what)?,
            read: Pinned::new(context, rows * 4, what)?,
        })
    }

    const fn asked_bytes(rows: usize, edits: usize) -> usize {
        rows * size_of::<draw::Choice>() + edits * size_of::<draw::Edit>()
    }

    /// Queues the questions; the parameters that go with them.
    fn ask(&mut self, stream: &Stream, questions: &[Question]) -> Result<draw::Draw, BackendError> {
        let edits: Vec<draw::Edit> = questions.iter().flat_map(|one| one.edits.iter().map(edit_of)).collect();
        let needed = Self::asked_bytes(self.rows, edits.len());
        if self.staging.bytes()?.len() < needed {
            let (what, bytes) = ("the edits of a draw", needed.next_power_of_two());
            self.asked = Memory::zeroed(&self.context, bytes, what)?;
            self.staging = Pinned::new(&self.context, bytes, what)?;
        }
        let mut first_edit = 0;
        let choices = questions.iter().enumerate().map(|(row, Question { choice, edits })| {
            let &Choice { random, temperature, top_k, min_p, top_p } = choice;
            let (row, edits) = (narrow(row), narrow(edits.len()));
            first_edit += edits;
            let first_edit = first_edit - edits;
            draw::Choice { random, min_p, top_p, temperature, top_k, first_edit, edits, row, zero: 0 }
        });
        let choices: Vec<draw::Choice> = choices.collect();
        let (choices, edits) = (bytemuck::cast_slice(&choices), bytemuck::cast_slice(&edits));
        let at = Self::asked_bytes(self.rows, 0);
        let bytes = self.staging.bytes()?;
        bytes[..choices.len()].copy_from_slice(choices);
        bytes[at..at + edits.len()].copy_from_slice(edits);
        self.staging.copy_in(stream, 0..at + edits.len(), &self.asked, 0)?;
        Ok(draw::Draw {
            choices: self.asked.address(),
            edits: self.asked.address() + at as u64,
            scratch: self.scratch.address(),
            tokens: self.tokens.address(),
            vocabulary: narrow(self.vocabulary),
            rows: narrow(self.rows),
            ..draw::Draw::default()
        })
    }
}

fn edit_of(edit: &Edit) -> draw::Edit {
    let (repeats, value) = match edit.change {
        Change::Add(value) => (0, value),
        Change::Repeat(value) => (1, value),
    };
    draw::Edit { token: edit.token, repeats, value }
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
