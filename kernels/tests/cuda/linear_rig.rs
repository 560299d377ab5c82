//! Weights and activations for the tests of linear layers, on the card and as the reference takes them.

use kernels::{
    cuda::{
        launch::DevicePtr,
        ops::{
            linear::{COUNTERS, Linear, Matrix, SUMS, Scratch, Step},
            norm::Activation,
            pack::pack,
        },
    },
    reference,
    tensor::{Format, GROUP, SEGMENT, WeightMatrix},
};

use crate::{
    card::Card,
    rng::{Flavour, Rng},
};

/// Weights whose scales are of every kind: plain, negative, subnormal, zero of both signs.
pub(crate) fn weights(rng: &mut Rng, format: Format, outputs: usize, inputs: usize) -> WeightMatrix {
    if format.is_float() {
        let flavour = flavour(rng);
        let values = rng.values(outputs * inputs, flavour);
        return WeightMatrix::quantise(format, outputs, inputs, &values).unwrap();
    }
    let mut bytes: Vec<u8> = (0..outputs * format.row_bytes(inputs)).map(|_| rng.bits() as u8).collect();
    let (block, scales): (usize, &[usize]) = match format {
        Format::Q8 => (34, &[0]),
        Format::Q4 => (18, &[0]),
        Format::Q4K => (144, &[0, 2]),
        _ => (210, &[208]),
    };
    for block in bytes.chunks_exact_mut(block) {
        if format == Format::Q8 {
            block[2..].iter_mut().filter(|q| **q == 0x80).for_each(|q| *q = 0x81);
        }
        for &at in scales {
            let bits = match rng.below(8) {
                0 => 0x8000 * rng.below(2) as u16,
                1 => rng.bits() as u16 & 0x83ff,
                2 => 0x7bff,
                _ => rng.bits() as u16 & 0x83ff | 0x2800,
            };
            block[at..at + 2].copy_from_slice(&bits.to_le_bytes());
        }
    }
    WeightMatrix::from_bytes(format, outputs, inputs, bytes).unwrap()
}

fn flavour(rng: &mut Rng) -> Flavour {
    [Flavour::Plain, Flavour::Wide, Flavour::Tiny][rng.below(3)]
}

/// Rows in every form.
pub(crate) struct Rows {
    pub(crate) count: usize,
    pub(crate) width: usize,
    pub(crate) values: Vec<f32>,
    narrow: (Vec<i8>, Vec<f32>),
    wide: (Vec<i8>, Vec<f32>),
}

/// `x` in groups of `N`, each row padded to 256 values.
fn quantise<const N: usize>(x: &[f32], width: usize) -> (Vec<i8>, Vec<f32>) {
    let (mut quants, mut scales) = (Vec::new(), Vec::new());
    for row in x.chunks(width) {
        let mut padded = row.to_vec();
        padded.resize(width.next_multiple_of(SEGMENT), 0.0);
        for group in padded.chunks(N) {
            let mut q = [0; N];
            scales.push(reference::quantise_group(group, &mut q).unwrap_or(0.0));
            quants.extend(q);
        }
    }
    (quants, scales)
}

impl Rows {
    /// Rows of different kinds.
    pub(crate) fn new(rng: &mut Rng, count: usize, width: usize) -> Self {
        let mut values = Vec::new();
        for _ in 0..count {
            let (flavour, factor) = (flavour(rng), [1.0, 300.0, 1e-30][rng.below(3)]);
            values.extend(rng.values(width, flavour).iter().map(|value| value * factor));
        }
        Self::of(width, values)
    }

    pub(crate) fn of(width: usize, values: Vec<f32>) -> Self {
        let (narrow, wide) = (quantise::<GROUP>(&values, width), quantise::<SEGMENT>(&values, width));
        Self { count: values.len() / width, width, values, narrow, wide }
    }

    fn padded(&self) -> usize {
        self.width.next_multiple_of(SEGMENT)
    }

    /// On the card, with `room` for more rows.
    pub(crate) fn upload(&self, card: &mut Card, room: usize) -> Activation {
        let (k, room) = (self.padded(), room.max(8));
        let mut values = vec![0.0; room * k];
        for (to, from) in values.chunks_mut(k).zip(self.values.chunks(self.width)) {
            to[..self.width].copy_from_slice(from);
        }
        Activation {
            narrow: filled(card, &self.narrow.0, room * k),
            narrow_scales: filled(card, &self.narrow.1, room * k / GROUP),
            wide: filled(card, &self.wide.0, room * k),
            wide_scales: filled(card, &self.wide.1, room * k / SEGMENT),
            values: card.upload(&values),
            width: self.width as u32,
            quantised: 1,
        }
    }

    /// An activation on the card is these rows, and zeros past them.
    #[track_caller]
    pub(crate) fn assert_on(&self, card: &Card, activation: &Activation, what: &str) {
        let (k, count) = (self.padded(), self.count);
        let values = card.download::<f32>(activation.values, count * k);
        for (row, (actual, expected)) in values.chunks(k).zip(self.values.chunks(self.width)).enumerate() {
            assert_same(&actual[..self.width], expected, &format!("{what}, values of row {row}"));
            assert!(actual[self.width..].iter().all(|&value| value == 0.0), "{what}, past row {row}");
        }
        assert_eq!(card.download::<i8>(activation.narrow, count * k), self.narrow.0, "{what}, narrow");
        let scales = card.download::<f32>(activation.narrow_scales, count * k / GROUP);
        assert_same(&scales, &self.narrow.1, &format!("{what}, narrow scales"));
        if activation.wide == 0 {
            return;
        }
        assert_eq!(card.download::<i8>(activation.wide, count * k), self.wide.0, "{what}, wide");
        let scales = card.download::<f32>(activation.wide_scales, count * k / SEGMENT);
        assert_same(&scales, &self.wide.1, &format!("{what}, wide scales"));
    }

    /// `W x` of row `row` by the reference.
    pub(crate) fn product(&self, weights: &WeightMatrix, row: usize) -> Vec<f32> {
        let k = self.padded();
        let groups = self.width.div_ceil(GROUP);
        let outputs = 0..weights.rows();
        if weights.format().is_float() {
            let x = &self.values[row * self.width..][..self.width];
            outputs.map(|output| reference::dot_float(weights, output, x)).collect()
        } else if weights.format().is_wide() {
            let (q, scales) =
                (&self.wide.0[row * k..][..k], &self.wide.1[row * k / SEGMENT..][..k / SEGMENT]);
            outputs.map(|output| reference::dot_wide(weights, output, q, scales)).collect()
        } else {
            let q = &self.narrow.0[row * k..][..groups * GROUP];
            let scales = &self.narrow.1[row * k / GROUP..][..groups];
            outputs.map(|output| reference::dot(weights, output, q, scales)).collect()
        }
    }

    /// `W x + b` of row `row`.
    pub(crate) fn linear(&self, weights: &WeightMatrix, bias: Option<&[f32]>, row: usize) -> Vec<f32> {
        let mut y = self.product(weights, row);
        if let Some(bias) = bias {
            y.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
        }
        y
    }
}

/// `values`, then zeros up to `count`.
pub(crate) fn filled<T: bytemuck::Pod>(card: &mut Card, values: &[T], count: usize) -> DevicePtr {
    let mut all = vec![T::zeroed(); count.max(values.len())];
    all[..values.len()].copy_from_slice(values);
    card.upload(&all)
}

/// The packed matrix with its bias.
pub(crate) fn upload(card: &mut Card, weights: &WeightMatrix, bias: Option<&[f32]>) -> Linear {
    let matrix = Matrix {
        format: weights.format(),
        outputs: weights.rows() as u32,
        inputs: weights.columns() as u32,
        data: card.upload(&pack(weights)),
    };
    Linear { matrix, bias: bias.map_or(0, |bias| card.upload(bias)) }
}

/// The bucket of `rows`.
pub(crate) fn bucket(rows: usize) -> usize {
    if rows <= 64 { rows.next_power_of_two() } else { rows.next_multiple_of(64) }
}

pub(crate) fn step(card: &mut Card, rows: usize, multiprocessors: u32) -> Step {
    Step {
        rows: card.upload(&[rows as u32, 0, 0, 0]),
        faults: card.zeros::<u32>(rows),
        bucket: bucket(rows) as u32,
        layer: 6,
        multiprocessors,
    }
}

/// `width` values a row.
pub(crate) fn scratch(card: &mut Card, step: &Step, width: usize) -> Scratch {
    Scratch {
        rows: card.blank::<f32>(step.bucket as usize * width),
        sums: card.blank::<f32>(SUMS),
        counters: card.zeros::<u32>(COUNTERS),
    }
}

/// The counters are as they must be left.
pub(crate) fn check_counters(card: &Card, scratch: &Scratch) {
    assert!(
        card.download::<u32>(scratch.counters, COUNTERS).iter().all(|&count| count == 0),
        "counters at rest"
    );
}

/// Equal to the bit, save that a NaN is any NaN.
#[track_caller]
pub(crate) fn assert_same(actual: &[f32], expected: &[f32], what: &str) {
    assert_eq!(actual.len(), expected.len(), "{what}");
    for (i, (a, e)) in actual.iter().zip(expected).enumerate() {
        assert!(
            a.to_bits() == e.to_bits() || a.is_nan() && e.is_nan(),
            "{what}: value {i} is {a:e}, not {e:e}"
        );
    }
}
