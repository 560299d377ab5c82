//! Evidence over a link: what a node answers to an auditor, and how an auditor fetches it.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use ledger::client::Key;
use thiserror::Error;
use tokio::time::timeout;
use transport::{CloseReason, Link, NodeId, PeerAddress, Transport};

use super::{
    book::Book,
    docket::Docket,
    evidence::{Evidence, EvidenceError, MAX_EVIDENCE_BYTES},
};
use crate::{
    message::{Hidden, MAX_SHOWN_BYTES, Message, MessageError, Show, Shown, show_digest},
    node::GatewayAddress,
};

/// Pieces that are asked for ahead.
const WINDOW: u64 = 4;
/// Longest wait for one piece.
const SILENCE: Duration = Duration::from_secs(60);

/// Why there is no evidence.
#[derive(Debug, Error)]
pub enum FetchError {
    /// The node cannot be reached, or the link broke.
    #[error("the node cannot be reached: {0}")]
    Unreachable(String),
    /// It says no.
    #[error("the node refuses: {0}")]
    Refused(#[from] Hidden),
    /// It says nothing, or no evidence.
    #[error("the node answers with something else than evidence: {0}")]
    Answer(&'static str),
    /// What it sent is no evidence.
    #[error("what the node sent: {0}")]
    Evidence(#[from] EvidenceError),
    /// It sent no message.
    #[error(transparent)]
    Message(#[from] MessageError),
}

/// What a node that is `node` answers to `peer`. It reads from disk.
pub(super) fn answer(book: &Book, docket: &Mutex<Docket>, node: NodeId, peer: NodeId, show: &Show) -> Shown {
    let read = || {
        if !show.is_signed(node, peer) {
            return Err(Hidden::Unsigned);
        }
        let found = docket.lock().unwrap_or_else(PoisonError::into_inner).shown_to(&show.case, &show.auditor);
        let (volume, index) = found.ok_or(Hidden::NotDrawn)?;
        let exhibit = book.exhibit(volume, index).map_err(|error| {
            tracing::warn!(%error, "evidence cannot be shown");
            Hidden::Disk
        })?;
        if show.offset >= exhibit.bytes() {
            return Err(Hidden::Range);
        }
        let body = exhibit.read(show.offset, MAX_SHOWN_BYTES as u64).map_err(|error| {
            tracing::warn!(%error, "evidence cannot be read");
            Hidden::Disk
        })?;
        Ok((exhibit.bytes(), body))
    };
    match read() {
        Ok((bytes, body)) => {
            Shown { case: show.case, offset: show.offset, answer: Ok(bytes), body: body.into() }
        }
        Err(hidden) => Shown::hidden(show, hidden),
    }
}

/// Fetches what proves the leaf of a case from its node, if that has at most `most_bytes`. `key` is of the auditor that
/// was drawn for it. Whether it is what the node opened, [`Evidence::check`] says.
///
/// # Errors
/// [`FetchError`], whatever the node sends.
pub async fn fetch(
    transport: &dyn Transport,
    node: &GatewayAddress,
    key: &Key,
    case: [u8; 32],
    most_bytes: usize,
) -> Result<Evidence, FetchError> {
    let digest = show_digest(&case, node.id, transport.id());
    let show = Show { case, auditor: key.address(), signature: key.sign(&digest).to_vec(), offset: 0 };
    let mut link = dial(transport, node).await?;
    let most_bytes = most_bytes.min(MAX_EVIDENCE_BYTES) as u64;
    let fetched = converse(&mut link, show, most_bytes).await;
    link.close(CloseReason::new(0, "fetched"));
    let bytes = fetched?;
    // Reading rows of a gigabyte takes a while.
    let read = tokio::task::spawn_blocking(move || Evidence::decode(&bytes)).await;
    Ok(read.map_err(|error| FetchError::Unreachable(error.to_string()))??)
}

async fn dial(transport: &dyn Transport, node: &GatewayAddress) -> Result<Link, FetchError> {
    let found = tokio::net::lookup_host(&node.address).await;
    let mut reason = "it has no address".to_owned();
    for address in found.map_err(|error| FetchError::Unreachable(error.to_string()))? {
        match transport.connect(&PeerAddress { id: node.id, address }).await {
            Ok(link) => return Ok(link),
            Err(error) => reason = error.to_string(),
        }
    }
    Err(FetchError::Unreachable(reason))
}

async fn converse(link: &mut Link, show: Show, most_bytes: u64) -> Result<Vec<u8>, FetchError> {
    let lost = |error: &dyn std::fmt::Display| FetchError::Unreachable(error.to_string());
    let piece = MAX_SHOWN_BYTES as u64;
    // The first answer says how much there is.
    let (mut bytes, mut asked, mut total) = (Vec::new(), 0, piece);
    while (bytes.len() as u64) < total {
        let most = if bytes.is_empty() { piece } else { total.min(bytes.len() as u64 + WINDOW * piece) };
        while asked < most {
            let next = Message::Show(Show { offset: asked, ..show.clone() });
            link.send(next.encode()).await.map_err(|error| lost(&error))?;
            asked += piece;
        }
        let answer = timeout(SILENCE, link.recv()).await.map_err(|_| FetchError::Answer("silence"))?;
        let Message::Shown(shown) = Message::decode(answer.map_err(|error| lost(&error))?)? else {
            return Err(FetchError::Answer("another message"));
        };
        let whole = shown.answer?;
        if (shown.case, shown.offset) != (show.case, bytes.len() as u64) {
            return Err(FetchError::Answer("another piece"));
        }
        if whole > most_bytes || (!bytes.is_empty() && whole != total) {
            return Err(FetchError::Answer("more than evidence may have"));
        }
        total = whole;
        if shown.body.len() as u64 != piece.min(total.saturating_sub(shown.offset)) || shown.body.is_empty() {
            return Err(FetchError::Answer("a piece of another length"));
        }
        bytes.extend_from_slice(&shown.body);
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, OnceLock};

    use bytes::Bytes;
    use ledger::{
        audit::LeafId,
        client::AuditEvent,
        draw::Rate,
        eip712::{Address, keccak},
    };
    use transport::{Identity, Limits, sim::Network};

    use super::*;
    use crate::{
        audit::{
            book::{BookConfig, Entry, Signed},
            plan::{Digest, Plan, PlannedStage, Terms},
            rows::{Boundary, CHUNK, chunk_root, row_roots},
        },
        model::Quantisation,
        payment::now,
        request::Sampling,
    };

    const MODEL: Digest = Digest([9; 32]);
    const ACCOUNT: Address = [7; 20];
    const CASE: [u8; 32] = [5; 32];
    /// Rows so wide that evidence takes several pieces.
    const WIDE: usize = 8192;

    fn key(number: u8) -> Key {
        Key::from_bytes(&[number; 32]).expect("a key")
    }

    fn plan() -> Plan {
        let stage = |from, to, embedding, head| PlannedStage {
            node: Digest([to as u8; 32]),
            from,
            to,
            embedding,
            head,
        };
        let hash = Digest::default();
        Plan {
            session: format!("{:016x}{:016x}", now() * 1000 + 1000, 1),
            gateway: Digest([1; 32]),
            terms: Terms { model: MODEL, quantisation: Quantisation::Q8, salt: hash, prompt_hash: hash },
            prompt_length: 3,
            max_tokens: 1000,
            stop_tokens: Vec::new(),
            sampling: Sampling::default(),
            stages: vec![stage(0, 2, true, false), stage(2, 5, false, true)],
        }
    }

    /// A book with one leaf of 150 rows that came in.
    fn book(directory: &std::path::Path) -> Book {
        let book = Book::open(BookConfig {
            directory: directory.to_owned(),
            limit_bytes: 1 << 30,
            account: ACCOUNT,
            model: Arc::new(OnceLock::from(MODEL)),
            quantisation: Quantisation::Q8,
            layers: 5,
            plants: Rate::from_bits(0),
        });
        let (book, plan) = (book.expect("opens"), plan());
        for from in (0..150).step_by(CHUNK as usize) {
            let to = (from + CHUNK).min(150);
            let rows: Vec<Bytes> = (from..to).map(|n| Bytes::from(vec![n as u8; WIDE])).collect();
            let at = Boundary { model: MODEL, layer: 2 };
            let root = chunk_root(&at.rows(from, &row_roots(&rows)));
            book.note(Entry::Rows { model: MODEL, root, rows });
            book.note(Entry::Signed(Box::new(Signed {
                plan: plan.clone(),
                hash: plan.hash(),
                stage: 1,
                tokens: false,
                to,
                in_root: root,
                out_root: Digest([from as u8; 32]),
                commitment: Digest(keccak(&to.to_be_bytes())),
            })));
        }
        book.flush();
        book.seal().expect("is written").expect("has leaves");
        book
    }

    fn docket() -> Docket {
        let mut docket = Docket::new(ACCOUNT);
        docket.drawn(CASE, LeafId { account: ACCOUNT, epoch: 1, index: 2 }, 0, false);
        let auditor = Some(key(1).address());
        docket.heard(&AuditEvent::AuditorDrawn { case: CASE, auditor, deadline: 0 });
        docket
    }

    /// Answers each question of each link by `reply`.
    async fn serve(node: transport::sim::Endpoint, reply: impl Fn(NodeId, Show) -> Option<Bytes>) {
        while let Some(Ok(mut link)) = node.accept().await {
            while let Ok(bytes) = link.recv().await {
                let Ok(Message::Show(show)) = Message::decode(bytes) else { panic!("a question") };
                let Some(answer) = reply(link.peer(), show) else { break };
                if link.send(answer).await.is_err() {
                    break;
                }
            }
        }
    }

    fn whole(shown: Shown) -> Bytes {
        let body = shown.body.clone();
        [&Message::Shown(shown).encode()[..], &body].concat().into()
    }

    struct Line {
        node: GatewayAddress,
        auditor: transport::sim::Endpoint,
        task: tokio::task::JoinHandle<()>,
    }

    fn line(reply: impl Fn(NodeId, NodeId, Show) -> Option<Bytes> + Send + Sync + 'static) -> Line {
        let network = Network::new(3);
        let endpoint = |seed: u8| {
            network.endpoint(&Identity::from_secret([seed; 32]), Limits::default()).expect("an endpoint")
        };
        let (node, auditor) = (endpoint(1), endpoint(2));
        let address = GatewayAddress { id: node.id(), address: node.local_address().to_string() };
        let id = node.id();
        let task = tokio::spawn(serve(node, move |peer, show| reply(id, peer, show)));
        Line { node: address, auditor, task }
    }

    #[tokio::test]
    async fn who_was_drawn_is_shown_all_of_it_and_nobody_else_anything() {
        let folder = tempfile::tempdir().expect("a directory");
        let (book, docket) = (book(folder.path()), Mutex::new(docket()));
        let held = book.leaf(0, 2).expect("a leaf");
        let line = line(move |node, peer, show| Some(whole(answer(&book, &docket, node, peer, &show))));
        let evidence =
            fetch(&line.auditor, &line.node, &key(1), CASE, MAX_EVIDENCE_BYTES).await.expect("is shown");
        assert_eq!((evidence.to(), evidence.check(&held.chunk)), (150, Ok(())));
        assert!(evidence.encode().len() > 4 * MAX_SHOWN_BYTES);
        let refused = [(key(2), CASE), (key(1), [6; 32])];
        for (key, case) in refused {
            let refused = fetch(&line.auditor, &line.node, &key, case, MAX_EVIDENCE_BYTES).await;
            assert!(matches!(refused, Err(FetchError::Refused(Hidden::NotDrawn))), "{refused:?}");
        }
        line.task.abort();
    }

    #[test]
    fn a_signature_is_for_one_node_and_one_asker() {
        let folder = tempfile::tempdir().expect("a directory");
        let (book, docket) = (book(folder.path()), Mutex::new(docket()));
        let (node, peer, other) = (NodeId([1; 32]), NodeId([2; 32]), NodeId([3; 32]));
        let signature = key(1).sign(&show_digest(&CASE, node, peer)).to_vec();
        let show = Show { case: CASE, auditor: key(1).address(), signature, offset: 0 };
        let answered = |node, peer, show: &Show| answer(&book, &docket, node, peer, show).answer;
        assert!(answered(node, peer, &show).is_ok());
        assert_eq!(answered(node, other, &show), Err(Hidden::Unsigned));
        assert_eq!(answered(other, peer, &show), Err(Hidden::Unsigned));
        let named = Show { auditor: key(2).address(), ..show.clone() };
        assert_eq!(answered(node, peer, &named), Err(Hidden::Unsigned));
        let past = Show { offset: u64::MAX, ..show };
        assert_eq!(answered(node, peer, &past), Err(Hidden::Range));
    }

    /// Nodes that send anything but evidence.
    #[tokio::test]
    async fn an_auditor_believes_nothing() {
        let shown = |show: &Show, total: u64, bytes: usize| {
            whole(Shown {
                case: show.case,
                offset: show.offset,
                answer: Ok(total),
                body: vec![0; bytes].into(),
            })
        };
        type Reply = Box<dyn Fn(NodeId, NodeId, Show) -> Option<Bytes> + Send + Sync>;
        let replies: [Reply; 8] = [
            Box::new(|_, _, _| None),
            Box::new(|_, _, _| Some(Bytes::from_static(b"garbage"))),
            Box::new(|_, _, _| Some(Message::Welcome.encode().into())),
            Box::new(move |_, _, show| Some(shown(&show, u64::MAX, MAX_SHOWN_BYTES))),
            Box::new(move |_, _, show| Some(shown(&show, 0, 0))),
            Box::new(move |_, _, show| Some(shown(&show, 1 << 20, 100))),
            Box::new(move |_, _, show| Some(shown(&Show { offset: 7, ..show }, 100, 100))),
            Box::new(move |_, _, show| Some(shown(&show, 100, 100))),
        ];
        for reply in replies {
            let line = line(reply);
            assert!(fetch(&line.auditor, &line.node, &key(1), CASE, MAX_EVIDENCE_BYTES).await.is_err());
            line.task.abort();
        }
    }
}
