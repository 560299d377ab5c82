//! Rows of a step on a card, and activations to compare.

use kernels::{
    backend::{Grouping, Operation, Profile},
    cuda::{
        launch::DevicePtr,
        ops::norm::{Activation, ActivationBytes},
    },
    reference::quantise_group,
};

use crate::card::Card;

/// What a fault word of `layer` says.
pub(crate) fn fault(layer: u32, operation: Operation) -> u32 {
    (layer + 1) << 8 | (operation as u32 + 1)
}

/// Rows of a step: position and page list of each.
pub(crate) struct Rows {
    pub(crate) step: DevicePtr,
    pub(crate) rows: DevicePtr,
    pub(crate) pages: DevicePtr,
    pub(crate) faults: DevicePtr,
}

impl Rows {
    /// `rows` are `(position, first page in the list)`; `bucket` is how many there is room for.
    pub(crate) fn new(card: &mut Card, rows: &[(u32, u32)], pages: &[u32], bucket: usize) -> Self {
        let mut words = vec![0u32; 2 * bucket];
        for (word, row) in words.chunks_exact_mut(2).zip(rows) {
            word.copy_from_slice(&[row.0, row.1]);
        }
        Self {
            step: card.upload(&[rows.len() as u32, 0, 0, 0]),
            rows: card.upload(&words),
            pages: card.upload(pages),
            faults: card.zeros::<u32>(bucket),
        }
    }
}

/// A zeroed activation on a card.
pub(crate) fn activation(
    card: &mut Card,
    rows: usize,
    width: usize,
    profile: Profile,
    grouping: Grouping,
    values: bool,
) -> Activation {
    let bytes = ActivationBytes::new(rows, width, profile, grouping, values);
    let mut part = |bytes: usize| if bytes == 0 { 0 } else { card.zeros::<u8>(bytes) };
    Activation {
        narrow: part(bytes.narrow),
        narrow_scales: part(bytes.narrow_scales),
        wide: part(bytes.wide),
        wide_scales: part(bytes.wide_scales),
        values: part(bytes.values),
        width: width as u32,
        quantised: u32::from(profile == Profile::Quantised),
    }
}

/// Fails unless row `row` of an activation is `values`, in every form that it has.
#[track_caller]
pub(crate) fn assert_row(card: &Card, out: &Activation, row: usize, values: &[f32]) {
    let padded = values.len().next_multiple_of(256);
    assert_groups::<32>(card, (out.narrow, out.narrow_scales), row, values, padded);
    assert_groups::<256>(card, (out.wide, out.wide_scales), row, values, padded);
    if out.values != 0 {
        let mut all = values.to_vec();
        all.resize(padded, 0.0);
        assert_bits(&card.download::<f32>(out.values + (row * padded * 4) as u64, padded), &all);
    }
}

#[track_caller]
fn assert_groups<const N: usize>(
    card: &Card,
    (quants, scales): (DevicePtr, DevicePtr),
    row: usize,
    values: &[f32],
    padded: usize,
) {
    if quants == 0 {
        return;
    }
    let got = card.download::<i8>(quants + (row * padded) as u64, padded);
    let got_scales = card.download::<f32>(scales + (row * padded / N * 4) as u64, padded / N);
    let mut chunks = values.chunks(N);
    for (g, (q, scale)) in got.chunks_exact(N).zip(&got_scales).enumerate() {
        let mut expected = [0; N];
        let group = chunks.next().map_or(Some(0.0), |chunk| quantise_group(chunk, &mut expected));
        assert_eq!(scale.to_bits(), group.unwrap_or(0.0).to_bits(), "row {row}, scale of group {g} of {N}");
        assert_eq!(q, expected, "row {row}, group {g} of {N}");
    }
}

/// Equal to the bit, any NaN being like another.
#[track_caller]
pub(crate) fn assert_bits(got: &[f32], expected: &[f32]) {
    assert_eq!(got.len(), expected.len());
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        let same = got.to_bits() == expected.to_bits() || got.is_nan() && expected.is_nan();
        assert!(
            same,
            "value {i} is {got:e} ({:08x}), not {expected:e} ({:08x})",
            got.to_bits(),
            expected.to_bits()
        );
    }
}
