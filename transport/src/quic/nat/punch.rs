//! Hole punching: both nodes probe each other's addresses at the same time, each from the socket of its endpoint, so
//! that the packets of each open its own router for the other's.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use super::note::MAX_CANDIDATES;
use super::packet::{Packet, Token, random_id};
use super::paths::Heard;
use super::socket::Socket;

/// Between two probes of the same address.
const INTERVAL: Duration = Duration::from_millis(100);
/// Probes of each address, and where there is little hope.
const ROUNDS: u8 = 15;
const HOPELESS_ROUNDS: u8 = 4;
/// Addresses that are probed: those that were named, and other ports of the same hosts that the peer's probes came from.
const MAX_TARGETS: usize = MAX_CANDIDATES + 4;

/// What is tried.
pub(super) struct Attempt<'a> {
    pub(super) socket: &'a Socket,
    pub(super) token: Token,
    pub(super) candidates: &'a [SocketAddr],
    pub(super) hopeless: bool,
}

impl Attempt<'_> {
    /// Finds an address of the peer that a packet reached and an answer came back from. It sends at most
    /// `ROUNDS * MAX_TARGETS` packets of 25 bytes.
    pub(super) async fn run(&self, heard: &mut mpsc::Receiver<Heard>) -> Option<SocketAddr> {
        let hosts: HashSet<IpAddr> = self.candidates.iter().map(SocketAddr::ip).collect();
        let mut targets = self.candidates.to_vec();
        let mut sent = HashMap::new();
        for _ in 0..if self.hopeless { HOPELESS_ROUNDS } else { ROUNDS } {
            for target in &targets {
                self.probe(*target, &mut sent);
            }
            let next = Instant::now() + INTERVAL;
            // What fails is the wait for the next round, or the introduction that is forgotten.
            while let Ok(Some(event)) = timeout_at(next, heard.recv()).await {
                match event {
                    // An answer from elsewhere shows that the peer can send from there, not that it can be reached.
                    Heard::Answer { id, from } if sent.get(&id) == Some(&from) => return Some(from),
                    Heard::Answer { from, .. } | Heard::Probe(from) => {
                        let new = hosts.contains(&from.ip()) && !targets.contains(&from);
                        if new && targets.len() < MAX_TARGETS {
                            targets.push(from);
                            self.probe(from, &mut sent);
                        }
                    }
                }
            }
        }
        None
    }

    fn probe(&self, target: SocketAddr, sent: &mut HashMap<u64, SocketAddr>) {
        // At random: only who receives it can answer.
        let Ok(id) = random_id() else { return };
        sent.insert(id, target);
        self.socket.send(target, &Packet::Probe { token: self.token, id }.encode());
    }
}
