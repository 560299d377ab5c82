//! Drawing on the last stage: which rows of a step follow the tokens drawn so far, and what they give.

use std::ops::Range;

use kernels::backend::Backend;

use super::{Desk, Output, Reply, fault_of};
use crate::{
    message::{Draws, Segment, SessionId, Step, TokenReport, UNTOLD},
    request::Finish,
    sampler::Sampler,
};

/// A reply being drawn.
pub(super) struct Drawing {
    sampler: Sampler,
    stop_tokens: Vec<u32>,
    left: u32,
    /// Position of the next token.
    position: u32,
    /// The last one drawn.
    last: Option<u32>,
}

impl Drawing {
    pub(super) fn new(reply: Reply, prompt_length: u32) -> Self {
        let Reply { sampling, prompt, stop_tokens, max_tokens } = reply;
        let sampler = Sampler::new(sampling, &prompt);
        Self { sampler, stop_tokens, left: max_tokens, position: prompt_length, last: None }
    }

    /// The drawing rows of a segment that may count: from the one whose draw is next, if the token it
    /// holds is the one last drawn.
    fn rows(&self, segment: &Segment) -> Range<usize> {
        let count = segment.drawn.len();
        let first = segment.to() as usize - count;
        let next = (self.position as usize).checked_sub(first + 1).filter(|&row| row < count);
        let follows = |row: usize| {
            let told = segment.drawn[row];
            told == UNTOLD || self.last.is_none_or(|last| last == told)
        };
        match next {
            Some(row) if self.left > 0 && follows(row) => row..count,
            _ => 0..0,
        }
    }

    fn next(&mut self, session: SessionId, logits: &mut [f32]) -> TokenReport {
        let draw = self.sampler.draw(logits, self.position);
        self.left -= 1;
        self.position += 1;
        self.last = Some(draw.token);
        let finish = if self.stop_tokens.contains(&draw.token) {
            self.left = 0;
            Some(Finish::Stop)
        } else {
            (self.left == 0).then_some(Finish::Length)
        };
        TokenReport { session, token: draw.token, logprobs: draw.logprobs, finish }
    }
}

/// A row whose logits are wanted.
struct Wanted {
    /// Index of its segment.
    segment: usize,
    /// Index among the rows of the segment that draw.
    draw: usize,
    /// Row of the step.
    row: u32,
}

impl<B: Backend> Desk<B> {
    /// Draws for every segment that wants it. `cut` are the rows at the end of each segment that a fault
    /// took away.
    pub(super) fn draw(&mut self, step: &Step, cut: &[u32]) -> (Vec<Draws>, Vec<TokenReport>) {
        let mut draws: Vec<Option<Draws>> = Vec::with_capacity(step.segments.len());
        let mut wanted = Vec::new();
        let mut first_row = 0;
        for (index, (segment, &cut)) in step.segments.iter().zip(cut).enumerate() {
            let drawing = self.drawing.get(&segment.session).filter(|drawing| drawing.left > 0);
            let asked = !segment.drawn.is_empty() && cut < segment.rows;
            draws.push(drawing.filter(|_| asked).map(|drawing| {
                let sound = segment.drawn.len().saturating_sub(cut as usize);
                let rows = drawing.rows(segment);
                let first_draw = first_row + segment.rows - segment.drawn.len() as u32;
                wanted.extend((rows.start..rows.end.min(sound)).map(|draw| Wanted {
                    segment: index,
                    draw,
                    row: first_draw + draw as u32,
                }));
                let (session, position) = (segment.session, drawing.position);
                Draws { session, position, tokens: Vec::new(), ended: false }
            }));
            first_row += segment.rows;
        }
        let mut reports = Vec::new();
        for batch in wanted.chunks(self.stage.draw_rows()) {
            self.draw_batch(step, batch, &mut draws, &mut reports);
        }
        (draws.into_iter().flatten().collect(), reports)
    }

    fn draw_batch(
        &mut self,
        step: &Step,
        batch: &[Wanted],
        draws: &mut [Option<Draws>],
        reports: &mut Vec<TokenReport>,
    ) {
        let rows: Vec<u32> = batch.iter().map(|wanted| wanted.row).collect();
        self.faults.clear();
        self.stage.logits(&step.segments, &rows, &mut self.logits, &mut self.faults);
        let width = self.logits.len() / rows.len();
        let mut failed = Vec::new();
        for (wanted, logits) in batch.iter().zip(self.logits.chunks_exact_mut(width)) {
            let segment = &step.segments[wanted.segment];
            let (Some(out), Some(drawing)) =
                (&mut draws[wanted.segment], self.drawing.get_mut(&segment.session))
            else {
                continue;
            };
            // The row counts only if every draw before it was the token of the row after.
            let told = segment.drawn[wanted.draw];
            let follows = out.tokens.last().is_none_or(|&last| last == told);
            let due =
                segment.to() as usize - segment.drawn.len() + wanted.draw + 1 == drawing.position as usize;
            if !follows || !due || out.ended {
                continue;
            }
            let position = drawing.position - 1;
            if let Some(fault) =
                self.faults.iter().find(|f| f.segment == wanted.segment && f.position == position)
            {
                failed.push(fault_of(segment.session, fault));
                out.ended = true;
                continue;
            }
            let report = drawing.next(segment.session, logits);
            out.tokens.push(report.token);
            out.ended = report.finish.is_some();
            reports.push(report);
        }
        failed.into_iter().for_each(|failed| self.report(Output::Failed(failed)));
    }
}
