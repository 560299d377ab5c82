//! What a backend computes for a case, stage by stage.

use kernels::{
    backend::{Backend, Batch, Faults, KvShape, Operation},
    reference::Reference,
};

use crate::{case::Case, cpus, rng::Rng};

/// Output of one operation for all rows of a batch.
#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) batch: usize,
    pub(crate) name: &'static str,
    pub(crate) width: usize,
    pub(crate) bits: Vec<u32>,
    /// Of each row.
    pub(crate) faults: Vec<Option<Operation>>,
}

/// Runs every batch of `case`.
pub(crate) fn trace<B: Backend>(backend: &B, case: &Case) -> Vec<Stage> {
    let layer = case.layer(backend);
    let (shape, rope, pages) = (case.shape(), case.rope(), case.pages());
    let rows = case.max_rows();
    let mut h = backend.buffer(rows, case.hidden).unwrap();
    let mut q = backend.buffer(rows, case.heads * case.head_dim).unwrap();
    let mut logits = backend.buffer(rows, case.vocabulary).unwrap();
    let mut normed = backend.activation(rows, case.hidden, case.profile, case.grouping()).unwrap();
    let mut attended =
        backend.activation(rows, case.heads * case.head_dim, case.profile, case.grouping()).unwrap();
    let mut gated = backend.activation(rows, case.intermediate, case.profile, case.grouping()).unwrap();
    let (kv_heads, head_dim, profile) = (case.kv_heads, case.head_dim, case.profile);
    let mut kv = backend.kv(KvShape { layers: 2, pages: pages.len(), kv_heads, head_dim, profile }).unwrap();
    let mut stages = Vec::new();
    let mut rng = Rng(case.seed ^ 0x5eed);
    for index in 0..case.batches.len() {
        let table = case.rows(index);
        let (batch, rows) = (Batch { rows: &table, pages: &pages }, table.len());
        let mut faults = Faults::default();
        faults.reset(rows);
        let mut record = |name, buffer: &B::Buffer, width: usize, faults: &Faults| {
            let mut values = vec![0.0f32; rows * width];
            backend.download(buffer, 0..rows, &mut values);
            let bits = values.into_iter().map(f32::to_bits).collect();
            let faults = (0..rows).map(|row| faults.of(row)).collect();
            stages.push(Stage { batch: index, name, width, bits, faults });
        };
        let tokens: Vec<u32> = (0..rows).map(|_| rng.below(case.vocabulary) as u32).collect();
        let scale = case.bias.then_some(1.7);
        backend.embed(&layer.embedding, &tokens, scale, profile, &mut h);
        if let Some((row, value)) = case.poisoned_row(index) {
            let mut values = vec![0.0; rows * case.hidden];
            backend.download(&h, 0..rows, &mut values);
            values[row * case.hidden] = value;
            backend.upload(&values, &mut h);
        }
        record("embed", &h, case.hidden, &faults);
        backend.norm(&layer.norms[0], &h, rows, &mut normed, &mut faults);
        backend.qkv(&layer.qkv, &shape, &rope, &normed, batch, 1, &mut q, &mut kv, &mut faults);
        record("qkv", &q, case.heads * head_dim, &faults);
        backend.attention(&shape, &q, &kv, batch, 1, &mut attended, &mut faults);
        backend.project(&layer.output, &attended, rows, &mut h, &mut faults);
        record("attention", &h, case.hidden, &faults);
        backend.norm(&layer.norms[1], &h, rows, &mut normed, &mut faults);
        backend.gate_up(&layer.gate_up, &normed, rows, &mut gated, &mut faults);
        backend.project(&layer.down, &gated, rows, &mut h, &mut faults);
        record("mlp", &h, case.hidden, &faults);
        backend.finish(&mut h, rows, profile, &mut faults);
        record("finish", &h, case.hidden, &faults);
        backend.norm(&layer.norms[2], &h, rows, &mut normed, &mut faults);
        backend.logits(&layer.head, &normed, rows, &mut logits, &mut faults);
        record("logits", &logits, case.vocabulary, &faults);
    }
    stages
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

/// Runs `case` on the reference and on every CPU backend.
pub(crate) fn check(case: &Case) {
    let expected = trace(&Reference, case);
    for cpu in cpus() {
        assert_equal(&format!("{cpu:?}"), case, &expected, &trace(&cpu, case));
    }
}

/// [`check`], and that no row is faulty.
pub(crate) fn check_sound(case: &Case) {
    let faulty = |stage: &Stage| stage.faults.iter().any(Option::is_some);
    let stages = trace(&Reference, case);
    assert!(!stages.iter().any(faulty), "a fault in {case:?}");
    check(case);
}
