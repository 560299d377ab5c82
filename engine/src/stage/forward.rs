//! The forward pass of a stage. It reads like the transformer it runs; what a family adds or leaves
//! out is in the weights (biases, head norms) and shapes (windows), not in the code.

use std::ops::Range;

use kernels::backend::{Backend, Batch};

use super::{Fault, Input, Stage};
use crate::message::Segment;

impl<B: Backend> Stage<B> {
    /// Runs a checked and placed batch.
    pub(super) fn forward(
        &mut self,
        layers: Range<usize>,
        segments: &[Segment],
        input: Input<'_>,
        faults: &mut Vec<Fault>,
    ) {
        let rows = self.workspace.rows.len();
        self.workspace.faults.reset(rows);
        faults.clear();
        match (input, &self.embedding) {
            (Input::Tokens(tokens), Some(table)) => {
                let scale = self.config.embedding_scale;
                self.backend.embed(&table.weight, tokens, scale, self.profile, &mut self.workspace.hidden);
            }
            (Input::Tokens(_), None) => {}
            (Input::Rows(values), _) => self.backend.upload(values, &mut self.workspace.hidden),
        }
        for layer in layers {
            self.layer(layer - self.shard.layers.start);
            self.collect_faults(segments, layer, faults);
        }
    }

    /// One decoder layer over the batch, in place; `index` counts within the shard.
    fn layer(&mut self, index: usize) {
        let (layer, shape, backend) = (&self.layers[index], &self.shapes[index], &self.backend);
        let w = &mut self.workspace;
        let batch = Batch { rows: &w.rows, pages: &w.pages };
        let (rows, faults) = (w.rows.len(), &mut w.faults);

        backend.norm(&layer.attention_norm, &w.hidden, rows, &mut w.normed, faults);
        backend.qkv(
            &layer.qkv,
            shape,
            &self.rope,
            &w.normed,
            batch,
            index,
            &mut w.query,
            &mut self.kv,
            faults,
        );
        backend.attention(shape, &w.query, &self.kv, batch, index, &mut w.attended, faults);
        backend.project(&layer.output, &w.attended, rows, &mut w.hidden, faults);

        backend.norm(&layer.mlp_norm, &w.hidden, rows, &mut w.normed, faults);
        backend.gate_up(&layer.gate_up, &w.normed, rows, &mut w.gated, faults);
        backend.project(&layer.down, &w.gated, rows, &mut w.hidden, faults);
        backend.finish(&mut w.hidden, rows, self.profile, faults);
    }

    /// Logits of the listed rows of the last step, one row after another in `out`
    /// (`[rows.len()][vocabulary]`), at most [`Stage::draw_rows`] of them. Only a stage with a head has any.
    pub fn logits(
        &mut self,
        segments: &[Segment],
        rows: &[u32],
        out: &mut Vec<f32>,
        faults: &mut Vec<Fault>,
    ) {
        let w = &mut self.workspace;
        let (Some(head), Some(logits)) = (&self.head, &mut w.logits) else { return };
        self.backend.gather(&w.hidden, rows, &mut w.chosen);
        w.faults.reset(rows.len());
        self.backend.norm(&head.norm, &w.chosen, rows.len(), &mut w.chosen_normed, &mut w.faults);
        self.backend.logits(&head.weight, &w.chosen_normed, rows.len(), logits, &mut w.faults);
        out.resize(rows.len() * self.config.vocabulary, 0.0);
        self.backend.download(logits, 0..rows.len(), out);
        for (index, &row) in rows.iter().enumerate() {
            if let Some(operation) = w.faults.of(index) {
                let (segment, position) = locate(segments, row as usize);
                faults.push(Fault {
                    segment,
                    position,
                    layer: self.config.layers,
                    operation: operation.into(),
                });
            }
        }
    }

    /// Moves what the device recorded in `layer` to the sessions it belongs to.
    fn collect_faults(&mut self, segments: &[Segment], layer: usize, out: &mut Vec<Fault>) {
        let recorded = &self.workspace.faults;
        if !recorded.any() {
            return;
        }
        for row in 0..self.workspace.rows.len() {
            let Some(operation) = recorded.of(row) else { continue };
            let (segment, position) = locate(segments, row);
            note(Fault { segment, position, layer, operation: operation.into() }, out);
        }
    }
}

/// Keeps one fault per segment: of those at the lowest position the first. That one does not depend on
/// the rows that came along, because no row sees a later one.
fn note(fault: Fault, faults: &mut Vec<Fault>) {
    match faults.iter_mut().find(|known| known.segment == fault.segment) {
        Some(known) if known.position <= fault.position => {}
        Some(known) => *known = fault,
        None => faults.push(fault),
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
    use super::*;
    use crate::message::FaultOperation;

    #[test]
    fn the_fault_of_the_first_position_stands() {
        let fault = |segment, position, layer| {
            let operation = FaultOperation::LayerOutput;
            Fault { segment, position, layer, operation }
        };
        let mut faults = Vec::new();
        let recorded = [fault(0, 70, 2), fault(1, 5, 2), fault(0, 60, 3), fault(0, 70, 3), fault(0, 60, 4)];
        recorded.into_iter().for_each(|fault| note(fault, &mut faults));
        assert_eq!(faults, [fault(0, 60, 3), fault(1, 5, 2)]);
    }
}
