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
