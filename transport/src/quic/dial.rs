//! Dialling: at the address that is given, and where that brings nothing, wherever a gateway's introduction leads.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use quinn::{ClientConfig, Connection, ConnectionError, RecvStream, SendStream};
use tokio::sync::Notify;

use super::{Endpoint, SERVER_NAME, Side, nat, stream, tls};
use crate::{ConnectError, Link, LinkError, NodeId, PathKind, PeerAddress};

/// How long the address that is given is tried alone.
const HEAD_START: Duration = Duration::from_millis(150);
/// How long a path that has been seen to work is dialled, before the gateway is to relay.
const PUNCHED_PATIENCE: Duration = Duration::from_secs(2);

/// A connection to a peer that has proven its id.
pub(super) struct Reached {
    pub(super) connection: Connection,
    pub(super) streams: (SendStream, RecvStream),
    path: PathKind,
}

impl Endpoint {
    pub(super) async fn dial(&self, peer: &PeerAddress) -> Result<Link, ConnectError> {
        if *self.closing.borrow() {
            return Err(ConnectError::Closed);
        }
        let slot = self.host.slots.clone().try_acquire_owned().map_err(|_| ConnectError::TooManyLinks)?;
        let Reached { connection, streams, path } = self.reach(peer).await?;
        let ends = (self.closing.subscribe(), slot);
        let start = (Side::Dialler, path, connection.remote_address());
        let opening = self.host.start(start, peer.id, connection, streams, ends).await?;
        opening.opened().await.map_err(|error| match error {
            // The peer judges our key after our side of the TLS handshake is over.
            LinkError::PeerLost(cause) => ConnectError::Refused(cause),
            error => ConnectError::Link(error),
        })
    }

    /// Tries the address, and soon beside it an introduction; the first connection counts.
    async fn reach(&self, peer: &PeerAddress) -> Result<Reached, ConnectError> {
        let is_given = !nat::is_virtual(peer.address.ip());
        let direct = async {
            match is_given {
                true => self.shake_hands(peer.id, peer.address, PathKind::Direct).await,
                false => Err(ConnectError::Address("no host has this address".into())),
            }
        };
        let guides = self.host.nat.guides(peer.id);
        if guides.is_empty() {
            return direct.await;
        }
        let failed = Notify::new();
        let introduced = async {
            // Whichever comes first.
            let _ = tokio::time::timeout(HEAD_START, failed.notified()).await;
            self.meet(peer.id, guides).await
        };
        let (mut direct, mut introduced) = (pin!(direct), pin!(introduced));
        let (mut error, mut is_met) = (None, false);
        loop {
            tokio::select! {
                reached = &mut direct, if error.is_none() => match reached {
                    Ok(reached) => return Ok(reached),
                    Err(reason) => {
                        error = Some(reason);
                        failed.notify_one();
                    }
                },
                reached = &mut introduced, if !is_met => match reached {
                    Some(reached) => return Ok(reached),
                    None => is_met = true,
                },
                // Both have failed; what is said of the address is what the caller asked for.
                else => return Err(error.unwrap_or(ConnectError::TimedOut)),
            }
        }
    }

    /// Reaches a peer through one of its gateways' introduction.
    async fn meet(&self, peer: NodeId, guides: Vec<NodeId>) -> Option<Reached> {
        for guide in guides {
            let Some(mut meeting) = self.host.nat.ask(guide, peer).await else { continue };
            if let Some(address) = meeting.punch().await {
                let dial = self.shake_hands(peer, address, PathKind::Punched);
                if let Ok(Ok(reached)) = tokio::time::timeout(PUNCHED_PATIENCE, dial).await {
                    return Some(reached);
                }
            }
            if let Some(address) = meeting.relayed()
                && let Ok(reached) = self.shake_hands(peer, address, PathKind::Relayed).await
            {
                return Some(reached);
            }
        }
        None
    }

    pub(super) async fn shake_hands(
        &self,
        peer: NodeId,
        address: SocketAddr,
        path: PathKind,
    ) -> Result<Reached, ConnectError> {
        let found = Arc::new(OnceLock::new());
        let address_error = |error: String| ConnectError::Address(error);
        // There is no fabric between nodes that are not in one network. Gateways say on a QUIC connection what is to
        // be said of addresses.
        let protocols = match path {
            PathKind::Direct if !self.host.nat.is_guide(peer) => self.host.protocols(),
            _ => vec![tls::ALPN.to_vec()],
        };
        let tls = tls::client_config(self.key.clone(), peer, found.clone(), protocols)
            .map_err(|error| address_error(error.to_string()))?;
        let mut config = ClientConfig::new(Arc::new(tls));
        config.transport_config(self.client_transport.clone());
        let connecting = self
            .quinn
            .connect_with(config, self.host.nat.native(address), SERVER_NAME)
            .map_err(|error| address_error(error.to_string()))?;
        let connection = connecting.await.map_err(|error| match (found.get(), error) {
            (Some(found), _) if *found != peer => ConnectError::WrongPeer { expected: peer, found: *found },
            (_, error) => dial_error(error),
        })?;
        let streams = connection.open_bi().await.map_err(dial_error)?;
        Ok(Reached { connection, streams, path })
    }
}

fn dial_error(error: ConnectionError) -> ConnectError {
    match error {
        ConnectionError::TimedOut => ConnectError::TimedOut,
        ConnectionError::ConnectionClosed(close) => ConnectError::Refused(close.to_string()),
        ConnectionError::ApplicationClosed(close) => ConnectError::Refused(close.to_string()),
        ConnectionError::LocallyClosed => ConnectError::Closed,
        error => ConnectError::Link(stream::lost(error)),
    }
}
