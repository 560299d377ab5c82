//! Operations of a layer by their numbers.
#![expect(missing_docs, reason = "the table in docs/disputes.md says what each is")]

pub const NORMED: u32 = 3;
pub const INPUT_SCALES: u32 = 4;
pub const Q: u32 = 6;
pub const K: u32 = 7;
pub const V: u32 = 8;
pub const Q_SQUARES: u32 = 9;
pub const K_SQUARES: u32 = 13;
pub const QUERY: u32 = 17;
pub const KEY: u32 = 18;
pub const VALUE: u32 = 19;
pub const COLUMNS: u32 = 20;
pub const SCORES: u32 = 21;
pub const MAXIMA: u32 = 22;
pub const WEIGHTS: u32 = 23;
pub const SUMS: u32 = 24;
pub const OUTPUTS: u32 = 25;
pub const PEAKS: u32 = 26;
pub const TOTALS: u32 = 27;
pub const FOLDED: u32 = 28;
pub const ATTENDED: u32 = 29;
pub const ATTENDED_SCALES: u32 = 30;
pub const O: u32 = 32;
pub const RESIDUAL: u32 = 33;
pub const MLP_SQUARES: u32 = 34;
pub const MLP_NORMED: u32 = 37;
pub const MLP_SCALES: u32 = 38;
pub const GATE: u32 = 40;
pub const UP: u32 = 41;
pub const GATED: u32 = 42;
pub const GATED_SCALES: u32 = 43;
pub const DOWN: u32 = 45;
pub const OUT: u32 = 46;

/// Names of the operations of a layer, for people.
pub const NAMES: [&str; super::OPERATIONS as usize] = [
    "attention norm: squares",
    "attention norm: tree",
    "attention norm: rms",
    "attention norm",
    "scales",
    "quants",
    "q",
    "k",
    "v",
    "query norm: squares",
    "query norm: tree",
    "query norm: rms",
    "query norm",
    "key norm: squares",
    "key norm: tree",
    "key norm: rms",
    "key norm",
    "query",
    "key",
    "value",
    "columns",
    "scores",
    "maxima",
    "weights",
    "sums",
    "outputs",
    "peaks",
    "totals",
    "folded",
    "attended",
    "attended: scales",
    "attended: quants",
    "o",
    "residual",
    "mlp norm: squares",
    "mlp norm: tree",
    "mlp norm: rms",
    "mlp norm",
    "mlp: scales",
    "mlp: quants",
    "gate",
    "up",
    "gated",
    "gated: scales",
    "gated: quants",
    "down",
    "out",
];
