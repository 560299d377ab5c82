//! What a backend computes for a case, stage by stage.

use kernels::backend::{Backend, Batch, KvShape, RowFault, Then};

use crate::{
    case::{Case, Layer},
    rng::Rng,
};

/// Output of one operation for all rows of a batch.
#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) batch: usize,
    pub(crate) name: &'static str,
    pub(crate) width: usize,
    pub(crate) bits: Vec<u32>,
    /// Of each row.
    pub(crate) faults: Vec<Option<RowFault>>,
}

/// The layer that faults are said to be of, before the head's.
pub(crate) const LAYER: usize = 7;

/// What the operations of a case work on.
struct Place<B: Backend> {
    layer: Layer<B>,
    rope: B::Rope,
    step: B::Step,
    h: B::Buffer,
    q: B::Buffer,
    logits: B::Buffer,
    normed: B::Activation,
    attended: B::Activation,
    gated: B::Activation,
    kv: B::Kv,
}

impl<B: Backend> Place<B> {
    fn new(backend: &B, case: &Case) -> Self {
        let (rows, attended) = (case.max_rows(), case.heads * case.head_dim);
        let (kv_heads, head_dim, profile) = (case.kv_heads, case.head_dim, case.profile);
        let activation = |width| backend.activation(rows, width, profile, case.grouping()).unwrap();
        let pages = case.pages().len();
        Self {
            layer: case.layer(backend),
            rope: backend.load_rope(case.rope()).unwrap(),
            step: backend.step(case.step_shape()).unwrap(),
            h: backend.buffer(rows, case.hidden).unwrap(),
            q: backend.buffer(rows, attended).unwrap(),
            logits: backend.buffer(rows, case.vocabulary).unwrap(),
            normed: activation(case.hidden),
            attended: activation(attended),
            gated: activation(case.intermediate),
            kv: backend.kv(KvShape { layers: 2, pages, kv_heads, head_dim, profile }).unwrap(),
        }
    }
}

/// Runs every batch of `case`. Norms follow the projections before them at once in every other batch, and
/// are operations of their own in the others.
pub(crate) fn trace<B: Backend>(backend: &B, case: &Case) -> Vec<Stage> {
    let Place {
        layer,
        rope,
        mut step,
        mut h,
        mut q,
        mut logits,
        mut normed,
        mut attended,
        mut gated,
        mut kv,
    } = Place::new(backend, case);
    let (shape, pages) = (case.shape(), case.pages());
    let [first, second, last] = &layer.norms;
    let mut stages = Vec::new();
    let mut rng = Rng(case.seed ^ 0x5eed);
    for index in 0..case.batches.len() {
        let rows = case.rows(index);
        let tokens: Vec<u32> = rows.iter().map(|_| rng.below(case.vocabulary) as u32).collect();
        let mut record = |name, step: &mut B::Step, buffer: &B::Buffer, width: usize| {
            let faults = backend.end(step).unwrap();
            let faults = (0..rows.len()).map(|row| faults.of(row)).collect();
            let bits = values(backend, buffer, rows.len(), width).into_iter().map(f32::to_bits).collect();
            stages.push(Stage { batch: index, name, width, bits, faults });
        };
        backend.begin(&mut step, Batch { rows: &rows, pages: &pages, sources: &tokens });
        backend.enter(&mut step, LAYER);
        backend.embed(&layer.embedding, case.bias.then_some(1.7), &mut step, &mut h);
        if let Some((row, value)) = case.poisoned_row(index) {
            let mut values = values(backend, &h, rows.len(), case.hidden);
            values[row * case.hidden] = value;
            backend.upload(&values, &mut h);
        }
        record("embed", &mut step, &h, case.hidden);
        backend.norm(first, &h, &mut step, &mut normed);
        backend.qkv(&layer.qkv, &shape, &rope, &normed, 1, &mut step, &mut q, &mut kv);
        record("qkv", &mut step, &q, case.heads * case.head_dim);
        backend.attention(&shape, &q, &kv, 1, &mut step, &mut attended);
        let before = values(backend, &h, rows.len(), case.hidden);
        backend.project(&layer.output, &attended, &mut step, &mut h, Then::Nothing);
        record("attention", &mut step, &h, case.hidden);
        if index.is_multiple_of(2) {
            backend.upload(&before, &mut h);
            let then = Then::Norm(second, &mut normed);
            backend.project(&layer.output, &attended, &mut step, &mut h, then);
        } else {
            backend.norm(second, &h, &mut step, &mut normed);
        }
        backend.gate_up(&layer.gate_up, &normed, &mut step, &mut gated);
        let before = values(backend, &h, rows.len(), case.hidden);
        backend.project(&layer.down, &gated, &mut step, &mut h, Then::Nothing);
        record("mlp", &mut step, &h, case.hidden);
        backend.upload(&before, &mut h);
        if index.is_multiple_of(2) {
            backend.project(&layer.down, &gated, &mut step, &mut h, Then::Next(last, &mut normed));
        } else {
            backend.project(&layer.down, &gated, &mut step, &mut h, Then::End);
            backend.enter(&mut step, LAYER + 1);
            backend.norm(last, &h, &mut step, &mut normed);
        }
        record("finish", &mut step, &h, case.hidden);
        backend.logits(&layer.head, &normed, &mut step, &mut logits);
        record("logits", &mut step, &logits, case.vocabulary);
    }
    stages
}

/// The first rows of a buffer.
fn values<B: Backend>(backend: &B, buffer: &B::Buffer, rows: usize, width: usize) -> Vec<f32> {
    let mut values = vec![0.0; rows * width];
    backend.download(buffer, 0..rows, &mut values).unwrap();
    values
}

/// Fails unless the stages are equal: faults everywhere, bits in rows without a fault.
pub(crate) fn assert_equal(who: &str, case: &Case, expected: &[Stage], actual: &[Stage]) {
    for (expected, actual) in expected.iter().zip(actual) {
        let place = format!("{who}, {} of batch {}, {case:?}", expected.name, expected.batch);
        assert_eq!(expected.faults, actual.faults, "faults: {place}");
        for (row, fault) in expected.faults.iter().enumerate() {
            let range = row * expected.width..(row + 1) * expected.width;
            let (expected, actual) = (&expected.bits[range.clone()], &actual.bits[range]);
            if fault.is_none()
                && let Some(column) = (0..expected.len()).find(|&i| expected[i] != actual[i])
            {
                let [e, a] = [expected[column], actual[column]];
                let values = (f32::from_bits(e), f32::from_bits(a));
                panic!("row {row}, column {column}: {e:08x} became {a:08x} {values:?}: {place}");
            }
        }
    }
}
