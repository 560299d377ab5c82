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
