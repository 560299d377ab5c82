//! A node that gives what it has of the model to other nodes, beside what it serves.

use tokio::{sync::mpsc, time::Instant};
use transport::NodeId;

use super::Desk;
use crate::{
    message::{Denial, Message, Parts, Piece, Want},
    weights::{Giver, Stock, Taking},
};

/// What a node gives.
pub(super) struct Giving {
    stock: Stock,
    giver: Giver,
    pieces: mpsc::Receiver<(NodeId, Piece)>,
    /// What gateways were last told of it.
    told: Option<Parts>,
}

impl Giving {
    pub(super) fn start(stock: Stock) -> Self {
        let (giver, pieces) = Giver::beside(stock.clone());
        Self { stock, giver, pieces, told: None }
    }

    pub(super) fn stock(&self) -> &Stock {
        &self.stock
    }
}

/// Waits for a piece that is to go out.
pub(super) async fn given(giving: &mut Option<Giving>) -> (NodeId, Piece) {
    let piece = match giving {
        Some(giving) => giving.pieces.recv().await,
        None => None,
    };
    match piece {
        Some(piece) => piece,
        None => std::future::pending().await,
    }
}

impl Desk {
    /// A gateway says that `peer` may be given what the node has.
    pub(super) fn lend(&mut self, peer: NodeId) {
        if let Some(giving) = &mut self.giving {
            giving.giver.lend(peer, Instant::now());
        }
    }

    /// Somebody asks for weights.
    pub(super) fn wanted(&mut self, peer: NodeId, want: Want) {
        let taking = match &mut self.giving {
            Some(giving) => giving.giver.wanted(peer, want, Instant::now()),
            None => Taking::Denied(Piece::denied(want, Denial::Nothing)),
        };
        match taking {
            Taking::Taken => {}
            Taking::Denied(piece) => self.peers.send(peer, None, Message::Piece(piece)),
            Taking::Broken => self.peers.expel(peer, "asks for more weights at once than it may"),
        }
    }

    pub(super) fn give(&mut self, (peer, piece): (NodeId, Piece)) {
        if let Some(giving) = &mut self.giving {
            giving.giver.given(peer);
        }
        // Whoever is gone has no use for it.
        if self.peers.is_live(peer) {
            self.peers.send(peer, None, Message::Piece(piece));
        }
    }

    /// Tells gateways what the node can give, when that has changed.
    pub(super) fn tell_shares(&mut self) {
        let Some(giving) = &mut self.giving else { return };
        giving.giver.serves(self.state.sessions() > 0);
        let parts = giving.stock.parts();
        if giving.told == parts {
            return;
        }
        giving.told.clone_from(&parts);
        let Some(parts) = parts else { return };
        for id in self.gateways.iter().filter(|(_, gateway)| gateway.welcome).map(|(id, _)| *id) {
            self.peers.send(id, None, Message::Shares(parts.clone()));
        }
    }

    /// Somebody new has to be told.
    pub(super) fn forget_shares(&mut self) {
        if let Some(giving) = &mut self.giving {
            giving.told = None;
        }
    }
}
