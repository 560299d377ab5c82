//! Traces against the stages that send rows, and whole disputes.

use std::sync::LazyLock;

use kernels::{backend::Profile, reference::Reference};

mod court;
mod mixed;
mod vectors;

use super::*;
use crate::{
    audit::trace::{
        cheat::Cheat,
        gap::{self, gap},
    },
    local::{StageBudget, load_stage},
    message::{RouteId, Segment, SessionId, encode_rows},
    model::{ModelHash, Shard, tests::golden},
    stage::{Input, Prompt},
};
use court::Case;

pub(super) const Q8: Quantisation = Quantisation::Q8;

pub(in crate::audit) fn open(name: &str) -> Model {
    Model::open(&golden(name)).expect("opens")
}

pub(in crate::audit) fn tokens(count: u32, vocabulary: usize) -> Vec<u32> {
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

/// The same of a model whose formats are mixed within layers.
#[test]
fn so_it_is_where_formats_are_mixed() {
    let mixed = mixed::open();
    let model = &mixed.model;
    let mut entered = Entered::Tokens(tokens(5, model.config().vocabulary));
    for layers in [0..1, 1..2] {
        let rows = sent(model, Q8, layers.clone(), &entered);
        let mut trace = Trace::new(model, Q8, layers.clone(), entered.clone()).expect("a trace");
        for (position, row) in rows.iter().enumerate() {
            let out = trace.row(1, op::OUT, position as u32).expect("a row");
            assert_eq!(&travelling(out), row, "layers {layers:?} position {position}");
        }
        entered = Entered::Rows(rows);
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

pub(in crate::audit) fn cheating<'a>(
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
        wide in proptest::prelude::any::<bool>(),
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
        proptest::prop_assert_eq!(dims.wire(operation, position, width, wide).kind, Kind::Zero);
        proptest::prop_assume!(width > 0);
        let word = at[1].index(width as usize) as u32;
        for part in dims.wire(operation, position, word, wide).parts {
            match part {
                Part::Words { operation: from, position: row, from: first, count } => {
                    proptest::prop_assert!((1..=256).contains(&count) && row <= position);
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

/// A model, its hash, and what enters its layers from `from` on.
fn world(name: &str, positions: u32, from: usize) -> (&'static Model, &'static ModelHash, Entered) {
    let model: &'static Model = Box::leak(Box::new(open(name)));
    let (hash, entered) = world_of(model, positions, from);
    (model, Box::leak(Box::new(hash)), entered)
}

/// A model's hash, and what enters its layers from `from` on.
fn world_of(model: &Model, positions: u32, from: usize) -> (ModelHash, Entered) {
    let hash = model.hash(Q8, &|_| ()).expect("hashes");
    let first = Entered::Tokens(tokens(positions, model.config().vocabulary));
    let entered = match from {
        0 => first,
        from => Entered::Rows(sent(model, Q8, 0..from, &first)),
    };
    (hash, entered)
}

/// A liar loses at the word where its trace first goes wrong, whatever it did: and a false accuser loses, too.
#[test]
fn both_liars_lose() {
    let (model, hash, entered) = world("llama", 3, 0);
    let case = Case { model, hash, layers: 0..2, entered };
    let at = |slot, operation, position, word| Place { slot, operation, position, word };
    let mut vectors = Vec::new();
    let mut played = |name: &str, cheat: Cheat| {
        let liar = case.play(&mut case.side(Some(cheat)), &mut case.side(None));
        assert!(!liar.accused_won, "{name}");
        vectors.push(case.vector(name, &liar));
        liar.place
    };
    let quants = at(1, op::Q, 2, 40);
    assert_eq!(played("a flipped word of a product", flip(quants)), quants);
    let score = at(2, op::SCORES, 1, 3);
    assert_eq!(played("a flipped score", flip(score)), score);
    let entered = at(0, 0, 1, 9);
    assert_eq!(played("another embedding", flip(entered)), entered);
    let skipped = played("a layer left out", Cheat::Skip { slot: 1 });
    assert_eq!((skipped.slot, skipped.operation), (1, op::OUT));
    let stray = Cheat::Longer { slot: 1, operation: 2, position: 0, words: 300 };
    assert_eq!(played("pieces after the last", stray), at(1, 2, 0, 128));
    let filling = at(1, op::RESIDUAL, 1, 96);
    assert_eq!(played("a word after the last", flip(filling)), filling);
    let missing = Cheat::Missing { slot: 2, operation: op::OUT, position: 2 };
    assert_eq!(played("a row that is missing", missing), at(2, op::OUT, 2, 0));

    let accuser = case.play(&mut case.side(None), &mut case.side(Some(flip(quants))));
    assert!(accuser.accused_won);
    assert_eq!(accuser.place, quants);
    vectors.push(case.vector("a false accusation", &accuser));

    // The trace is right, and the rows that were signed are others.
    let honest = case.side(None);
    let mut rows = honest.rows().to_vec();
    rows[1][77] ^= 1;
    let mut accused = case.with(case.trace(None), rows);
    let rows = case.play(&mut accused, &mut case.side(None));
    assert!(!rows.accused_won);
    assert_eq!(rows.place, at(2, op::OUT, 1, 38));
    vectors.push(case.vector("rows that were not computed", &rows));

    vectors.extend(disputes_over_super_blocks());
    vectors::check("disputes.json", &serde_json::Value::Array(vectors));
}

/// Of a layer whose matrices have all formats.
fn disputes_over_super_blocks() -> Vec<serde_json::Value> {
    let mixed = mixed::open();
    let (hash, entered) = world_of(&mixed.model, 2, 1);
    let case = Case { model: &mixed.model, hash: &hash, layers: 1..2, entered };
    let at = |operation, word| Place { slot: 1, operation, position: 1, word };
    let places = [
        ("a flipped word of a q4_k product", at(op::GATE, 300)),
        ("a flipped word of a q6_k product", at(op::DOWN, 301)),
        ("a flipped scale of 256 values", at(op::GATED_SCALES, 17)),
        ("a false accusation over a q6_k product", at(op::V, 77)),
    ];
    let played = places.into_iter().map(|(name, place)| {
        let is_false = name.starts_with("a false");
        let (accused, accuser) = if is_false { (None, Some(flip(place))) } else { (Some(flip(place)), None) };
        let played = case.play(&mut case.side(accused), &mut case.side(accuser));
        assert_eq!((played.accused_won, played.place), (is_false, place), "{name}");
        case.vector(name, &played)
    });
    played.collect()
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(12))]

    /// Whichever word is flipped, it is the one that decides.
    #[test]
    fn any_flipped_word_is_found(
        operation in 0..OPERATIONS,
        position in 0_u32..2,
        word in proptest::prelude::any::<proptest::sample::Index>(),
    ) {
        static WORLD: LazyLock<(&Model, &ModelHash, Entered)> = LazyLock::new(|| world("qwen2", 2, 1));
        let (model, hash, entered) = WORLD.clone();
        let case = Case { model, hash, layers: 1..2, entered };
        let width = case.trace(None).row(1, operation, position).expect("a row").len();
        proptest::prop_assume!(width > 0);
        let place = Place { slot: 1, operation, position, word: word.index(width) as u32 };
        let played = case.play(&mut case.side(Some(flip(place))), &mut case.side(None));
        proptest::prop_assert!(!played.accused_won);
        proptest::prop_assert_eq!(played.place, place);
    }
}

/// The weights of another layer, rows that came in, tokens beside the rows that went out, a row of more pieces.
#[test]
fn other_weights_lose() {
    let (model, hash, entered) = world("llama3", 2, 1);
    let case = Case { model, hash, layers: 1..2, entered };
    let cheat = Cheat::Weights { layer: 1, other: 2 };
    let liar = case.play(&mut case.side(Some(cheat)), &mut case.side(None));
    assert!(!liar.accused_won);
    assert_eq!((liar.place.slot, liar.place.operation), (1, op::NORMED));
    let into = Place { slot: 0, operation: 0, position: 1, word: 100 };
    let liar = case.play(&mut case.side(Some(flip(into))), &mut case.side(None));
    assert!(!liar.accused_won);
    assert_eq!(liar.place, into);
    let mut rows = case.side(None).rows().to_vec();
    rows[0][3] ^= 4;
    let mut accused = case.with(case.trace(None), rows);
    let liar = case.play(&mut accused, &mut case.side(None));
    assert!(!liar.accused_won);
}

/// The first and the last word of every tensor that there is, judged from what is opened.
#[test]
fn every_operation_is_judged() {
    let (model, hash, entered) = world("qwen3", 67, 1);
    let case = Case { model, hash, layers: 1..2, entered };
    let mut side = case.side(None);
    let mut places = vec![Place { slot: 0, operation: 0, position: 66, word: 5 }];
    for operation in 0..OPERATIONS {
        let width = side.trace().row(1, operation, 66).expect("a row").len() as u32;
        if width > 0 {
            let place = |word| Place { slot: 1, operation, position: 66, word };
            let mut some: Vec<Place> = [0, width - 1].map(place).into();
            some.dedup();
            places.extend(some);
        }
    }
    for place in &places {
        case.cell(&mut side, *place);
    }
    vectors::check("cells.json", &case.cells(&mut side, &last_of_each(places)));
}

/// Words of each operation, the last, which follows from most.
fn last_of_each(places: Vec<Place>) -> Vec<Place> {
    let mut last: Vec<Place> = Vec::new();
    for place in places {
        match last.last_mut() {
            Some(before) if (before.slot, before.operation) == (place.slot, place.operation) => {
                *before = place
            }
            _ => last.push(place),
        }
    }
    last
}

/// Words of both groupings of activations, of products in every format, and of an embedding in super-blocks.
#[test]
fn every_format_is_judged() {
    let mixed = mixed::open();
    let (hash, entered) = world_of(&mixed.model, 2, 0);
    let case = Case { model: &mixed.model, hash: &hash, layers: 0..2, entered };
    let mut side = case.side(None);
    let mut places = vec![Place { slot: 0, operation: 0, position: 1, word: 5 }];
    let quantised = [op::INPUT_SCALES, op::ATTENDED_SCALES, op::MLP_SCALES, op::GATED_SCALES];
    let products = [op::Q, op::K, op::V, op::O, op::GATE, op::UP, op::DOWN];
    for operation in quantised.into_iter().flat_map(|scales| [scales, scales + 1]).chain(products) {
        let width = side.trace().row(2, operation, 1).expect("a row").len() as u32;
        places.extend([0, width / 2, width - 1].map(|word| Place { slot: 2, operation, position: 1, word }));
    }
    vectors::check("formats.json", &case.cells(&mut side, &places));
}

/// Of weights in super-blocks there is a trace, of the values that they decode to none, nor of no layers.
#[test]
fn what_has_no_trace_is_shown() {
    let mixed = mixed::open();
    let shown = |quantisation, layers| {
        let hash = mixed.model.hash(quantisation, &|_| ()).expect("hashes");
        gap(&mixed.model, &hash, &gap::Part { quantisation, layers, to: 9 }).expect("reads")
    };
    assert_eq!(shown(Q8, 0..2), None);
    assert_eq!(shown(Quantisation::F32, 1..2).map(|gap| gap.index), Some(2));
    assert!(shown(Q8, 2..2).is_some());
}
