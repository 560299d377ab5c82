//! The replies of one request, merged in the order in which they grow.

use std::future::poll_fn;
use std::task::{Context, Poll};
use std::time::Instant;

use tokio::sync::OwnedSemaphorePermit;

use super::error::ApiError;
use super::metrics::{InFlight, Metrics};
use super::reply::{Reply, Update};
use crate::audit::store::ReceiptId;
use crate::request::{Event, Generation};

/// One reply and where its tokens come from.
#[derive(Debug)]
pub(super) struct Source {
    reply: Reply,
    /// `None` once the reply is complete; dropping it frees the slot in the pipeline.
    generation: Option<Generation>,
    last_token: Option<Instant>,
    prompt_tokens: u64,
    /// Wei of POD for a token.
    price: u64,
}

impl Source {
    pub(super) fn new(reply: Reply, prompt_tokens: u64, generation: Generation) -> Self {
        let price = generation.price;
        Self { reply, generation: Some(generation), last_token: None, prompt_tokens, price }
    }

    fn cost(&self) -> u128 {
        u128::from(self.prompt_tokens + self.reply.tokens) * u128::from(self.price)
    }

    /// The name of its receipt.
    pub(super) fn receipt(&self) -> Option<&ReceiptId> {
        self.generation.as_ref()?.receipt.as_ref()
    }
}

/// All replies of a request. Dropping it cancels those that still run.
#[derive(Debug)]
pub(super) struct Replies {
    sources: Vec<Source>,
    /// Where the next round begins, so that no reply starves another.
    turn: usize,
    started: Instant,
    metrics: Metrics,
    _in_flight: InFlight,
    _slot: OwnedSemaphorePermit,
}

impl Replies {
    pub(super) fn new(
        sources: Vec<Source>,
        started: Instant,
        metrics: Metrics,
        slot: OwnedSemaphorePermit,
    ) -> Self {
        let in_flight = metrics.in_flight();
        Self { sources, turn: 0, started, metrics, _in_flight: in_flight, _slot: slot }
    }

    pub(super) fn len(&self) -> usize {
        self.sources.len()
    }

    pub(super) fn completion_tokens(&self) -> u64 {
        self.sources.iter().map(|source| source.reply.tokens).sum()
    }

    /// What the replies cost so far, in wei of POD; `None` where nobody asks for pay.
    pub(super) fn cost(&self) -> Option<u128> {
        let paid = self.sources.iter().any(|source| source.price > 0);
        paid.then(|| self.sources.iter().map(Source::cost).sum())
    }

    /// The next text of any reply and the reply's index; `None` once all are complete.
    pub(super) async fn next(&mut self) -> Option<Result<(usize, Update), ApiError>> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// Gives up on all replies after an error.
    pub(super) fn fail(&mut self, error: &ApiError) {
        self.metrics.reply_failed(error.code());
        for source in &mut self.sources {
            source.generation = None;
        }
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<(usize, Update), ApiError>>> {
        let count = self.sources.len();
        let mut open = false;
        for step in 0..count {
            let index = (self.turn + step) % count;
            match self.sources[index].poll_update(cx, self.started, &self.metrics) {
                Poll::Ready(None) => {}
                Poll::Ready(Some(update)) => {
                    self.turn = index + 1;
                    return Poll::Ready(Some(update.map(|update| (index, update))));
                }
                Poll::Pending => open = true,
            }
        }
        if open { Poll::Pending } else { Poll::Ready(None) }
    }
}

impl Source {
    fn poll_update(
        &mut self,
        cx: &mut Context<'_>,
        started: Instant,
        metrics: &Metrics,
    ) -> Poll<Option<Result<Update, ApiError>>> {
        while let Some(generation) = &mut self.generation {
            let Poll::Ready(event) = generation.events.poll_recv(cx) else { return Poll::Pending };
            let update = match event {
                Some(Event::Token { token, logprobs }) => {
                    metrics.token(started, self.last_token.replace(Instant::now()));
                    self.reply.token(token, logprobs)
                }
                Some(Event::Finished(finish)) => self.reply.finished(finish),
                Some(Event::Failed(failure)) => return Poll::Ready(Some(Err(failure.into()))),
                None => {
                    let reason = "it ended without saying why".to_owned();
                    return Poll::Ready(Some(Err(ApiError::Pipeline { reason })));
                }
            };
            let update = match update {
                Ok(update) => update,
                Err(error) => return Poll::Ready(Some(Err(error))),
            };
            if update.finish.is_some() {
                self.generation = None;
            }
            if !update.is_empty() {
                return Poll::Ready(Some(Ok(update)));
            }
        }
        Poll::Ready(None)
    }
}
