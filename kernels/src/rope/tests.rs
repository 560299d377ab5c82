use super::*;

fn spec(theta: f64, dimensions: usize, scaling: RopeScaling) -> RopeSpec {
    RopeSpec { theta, dimensions, scaling }
}

fn rates(spec: &RopeSpec) -> Vec<f64> {
    frequencies(spec).unwrap().0
}

fn near(actual: f64, expected: f64) {
    assert!((actual - expected).abs() <= 1e-6 * expected.abs(), "{actual} is not {expected}");
}

#[test]
fn default_table_is_the_unit_circle() {
    let table = RopeTable::new(&spec(10000.0, 8, RopeScaling::Default), 5).unwrap();
    assert_eq!(table.at(0), (&[1.0; 4][..], &[0.0; 4][..]));
    let (cos, sin) = table.at(3);
    for (pair, rate) in [1.0, 0.1, 0.01, 0.001].into_iter().enumerate() {
        near(f64::from(cos[pair]), f64::cos(3.0 * rate));
        near(f64::from(sin[pair]), f64::sin(3.0 * rate));
    }
}

#[test]
fn linear_and_divisors_divide() {
    for scaling in [RopeScaling::Linear { factor: 4.0 }, RopeScaling::Divisors(vec![4.0; 4])] {
        let rates = rates(&spec(10000.0, 8, scaling));
        near(rates[0], 0.25);
        near(rates[3], 0.00025);
    }
}

/// Values printed by an independent evaluation of the published formula for Llama 3.1 8B.
#[test]
fn llama3_keeps_high_and_divides_low_frequencies() {
    let scaling = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_positions: 8192,
    };
    let plain = rates(&spec(500000.0, 128, RopeScaling::Default));
    let scaled = rates(&spec(500000.0, 128, scaling));
    near(scaled[0], 1.0);
    near(scaled[20], plain[20]);
    near(scaled[63], plain[63] / 8.0);
    let wavelength = 2.0 * std::f64::consts::PI / plain[32];
    let smooth = (8192.0 / wavelength - 1.0) / 3.0;
    assert!(smooth > 0.0 && smooth < 1.0);
    near(scaled[32], (1.0 - smooth) * plain[32] / 8.0 + smooth * plain[32]);
}

#[test]
fn yarn_ramps_between_its_bounds() {
    let scaling = |truncate, attention_factor| RopeScaling::Yarn {
        factor: 4.0,
        original_max_positions: 32768,
        beta_fast: 32.0,
        beta_slow: 1.0,
        attention_factor,
        truncate,
    };
    let plain = rates(&spec(1e6, 128, RopeScaling::Default));
    let (scaled, attention) = frequencies(&spec(1e6, 128, scaling(true, None))).unwrap();
    near(attention, 0.1 * 4f64.ln() + 1.0);
    // 64 ln(32768 / 64 pi) / ln(1e6) = 23.6 and 64 ln(32768 / 2 pi) / ln(1e6) = 39.65.
    near(scaled[23], plain[23]);
    near(scaled[40], plain[40] / 4.0);
    let ramp = (30.0 - 23.0) / (40.0 - 23.0);
    near(scaled[30], plain[30] / 4.0 * ramp + plain[30] * (1.0 - ramp));
    let (exact, attention) = frequencies(&spec(1e6, 128, scaling(false, Some(1.5)))).unwrap();
    near(attention, 1.5);
    assert_ne!(exact[30], scaled[30]);
    let table = RopeTable::new(&spec(1e6, 128, scaling(false, Some(1.5))), 1).unwrap();
    assert_eq!(table.at(0).0, [1.5; 64]);
}

#[test]
fn parameters_out_of_range_are_refused() {
    let llama3 = |factor, low_freq_factor, high_freq_factor, original_max_positions| RopeScaling::Llama3 {
        factor,
        low_freq_factor,
        high_freq_factor,
        original_max_positions,
    };
    let yarn = |factor, original_max_positions, beta_fast, attention_factor| RopeScaling::Yarn {
        factor,
        original_max_positions,
        beta_fast,
        beta_slow: 1.0,
        attention_factor,
        truncate: true,
    };
    let bad = [
        spec(0.0, 8, RopeScaling::Default),
        spec(-1.0, 8, RopeScaling::Default),
        spec(f64::NAN, 8, RopeScaling::Default),
        spec(1e-320, 64, RopeScaling::Default),
        spec(1e4, 7, RopeScaling::Default),
        spec(1e4, 0, RopeScaling::Default),
        spec(1e4, usize::MAX - 1, RopeScaling::Default),
        spec(1e4, 8, RopeScaling::Linear { factor: 0.0 }),
        spec(1e4, 8, RopeScaling::Linear { factor: f64::INFINITY }),
        spec(1e4, 8, RopeScaling::Linear { factor: 1e-300 }),
        spec(1e4, 8, RopeScaling::Divisors(vec![1.0; 3])),
        spec(1e4, 8, RopeScaling::Divisors(vec![1.0, 1.0, 1.0, 0.0])),
        spec(1e4, 8, llama3(-8.0, 1.0, 4.0, 8192)),
        spec(1e4, 8, llama3(8.0, 4.0, 4.0, 8192)),
        spec(1e4, 8, llama3(8.0, 1.0, 4.0, 0)),
        spec(1.0, 8, yarn(4.0, 4096, 32.0, None)),
        spec(1e4, 8, yarn(f64::NAN, 4096, 32.0, None)),
        spec(1e4, 8, yarn(4.0, 0, 32.0, None)),
        spec(1e4, 8, yarn(4.0, 4096, 0.0, None)),
        spec(1e4, 8, yarn(4.0, 4096, 32.0, Some(0.0))),
        spec(1e4, 8, yarn(4.0, 4096, 32.0, Some(1e39))),
    ];
    for spec in bad {
        assert!(RopeTable::new(&spec, 4).is_err(), "{spec:?}");
    }
    let good = spec(1e4, 8, RopeScaling::Default);
    assert!(RopeTable::new(&good, 0).is_err());
    assert!(RopeTable::new(&good, usize::MAX).is_err());
    assert!(RopeTable::new(&good, 1 << 27).is_err());
}
