//! Receipts: what the gateway promised for each reply, joined with what the stages signed about it.

use std::{
    collections::HashMap,
    sync::{Arc, OnceLock},
    time::Duration,
};

use tokio::time::Instant;
use transport::{Identity, NodeId};

use crate::{
    audit::{
        commitment::{Chunk, CommitmentError, Committed, Follower, Signer},
        plan::{Digest, Plan, Terms, prompt_hash},
        receipt::Receipt,
        store::{ReceiptId, ReceiptStore},
    },
    message::{Open, SessionId},
    model::Quantisation,
    request::Finish,
};

/// How long stages may take to sign the end of a reply; what is missing then, the receipt does not have.
const PATIENCE: Duration = Duration::from_secs(5);

/// Which receipts a gateway makes, and where it keeps them.
#[derive(Clone, Debug)]
pub struct Receipts {
    /// Name of the model, for people.
    pub model_name: String,
    /// How the weights are held.
    pub quantisation: Quantisation,
    /// The model hash, once it is known: replies that begin before have no receipt.
    pub model: Arc<OnceLock<Digest>>,
    /// Where they are kept.
    pub store: Arc<ReceiptStore>,
}

struct StageRecord {
    node: NodeId,
    follower: Follower,
    chunks: Vec<Chunk>,
}

struct Recording {
    id: ReceiptId,
    plan: Plan,
    prompt: Vec<u32>,
    reply: Vec<u32>,
    stages: Vec<StageRecord>,
    /// How it ended, and until when signatures are waited for.
    ended: Option<(Option<Finish>, Instant)>,
}

impl Recording {
    fn rows(&self) -> u32 {
        (self.prompt.len() + self.reply.len()).saturating_sub(1) as u32
    }

    fn is_complete(&self) -> bool {
        self.ended.is_some() && self.stages.iter().all(|stage| stage.follower.position() >= self.rows())
    }
}

/// See the module.
pub(super) struct Recordings {
    receipts: Option<Receipts>,
    signer: Signer,
    open: HashMap<SessionId, Recording>,
}

impl Recordings {
    pub(super) fn new(receipts: Option<Receipts>, identity: Identity) -> Self {
        Self { receipts, signer: Signer::new(identity), open: HashMap::new() }
    }

    /// What to ask of the stages for a reply to `prompt`.
    pub(super) fn terms(&self, prompt: &[u32]) -> Option<Terms> {
        let receipts = self.receipts.as_ref()?;
        let (model, salt) = (*receipts.model.get()?, Digest(rand::random()));
        let prompt_hash = prompt_hash(&salt, prompt);
        Some(Terms { model, quantisation: receipts.quantisation, salt, prompt_hash })
    }

    /// A reply begins, or is begun again on another route; the name of its receipt, which is `promised` then.
    pub(super) fn begin(
        &mut self,
        open: &Open,
        tenant: u64,
        promised: Option<ReceiptId>,
    ) -> Option<ReceiptId> {
        let plan = Plan::of(open)?;
        let store = &self.receipts.as_ref()?.store;
        let id = promised.unwrap_or_else(|| store.announce(tenant));
        let hash = plan.hash();
        let stages = plan.stages.iter().enumerate().map(|(index, stage)| StageRecord {
            node: NodeId(stage.node.0),
            follower: Follower::new(hash, index as u32, stage.node),
            chunks: Vec::new(),
        });
        let (stages, prompt, reply) = (stages.collect(), open.prompt.clone(), Vec::new());
        let recording = Recording { id: id.clone(), plan, prompt, reply, stages, ended: None };
        self.open.insert(open.session, recording);
        Some(id)
    }

    /// The next token of a reply.
    pub(super) fn token(&mut self, session: SessionId, token: u32) {
        if let Some(recording) = self.open.get_mut(&session) {
            recording.reply.push(token);
        }
    }

    /// A reply ended, by itself or because its client went; the positions that stand.
    pub(super) fn end(&mut self, session: SessionId, finish: Option<Finish>) -> u32 {
        let Some(recording) = self.open.get_mut(&session) else { return 0 };
        if recording.reply.is_empty() {
            self.forget(session);
            return 0;
        }
        recording.ended = Some((finish, Instant::now() + PATIENCE));
        let rows = recording.rows();
        self.settle(session);
        rows
    }

    /// A reply is to be begun again, and its receipt with it.
    pub(super) fn interrupt(&mut self, session: SessionId) {
        self.open.remove(&session);
    }

    /// A reply that was to be begun again is not.
    pub(super) fn withdraw(&self, receipt: &ReceiptId) {
        if let Some(receipts) = &self.receipts {
            receipts.store.forget(receipt);
        }
    }

    /// A reply broke off.
    pub(super) fn forget(&mut self, session: SessionId) {
        // One that ended before is only waited for.
        if self.open.get(&session).is_none_or(|recording| recording.ended.is_some()) {
            return;
        }
        if let (Some(receipts), Some(recording)) = (&self.receipts, self.open.remove(&session)) {
            receipts.store.forget(&recording.id);
        }
    }

    /// A stage signed.
    ///
    /// # Errors
    /// If it may not have signed that.
    pub(super) fn committed(&mut self, peer: NodeId, committed: Committed) -> Result<(), CommitmentError> {
        let session = committed.session;
        let Some(recording) = self.open.get_mut(&session) else { return Ok(()) };
        let most = recording.plan.prompt_length.saturating_add(recording.plan.max_tokens);
        let stage = recording.stages.iter_mut().find(|stage| stage.node == peer);
        let stage = stage.filter(|_| committed.chunk.to <= most).ok_or(CommitmentError::Range)?;
        stage.follower.take(&committed.chunk, &committed.before)?;
        stage.chunks.push(committed.chunk);
        self.settle(session);
        Ok(())
    }

    /// When [`Recordings::expire`] has something to do.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.open.values().filter_map(|recording| recording.ended).map(|(_, until)| until).min()
    }

    /// Gives up on signatures that did not come.
    pub(super) fn expire(&mut self, now: Instant) {
        let late = |recording: &Recording| recording.ended.is_some_and(|(_, until)| until <= now);
        let late: Vec<SessionId> =
            self.open.iter().filter(|(_, recording)| late(recording)).map(|(session, _)| *session).collect();
        late.into_iter().for_each(|session| self.store(session));
    }

    fn settle(&mut self, session: SessionId) {
        if self.open.get(&session).is_some_and(Recording::is_complete) {
            self.store(session);
        }
    }

    fn store(&mut self, session: SessionId) {
        let (Some(receipts), Some(recording)) = (&self.receipts, self.open.remove(&session)) else { return };
        let Recording { id, plan, prompt, reply, stages, ended } = recording;
        let finish = ended.and_then(|(finish, _)| finish);
        let stages = stages.into_iter().map(|stage| stage.chunks).collect();
        let name = receipts.model_name.clone();
        let mut receipt = Receipt::unsigned(name, plan, prompt, reply, finish, stages);
        receipt.signature = self.signer.sign(&receipt.digest());
        match serde_json::to_string(&receipt) {
            Ok(text) => receipts.store.fill(&id, text),
            Err(error) => {
                tracing::error!(%error, "a receipt cannot be written");
                receipts.store.forget(&id);
            }
        }
    }
}
