//! Norms, rows into activations, the end of a layer.

use kernels::{
    backend::{Grouping, Operation, Profile},
    cuda::ops::norm::{Finish, Norm, Quantise, RmsNorm, finish, norm, quantise},
    reference::rms_norm,
    round::{bf16_from_f32, f32_from_bf16},
};

use crate::{
    card::{Card, on_every_card},
    rng::{Flavour, Rng},
    rows::{Rows, activation, assert_bits, assert_row, fault},
};

/// One more row than is in use has room, and must stay as it is.
const ROWS: usize = 3;

fn check_norm(
    card: &mut Card,
    width: usize,
    flavour: Flavour,
    profile: Profile,
    grouping: Grouping,
    values: bool,
) {
    let mut rng = Rng(width as u64);
    let x = rng.values((ROWS + 1) * width, flavour);
    let weight = rng.values(width, Flavour::Plain);
    let rows = Rows::new(card, &[(0, 0); ROWS], &[0], ROWS + 1);
    let out = activation(card, ROWS + 1, width, profile, grouping, values);
    let params = Norm {
        step: rows.step,
        x: card.upload(&x),
        faults: rows.faults,
        norm: RmsNorm { weight: card.upload(&weight), eps: 1e-6, zero: 0 },
        out,
        layer: 4,
        zero: 0,
    };
    card.launch(&norm(params, ROWS as u32 + 1));
    for (row, x) in x.chunks_exact(width).enumerate() {
        let mut expected = x.to_vec();
        rms_norm(&mut expected, &weight, 1e-6);
        assert_row(card, &out, row, if row < ROWS { &expected } else { &[] });
    }
    assert_eq!(card.download::<u32>(rows.faults, ROWS + 1), [0; ROWS + 1]);
    let params = Quantise { step: rows.step, x: params.x, faults: rows.faults, out, layer: 4, zero: 0 };
    card.launch(&quantise(params, ROWS as u32));
    for (row, x) in x.chunks_exact(width).take(ROWS).enumerate() {
        assert_row(card, &out, row, x);
    }
}

#[test]
fn rows_are_normed_and_quantised() {
    let both = Grouping { narrow: true, wide: true, float: false };
    let narrow = Grouping { narrow: true, wide: false, float: false };
    on_every_card(|card| {
        for (width, flavour) in
            [(256, Flavour::Plain), (1024, Flavour::Wide), (4096, Flavour::Plain), (2560, Flavour::Tiny)]
        {
            check_norm(card, width, flavour, Profile::Quantised, both, width == 1024);
        }
        for (width, flavour) in [
            (1, Flavour::Plain),
            (31, Flavour::Wide),
            (33, Flavour::Tiny),
            (300, Flavour::Plain),
            (2177, Flavour::Wide),
        ] {
            check_norm(card, width, flavour, Profile::Quantised, narrow, true);
            check_norm(card, width, flavour, Profile::F32, Grouping::default(), true);
        }
    });
}

#[test]
fn values_that_are_not_finite_are_faults_of_their_row() {
    on_every_card(|card| {
        let width = 320;
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for profile in [Profile::Quantised, Profile::F32] {
                let mut x = vec![1.0f32; 4 * width];
                x[width + 319] = bad;
                x[3 * width] = bad;
                let rows = Rows::new(card, &[(0, 0); 4], &[0], 4);
                card.write(rows.faults + 12, &[77u32]);
                let out = activation(
                    card,
                    4,
                    width,
                    profile,
                    Grouping { narrow: true, wide: false, float: false },
                    false,
                );
                let x = card.upload(&x);
                card.launch(&quantise(
                    Quantise { step: rows.step, x, faults: rows.faults, out, layer: 2, zero: 0 },
                    4,
                ));
                let word = if profile == Profile::Quantised { fault(2, Operation::Quantise) } else { 0 };
                assert_eq!(card.download::<u32>(rows.faults, 4), [0, word, 0, 77]);
                if profile == Profile::Quantised {
                    let mut clean = vec![1.0; width];
                    clean[288..].fill(0.0);
                    let scales = card.download::<f32>(out.narrow_scales + 64, 16);
                    assert_eq!(scales[9], 0.0, "the faulty group is zero");
                    assert_eq!(scales[8], 1.0 / 127.0);
                }
            }
        }
    });
}

#[test]
fn layers_end_in_bf16() {
    on_every_card(|card| {
        let (width, layer) = (401, 6);
        let mut rng = Rng(9);
        let mut h = rng.values(5 * width, Flavour::Wide);
        h[..width].copy_from_slice(&rng.values(width, Flavour::Tiny));
        h[width + 400] = f32::NAN;
        h[2 * width] = f32::MAX;
        h[3 * width + 5] = f32::INFINITY;
        for rounded in [true, false] {
            let rows = Rows::new(card, &[(0, 0); 4], &[0], 5);
            let at = card.upload(&h);
            let params = Finish {
                step: rows.step,
                h: at,
                faults: rows.faults,
                width: width as u32,
                layer,
                rounded: rounded.into(),
                zero: 0,
            };
            card.launch(&finish(params, 5));
            let expected = |(i, &h): (usize, &f32)| match rounded && i < 4 * width && !h.is_nan() {
                true => f32_from_bf16(bf16_from_f32(h)),
                false => h,
            };
            let expected: Vec<f32> = h.iter().enumerate().map(expected).collect();
            assert_bits(&card.download(at, 5 * width), &expected);
            let word = fault(layer, Operation::LayerOutput);
            let overflow = if rounded { word } else { 0 };
            assert_eq!(card.download::<u32>(rows.faults, 5), [0, word, overflow, word, 0]);
        }
    });
}
