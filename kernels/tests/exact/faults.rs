//! A NaN or an infinity is reported where the page says, and touches no other session.

use kernels::{
    backend::{
        AttentionShape, Backend, Grouping, KvShape, Linear, Operation, Profile, Qkv, RmsNorm, RowFault, Then,
    },
    reference::Reference,
    rope::{RopeScaling, RopeSpec, RopeTable},
    tensor::{Format, WeightMatrix},
};

use crate::{
    begin,
    case::Case,
    check, cpus,
    rng::{Flavour, Rng},
    trace::trace,
};

#[test]
fn a_poisoned_session_leaves_the_others_alone() {
    use Operation::{FloatLinear, LayerOutput, Quantise};
    for (profile, format, value, operation) in [
        (Profile::Quantised, Format::Q8, f32::NAN, Quantise),
        (Profile::Quantised, Format::Q4, f32::NEG_INFINITY, Quantise),
        (Profile::Quantised, Format::Bf16, f32::NAN, Quantise),
        (Profile::Quantised, Format::Q8, f32::MAX, LayerOutput),
        (Profile::F32, Format::F32, f32::NAN, FloatLinear),
        (Profile::F32, Format::Bf16, f32::INFINITY, FloatLinear),
    ] {
        // Odd widths: the padding of a faulty row is rubbish that nobody may read later.
        let clean = Case {
            profile,
            format,
            hidden: 70,
            heads: 3,
            kv_heads: 3,
            head_dim: 14,
            rotated: 14,
            intermediate: 41,
            batches: vec![vec![3, 5, 2], vec![1, 1, 1]],
            ..Case::default()
        };
        let poisoned = Case { poison: Some((1, value)), ..clean.clone() };
        strike(clean, poisoned, operation);
    }
}

#[test]
fn a_poisoned_session_before_super_blocks() {
    for (format, second) in [
        (Format::Q4K, None),
        (Format::Q6K, None),
        (Format::Q4K, Some(Format::Q6K)),
        (Format::Q4, Some(Format::Q6K)),
    ] {
        let clean = Case {
            format,
            second,
            hidden: 256,
            heads: 2,
            kv_heads: 1,
            head_dim: 128,
            rotated: 128,
            intermediate: 512,
            batches: vec![vec![3, 5, 2], vec![1, 1, 1]],
            ..Case::default()
        };
        for (value, operation) in [
            (f32::NAN, Operation::Quantise),
            (f32::INFINITY, Operation::Quantise),
            (f32::MAX, Operation::LayerOutput),
        ] {
            strike(clean.clone(), Case { poison: Some((1, value)), ..clean.clone() }, operation);
        }
    }
}

/// The fault of the poisoned session is `operation`, on every backend, and the others do not see it.
fn strike(clean: Case, poisoned: Case, operation: Operation) {
    check(&poisoned);
    let expected = trace(&Reference, &clean);
    let actual = trace(&Reference, &poisoned);
    let row = poisoned.poisoned_row(0).unwrap().0;
    assert_eq!(actual[5].faults[row].map(|fault| fault.operation), Some(operation), "{poisoned:?}");
    for (expected, actual) in expected.iter().zip(&actual) {
        for other in (0..actual.faults.len()).filter(|&row| match actual.batch {
            0 => row != poisoned.poisoned_row(0).unwrap().0,
            _ => row != 1,
        }) {
            assert_eq!(actual.faults[other], None);
            let range = other * actual.width..(other + 1) * actual.width;
            assert_eq!(expected.bits[range.clone()], actual.bits[range]);
        }
    }
}

/// Two rows whose first value tells them apart, after a norm that makes it loud.
fn loud<B: Backend>(backend: &B, loudness: f32, profile: Profile) -> (B::Activation, B::Step) {
    let mut x = backend.buffer(2, 32).unwrap();
    let mut rows = vec![0.5f32; 64];
    rows[0] = 0.0;
    rows[32] = 1.0;
    backend.upload(&rows, &mut x);
    let mut weight = vec![1.0; 32];
    weight[0] = loudness;
    let norm = backend.load_norm(RmsNorm { weight, eps: 1e-6 }).unwrap();
    let mut normed = backend.activation(2, 32, profile, Grouping::of([Format::Q8, Format::F32])).unwrap();
    let mut step = begin(backend, 2, &[], profile);
    backend.norm(&norm, &x, &mut step, &mut normed);
    (normed, step)
}

fn weights(format: Format, rows: usize) -> Linear<WeightMatrix> {
    let weight = WeightMatrix::quantise(format, rows, 32, &vec![100.0; rows * 32]).unwrap();
    Linear { weight, bias: None }
}

/// The fault of the loud row; the quiet one has none.
fn fault<B: Backend>(backend: &B, mut step: B::Step) -> Option<Operation> {
    let faults = backend.end(&mut step).unwrap();
    assert_eq!(faults.of(0), None);
    faults.of(1).map(|fault| fault.operation)
}

fn logits<B: Backend>(backend: &B, loudness: f32, profile: Profile) -> Option<Operation> {
    let (x, mut step) = loud(backend, loudness, profile);
    let mut out = backend.buffer(2, 3).unwrap();
    let head = backend.load_linear(weights(Format::F32, 3)).unwrap();
    backend.logits(&head, &x, &mut step, &mut out);
    fault(backend, step)
}

fn keys<B: Backend>(backend: &B, loudness: f32, profile: Profile) -> Option<Operation> {
    let format = if profile == Profile::F32 { Format::F32 } else { Format::Q8 };
    let (x, mut step) = loud(backend, loudness, profile);
    let projection = |rows| weights(format, rows);
    let qkv = Qkv { q: projection(4), k: projection(2), v: projection(2), q_norm: None, k_norm: None };
    let qkv = backend.load_qkv(qkv).unwrap();
    let shape = AttentionShape { heads: 2, kv_heads: 1, head_dim: 2, scale: 1.0, window: None };
    let spec = RopeSpec { theta: 10.0, dimensions: 2, scaling: RopeScaling::Default };
    let rope = backend.load_rope(RopeTable::new(&spec, 1).unwrap()).unwrap();
    let mut kv = backend.kv(KvShape { layers: 1, pages: 2, kv_heads: 1, head_dim: 2, profile }).unwrap();
    let mut q = backend.buffer(2, 4).unwrap();
    backend.qkv(&qkv, &shape, &rope, &x, 0, &mut step, &mut q, &mut kv);
    fault(backend, step)
}

fn everywhere<B: Backend>(backend: &B) {
    use Profile::{F32, Quantised};
    let name = backend.describe();
    assert_eq!(logits(backend, 1.0, F32), None, "{name}");
    assert_eq!(logits(backend, 1e37, F32), Some(Operation::Logits), "{name}");
    assert_eq!(logits(backend, 1e37, Quantised), Some(Operation::Logits), "{name}");
    assert_eq!(logits(backend, 3e38, F32), Some(Operation::FloatLinear), "{name}");
    assert_eq!(logits(backend, 3e38, Quantised), Some(Operation::Quantise), "{name}");
    assert_eq!(keys(backend, 1.0, Quantised), None, "{name}");
    assert_eq!(keys(backend, 1e6, Quantised), Some(Operation::KvRound), "{name}");
    assert_eq!(keys(backend, 1e6, F32), None, "{name}");
    assert_eq!(keys(backend, 1e37, F32), Some(Operation::KvRound), "{name}");
}

#[test]
fn each_operation_reports_its_own() {
    everywhere(&Reference);
    cpus().iter().for_each(everywhere);
}

/// A projection that adds nothing, and what goes into it.
fn nothing<B: Backend>(backend: &B, width: usize) -> (B::Linear, B::Activation) {
    let grouping = Grouping::of([Format::Q8]);
    let zeros = backend.activation(2, 32, Profile::Quantised, grouping).unwrap();
    (backend.load_linear(weights(Format::Q8, width)).unwrap(), zeros)
}

/// The largest value that rounds to a finite bf16, and its neighbour that does not.
#[test]
fn the_edge_of_bf16() {
    fn finish<B: Backend>(backend: &B) {
        let mut h = backend.buffer(2, 3).unwrap();
        let edge = f32::from_bits(0x7f7f_7fff);
        backend.upload(&[0.0, edge, -1.0, 1.0, -f32::from_bits(0x7f7f_8000), 0.0], &mut h);
        let (linear, x) = nothing(backend, 3);
        let mut step = begin(backend, 2, &[], Profile::Quantised);
        backend.enter(&mut step, 3);
        backend.project(&linear, &x, &mut step, &mut h, Then::End);
        let faults = backend.end(&mut step).unwrap();
        let fault = RowFault { layer: 3, operation: Operation::LayerOutput };
        assert_eq!((faults.of(0), faults.of(1)), (None, Some(fault)));
        let mut row = [0.0; 3];
        backend.download(&h, 0..1, &mut row).unwrap();
        assert_eq!(row.map(f32::to_bits), [0, 0x7f7f_0000, 0xbf80_0000]);
    }
    finish(&Reference);
    cpus().iter().for_each(finish);
}

/// A norm that follows a layer's end belongs to the next layer.
#[test]
fn the_layer_of_a_fault() {
    fn next<B: Backend>(backend: &B) {
        let mut h = backend.buffer(2, 32).unwrap();
        let mut rows = [0.5; 64];
        (rows[0], rows[32]) = (0.0, 1.0);
        backend.upload(&rows, &mut h);
        let mut weight = vec![1.0; 32];
        weight[0] = 3e38;
        let norm = backend.load_norm(RmsNorm { weight, eps: 1e-6 }).unwrap();
        let ((linear, x), (_, mut out)) = (nothing(backend, 32), nothing(backend, 32));
        for next in [false, true] {
            let mut step = begin(backend, 2, &[], Profile::Quantised);
            backend.enter(&mut step, 3);
            let then = if next { Then::Next(&norm, &mut out) } else { Then::Norm(&norm, &mut out) };
            backend.project(&linear, &x, &mut step, &mut h, then);
            let faults = backend.end(&mut step).unwrap();
            let fault = RowFault { layer: 3 + usize::from(next), operation: Operation::Quantise };
            assert_eq!((faults.of(0), faults.of(1)), (None, Some(fault)));
        }
    }
    next(&Reference);
    cpus().iter().for_each(next);
}

/// Rows gathered from anywhere arrive as they were.
#[test]
fn gathered_rows() {
    fn gather<B: Backend>(backend: &B) {
        let values = Rng(5).values(7 * 19, Flavour::Wide);
        let (mut from, mut to) = (backend.buffer(7, 19).unwrap(), backend.buffer(3, 19).unwrap());
        backend.upload(&values, &mut from);
        let mut step = begin(backend, 3, &[6, 0, 6], Profile::Quantised);
        backend.gather(&from, &mut step, &mut to);
        backend.end(&mut step).unwrap();
        let mut row = [0.0; 19];
        for (i, source) in [6, 0, 6].into_iter().enumerate() {
            backend.download(&to, i..i + 1, &mut row).unwrap();
            assert_eq!(row[..], values[source * 19..][..19]);
        }
    }
    gather(&Reference);
    cpus().iter().for_each(gather);
}
