//! A payer's side of one plan, in tokens: what it may still ask for, what it owes, what it has signed.
//!
//! A token is a position of a session that was verified: of its prompt, once the first token of the reply is
//! there, or a token of the reply. Each counts once, whether it was computed or found in a cache; a guess counts
//! when it is known to be right, and then as the token it is.

/// A payer's side of one plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tab {
    /// Wei for one token, over all stages.
    price: u64,
    /// Tokens that stages serve without being paid.
    credit: u64,
    /// Wei locked for the plan.
    lock: u128,
    /// Tokens received; never more than the lock pays for.
    received: u64,
    /// Tokens that the newest voucher covers.
    signed: u64,
    /// Tokens of prompts that were sent and have brought no reply yet.
    promised: u64,
    /// Tokens that open sessions may still come to.
    reserved: u64,
    /// What is known of each stage.
    stages: Vec<Stage>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Stage {
    /// Tokens of the newest voucher that it has confirmed.
    paid: u64,
    /// Tokens that it may have served, and of which nothing was received.
    lost: u64,
}

/// Why a session has no room on a tab.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoRoom {
    /// Stages give no more credit until they have confirmed a payment.
    Credit,
    /// The prompt alone is more than stages give credit for.
    Prompt {
        /// The longest prompt they do.
        limit: u64,
    },
    /// The lock does not pay for it.
    Lock,
    /// Too much of the credit is lost to go on: a new plan begins with all of it.
    Worn,
}

impl Tab {
    /// A tab on which nothing was received, or no more than what a voucher has been `signed` for.
    pub fn new(price: u64, credit: u64, lock: u128, stages: usize, signed: u128) -> Self {
        let signed = (signed / u128::from(price.max(1))) as u64;
        let stages = vec![Stage::default(); stages];
        Self { price, credit, lock, received: signed, signed, promised: 0, reserved: 0, stages }
    }

    /// Wei for one token, over all stages.
    pub fn price(&self) -> u64 {
        self.price
    }

    /// Tokens that the lock pays for.
    pub fn affordable(&self) -> u64 {
        u64::try_from(self.lock / u128::from(self.price.max(1))).unwrap_or(u64::MAX)
    }

    /// What may be promised at once. The rest of the credit is for replies that go on while a payment is on
    /// its way.
    fn promisable(&self) -> u64 {
        self.credit - self.credit / 4
    }

    /// Whether a session of that prompt and reply has room.
    pub fn room(&self, prompt: u64, reply: u64) -> Result<(), NoRoom> {
        let limit = self.promisable();
        if prompt > limit {
            return Err(NoRoom::Prompt { limit });
        }
        let whole = prompt.saturating_add(reply);
        if self.received.saturating_add(self.reserved).saturating_add(whole) > self.affordable() {
            return Err(NoRoom::Lock);
        }
        let lost = self.stages.iter().map(|stage| stage.lost).max().unwrap_or(0);
        if lost > self.credit / 4 || lost + prompt > limit {
            return Err(NoRoom::Worn);
        }
        if self.exposure().saturating_add(prompt) > limit {
            return Err(NoRoom::Credit);
        }
        Ok(())
    }

    /// The most that any stage can have served and not been paid for.
    fn exposure(&self) -> u64 {
        let unpaid = |stage: &Stage| (self.received - stage.paid).saturating_add(stage.lost);
        self.stages.iter().map(unpaid).max().unwrap_or(0).saturating_add(self.promised)
    }

    /// A session begins, for which there is [`Tab::room`].
    pub fn open(&mut self, prompt: u64, reply: u64) {
        self.promised += prompt;
        self.reserved += prompt + reply;
    }

    /// The first token of a session's reply came, and with it the prompt is known to be served.
    pub fn answered(&mut self, prompt: u64) {
        self.promised = self.promised.saturating_sub(prompt);
        self.receive(prompt);
        self.reserved = self.reserved.saturating_sub(prompt);
    }

    /// A token of a session's reply came.
    pub fn token(&mut self) {
        self.receive(1);
        self.reserved = self.reserved.saturating_sub(1);
    }

    /// A session is over that might have come to `rest` tokens more.
    pub fn close(&mut self, rest: u64) {
        self.reserved = self.reserved.saturating_sub(rest);
    }

    /// A session is over that brought nothing: its prompt may have been served, and is not paid.
    pub fn abandoned(&mut self, prompt: u64) {
        self.promised = self.promised.saturating_sub(prompt);
        for stage in &mut self.stages {
            stage.lost = stage.lost.saturating_add(prompt);
        }
    }

    /// A session that is over brought a token after all. `prompt` is its length if that was the first.
    pub fn late(&mut self, prompt: u64) {
        for stage in &mut self.stages {
            stage.lost = stage.lost.saturating_sub(prompt);
        }
        self.receive(prompt.saturating_add(1));
    }

    fn receive(&mut self, tokens: u64) {
        self.received = self.received.saturating_add(tokens).min(self.affordable());
    }

    /// Whether so much is unpaid that a voucher should not wait for the end of a reply.
    pub fn presses(&self) -> bool {
        self.received - self.signed >= (self.credit / 8).max(1)
    }

    /// The total to sign, if more was received than signed for. It counts as signed from now on.
    pub fn sign(&mut self) -> Option<u128> {
        if self.received == self.signed {
            return None;
        }
        self.signed = self.received;
        Some(self.total())
    }

    /// What the newest voucher pays, in wei.
    pub fn total(&self) -> u128 {
        u128::from(self.signed) * u128::from(self.price)
    }

    /// A stage says that it holds a voucher of `total`, and has served so many tokens in all.
    pub fn confirmed(&mut self, stage: usize, total: u128, served: u64) {
        let signed = self.signed;
        let Some(stage) = self.stages.get_mut(stage) else { return };
        let paid = u64::try_from(total / u128::from(self.price.max(1))).unwrap_or(u64::MAX);
        stage.paid = stage.paid.max(paid.min(signed));
        stage.lost = stage.lost.min(served.saturating_sub(stage.paid));
    }

    /// A stage that was asked anew says how many tokens it has served in all, of which only those were paid
    /// that this side knows of.
    pub fn recounted(&mut self, stage: usize, served: u64) {
        let known = self.received.saturating_add(self.promised);
        if let Some(stage) = self.stages.get_mut(stage) {
            stage.lost = served.saturating_sub(known);
        }
    }

    /// Whether a stage lacks the newest voucher.
    pub fn lacks(&self, stage: usize) -> bool {
        self.stages.get(stage).is_some_and(|stage| stage.paid < self.signed)
    }
}

#[cfg(test)]
mod tests;
