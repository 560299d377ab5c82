//! Whole layers of every shape.

use kernels::{backend::Profile, tensor::Format};

use crate::{
    case::Case,
    check, check_sound,
    rng::{Flavour, Rng},
};

#[test]
fn minimal() {
    let case = Case {
        hidden: 1,
        heads: 1,
        kv_heads: 1,
        head_dim: 2,
        rotated: 2,
        intermediate: 1,
        vocabulary: 1,
        batches: vec![vec![1], vec![1]],
        ..Case::default()
    };
    for format in Format::ALL.into_iter().filter(|format| format.fits(1)) {
        check_sound(&Case { format, ..case.clone() });
    }
    check_sound(&Case { format: Format::F32, profile: Profile::F32, ..case });
}

#[test]
fn heads_of_every_kind() {
    for (seed, (heads, kv_heads, head_dim, rotated)) in
        [(8, 8, 16, 16), (6, 2, 80, 80), (4, 1, 128, 64), (7, 7, 24, 8), (9, 3, 64, 64), (2, 1, 112, 30)]
            .into_iter()
            .enumerate()
    {
        for (window, qk_norm) in [(None, true), (Some(1), false), (Some(70), true)] {
            let case = Case {
                seed: seed as u64,
                heads,
                kv_heads,
                head_dim,
                rotated,
                window,
                qk_norm,
                bias: !qk_norm,
                batches: vec![vec![60, 1], vec![9, 130], vec![1, 1]],
                ..Case::default()
            };
            check_sound(&case);
            check_sound(&Case { profile: Profile::F32, format: Format::Bf16, ..case });
        }
    }
}

#[test]
fn no_rows_at_all() {
    check_sound(&Case { batches: vec![vec![2], vec![0], vec![1]], ..Case::default() });
}

#[test]
fn many_sessions() {
    let batches = vec![(1..=33).collect(), vec![1; 33], (0..33).map(|i| i % 5).collect()];
    check_sound(&Case { hidden: 96, head_dim: 32, rotated: 32, batches, ..Case::default() });
}

#[test]
fn long_and_wide() {
    let case = Case {
        hidden: 1000,
        heads: 8,
        kv_heads: 2,
        head_dim: 64,
        rotated: 64,
        intermediate: 1500,
        vocabulary: 3001,
        qk_norm: true,
        batches: vec![vec![150], vec![1]],
        ..Case::default()
    };
    for format in [Format::Q8, Format::Q4] {
        check_sound(&Case { format, ..case.clone() });
    }
}

/// The mixtures of published files: super-blocks of both kinds, and beside groups of 32.
#[test]
fn mixed_formats() {
    let mut rng = Rng(77);
    for (seed, (format, second)) in [
        (Format::Q4K, None),
        (Format::Q6K, None),
        (Format::Q4K, Some(Format::Q6K)),
        (Format::Q6K, Some(Format::Q8)),
        (Format::Q4, Some(Format::Q6K)),
        (Format::Bf16, Some(Format::Q4K)),
    ]
    .into_iter()
    .enumerate()
    {
        for flavour in [Flavour::Plain, Flavour::Wide, Flavour::Tiny] {
            let case = Case {
                seed: seed as u64,
                flavour,
                format,
                second,
                hidden: 256 * (1 + rng.below(2)),
                heads: 4,
                kv_heads: 2,
                head_dim: 64,
                rotated: 64,
                intermediate: 256 * (1 + rng.below(3)),
                vocabulary: 1 + rng.below(100),
                bias: rng.below(2) == 0,
                qk_norm: rng.below(2) == 0,
                batches: vec![vec![1, 1 + rng.below(20)], vec![1 + rng.below(9), 1]],
                ..Case::default()
            };
            check(&case);
        }
    }
}

#[test]
fn random_shapes() {
    let mut rng = Rng(2026);
    for seed in 0..24 {
        let kv_heads = 1 + rng.below(3);
        let head_dim = 2 * (1 + rng.below(40));
        let profile = [Profile::Quantised, Profile::F32][rng.below(2)];
        let formats = if profile == Profile::F32 { 2..4 } else { 0..4 };
        let sessions = 1 + rng.below(5);
        let case = Case {
            seed,
            flavour: [Flavour::Plain, Flavour::Wide, Flavour::Tiny][rng.below(3)],
            profile,
            format: Format::ALL[formats.start + rng.below(formats.len())],
            hidden: 1 + rng.below(300),
            heads: kv_heads * (1 + rng.below(5)),
            kv_heads,
            head_dim,
            rotated: 2 * (1 + rng.below(head_dim / 2)),
            intermediate: 1 + rng.below(300),
            vocabulary: 1 + rng.below(200),
            window: (rng.below(2) == 0).then(|| 1 + rng.below(100) as u32),
            bias: rng.below(2) == 0,
            qk_norm: rng.below(2) == 0,
            poison: None,
            second: None,
            batches: (0..2).map(|_| (0..sessions).map(|_| 1 + rng.below(33)).collect()).collect(),
        };
        check(&case);
    }
}
