//! Drawing on the last stage: which rows of a step follow the tokens drawn so far, and what they give.

use std::ops::Range;

use kernels::backend::{Backend, BackendError, Question};

use super::{Desk, Output, Reply, fault_of};
use crate::{
    message::{Draws, Segment, SessionId, Step, TokenReport, UNTOLD},
    request::Finish,
    sampler::{Draw, Sampler},
};

/// A reply being drawn.
pub(super) struct Drawing {
    sampler: Sampler,
    stop_tokens: Vec<u32>,
    left: u32,
    prompt_length: usize,
    /// What was drawn so far.
    reply: Vec<u32>,
    /// Positions before this one hold the session's own tokens in this stage's KV, if it holds them at all;
    /// guesses are told apart from them here alone.
    verified: usize,
    #[cfg(test)]
    pub(super) forged: Option<(u32, u32)>,
}

impl Drawing {
    pub(super) fn new(reply: Reply, prompt_length: u32) -> Self {
        let Reply { sampling, prompt, stop_tokens, max_tokens } = reply;
        let sampler = Sampler::new(sampling, &prompt);
        let prompt_length = prompt_length as usize;
        let (reply, verified) = (Vec::new(), prompt_length.saturating_sub(1));
        Self {
            sampler,
            stop_tokens,
            left: max_tokens,
            prompt_length,
            reply,
            verified,
            #[cfg(test)]
            forged: None,
        }
    }

    /// Position of the next token.
    fn position(&self) -> usize {
        self.prompt_length + self.reply.len()
    }

    /// Whether the row at `position` holds the token that stands there.
    fn is_true(&self, position: usize, told: u32) -> bool {
        match position.checked_sub(self.prompt_length) {
            // Rows of the prompt are never guessed.
            None => true,
            Some(index) => self.reply.get(index).is_some_and(|&token| told == token || told == UNTOLD),
        }
    }

    /// The drawing rows of a segment that may count: from the one whose draw is next. Every row before it must
    /// hold the session's own token, and so must all that its KV was computed from.
    fn rows(&mut self, segment: &Segment) -> Range<usize> {
        let count = segment.drawn.len();
        let first = segment.to() as usize - count;
        if self.left == 0 || segment.from as usize > self.verified {
            return 0..0;
        }
        // Rows that do not draw are known ones.
        self.verified = self.verified.max(first);
        for (row, &told) in segment.drawn.iter().enumerate() {
            if !self.check(first + row, told) {
                break;
            }
            if first + row + 1 == self.position() {
                return row..count;
            }
        }
        0..0
    }

    /// Takes note of rows that do not draw: they are known ones.
    fn pass(&mut self, segment: &Segment) {
        if segment.from as usize <= self.verified {
            self.verified = self.verified.max(segment.to() as usize);
        }
    }

    /// Takes note of a row in the KV; whether it holds the session's own token.
    fn check(&mut self, position: usize, told: u32) -> bool {
        let is_true = self.is_true(position, told);
        self.verified = match is_true {
            true => self.verified.max(position + 1),
            false => self.verified.min(position),
        };
        is_true
    }

    /// Whether the row at `position` gives the next token: every draw before it was the token of the row after.
    fn counts(&mut self, position: usize, told: u32) -> bool {
        position + 1 == self.position() && self.check(position, told)
    }

    /// What a device is asked for the token after drawing row `draw` of a segment. The rows before it are
    /// taken to hold the session's own tokens; if one does not, nobody asks for the answer.
    fn question(&mut self, segment: &Segment, draw: usize) -> Option<Question> {
        let first = segment.to() as usize - segment.drawn.len();
        let known = self.position().checked_sub(first)?;
        let ahead = segment.drawn.get(known..=draw).unwrap_or(&[]);
        // Tokens before it that nobody tells are known once they are drawn, one after the other.
        if ahead.contains(&UNTOLD) {
            return None;
        }
        self.sampler.question(ahead, (first + draw + 1) as u32)
    }

    /// Draws the next token.
    fn next(&mut self, session: SessionId, logits: &mut [f32]) -> TokenReport {
        let draw = self.sampler.draw(logits, self.position() as u32);
        self.take(session, draw)
    }

    /// Takes the next token, which a device drew.
    fn next_is(&mut self, session: SessionId, token: u32) -> TokenReport {
        self.sampler.accept(token);
        self.take(session, Draw { token, logprobs: None })
    }

    fn take(&mut self, session: SessionId, draw: Draw) -> TokenReport {
        #[cfg(test)]
        let draw = match self.forged.filter(|forged| forged.0 as usize == self.position()) {
            Some((_, token)) => Draw { token, ..draw },
            None => draw,
        };
        self.left -= 1;
        self.reply.push(draw.token);
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
    pub(super) fn draw(
        &mut self,
        step: &Step,
        cut: &[u32],
    ) -> Result<(Vec<Draws>, Vec<TokenReport>), BackendError> {
        let mut draws: Vec<Option<Draws>> = Vec::with_capacity(step.segments.len());
        let mut wanted = Vec::new();
        let mut first_row = 0;
        for (index, (segment, &cut)) in step.segments.iter().zip(cut).enumerate() {
            let mut drawing = self.drawing.get_mut(&segment.session).filter(|drawing| drawing.left > 0);
            if let Some(drawing) = drawing.as_mut().filter(|_| segment.drawn.is_empty()) {
                drawing.pass(segment);
            }
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
                let (session, position) = (segment.session, drawing.position() as u32);
                Draws { session, position, tokens: Vec::new(), ended: false }
            }));
            first_row += segment.rows;
        }
        let mut reports = Vec::new();
        for batch in wanted.chunks(self.stage.draw_rows()) {
            self.draw_batch(step, batch, &mut draws, &mut reports)?;
        }
        Ok((draws.into_iter().flatten().collect(), reports))
    }

    fn question(&mut self, step: &Step, wanted: &Wanted) -> Option<Question> {
        let segment = &step.segments[wanted.segment];
        self.drawing.get_mut(&segment.session)?.question(segment, wanted.draw)
    }

    fn draw_batch(
        &mut self,
        step: &Step,
        batch: &[Wanted],
        draws: &mut [Option<Draws>],
        reports: &mut Vec<TokenReport>,
    ) -> Result<(), BackendError> {
        let rows: Vec<u32> = batch.iter().map(|wanted| wanted.row).collect();
        self.faults.clear();
        // None where the device does not draw, or a request wants what only the logits tell.
        let asked: Option<Vec<Question>> = if self.stage.draws() {
            batch.iter().map(|wanted| self.question(step, wanted)).collect()
        } else {
            None
        };
        let mut tokens = Vec::new();
        match asked {
            Some(questions) => {
                self.stage.draw(&step.segments, &rows, &questions, &mut tokens, &mut self.faults)?;
            }
            None => self.stage.logits(&step.segments, &rows, &mut self.logits, &mut self.faults)?,
        }
        let width = self.stage.vocabulary();
        let mut failed = Vec::new();
        for (index, wanted) in batch.iter().enumerate() {
            let segment = &step.segments[wanted.segment];
            let (Some(out), Some(drawing)) =
                (&mut draws[wanted.segment], self.drawing.get_mut(&segment.session))
            else {
                continue;
            };
            let position = segment.to() as usize - segment.drawn.len() + wanted.draw;
            if out.ended || !drawing.counts(position, segment.drawn[wanted.draw]) {
                continue;
            }
            if let Some(fault) =
                self.faults.iter().find(|f| f.segment == wanted.segment && f.position as usize == position)
            {
                failed.push(fault_of(segment.session, fault));
                out.ended = true;
                continue;
            }
            let report = match tokens.get(index) {
                Some(&token) => drawing.next_is(segment.session, token),
                None => drawing.next(segment.session, &mut self.logits[index * width..][..width]),
            };
            out.tokens.push(report.token);
            out.ended = report.finish.is_some();
            reports.push(report);
        }
        failed.into_iter().for_each(|failed| self.report(Output::Failed(failed)));
        Ok(())
    }
}

#[cfg(test)]
mod tests;
