//! Products of every format: decoding, split K, many rows.

use kernels::{
    backend::Operation,
    cuda::{launch::Level, ops::linear::logits},
    tensor::Format,
};
use ptx_machine::{Copies, Order};

use crate::{
    card::{Card, on_every_card},
    linear_rig::{Rows, assert_same, check_counters, scratch, step, upload, weights},
    rng::Rng,
};

/// The word that a fault of layer 6 leaves.
pub(crate) fn fault(operation: Operation) -> u32 {
    7 << 8 | (operation as u32 + 1)
}

/// One product on one card; `multiprocessors` decides which kernel does it.
pub(crate) fn check(
    card: &mut Card,
    format: Format,
    rows: usize,
    outputs: usize,
    inputs: usize,
    multiprocessors: u32,
) {
    let what = format!("{format}, {rows} rows, {outputs} x {inputs}, {multiprocessors} multiprocessors");
    let mut rng = Rng((rows * 7919 + outputs * 31 + inputs) as u64);
    let weights = weights(&mut rng, format, outputs, inputs);
    let x = Rows::new(&mut rng, rows, inputs);
    let bias = (outputs % 2 == 1).then(|| rng.values(outputs, crate::rng::Flavour::Tiny));
    let step = step(card, rows, multiprocessors);
    let (head, activation) = (upload(card, &weights, bias.as_deref()), x.upload(card, step.bucket as usize));
    let (scratch, out) = (scratch(card, &step, 1), card.blank::<f32>(rows * outputs));
    // A captured graph runs again: with what the first run left.
    for _ in 0..1 + usize::from(rows == 1) {
        for launch in logits(&step, &head, &activation, out, &scratch) {
            card.launch(&launch);
        }
    }
    let actual = card.download::<f32>(out, rows * outputs);
    let faults = card.download::<u32>(step.faults, rows);
    for (row, actual) in actual.chunks(outputs).enumerate() {
        let expected = x.linear(&weights, bias.as_deref(), row);
        assert_same(actual, &expected, &format!("{what}, row {row}"));
        let faulty = expected.iter().any(|y| !y.is_finite());
        assert_eq!(faults[row], if faulty { fault(Operation::Logits) } else { 0 }, "{what}, row {row}");
    }
    check_counters(card, &scratch);
}

/// A card of each kind in turn.
fn card(index: usize) -> Card {
    let level = Level::ALL[index % 2];
    match index / 2 % 3 {
        0 => Card::new(level, Order::Ascending, Copies::Late),
        1 => Card::new(level, Order::Descending, Copies::Eager),
        _ => Card::new(level, Order::Shuffled(index as u64), Copies::Late),
    }
}

/// K as the format can have it.
fn inputs_of(format: Format, inputs: usize) -> usize {
    if format.fits(inputs) { inputs } else { inputs.next_multiple_of(256) }
}

#[test]
fn products_of_every_format_batch_and_shape() {
    let batches = [1, 2, 3, 5, 8, 16, 17, 32, 33, 64];
    let shapes = [(1, 32), (7, 96), (129, 256), (16, 800), (33, 2080), (48, 512)];
    for (f, format) in Format::ALL.into_iter().enumerate() {
        for (b, rows) in batches.into_iter().enumerate() {
            for s in [f + b, f + b + 3] {
                let (outputs, inputs) = shapes[s % shapes.len()];
                check(&mut card(f + b + s), format, rows, outputs, inputs_of(format, inputs), 1);
            }
        }
    }
}

#[test]
fn every_schedule_gives_the_same() {
    on_every_card(|card| {
        for format in Format::ALL {
            check(card, format, 3, 40, inputs_of(format, 1100), 1);
            check(card, format, 2, 17, 2560, 132);
        }
    });
}

#[test]
fn too_few_outputs_for_the_card_split_k() {
    for (f, format) in Format::ALL.into_iter().enumerate() {
        for (i, (rows, outputs)) in [(1, 7), (8, 40), (16, 33)].into_iter().enumerate() {
            check(&mut card(f + i), format, rows, outputs, inputs_of(format, 4096 + 32), 132);
        }
    }
}

#[test]
fn long_rows_take_several_spans() {
    for (f, format) in Format::ALL.into_iter().enumerate() {
        check(&mut card(f), format, 1, 20, 56 * 256, 1);
        check(&mut card(f + 1), format, 20, 20, 9 * 256, 1);
    }
}

#[test]
fn many_rows_by_tiles() {
    for (f, format) in Format::ALL.into_iter().enumerate() {
        for (i, (rows, outputs, inputs)) in
            [(100, 129, 288), (65, 7, 32), (129, 140, 1024)].into_iter().enumerate()
        {
            check(&mut card(f + i), format, rows, outputs, inputs_of(format, inputs), 1);
        }
        check(&mut card(f), format, 70, 33, inputs_of(format, 96), 132);
    }
}
