//! Traces against the stages that send rows, and whole disputes.

use kernels::{backend::Profile, reference::Reference};

use super::*;
use crate::{
    audit::trace::cheat::Cheat,
    local::{StageBudget, load_stage},
    message::{RouteId, Segment, SessionId, encode_rows},
    model::{Shard, tests::golden},
    stage::{Input, Prompt},
};

pub(super) const Q8: Quantisation = Quantisation::Q8;

pub(super) fn open(name: &str) -> Model {
    Model::open(&golden(name)).expect("opens")
}

pub(super) fn tokens(count: u32, vocabulary: usize) -> Vec<u32> {
    (0..count).map(|n| (n * 37 + n * n * 11 + 5) % vocabulary as u32).collect()
}

/// The rows that a stage sends, as they travel.
pub(super) fn sent(
    model: &Model,
    quantisation: Quantisation,
    layers: Range<usize>,
    entered: &Entered,
) -> Vec<Vec<u8>> {
    let embedding = matches!(entered, Entered::Tokens(_));
    let shard = Shard { layers: layers.clone(), embedding, head: false };
    let budget = StageBudget { rows: 256, chunk: 256, sessions: 1, context: 256, kv_bytes: u64::MAX };
    let mut stage = load_stage(model, &shard, quantisation, &budget, Reference, &|_| ()).expect("loads");
    let (session, to) = (SessionId(1), entered.positions());
    stage.open(session, RouteId(1), to, Prompt::default()).expect("opens");
    let segments = [Segment { session, from: 0, rows: to, drawn: Vec::new(), drafted: 0 }];
    stage.reserve(&segments, &mut Vec::new());
    let values: Vec<f32>;
    let input = match entered {
        Entered::Tokens(tokens) => Input::Tokens(tokens),
        Entered::Rows(rows) => {
            let elements = |row: &Vec<u8>| -> Vec<f32> {
                (0..row.len() as u32 / 2).map(|i| f32::from_bits(element(row, i))).collect()
            };
            values = rows.iter().flat_map(elements).collect();
            Input::Rows(&values)
        }
    };
    let (mut faults, mut rows) = (Vec::new(), Vec::new());
    stage.step(layers, &segments, input, &mut faults).expect("computes");
    assert!(faults.is_empty());
    stage.read_rows(0..to as usize, &mut rows).expect("reads");
    let bytes = encode_rows(&rows, Profile::Quantised);
    bytes.chunks(2 * model.config().hidden).map(<[u8]>::to_vec).collect()
}

/// The last tensor has the rows that the stage sends: families, biases, head norms, windows, both formats, more
/// than a block of positions, and both kinds of input.
#[test]
fn the_last_tensor_is_what_a_stage_sends() {
    for (name, quantisation, positions) in [
        ("llama", Q8, 70),
        ("mistral", Q8, 70),
        ("qwen2", Quantisation::Q4, 5),
        ("qwen3", Q8, 5),
        ("llama3", Quantisation::Q4, 3),
        ("stories260K", Q8, 3),
    ] {
        let model = open(name);
        let first = Entered::Tokens(tokens(positions, model.config().vocabulary));
        let mut entered = first.clone();
        for layers in [0..1, 1..2] {
            let rows = sent(&model, quantisation, layers.clone(), &entered);
            let mut trace =
                Trace::new(&model, quantisation, layers.clone(), entered.clone()).expect("a trace");
            for (position, row) in rows.iter().enumerate() {
                let out = trace.row(1, op::OUT, position as u32).expect("a row");
                assert_eq!(&travelling(out), row, "{name} layers {layers:?} position {position}");
            }
            entered = Entered::Rows(rows);
        }
    }
}

#[test]
fn nothing_differs_from_itself_and_a_flipped_bit_is_named() {
    let model = open("qwen3");
    let entered = Entered::Tokens(tokens(4, model.config().vocabulary));
    let honest = || Trace::new(&model, Q8, 0..2, entered.clone()).expect("a trace");
    let (mut a, mut b) = (honest(), honest());
    assert_eq!(a.root().expect("a root"), b.root().expect("a root"));
    assert_eq!(a.diff(&mut b).expect("compares"), None);
    let place = Place { slot: 2, operation: op::GATED, position: 3, word: 17 };
    let mut wrong = cheating(&model, 0..2, entered.clone(), flip(place));
    assert_ne!(a.root().expect("a root"), wrong.root().expect("a root"));
    let found = a.diff(&mut wrong).expect("compares").expect("a difference");
    assert_eq!((found.layer, found.operation, found.place), (Some(1), "gated", place));
}

pub(super) fn flip(Place { slot, operation, position, word }: Place) -> Cheat {
    Cheat::Flip { slot, operation, position, word, bits: 1 << 13 }
}

pub(super) fn cheating<'a>(
    model: &'a Model,
    layers: Range<usize>,
    entered: Entered,
    cheat: Cheat,
) -> Trace<'a> {
    let mut trace = Trace::begin(model, Q8, layers, entered).expect("begins");
    trace.cheat = Some(cheat);
    trace.run().expect("a trace")
}

proptest::proptest! {
    /// A word follows from earlier ones alone, whatever the shape, and from words that are there.
    #[test]
    fn words_follow_from_earlier_words(
        widths in (1_u32..700, 1_u32..700, 1_u32..4, 1_u32..3, 1_u32..200),
        flags in proptest::prelude::any::<[bool; 4]>(),
        window in proptest::option::of(1_u32..150),
        position in 0_u32..300,
        at in proptest::prelude::any::<[proptest::sample::Index; 2]>(),
    ) {
        let (hidden, intermediate, kv_heads, share, pairs) = widths;
        let [qkv_bias, output_bias, mlp_bias, qk_norm] = flags;
        let (heads, head_dim) = (kv_heads * share, 2 * pairs);
        let dims = Dims {
            hidden, intermediate, heads, kv_heads, head_dim, eps: 1, scale: 2, window,
            qkv_bias, output_bias, mlp_bias, qk_norm,
        };
        let operation = at[0].index(OPERATIONS as usize) as u32;
        let width = dims.width(operation, position);
        proptest::prop_assert_eq!(dims.wire(operation, position, width).kind, Kind::Zero);
        proptest::prop_assume!(width > 0);
        let word = at[1].index(width as usize) as u32;
        for part in dims.wire(operation, position, word).parts {
            match part {
                Part::Words { operation: from, position: row, from: first, count } => {
                    proptest::prop_assert!((1..=64).contains(&count) && row <= position);
                    proptest::prop_assert!(first + count <= dims.width(from, row));
                    let last = (from, row, first + count - 1);
                    proptest::prop_assert!(last < (operation, position, word));
                }
                Part::Before(word) => proptest::prop_assert!(word < hidden),
                Part::Vector(tensor, _) => proptest::prop_assert!((1..=20).contains(&tensor)),
                Part::Rotation(pair) => proptest::prop_assert!(pair < pairs),
            }
        }
    }
}
