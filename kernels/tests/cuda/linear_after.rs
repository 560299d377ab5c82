//! What follows a product in its launch: residual, norm, gate, heads, and their faults.

use kernels::{
    backend::Operation,
    cuda::ops::{
        heads::{Heads, Place, place},
        linear::{Matrix, Step, Then, gate_up, project, qkv},
        norm::{Activation, RmsNorm},
    },
    reference,
    round::{bf16_from_f32, f32_from_bf16},
    tensor::{Format, WeightMatrix},
};

use crate::{
    card::{Card, on_every_card},
    linear::fault,
    linear_rig::{Rows, assert_same, check_counters, scratch, step, upload, weights},
    rng::{Flavour, Rng},
};

/// An activation that a launch fills.
fn empty(card: &mut Card, rows: usize, width: usize) -> Activation {
    Rows::of(width, vec![0.0; rows * width]).upload(card, rows)
}

/// `gate` as the reference's MLP makes it of two products.
fn gated(gate: &[f32], up: &[f32]) -> Vec<f32> {
    gate.iter().zip(up).map(|(g, u)| reference::silu(*g) * u).collect()
}

fn quantiser_faults(rows: &Rows) -> Vec<u32> {
    let faulty = |row: &[f32]| row.iter().any(|value| !value.is_finite());
    rows.values
        .chunks(rows.width)
        .map(|row| if faulty(row) { fault(Operation::Quantise) } else { 0 })
        .collect()
}

fn check_project(
    card: &mut Card,
    format: Format,
    rows: usize,
    finish: Option<bool>,
    normed: bool,
    machines: u32,
) {
    let what = format!("{format}, {rows} rows, {finish:?}, norm {normed}, {machines}");
    let mut rng = Rng(rows as u64 + 77);
    let (outputs, inputs) = (272, 512);
    let weights = weights(&mut rng, format, outputs, inputs);
    let x = Rows::new(&mut rng, rows, inputs);
    let bias = rng.values(outputs, Flavour::Plain);
    let before = rng.values(rows * outputs, Flavour::Wide);
    let step = step(card, rows, machines);
    let (linear, activation) = (upload(card, &weights, Some(&bias)), x.upload(card, step.bucket as usize));
    let (scratch, h) = (scratch(card, &step, 1), card.upload(&before));
    let norm = rng.values(outputs, Flavour::Plain);
    let next = empty(card, step.bucket as usize, outputs);
    let rms = RmsNorm { weight: card.upload(&norm), eps: 1e-5, zero: 0 };
    let then = Then { finish, norm: normed.then_some((rms, next)) };
    let launches = project(&step, &linear, &activation, h, &then, &scratch);
    assert!(launches.len() == 1 || normed && rows > 4, "one launch at decoding");
    launches.iter().for_each(|launch| _ = card.launch(launch));
    let mut expected = before.clone();
    let mut faults = vec![0; rows];
    for (row, h) in expected.chunks_mut(outputs).enumerate() {
        let y = x.linear(&weights, Some(&bias), row);
        h.iter_mut().zip(y).for_each(|(h, y)| *h += y);
        let finite = h.iter().all(|h| h.is_finite());
        if finish == Some(true) {
            h.iter_mut().for_each(|h| *h = f32_from_bf16(bf16_from_f32(*h)));
        }
        if finish.is_some() && !(finite && h.iter().all(|h| h.is_finite())) {
            faults[row] = fault(Operation::LayerOutput);
        }
    }
    assert_same(&card.download::<f32>(h, rows * outputs), &expected, &what);
    if normed {
        expected.chunks_mut(outputs).for_each(|row| reference::rms_norm(row, &norm, 1e-5));
        let expected = Rows::of(outputs, expected);
        expected.assert_on(card, &next, &what);
        for (fault, quantiser) in faults.iter_mut().zip(quantiser_faults(&expected)) {
            *fault = if *fault == 0 { quantiser } else { *fault };
        }
    }
    assert_eq!(card.download::<u32>(step.faults, rows), faults, "{what}");
    check_counters(card, &scratch);
}

#[test]
fn a_projection_is_added_rounded_and_normed() {
    on_every_card(|card| {
        check_project(card, Format::Q8, 1, Some(true), true, 40);
        check_project(card, Format::Q4, 3, None, true, 1);
        check_project(card, Format::Bf16, 2, Some(false), true, 1);
    });
    let mut card = Card::new(
        kernels::cuda::launch::Level::Ampere,
        ptx_machine::Order::Descending,
        ptx_machine::Copies::Late,
    );
    for (i, format) in Format::ALL.into_iter().enumerate() {
        check_project(&mut card, format, 5, [None, Some(true), Some(false)][i % 3], true, 1);
        check_project(&mut card, format, 40, Some(true), false, 1);
        check_project(&mut card, format, 130, [Some(true), None][i % 2], true, 1);
    }
}

fn check_gate_up(card: &mut Card, formats: [Format; 2], rows: usize, width: usize, machines: u32) {
    let what = format!("{formats:?}, {rows} rows, width {width}, {machines}");
    let mut rng = Rng(rows as u64 + 99);
    let inputs = 768;
    let [gate, up] = formats.map(|format| weights(&mut rng, format, width, inputs));
    let x = Rows::new(&mut rng, rows, inputs);
    let bias = rng.values(width, Flavour::Plain);
    let step = step(card, rows, machines);
    let activation = x.upload(card, step.bucket as usize);
    let mut out = empty(card, step.bucket as usize, width);
    if !width.is_multiple_of(256) {
        (out.wide, out.wide_scales) = (0, 0);
    }
    let scratch = scratch(card, &step, 2 * width);
    let (on_gate, on_up) = (upload(card, &gate, Some(&bias)), upload(card, &up, None));
    let launches = gate_up(&step, &on_gate, &on_up, &activation, &out, &scratch);
    launches.iter().for_each(|launch| _ = card.launch(launch));
    let expected = (0..rows)
        .flat_map(|row| gated(&x.linear(&gate, Some(&bias), row), &x.linear(&up, None, row)))
        .collect();
    let expected = Rows::of(width, expected);
    expected.assert_on(card, &out, &what);
    assert_eq!(card.download::<u32>(step.faults, rows), quantiser_faults(&expected), "{what}");
    check_counters(card, &scratch);
}

#[test]
fn gate_and_up_become_the_next_activation() {
    on_every_card(|card| {
        check_gate_up(card, [Format::Q8; 2], 2, 256, 1);
        check_gate_up(card, [Format::Q4K; 2], 1, 256, 60);
    });
    let mut card = Card::new(
        kernels::cuda::launch::Level::Turing,
        ptx_machine::Order::Descending,
        ptx_machine::Copies::Late,
    );
    for format in Format::ALL {
        check_gate_up(&mut card, [format; 2], 1, 72, 1);
        check_gate_up(&mut card, [format; 2], 9, 256, 1);
        check_gate_up(&mut card, [format; 2], 50, 40, 1);
        check_gate_up(&mut card, [format; 2], 100, 256, 1);
    }
    check_gate_up(&mut card, [Format::Q4K, Format::Q6K], 3, 256, 1);
    check_gate_up(&mut card, [Format::Q8, Format::Bf16], 20, 96, 1);
}

/// What heads of 64 on pages become.
fn heads(card: &mut Card, rng: &mut Rng, step: &Step, rows: usize) -> Heads {
    let (heads, kv_heads, head_dim, positions) = (4, 2, 64, 130);
    let places: Vec<[u32; 2]> = (0..rows as u32).map(|row| [row % positions, 3 * row]).collect();
    let pages: Vec<u32> = (0..3 * rows as u32).collect();
    let tables = [heads * head_dim, head_dim, positions as usize * 32, positions as usize * 32];
    let [q_bias, q_norm, cos, sin] = tables.map(|count| card.upload(&rng.values(count, Flavour::Plain)));
    Heads {
        rows: card.upload(&places),
        pages: card.upload(&pages),
        faults: step.faults,
        q_bias,
        k_bias: 0,
        v_bias: 0,
        q_norm,
        k_norm: 0,
        cos,
        sin,
        q: card.zeros::<f32>(rows * heads * head_dim),
        kv: card.zeros::<u16>(3 * rows * kv_heads * 2 * 64 * head_dim),
        heads: heads as u32,
        kv_heads: kv_heads as u32,
        head_dim: head_dim as u32,
        pairs: 32,
        adjacent: 0,
        wide: 0,
        layer: step.layer,
        q_eps: 1e-6,
        k_eps: 0.0,
        zero: 0,
    }
}

fn check_qkv(card: &mut Card, formats: [Format; 3], rows: usize, machines: u32, launches: usize) {
    let what = format!("{formats:?}, {rows} rows, {machines}");
    let mut rng = Rng(rows as u64 + 5);
    let (inputs, outputs) = (512, [256, 128, 128]);
    let matrices: Vec<WeightMatrix> = formats
        .into_iter()
        .zip(outputs)
        .map(|(format, outputs)| weights(&mut rng, format, outputs, inputs))
        .collect();
    let x = Rows::new(&mut rng, rows, inputs);
    let step = step(card, rows, machines);
    let activation = x.upload(card, step.bucket as usize);
    let scratch = scratch(card, &step, 512);
    let ours = heads(card, &mut Rng(1), &step, rows);
    let on_card: Vec<Matrix> = matrices.iter().map(|weights| upload(card, weights, None).matrix).collect();
    let made = qkv(&step, &[on_card[0], on_card[1], on_card[2]], &activation, &ours, &scratch);
    assert_eq!(made.len(), launches, "{what}");
    made.iter().for_each(|launch| _ = card.launch(launch));
    let products: Vec<f32> = (0..rows)
        .flat_map(|row| matrices.iter().flat_map(|weights| x.product(weights, row)).collect::<Vec<_>>())
        .collect();
    let their_faults = card.zeros::<u32>(rows);
    let theirs = heads(card, &mut Rng(1), &Step { faults: their_faults, ..step }, rows);
    let products = card.upload(&products);
    card.launch(&place(Place { step: step.rows, products, heads: theirs }, step.bucket));
    let q = |card: &Card, heads: &Heads| card.download::<f32>(heads.q, rows * 256);
    assert_same(&q(card, &ours), &q(card, &theirs), &what);
    let kv = |card: &Card, heads: &Heads| card.download::<u16>(heads.kv, 3 * rows * 2 * 2 * 64 * 64);
    assert_eq!(kv(card, &ours), kv(card, &theirs), "{what}");
    let faults = |card: &Card, heads: &Heads| card.download::<u32>(heads.faults, rows);
    assert_eq!(faults(card, &ours), faults(card, &theirs), "{what}");
    check_counters(card, &scratch);
}

#[test]
fn q_k_and_v_become_heads() {
    use Format::{Bf16, F32, Q4, Q4K, Q6K, Q8};
    on_every_card(|card| {
        check_qkv(card, [Q8; 3], 1, 1, 1);
        check_qkv(card, [Q4K, Q4K, Q6K], 2, 100, 2);
        check_qkv(card, [Q4; 3], 17, 1, 2);
    });
    let mut card = Card::new(
        kernels::cuda::launch::Level::Ampere,
        ptx_machine::Order::Descending,
        ptx_machine::Copies::Late,
    );
    check_qkv(&mut card, [Q4; 3], 8, 1, 1);
    check_qkv(&mut card, [Q6K; 3], 5, 1, 1);
    check_qkv(&mut card, [Bf16; 3], 12, 1, 1);
    check_qkv(&mut card, [F32, Q8, F32], 3, 1, 2);
    check_qkv(&mut card, [Q8; 3], 100, 1, 2);
}

/// A value that is not finite is seen before float weights, whatever comes of it.
#[test]
fn float_weights_see_what_is_not_finite() {
    on_every_card(|card| {
        for format in [Format::Bf16, Format::F32] {
            let mut rng = Rng(3);
            let (rows, outputs, inputs) = (10, 40, 300);
            let weights = weights(&mut rng, format, outputs, inputs);
            let mut values = rng.values(rows * inputs, Flavour::Plain);
            values[2 * inputs + 299] = f32::INFINITY;
            values[9 * inputs] = f32::NAN;
            let x = Rows::of(inputs, values);
            let step = step(card, rows, 1);
            let (linear, activation) = (upload(card, &weights, None), x.upload(card, 16));
            let (scratch, h) = (scratch(card, &step, 1), card.zeros::<f32>(rows * outputs));
            let then = Then { finish: Some(true), norm: None };
            for launch in project(&step, &linear, &activation, h, &then, &scratch) {
                card.launch(&launch);
            }
            let mut expected = vec![0; rows];
            (expected[2], expected[9]) = (fault(Operation::FloatLinear), fault(Operation::FloatLinear));
            assert_eq!(card.download::<u32>(step.faults, rows), expected);
        }
    });
}

/// Rows of the bucket that are not in use keep what they have.
#[test]
fn rows_past_the_count_stay_as_they_are() {
    on_every_card(|card| {
        for rows in [3, 40] {
            let mut rng = Rng(4);
            let weights = weights(&mut rng, Format::Q8, 16, 64);
            let x = Rows::new(&mut rng, rows, 64);
            let step = step(card, rows, 1);
            let (linear, activation) = (upload(card, &weights, None), x.upload(card, step.bucket as usize));
            let scratch = scratch(card, &step, 1);
            let h = card.zeros::<f32>(rows * 16);
            card.write(step.rows, &[2_u32]);
            for launch in project(&step, &linear, &activation, h, &Then::default(), &scratch) {
                card.launch(&launch);
            }
            let h = card.download::<f32>(h, rows * 16);
            assert_same(
                &h[..16],
                &x.linear(&weights, None, 0).iter().map(|y| 0.0 + y).collect::<Vec<_>>(),
                "row 0",
            );
            assert!(h[32..].iter().all(|&value| value == 0.0));
        }
    });
}
