//! A node's part in audits, as far as its links and its serving are concerned.

use transport::NodeId;

use super::Desk;
use crate::{
    audit::clerk::Event,
    message::{Hidden, Message, Show, Shown},
};

impl Desk {
    /// Somebody asks for evidence.
    pub(super) fn show(&mut self, peer: NodeId, show: Show) {
        let answer = match &mut self.clerk {
            Some(clerk) => clerk.ask(peer, show),
            None => Some(Shown::hidden(&show, Hidden::Nothing)),
        };
        if let Some(shown) = answer {
            self.peers.send(peer, None, Message::Shown(shown));
        }
    }

    /// The clerk says something.
    pub(super) fn said(&mut self, event: Event) {
        match event {
            Event::Shown(peer, shown) => {
                if let Some(clerk) = &mut self.clerk {
                    clerk.answered(peer);
                }
                // One that is gone asks again.
                if self.peers.is_live(peer) {
                    self.peers.send(peer, None, Message::Shown(shown));
                }
            }
            // It serves nobody any more; leaves that are drawn still have to be opened.
            Event::Faulty(reason) => {
                for gateway in std::mem::take(&mut self.gateways).into_keys() {
                    self.peers.expel(gateway, &reason);
                    self.state.lost(gateway, &reason);
                }
            }
        }
    }
}
