//! Asking a gateway which layers to hold, before any are loaded.

use std::time::Duration;

use thiserror::Error;
use transport::{CloseReason, ConnectError, LinkError, PeerAddress, SendError, Transport};

use super::GatewayAddress;
use crate::{
    message::{Ask, Message, MessageError},
    model::Shard,
};

/// Longest wait for an answer: a gateway of many nodes plans for a while.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why there is no answer.
#[derive(Debug, Error)]
pub enum AskError {
    /// The name does not resolve.
    #[error("{address}: {error}")]
    Resolve {
        /// What was to be resolved.
        address: String,
        /// Why it was not.
        error: std::io::Error,
    },
    /// The gateway cannot be reached.
    #[error("{address}: {error}")]
    Connect {
        /// Where.
        address: String,
        /// Why.
        error: ConnectError,
    },
    /// The link ended.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The question could not be sent.
    #[error(transparent)]
    Send(#[from] SendError),
    /// The gateway sent something else.
    #[error("the gateway answered with something else than layers")]
    Answer(#[from] MessageError),
    /// The gateway does not want the node.
    #[error("the gateway refused: {0}")]
    Refused(String),
    /// No answer came.
    #[error("the gateway did not answer within {} s", PATIENCE.as_secs())]
    Silent,
}

/// Asks for layers.
pub async fn ask(
    transport: &dyn Transport,
    gateway: &GatewayAddress,
    question: Ask,
) -> Result<Shard, AskError> {
    tokio::time::timeout(PATIENCE, converse(transport, gateway, question))
        .await
        .map_err(|_| AskError::Silent)?
}

async fn converse(
    transport: &dyn Transport,
    gateway: &GatewayAddress,
    question: Ask,
) -> Result<Shard, AskError> {
    let place = || gateway.address.clone();
    let resolved = tokio::net::lookup_host(&gateway.address)
        .await
        .map_err(|error| AskError::Resolve { address: place(), error })?
        .next();
    let address = resolved.ok_or_else(|| AskError::Resolve {
        address: place(),
        error: std::io::ErrorKind::AddrNotAvailable.into(),
    })?;
    let peer = PeerAddress { id: gateway.id, address };
    let mut link =
        transport.connect(&peer).await.map_err(|error| AskError::Connect { address: place(), error })?;
    link.send(Message::Ask(question).encode()).await?;
    let answer = Message::decode(link.recv().await?)?;
    link.close(CloseReason::new(0, "answered"));
    // The node's own link to the gateway must be the only one.
    link.closed().await;
    match answer {
        Message::Assign(assign) => Ok(assign.shard),
        Message::Refuse(reason) => Err(AskError::Refused(reason)),
        _ => Err(AskError::Answer(MessageError::Invalid("another kind"))),
    }
}
