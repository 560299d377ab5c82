//! A node's part in the audits of a chain, in tasks of their own: it posts the root of what the [`Book`] holds once in
//! an epoch, opens the leaves that are drawn, shows planted faults, defends what it computed, and shows evidence to
//! the auditors that were drawn. Serving never waits for any of it.
//!
//! What is on the chain decides: at a start, the events since the oldest volume that may be there are read again. A
//! root is handed to the chain once, and again only if nothing came of that for certain: one leaf under two roots
//! could be drawn twice, and opened only once.

mod duties;
mod posting;
#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use futures::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use kernels::cpu::{Cpu, CpuError, Isa};
use ledger::{
    audit::{Tree, roots, seal},
    client::{AuditEvent, AuditTerms, Cursor, Error, Event as Happened, Head, Ledger, NodeEntry},
};
use thiserror::Error as ThisError;
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
};
use transport::NodeId;

use super::{
    book::{Book, BookError, Sealed, Standing},
    docket::{Docket, Duty, Pace},
    evidence::{Evidence, replay},
    plan::Digest,
    show::answer,
    verify::VerifyError,
};
use crate::{
    message::{Hidden, Show, Shown},
    model::{Model, ModelHash},
    payment::now,
};

/// Questions of auditors that may wait.
const QUEUE: usize = 256;
/// Of one peer.
const QUEUE_OF_ONE: u32 = 8;
/// Transactions at once, and self-tests: each has the weights of the node's layers in memory.
const QUICK: usize = 16;
const SLOW: usize = 1;
/// How long what failed waits to be tried again, in seconds: for a line that is down, and for a contract that refuses.
const AGAIN_S: u64 = 30;
const REFUSED_S: u64 = 300;

/// What a clerk works with.
#[derive(Clone)]
pub struct ClerkConfig {
    /// The chain, with the key of the account that posts.
    pub ledger: Arc<dyn Ledger>,
    /// What is posted.
    pub book: Arc<Book>,
    /// The model, to test what was computed.
    pub model: Arc<Model>,
    /// Its hash at the quantisation of the book, once it is known.
    pub hash: Arc<OnceLock<Arc<ModelHash>>>,
    /// What the registry of nodes is to say of this node.
    pub entry: Option<NodeEntry>,
    /// Threads of a self-test.
    pub threads: usize,
    /// Between two looks at the chain.
    pub poll: Duration,
}

impl fmt::Debug for ClerkConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClerkConfig").field("book", &self.book).finish_non_exhaustive()
    }
}

/// Why a node must not serve.
#[derive(Debug, ThisError)]
pub enum SelfTestError {
    /// What it sent is not what it computes from the same input.
    #[error(
        "this node sent rows that do not follow from what it was given: its device, its memory or its model's files \
         are at fault"
    )]
    Differs,
    /// The test cannot be made.
    #[error("the self-test cannot be made: {0}")]
    Replay(#[from] VerifyError),
    /// There is nothing to test with.
    #[error("the self-test cannot be made: {0}")]
    Book(#[from] BookError),
    /// There is no processor for it.
    #[error("the self-test cannot be made: {0}")]
    Device(#[from] CpuError),
    /// The model is not hashed yet.
    #[error("the self-test cannot be made before the model is hashed")]
    Hash,
    /// It panicked.
    #[error("the self-test died")]
    Died,
}

/// What a clerk tells its node.
#[derive(Debug)]
pub enum Event {
    /// An answer to an auditor.
    Shown(NodeId, Shown),
    /// The node computes wrong, and must not serve.
    Faulty(String),
}

/// How a clerk is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClerkStatus {
    /// Whether the chain knows the node's model, without which nothing is committed to; `None` until both are asked.
    pub model_known: Option<bool>,
    /// Chunks that wait to be posted.
    pub waiting: usize,
    /// Bytes that are kept as evidence.
    pub bytes: u64,
    /// The epoch of the newest root on the chain.
    pub posted: Option<u32>,
    /// Chunks under roots on the chain whose audits are not over.
    pub committed: u64,
    /// Cases that are not over.
    pub cases: usize,
    /// Leaves that were opened since the start.
    pub opened: u64,
}

/// A running clerk. Dropping it stops it; what was handed to the chain goes on by itself.
#[derive(Debug)]
pub struct Clerk {
    asks: mpsc::Sender<(NodeId, Show)>,
    /// Questions of each peer that were not answered yet.
    waiting: HashMap<NodeId, u32>,
    status: watch::Receiver<ClerkStatus>,
    tasks: [JoinHandle<()>; 2],
}

impl Clerk {
    /// Starts to work for `node`.
    pub fn start(config: ClerkConfig, node: NodeId) -> (Self, mpsc::Receiver<Event>) {
        let (asks, inbox) = mpsc::channel(QUEUE);
        let (outbox, events) = mpsc::channel(QUEUE);
        let (publish, status) = watch::channel(ClerkStatus::default());
        let docket = Arc::new(Mutex::new(Docket::new(config.book.account())));
        let showing = tokio::spawn(show(config.book.clone(), docket.clone(), node, inbox, outbox.clone()));
        let desk = Desk::new(config, docket, outbox, publish);
        (Self { asks, waiting: HashMap::new(), status, tasks: [showing, tokio::spawn(desk.run())] }, events)
    }

    /// A peer asks. The answer comes as an event, of which [`Clerk::answered`] is to be told; or at once if too many
    /// wait, of this peer or of all.
    pub fn ask(&mut self, peer: NodeId, show: Show) -> Option<Shown> {
        if self.waiting.get(&peer).is_some_and(|waiting| *waiting >= QUEUE_OF_ONE) {
            return Some(Shown::hidden(&show, Hidden::Busy));
        }
        match self.asks.try_send((peer, show)) {
            Ok(()) => {
                *self.waiting.entry(peer).or_default() += 1;
                None
            }
            Err(error) => Some(Shown::hidden(&error.into_inner().1, Hidden::Busy)),
        }
    }

    /// A peer's question is answered.
    pub fn answered(&mut self, peer: NodeId) {
        if let Some(waiting) = self.waiting.get_mut(&peer) {
            *waiting -= 1;
            if *waiting == 0 {
                self.waiting.remove(&peer);
            }
        }
    }

    /// How it is doing, now and later.
    pub fn status(&self) -> watch::Receiver<ClerkStatus> {
        self.status.clone()
    }
}

impl Drop for Clerk {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// Answers auditors, in the order of their questions.
async fn show(
    book: Arc<Book>,
    docket: Arc<Mutex<Docket>>,
    node: NodeId,
    mut asks: mpsc::Receiver<(NodeId, Show)>,
    outbox: mpsc::Sender<Event>,
) {
    while let Some((peer, show)) = asks.recv().await {
        let (book, docket) = (book.clone(), docket.clone());
        let reading = tokio::task::spawn_blocking(move || answer(&book, &docket, node, peer, &show));
        let Ok(shown) = reading.await else { return };
        if outbox.send(Event::Shown(peer, shown)).await.is_err() {
            return;
        }
    }
}

/// Computes again what a leaf is of, and compares. It blocks, and needs memory for the stage's weights.
///
/// # Errors
/// [`SelfTestError::Differs`] if the node sent something else, others if there is no telling.
pub fn self_test(config: &ClerkConfig, volume: u64, index: u32) -> Result<Evidence, SelfTestError> {
    let hash = Digest(config.hash.get().ok_or(SelfTestError::Hash)?.hash);
    let held = config.book.leaf(volume, index).ok_or(BookError::NoLeaf)?;
    let evidence = config.book.evidence(volume, index)?;
    let cpu = Cpu::new(config.threads.max(1), Isa::detect())?;
    let rows = replay(&evidence, &config.model, &hash, &cpu, &|_| ())?;
    let sent = seal(&roots(&evidence.out_roots(&rows)));
    match held.salt.is_some() || sent == held.chunk.sealed_roots {
        true => Ok(evidence),
        false => Err(SelfTestError::Differs),
    }
}

/// Whether a node may serve: one that a self-test found wrong may once the same test finds it right.
///
/// # Errors
/// [`SelfTestError`] if it does not.
pub async fn cleared(config: &ClerkConfig) -> Result<(), SelfTestError> {
    let Some((volume, index)) = config.book.suspect() else { return Ok(()) };
    tracing::warn!(
        "a self-test found that this node computes wrong; it is made again before anything is served"
    );
    let testing = config.clone();
    let tested = tokio::task::spawn_blocking(move || self_test(&testing, volume, index).map(drop)).await;
    match tested.unwrap_or(Err(SelfTestError::Died)) {
        // What it was tested with is gone with its audits.
        Ok(()) | Err(SelfTestError::Book(BookError::NoLeaf)) => Ok(config.book.set_suspect(None)?),
        Err(error) => Err(error),
    }
}

/// Something that is being done has come to an end.
enum Done {
    /// A root was handed to the chain.
    Posted(Sealed, Result<Option<u32>, Error>),
    /// A duty in a case.
    Acted([u8; 32], Duty, Result<(), Acting>),
    /// Something that nothing depends on.
    Other(&'static str, Result<(), Error>),
    /// A self-test that the chain asked for, of a leaf.
    Tested((u64, u32), Result<(), SelfTestError>),
}

/// Why a duty was not done.
enum Acting {
    Chain(Error),
    SelfTest(SelfTestError, (u64, u32)),
    Court(String),
}

struct Desk {
    config: ClerkConfig,
    docket: Arc<Mutex<Docket>>,
    outbox: mpsc::Sender<Event>,
    publish: watch::Sender<ClerkStatus>,
    terms: Option<AuditTerms>,
    cursor: Option<Cursor>,
    /// Whether all events up to the newest block were read.
    current: bool,
    running: FuturesUnordered<BoxFuture<'static, Done>>,
    posting: bool,
    /// Duties that are being done, by how long they take.
    quick: usize,
    slow: usize,
    /// The epoch in which nothing more is to be posted.
    posted: Option<u32>,
    registered: bool,
    trees: HashMap<u64, Arc<Tree>>,
    opened: u64,
    away: bool,
    /// Whether it was said that the chain does not know the model.
    unknown: bool,
    /// The chain's time at the last look.
    time: u64,
}

impl Desk {
    fn new(
        config: ClerkConfig,
        docket: Arc<Mutex<Docket>>,
        outbox: mpsc::Sender<Event>,
        publish: watch::Sender<ClerkStatus>,
    ) -> Self {
        Self {
            registered: config.entry.is_none(),
            config,
            docket,
            outbox,
            publish,
            terms: None,
            cursor: None,
            current: false,
            running: FuturesUnordered::new(),
            posting: false,
            quick: 0,
            slow: 0,
            posted: None,
            trees: HashMap::new(),
            opened: 0,
            away: false,
            unknown: false,
            time: 0,
        }
    }

    async fn run(mut self) {
        let mut tick = tokio::time::interval(self.config.poll);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                Some(done) = self.running.next() => self.done(done).await,
                _ = tick.tick() => self.look().await,
            }
            self.tell();
        }
    }

    /// Looks at the chain, and begins what is to be done.
    async fn look(&mut self) {
        match self.read().await {
            Ok((terms, head)) => {
                if std::mem::take(&mut self.away) {
                    tracing::info!("the chain is back");
                }
                self.time = time(&head);
                self.register();
                self.post(&terms).await;
                self.act(&terms).await;
                self.clear(&terms, &head).await;
            }
            Err(error) => {
                if !std::mem::replace(&mut self.away, true) {
                    tracing::warn!(%error, "audits wait for the chain");
                }
            }
        }
    }

    /// Reads what happened since the last look.
    async fn read(&mut self) -> Result<(AuditTerms, Head), Error> {
        let terms = match self.terms {
            Some(terms) => terms,
            None => *self.terms.insert(self.config.ledger.audit_terms().await?),
        };
        let head = self.config.ledger.head().await?;
        self.admit().await?;
        loop {
            let cursor = match &self.cursor {
                Some(cursor) => cursor.clone(),
                None => self.begin(&head),
            };
            let news = self.config.ledger.events(&cursor).await?;
            if !news.undone.is_empty() {
                // What is known of cases may be of a chain that is no more: all of it is read again.
                tracing::warn!("the chain was reorganised: audits are read again");
                *self.docket() = Docket::new(self.config.book.account());
                self.cursor = Some(self.begin(&head));
                continue;
            }
            for logged in &news.events {
                if let Happened::Audit(event) = &logged.event {
                    self.heard(event).await;
                }
            }
            (self.cursor, self.current) = (Some(news.cursor), !news.more);
            if self.current {
                return Ok((terms, head));
            }
        }
    }

    /// Lets the book take what is computed, once the model is hashed and the chain knows it: auditors have nothing to
    /// compute a leaf of another with.
    async fn admit(&mut self) -> Result<(), Error> {
        let ClerkConfig { ledger, book, hash, .. } = &self.config;
        let (None, Some(hash)) = (book.model(), hash.get()) else { return Ok(()) };
        let model = Digest(hash.hash);
        if ledger.is_active_model(model.0).await? {
            tracing::info!(%model, "what is computed is committed to");
            book.admit(model);
        } else if !std::mem::replace(&mut self.unknown, true) {
            tracing::warn!(%model, "nothing is committed to: the chain does not know this model");
        }
        Ok(())
    }

    /// Where to begin to read: where the oldest volume that may be on the chain was handed to it.
    fn begin(&self, head: &Head) -> Cursor {
        let sealed = self.config.book.sealed().into_iter();
        let cursors = sealed.filter(|sealed| sealed.standing != Standing::Over).filter_map(|s| s.cursor);
        let oldest = cursors.min_by_key(Cursor::block);
        let oldest = oldest.map_or(head.block, |oldest| oldest.block().min(head.block));
        Cursor::from_block(oldest)
    }

    fn docket(&self) -> MutexGuard<'_, Docket> {
        self.docket.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn heard(&mut self, event: &AuditEvent) {
        let me = self.config.book.account();
        match event {
            AuditEvent::Posted { account, epoch, root, .. } if *account == me => {
                let found = self.config.book.sealed().into_iter().rfind(|sealed| sealed.root.0 == *root);
                if let (Some(sealed), Ok(epoch)) = (found, u32::try_from(*epoch)) {
                    self.set(Sealed { standing: Standing::Posted { epoch }, ..sealed }).await;
                }
            }
            AuditEvent::LeafDrawn { case, leaf, .. } if leaf.account == me => {
                let (chain_id, manager) = {
                    let deployment = self.config.ledger.deployment();
                    (deployment.chain_id, deployment.audits)
                };
                let is_of = |sealed: &Sealed| leaf.case(chain_id, &manager, &sealed.root.0) == *case;
                let Some(sealed) = self.config.book.sealed().into_iter().find(is_of) else {
                    tracing::warn!(
                        case = hex::encode(case),
                        "a leaf was drawn that this node does not have: another node of its account has to open it"
                    );
                    return;
                };
                let held = self.config.book.leaf(sealed.volume, leaf.index);
                let planted = held.is_some_and(|held| held.salt.is_some());
                tracing::info!(case = hex::encode(case), epoch = leaf.epoch, "a leaf was drawn");
                self.docket().drawn(*case, *leaf, sealed.volume, planted);
            }
            event => self.docket().heard(event),
        }
    }

    async fn done(&mut self, done: Done) {
        match done {
            Done::Posted(sealed, outcome) => self.posted(sealed, outcome).await,
            Done::Acted(case, duty, outcome) => {
                self.begun(duty.pace(), false);
                self.acted(case, duty, outcome).await;
            }
            Done::Tested(at, outcome) => {
                self.begun(Pace::Slow, false);
                match outcome {
                    Err(SelfTestError::Differs) => self.differs(at).await,
                    Err(error) => tracing::error!(%error, "the chain asks for a self-test"),
                    Ok(()) => tracing::info!("the self-test that the chain asked for passes"),
                }
            }
            Done::Other(what, Err(error)) => {
                tracing::warn!(what, %error, "the chain does not do it");
                if what == duties::REGISTER && error.is_passing() {
                    self.registered = false;
                }
            }
            Done::Other(what, Ok(())) => tracing::info!(what, "done on the chain"),
        }
    }

    /// Something begins, or is over.
    fn begun(&mut self, pace: Pace, begins: bool) {
        let count = match pace {
            Pace::Quick => &mut self.quick,
            Pace::Slow => &mut self.slow,
            Pace::Long => return,
        };
        *count = if begins { *count + 1 } else { count.saturating_sub(1) };
    }

    /// The node computed a leaf wrong: it must not serve before it computes the same leaf right.
    async fn differs(&mut self, at: (u64, u32)) {
        let error = SelfTestError::Differs;
        tracing::error!(%error, "this node stops serving until a self-test passes");
        let book = self.config.book.clone();
        let marked = tokio::task::spawn_blocking(move || book.set_suspect(Some(at))).await;
        if !matches!(marked, Ok(Ok(()))) {
            tracing::error!("the book cannot be written");
        }
        let _ = self.outbox.send(Event::Faulty(error.to_string())).await;
    }

    /// Writes down how far a volume is.
    async fn set(&mut self, sealed: Sealed) -> bool {
        let book = self.config.book.clone();
        let written = tokio::task::spawn_blocking(move || book.set(sealed)).await;
        match written {
            Ok(Ok(())) => true,
            Ok(Err(error)) => {
                tracing::error!(%error, "the book cannot be written");
                false
            }
            Err(_) => false,
        }
    }

    async fn tree(&mut self, volume: u64) -> Option<Arc<Tree>> {
        if let Some(tree) = self.trees.get(&volume) {
            return Some(tree.clone());
        }
        let book = self.config.book.clone();
        let tree = tokio::task::spawn_blocking(move || book.tree(volume)).await.ok().flatten()?;
        // Leaves of a few epochs are drawn at a time.
        if self.trees.len() >= 8 {
            self.trees.clear();
        }
        let tree = Arc::new(tree);
        self.trees.insert(volume, tree.clone());
        Some(tree)
    }

    fn tell(&self) {
        let sealed = self.config.book.sealed();
        let epochs = sealed.iter().filter_map(|sealed| match sealed.standing {
            Standing::Posted { epoch } => Some((epoch, sealed.count)),
            _ => None,
        });
        let admitted = self.config.book.model().is_some();
        let status = ClerkStatus {
            model_known: (admitted || self.unknown).then_some(admitted),
            waiting: self.config.book.waiting(),
            bytes: self.config.book.bytes(),
            posted: epochs.clone().map(|(epoch, _)| epoch).max(),
            committed: epochs.map(|(_, count)| u64::from(count)).sum(),
            cases: self.docket().len(),
            opened: self.opened,
        };
        self.publish.send_if_modified(|old| std::mem::replace(old, status.clone()) != status);
    }
}

/// The chain's time as well as it is known: a chain that makes blocks for transactions alone says nothing new between
/// them.
fn time(head: &Head) -> u64 {
    head.time.max(now())
}
