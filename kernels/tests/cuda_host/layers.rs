//! Every operation on a card, against the scalar reference.

use kernels::{backend::Profile, cuda::Cuda, reference::Reference, tensor::Format};
use stand_in_driver::StandIn;

use crate::{
    case::Case,
    rng::Flavour,
    trace::{assert_equal, trace},
};

/// Compares on a Turing card and on a later one.
fn check(case: &Case) {
    let expected = trace(&Reference, case);
    for card in ["7.5", "8.9"] {
        let stand_in = StandIn::fresh(&format!("cards={card}; races"));
        let cuda = Cuda::open(0).expect("there is a card");
        assert_equal(card, case, &expected, &trace(&cuda, case));
        drop(cuda);
        assert_eq!(stand_in.alive(), stand_in_driver::Alive::default(), "everything was given back");
    }
}

#[test]
fn every_format() {
    for (format, second, profile) in [
        (Format::Q8, None, Profile::Quantised),
        (Format::Q4, Some(Format::Q8), Profile::Quantised),
        (Format::Q4K, Some(Format::Q6K), Profile::Quantised),
        (Format::Q6K, Some(Format::Q4), Profile::Quantised),
        (Format::Bf16, None, Profile::Quantised),
        (Format::F32, Some(Format::Bf16), Profile::F32),
    ] {
        check(&Case {
            profile,
            format,
            second,
            hidden: 256,
            heads: 4,
            kv_heads: 2,
            head_dim: 64,
            rotated: 64,
            intermediate: 512,
            bias: format == Format::Q8,
            qk_norm: format == Format::Q4K,
            batches: vec![vec![3, 1], vec![1, 2], vec![1, 1]],
            ..Case::default()
        });
    }
}

#[test]
fn odd_shapes() {
    let case = Case {
        hidden: 70,
        heads: 6,
        kv_heads: 3,
        head_dim: 14,
        rotated: 10,
        intermediate: 41,
        vocabulary: 33,
        window: Some(9),
        bias: true,
        qk_norm: true,
        batches: vec![vec![30, 1, 2], vec![0, 1, 40], vec![], vec![1, 1, 1]],
        ..Case::default()
    };
    for format in [Format::Q8, Format::Q4] {
        check(&Case { format, ..case.clone() });
    }
}

/// More rows than a tile, sessions of several pages, and rows that share them.
#[test]
fn long_prompts() {
    check(&Case { batches: vec![vec![150], vec![5, 70], vec![1, 1]], ..Case::default() });
}

#[test]
fn faults() {
    for (value, flavour) in
        [(f32::NAN, Flavour::Plain), (f32::MAX, Flavour::Plain), (1.0, Flavour::Wide), (1.0, Flavour::Tiny)]
    {
        let poison = Some((1, value));
        check(&Case { flavour, poison, batches: vec![vec![3, 5, 2], vec![1, 1, 1]], ..Case::default() });
    }
}
