//! `bench kernels`: what the CUDA kernels do in a decoder layer, counted by running their PTX without a card, and how fast
//! that could go on cards by public figures.

use std::thread;

use anyhow::{Result, ensure};
use clap::Args;
use kernels::tensor::Format;
use ptx_machine::Counts;
use serde_json::{Value, json};

use crate::{
    cards::{CARDS, Card, Estimate, Resources, Unit, Work},
    checkpoint::ShapeName,
    counted::{Counted, Operation, Rig, Task, Widths},
    report::{Figure, Report, Table},
};

/// The card whose counts are printed; the others' are among the details.
const PRINTED: &str = "RTX 3090";

/// What to count.
#[derive(Args, Clone, Debug)]
pub struct KernelsArgs {
    /// Shape of the layer
    #[arg(long, value_enum, default_value = "llama-3-8b")]
    shape: ShapeName,
    /// Formats of its matrices
    #[arg(long, value_delimiter = ',', default_value = "q8,q4,q4_k,q6_k")]
    format: Vec<Format>,
    /// Sessions that decode together
    #[arg(long, value_delimiter = ',', default_value = "1,8,32")]
    batch: Vec<usize>,
    /// Positions that a decoding session has
    #[arg(long, default_value_t = 1024)]
    context: usize,
    /// Tokens of the prompt that is prefilled in one step
    #[arg(long, default_value_t = 2048)]
    prompt: usize,
}

/// A layer on a card.
struct Layer {
    card: &'static Card,
    task: Task,
    operations: Vec<(Operation, Vec<Estimate>)>,
}

impl KernelsArgs {
    /// Counts.
    ///
    /// # Errors
    /// If nothing is to be counted, or a kernel does not run.
    pub fn run(&self) -> Result<Report> {
        let batches = self.batch.iter().all(|batch| (1..=64).contains(batch));
        ensure!(batches, "--batch is 1 to 64: more rows are a prompt");
        ensure!(self.prompt > 64 && self.prompt <= 8192, "--prompt is 65 to 8192");
        ensure!((1..=65_536).contains(&self.context), "--context is 1 to 65536");
        ensure!(self.format.iter().all(|format| !format.is_float()), "--format names integer formats");
        let shape = self.shape.shape();
        let widths = Widths {
            hidden: shape.hidden,
            intermediate: shape.intermediate,
            heads: shape.heads,
            kv_heads: shape.kv_heads,
            head_dim: shape.head_dim,
        };
        let layers: Vec<Layer> = thread::scope(|scope| {
            let count = |&format| scope.spawn(move || self.count(widths, format));
            let counting: Vec<_> = self.format.iter().map(count).collect();
            let counted = counting.into_iter().map(|thread| thread.join().expect("counting does not panic"));
            let layers: Result<Vec<_>> = counted.collect();
            Ok::<_, anyhow::Error>(layers?.into_iter().flatten().collect())
        })?;
        let figures = layers.iter().map(|layer| layer.figure(shape.layers)).collect();
        let parameters = json!({
            "shape": self.shape.name(), "format": self.format.iter().map(Format::to_string).collect::<Vec<_>>(),
            "batch": self.batch, "context": self.context, "prompt": self.prompt,
        });
        let details = json!({
            "cards": CARDS, "layers": layers.iter().map(Layer::details).collect::<Vec<_>>(),
        });
        let report = Report::new("kernels", parameters, figures, details);
        Ok(Report { tables: tables(&layers), ..report })
    }

    /// Layers of a format, all cards of a task one after another.
    fn count(&self, widths: Widths, format: Format) -> Result<Vec<Layer>> {
        let mut rig = Rig::new(widths, self.prompt, self.prompt.max(self.context))?;
        let mut layers = Vec::new();
        for &rows in self.batch.iter().chain([&self.prompt]) {
            let task = Task { format, rows, context: self.context };
            for card in &CARDS {
                layers.push(Layer::of(card, task, rig.layer(card, &task)?));
            }
        }
        Ok(layers)
    }
}

impl Layer {
    fn of(card: &'static Card, task: Task, operations: Vec<Operation>) -> Self {
        let estimated = |operation: Operation| {
            // What must be moved is moved by the first launch: the weights are its.
            let works = operation.launches.iter().enumerate().map(|(i, launch)| Work {
                counts: launch.counts,
                blocks: launch.grid.iter().map(|&size| u64::from(size)).product(),
                least_bytes: if i == 0 { operation.least_bytes } else { 0 },
            });
            let estimates = works.map(|work| Estimate::of(card, &work)).collect();
            (operation, estimates)
        };
        Self { card, task, operations: operations.into_iter().map(estimated).collect() }
    }

    fn name(&self) -> String {
        format!("{}, {}", self.task.format, rows_name(&self.task))
    }

    fn seconds(&self) -> f64 {
        self.operations.iter().flat_map(|(_, estimates)| estimates).map(|estimate| estimate.seconds).sum()
    }

    fn memory_seconds(&self) -> f64 {
        let estimates = self.operations.iter().flat_map(|(_, estimates)| estimates);
        estimates.map(|estimate| estimate.memory_seconds).sum()
    }

    fn launches(&self) -> usize {
        self.operations.iter().map(|(operation, _)| operation.launches.len()).sum()
    }

    /// Tokens a second of all layers of a model, as if there were nothing else.
    fn figure(&self, layers: usize) -> Figure {
        let rate = self.task.rows as f64 / (self.seconds() * layers as f64);
        let name = format!("{}, {}: all layers at most (estimate)", self.card.name, self.name());
        let share = self.memory_seconds() / self.seconds();
        Figure::new(name, Some(rate), "tokens/s", 1).against("the memory's bandwidth", Some(share))
    }

    fn details(&self) -> Value {
        let operation = |(operation, estimates): &(Operation, Vec<Estimate>)| {
            let launches = operation.launches.iter().zip(estimates).map(|(launch, estimate)| {
                let resources = Resources::of(launch.kernel, self.card.capability);
                let held = resources.map(|one| self.card.blocks(&one, launch.threads, launch.shared));
                json!({
                    "kernel": launch.kernel, "grid": launch.grid, "threads": launch.threads,
                    "dynamic_shared_bytes": launch.shared, "resources": resources, "blocks_held": held,
                    "counts": counts_json(&launch.counts), "estimate": estimate,
                })
            });
            let launches: Vec<Value> = launches.collect();
            json!({ "name": operation.name, "least_bytes": operation.least_bytes, "launches": launches })
        };
        json!({
            "card": self.card.name, "format": self.task.format.to_string(), "rows": self.task.rows,
            "prefill": self.task.prefills(), "launches": self.launches(),
            "estimated_seconds": self.seconds(), "estimated_memory_seconds": self.memory_seconds(),
            "operations": self.operations.iter().map(operation).collect::<Vec<_>>(),
        })
    }

    /// Its launches, each with its operation and estimate.
    fn each(&self) -> impl Iterator<Item = (&Operation, &Counted, &Estimate)> {
        self.operations.iter().flat_map(|(operation, estimates)| {
            operation.launches.iter().zip(estimates).map(move |(launch, one)| (operation, launch, one))
        })
    }
}

fn rows_name(task: &Task) -> String {
    if task.prefills() { format!("prompt of {}", task.rows) } else { format!("batch {}", task.rows) }
}

fn counts_json(counts: &Counts) -> Value {
    json!({
        "warp_instructions": {
            "all": counts.instructions().warps, "integer": counts.integer.warps, "float": counts.float.warps,
            "division": counts.division.warps, "conversion": counts.conversion.warps,
            "movement": counts.movement.warps, "memory": counts.memory.warps, "copy": counts.copy.warps,
            "mma": counts.mma.warps, "shuffle": counts.shuffle.warps, "barrier": counts.barrier.warps,
            "control": counts.control.warps, "other": counts.other.warps,
        },
        "mma_products": counts.mma_products,
        "global_read": { "requests": counts.global_read.requests, "bytes": counts.global_read.bytes,
            "sectors": counts.global_read.sectors },
        "global_written": { "requests": counts.global_written.requests, "bytes": counts.global_written.bytes,
            "sectors": counts.global_written.sectors },
        "shared_read": { "requests": counts.shared_read.requests, "bytes": counts.shared_read.bytes,
            "cycles": counts.shared_read.cycles, "conflicts": counts.shared_read.conflicts },
        "shared_written": { "requests": counts.shared_written.requests, "bytes": counts.shared_written.bytes,
            "cycles": counts.shared_written.cycles, "conflicts": counts.shared_written.conflicts },
    })
}

fn tables(layers: &[Layer]) -> Vec<Table> {
    let printed: Vec<&Layer> = layers.iter().filter(|layer| layer.card.name == PRINTED).collect();
    vec![cards(), times(layers), instructions(&printed), bytes(&printed), resources(layers)]
}

fn table(title: &str, head: &[&str], rows: Vec<Vec<String>>) -> Table {
    let head = head.iter().map(|&name| name.to_owned()).collect();
    Table { title: title.to_owned(), head, rows }
}

fn cards() -> Table {
    let row = |card: &Card| {
        vec![
            card.name.to_owned(),
            format!("{}.{}", card.capability / 10, card.capability % 10),
            card.multiprocessors.to_string(),
            format!("{:.0}", card.clock_mhz),
            format!("{:.0}", card.memory_gb_s),
            format!("{:.0}", card.int8_tops),
            card.source.to_owned(),
        ]
    };
    let head = ["card", "capability", "multiprocessors", "MHz", "GB/s", "int8 TOP/s", "source"];
    table("Public figures of cards.", &head, CARDS.iter().map(row).collect())
}

/// Layers on all cards side by side.
fn times(layers: &[Layer]) -> Table {
    let title = "**Estimates, not measurements**: microseconds that a decoder layer takes at least by public figures, \
                 what bounds most of that time, and the share of the memory's bandwidth. Latencies, caches and gaps \
                 between launches come on top.";
    let mut head = vec!["layer".to_owned(), "launches".to_owned()];
    head.extend(CARDS.iter().map(|card| card.name.to_owned()));
    let rows = layers.chunks(CARDS.len()).map(|cards| {
        let mut launches: Vec<usize> = cards.iter().map(Layer::launches).collect();
        launches.dedup();
        let launches: Vec<String> = launches.iter().map(usize::to_string).collect();
        let cell = |layer: &Layer| {
            let share = layer.memory_seconds() / layer.seconds();
            format!("{} {} {:.0}%", micros(layer.seconds()), mostly(layer).name(), 100.0 * share)
        };
        let mut row = vec![cards[0].name(), launches.join(" or ")];
        row.extend(cards.iter().map(cell));
        row
    });
    Table { title: title.to_owned(), head, rows: rows.collect() }
}

/// The unit that bounds the largest part of a layer's time.
fn mostly(layer: &Layer) -> Unit {
    let seconds = |unit| -> f64 {
        let bound = layer.each().filter(|(.., estimate)| estimate.bound == unit);
        bound.map(|(.., estimate)| estimate.seconds).sum()
    };
    let units = layer.each().map(|(.., estimate)| estimate.bound);
    units.max_by(|&a, &b| seconds(a).total_cmp(&seconds(b))).expect("a layer has launches")
}

/// What was counted in each launch of layers.
fn by_launch(
    layers: &[&Layer],
    cells: impl Fn(&Operation, &Counted, &Estimate) -> Vec<String>,
) -> Vec<Vec<String>> {
    let rows = layers.iter().flat_map(|layer| {
        layer.each().map(|(operation, launch, estimate)| {
            let mut row = vec![layer.name(), operation.name.to_owned(), launch.kernel.to_owned()];
            row.extend(cells(operation, launch, estimate));
            row
        })
    });
    rows.collect()
}

fn instructions(layers: &[&Layer]) -> Table {
    let title = format!(
        "Instructions of warps in thousands, as launched on an {PRINTED}, and the estimated time there. Of PTX: an \
         assembler does away with most moves, and makes some ten instructions of a division."
    );
    let head = [
        "layer",
        "operation",
        "kernel",
        "blocks",
        "all",
        "mma",
        "f32",
        "convert",
        "divide",
        "int",
        "move",
        "load, store",
        "cp.async",
        "shuffle",
        "barrier",
        "branch",
        "µs",
        "bound",
    ];
    let rows = by_launch(layers, |_, launch, estimate| {
        let Counts { integer, float, division, conversion, movement, memory, copy, mma, .. } = launch.counts;
        let Counts { shuffle, barrier, control, .. } = launch.counts;
        let mut row = vec![launch.grid.iter().map(|&size| u64::from(size)).product::<u64>().to_string()];
        let tallies = [
            launch.counts.instructions(),
            mma,
            float,
            conversion,
            division,
            integer,
            movement,
            memory,
            copy,
            shuffle,
            barrier,
            control,
        ];
        row.extend(tallies.map(|tally| format!("{:.1}", tally.warps as f64 / 1e3)));
        row.extend([micros(estimate.seconds), estimate.bound.name().to_owned()]);
        row
    });
    table(&title, &head, rows)
}

fn bytes(layers: &[&Layer]) -> Table {
    let title = "Memory, in the same launches. Asked: bytes that lanes load from and store to global memory, before any \
                 cache. Least: what the operation must move (beside its first launch). Sectors: 32 bytes for each sector \
                 touched, over the bytes asked. Conflicts: cycles of the banks that another layout would save.";
    let head = [
        "layer",
        "operation",
        "kernel",
        "read MB",
        "written MB",
        "least MB",
        "asked / least",
        "sectors read",
        "sectors written",
        "shared MB",
        "conflicts",
    ];
    let rows = by_launch(layers, |operation, launch, _| {
        let Counts { global_read: read, global_written: written, shared_read, shared_written, .. } =
            launch.counts;
        let first = operation.launches.first().is_some_and(|one| one.kernel == launch.kernel);
        let asked = (read.bytes + written.bytes) as f64 / operation.least_bytes as f64;
        let cycles = shared_read.cycles + shared_written.cycles;
        let conflicts = shared_read.conflicts + shared_written.conflicts;
        let ratio = |sectors: u64, bytes: u64| format!("{:.2}", 32.0 * sectors as f64 / bytes.max(1) as f64);
        vec![
            megabytes(read.bytes),
            megabytes(written.bytes),
            if first { megabytes(operation.least_bytes) } else { String::new() },
            if first { format!("{asked:.2}") } else { String::new() },
            ratio(read.sectors, read.bytes),
            ratio(written.sectors, written.bytes),
            megabytes(shared_read.bytes + shared_written.bytes),
            format!("{:.0}%", 100.0 * conflicts as f64 / cycles.max(1) as f64),
        ]
    });
    table(title, &head, rows)
}

/// What each kernel takes on each card.
fn resources(layers: &[Layer]) -> Table {
    let title = "Registers of a thread, KiB of shared memory of a block, blocks that a multiprocessor holds and what \
                 bounds them (by `kernels/cu/build --assemble`; nothing is spilled unless it says so).";
    let mut head = vec!["kernel".to_owned(), "layer".to_owned()];
    head.extend(CARDS.iter().map(|card| card.name.to_owned()));
    let mut rows: Vec<Vec<String>> = Vec::new();
    let cell = |layer: &Layer, launch: &Counted| {
        let Some(one) = Resources::of(launch.kernel, layer.card.capability) else { return "?".to_owned() };
        let (blocks, by) = layer.card.blocks(&one, launch.threads, launch.shared);
        let shared = f64::from(one.shared + launch.shared) / 1024.0;
        let spilled =
            if one.spilled > 0 { format!(", {} bytes spilled", one.spilled) } else { String::new() };
        format!("{} regs, {shared:.1} KiB, {blocks} ({by}){spilled}", one.registers)
    };
    for cards in layers.chunks(CARDS.len()) {
        let first: Vec<&Counted> = cards[0].each().map(|(_, launch, _)| launch).collect();
        for launch in first {
            let of_card = |layer: &Layer| {
                let same = layer.each().find(|(_, other, _)| other.kernel == launch.kernel);
                same.map_or(String::new(), |(_, launch, _)| cell(layer, launch))
            };
            if !rows.iter().any(|row| row[0] == launch.kernel) {
                let mut row = vec![launch.kernel.to_owned(), cards[0].name()];
                row.extend(cards.iter().map(of_card));
                rows.push(row);
            }
        }
    }
    Table { title: title.to_owned(), head, rows }
}

fn micros(seconds: f64) -> String {
    let micros = seconds * 1e6;
    if micros < 100.0 { format!("{micros:.1}") } else { format!("{micros:.0}") }
}

fn megabytes(bytes: u64) -> String {
    format!("{:.2}", bytes as f64 / 1e6)
}
