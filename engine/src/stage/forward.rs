//! The forward pass of a stage. It reads like the transformer it runs; what a family adds or leaves
//! out is in the weights (biases, head norms) and shapes (windows), not in the code.

use std::ops::Range;

use kernels::backend::{Backend, BackendError, Batch, Faults, Pass, Question, Row, Then};

use super::{Drawing, Fault, Input, Layer, Stage, Workspace};
use crate::message::Segment;

impl<B: Backend> Stage<B> {
    /// Runs a checked and placed batch.
    pub(super) fn forward(
        &mut self,
        layers: Range<usize>,
        segments: &[Segment],
        input: Input<'_>,
        faults: &mut Vec<Fault>,
    ) -> Result<(), BackendError> {
        faults.clear();
        let Self { backend, config, shard, rope, layers: held, embedding, kv, workspace, .. } = self;
        let Workspace { step, hidden, normed, query, attended, gated, rows, pages, .. } = workspace;
        let sources = if let Input::Tokens(tokens) = input { tokens } else { &[] };
        backend.begin(step, Batch { rows, pages, sources });
        if let Input::Rows(values) = input {
            backend.upload(values, hidden);
        }
        let table = embedding.as_ref().filter(|_| matches!(input, Input::Tokens(_)));
        let pass = Pass::Layers { layers: layers.clone(), embedding: table.is_some() };
        let first = shard.layers.start;
        backend.run(step, pass, |step| {
            if let Some(table) = table {
                backend.embed(table, config.embedding_scale, step, hidden);
            }
            if let Some(layer) = layers.clone().next() {
                backend.enter(step, layer);
                backend.norm(&held[layer - first].attention_norm, hidden, step, normed);
            }
            for layer in layers.clone() {
                let index = layer - first;
                let Layer { shape, qkv, output, mlp_norm, gate_up, down, .. } = &held[index];
                backend.enter(step, layer);
                backend.qkv(qkv, shape, rope, normed, index, step, query, kv);
                backend.attention(shape, query, kv, index, step, attended);
                backend.project(output, attended, step, hidden, Then::Norm(mlp_norm, normed));
                backend.gate_up(gate_up, normed, step, gated);
                let next = (layer + 1 < layers.end).then(|| &held[index + 1].attention_norm);
                let then = next.map_or(Then::End, |norm| Then::Next(norm, normed));
                backend.project(down, gated, step, hidden, then);
            }
        });
        collect(backend.end(step)?, 0..rows.len() as u32, segments, faults);
        // Of each segment the fault at the lowest position stands. That one does not depend on the rows that
        // came along, because no row sees a later one.
        faults.dedup_by_key(|fault| fault.segment);
        Ok(())
    }

    /// Logits of the listed rows of the last step, one row after another in `out`
    /// (`[rows.len()][vocabulary]`), at most [`Stage::draw_rows`] of them. Only a stage with a head has any.
    ///
    /// # Errors
    /// If the device failed.
    pub fn logits(
        &mut self,
        segments: &[Segment],
        rows: &[u32],
        out: &mut Vec<f32>,
        faults: &mut Vec<Fault>,
    ) -> Result<(), BackendError> {
        self.drawing_pass(rows, None);
        let Self { backend, config, workspace, .. } = self;
        let Some(drawing) = &mut workspace.drawing else { return Ok(()) };
        collect(backend.end(&mut drawing.step)?, rows.iter().copied(), segments, faults);
        out.resize(rows.len() * config.vocabulary, 0.0);
        backend.download(&drawing.logits, 0..rows.len(), out)
    }

    /// Whether the device draws tokens: if it does not, [`Stage::logits`] is there.
    pub fn draws(&self) -> bool {
        self.backend.draws()
    }

    /// Draws from the logits of the listed rows of the last step, one token for each question, on a device that
    /// [draws](Stage::draws). The token of a faulty row means nothing.
    ///
    /// # Errors
    /// If the device failed.
    pub fn draw(
        &mut self,
        segments: &[Segment],
        rows: &[u32],
        questions: &[Question],
        tokens: &mut Vec<u32>,
        faults: &mut Vec<Fault>,
    ) -> Result<(), BackendError> {
        self.drawing_pass(rows, Some(questions));
        let Self { backend, workspace, .. } = self;
        let Some(drawing) = &mut workspace.drawing else { return Ok(()) };
        collect(backend.end(&mut drawing.step)?, rows.iter().copied(), segments, faults);
        backend.drawn(&mut drawing.step, tokens)
    }

    /// Begins a pass of the head over the listed rows, and the draws from it.
    fn drawing_pass(&mut self, rows: &[u32], questions: Option<&[Question]>) {
        let Self { backend, config, head, workspace, .. } = self;
        let (Some(head), Some(drawing)) = (head, &mut workspace.drawing) else { return };
        let Drawing { step, hidden, normed, logits, rows: drawn } = drawing;
        drawn.clear();
        drawn.extend(rows.iter().map(|&row| Row { pages: 0..0, ..workspace.rows[row as usize] }));
        backend.begin(step, Batch { rows: drawn, pages: &[], sources: rows });
        backend.enter(step, config.layers);
        backend.run(step, Pass::Head, |step| {
            backend.gather(&workspace.hidden, step, hidden);
            backend.norm(&head.norm, hidden, step, normed);
            backend.logits(&head.weight, normed, step, logits);
        });
        if let Some(questions) = questions {
            backend.draw(logits, step, questions);
        }
    }
}

/// Moves what the device recorded of `rows` to the sessions it belongs to.
fn collect(
    recorded: &Faults,
    rows: impl Iterator<Item = u32>,
    segments: &[Segment],
    faults: &mut Vec<Fault>,
) {
    if !recorded.any() {
        return;
    }
    for (index, row) in rows.enumerate() {
        let Some(fault) = recorded.of(index) else { continue };
        let (segment, position) = locate(segments, row as usize);
        faults.push(Fault { segment, position, layer: fault.layer, operation: fault.operation.into() });
    }
}

/// Segment and position of a row of the batch.
fn locate(segments: &[Segment], row: usize) -> (usize, u32) {
    let mut first = 0;
    for (index, segment) in segments.iter().enumerate() {
        let next = first + segment.rows as usize;
        if row < next {
            return (index, segment.from + (row - first) as u32);
        }
        first = next;
    }
    unreachable!("row {row} is past the {first} rows of the batch")
}

#[cfg(test)]
mod tests {
    use kernels::backend::Operation;

    use super::*;
    use crate::message::{FaultOperation, SessionId};

    #[test]
    fn faults_are_of_their_sessions() {
        let segment = |session, from, rows| Segment {
            session: SessionId(session),
            from,
            rows,
            drawn: Vec::new(),
            drafted: 0,
        };
        let segments = [segment(1, 60, 3), segment(2, 0, 0), segment(3, 5, 2)];
        let mut recorded = Faults::default();
        recorded.reset(5);
        recorded.record(2, 2, Operation::LayerOutput);
        recorded.record(1, 3, Operation::Quantise);
        recorded.record(1, 4, Operation::LayerOutput);
        recorded.record(3, 0, Operation::KvRound);
        let mut faults = Vec::new();
        collect(&recorded, 0..5, &segments, &mut faults);
        let fault = |segment, position, layer, operation| Fault { segment, position, layer, operation };
        let expected = [
            fault(0, 61, 3, FaultOperation::Quantise),
            fault(0, 62, 2, FaultOperation::LayerOutput),
            fault(2, 5, 0, FaultOperation::KvRound),
        ];
        assert_eq!(faults, expected);
    }
}
