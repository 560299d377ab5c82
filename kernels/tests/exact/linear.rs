//! Linear layers alone, over every remainder of rows, columns and batch.

use kernels::{
    backend::{Backend, Grouping, Linear, Profile, RmsNorm},
    reference::Reference,
    tensor::{Format, WeightMatrix},
};

use crate::{
    begin, cpus,
    rng::{Flavour, Rng},
};

/// Logits of `x` after a norm with weights of `flavour`, which gives the activations their values.
fn logits<B: Backend>(
    backend: &B,
    weights: &WeightMatrix,
    norm: &RmsNorm,
    x: &[f32],
    profile: Profile,
) -> Vec<u32> {
    let (outputs, width) = (weights.rows(), weights.columns());
    let rows = x.len() / width;
    let head = backend.load_linear(Linear { weight: weights.clone(), bias: None }).unwrap();
    let norm = backend.load_norm(norm.clone()).unwrap();
    let mut from = backend.buffer(rows, width).unwrap();
    let mut to = backend.buffer(rows, outputs).unwrap();
    let mut normed = backend.activation(rows, width, profile, Grouping::of([weights.format()])).unwrap();
    let mut step = begin(backend, rows, &[], profile);
    backend.upload(x, &mut from);
    backend.norm(&norm, &from, &mut step, &mut normed);
    backend.logits(&head, &normed, &mut step, &mut to);
    assert!(!backend.end(&mut step).unwrap().any());
    let mut out = vec![0.0f32; rows * outputs];
    backend.download(&to, 0..rows, &mut out).unwrap();
    out.into_iter().map(f32::to_bits).collect()
}

#[test]
fn every_remainder() {
    let cpus = cpus();
    let mut rng = Rng(7);
    for (index, columns) in [1, 31, 32, 33, 255, 256, 257, 511, 800, 1280].into_iter().enumerate() {
        for (outputs, rows) in [(1, 1), (15, 2), (16, 3), (17, 5), (33, 9), (48, 13), (40, 140)] {
            for format in Format::ALL.into_iter().filter(|format| format.fits(columns)) {
                let flavour = [Flavour::Plain, Flavour::Wide, Flavour::Tiny][(index + rows) % 3];
                let norm = RmsNorm { weight: rng.values(columns, flavour), eps: 1e-5 };
                let values = rng.values(outputs * columns, flavour);
                let weights = WeightMatrix::quantise(format, outputs, columns, &values).unwrap();
                let x = rng.values(rows * columns, Flavour::Plain);
                let profiles: &[Profile] = if format.is_float() {
                    &[Profile::Quantised, Profile::F32]
                } else {
                    &[Profile::Quantised]
                };
                for &profile in profiles {
                    let expected = logits(&Reference, &weights, &norm, &x, profile);
                    for cpu in &cpus {
                        let actual = logits(cpu, &weights, &norm, &x, profile);
                        assert!(
                            expected == actual,
                            "{cpu:?}: {outputs} x {columns} {format}, {rows} rows, {profile:?}"
                        );
                    }
                }
            }
        }
    }
}

/// Weights and activations at the ends of their range, where a saturating product would show.
#[test]
fn extreme_integers() {
    for value in [127u8, 129] {
        let mut row = 0x3c00u16.to_le_bytes().to_vec();
        row.extend([value; 32]);
        let weights = WeightMatrix::from_bytes(Format::Q8, 16, 32, row.repeat(16)).unwrap();
        let norm = RmsNorm { weight: vec![1.0; 32], eps: 0.0 };
        for x in [[1.0; 32], [-1.0; 32]] {
            let expected = logits(&Reference, &weights, &norm, &x, Profile::Quantised);
            assert_eq!(f32::from_bits(expected[0]).abs(), 127.0 * 32.0);
            for cpu in cpus() {
                assert_eq!(logits(&cpu, &weights, &norm, &x, Profile::Quantised), expected);
            }
        }
    }
}

/// Super-blocks of random bytes, whose scales, minima and values take every value, times activations of
/// every sign, in which sums of 16 bits would overflow first.
#[test]
fn arbitrary_super_blocks() {
    let mut rng = Rng(11);
    let norm = RmsNorm { weight: vec![1.0; 512], eps: 0.0 };
    for format in [Format::Q4K, Format::Q6K] {
        for round in 0..12 {
            let size = format.row_bytes(256);
            let mut bytes: Vec<u8> = (0..40 * 2 * size).map(|_| rng.bits() as u8).collect();
            for block in bytes.chunks_exact_mut(size) {
                match round % 4 {
                    0 => block.fill(0xff),
                    1 => block.fill(0x80),
                    _ => {}
                }
                let (d, dmin) = (rng.bits() as u16 & 0xbfff, rng.bits() as u16 & 0xbfff);
                match format {
                    Format::Q4K => {
                        block[..4].copy_from_slice(&[d.to_le_bytes(), dmin.to_le_bytes()].concat())
                    }
                    _ => block[208..].copy_from_slice(&d.to_le_bytes()),
                }
            }
            let weights = WeightMatrix::from_bytes(format, 40, 512, bytes).unwrap();
            let mut x = rng.values(9 * 512, Flavour::Plain);
            x[..512].fill(1.0);
            x[512..1024].fill(-1.0);
            let expected = logits(&Reference, &weights, &norm, &x, Profile::Quantised);
            for cpu in cpus() {
                let actual = logits(&cpu, &weights, &norm, &x, Profile::Quantised);
                assert!(expected == actual, "{cpu:?}: {format}, round {round}");
            }
        }
    }
}

#[test]
fn rows_come_back_out_of_the_packed_form() {
    let mut rng = Rng(3);
    for format in Format::ALL {
        for (rows, columns) in [(1, 1), (33, 70), (16, 64), (18, 512)] {
            if !format.fits(columns) {
                continue;
            }
            let values = rng.values(rows * columns, Flavour::Wide);
            let weights = WeightMatrix::quantise(format, rows, columns, &values).unwrap();
            for cpu in cpus() {
                let table = cpu.load_embedding(weights.clone(), false).unwrap();
                let mut out = cpu.buffer(rows, columns).unwrap();
                let tokens: Vec<u32> = (0..rows as u32).rev().collect();
                let mut step = begin(&cpu, rows, &tokens, Profile::F32);
                cpu.embed(&table, None, &mut step, &mut out);
                let (mut row, mut expected) = (vec![0.0; columns], vec![0.0; columns]);
                for (i, &token) in tokens.iter().enumerate() {
                    cpu.download(&out, i..i + 1, &mut row).unwrap();
                    weights.decode_row(token as usize, &mut expected);
                    assert!(row.iter().zip(&expected).all(|(a, b)| a.to_bits() == b.to_bits()));
                }
            }
        }
    }
}
