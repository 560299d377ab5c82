//! A node's side: it learns from its gateways where it is seen, and has itself introduced to others.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use quinn::{Connection, VarInt};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use super::bucket::Bucket;
use super::note::{MAX_CANDIDATES, Meet, Note};
use super::packet::{Packet, Token};
use super::paths::{Heard, Mirrored, NewSession};
use super::punch::Attempt;
use super::{Filtering, MAX_NOTES, Mapping, Nat, Reachability, read_note, send_note};
use crate::NodeId;
use crate::quic::nat::socket::canonical;

/// Introductions a second that a node goes along with, and at once.
const INVITATIONS_PER_S: f64 = 2.0;
const INVITATIONS_AT_ONCE: f64 = 32.0;
/// How long a gateway may take to introduce.
const INTRODUCED: Duration = Duration::from_secs(2);
/// After what the mirror sends unasked, which asking it first would let in.
const MIRROR_SILENCE: Duration = Duration::from_millis(600);
const MIRROR_INTERVAL: Duration = Duration::from_millis(150);
const MIRROR_QUESTIONS: usize = 4;

/// See the module.
#[derive(Debug)]
pub(super) struct Client {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Who may introduce.
    wanted: HashSet<NodeId>,
    /// Those there are links to, the first first.
    guides: Vec<Guide>,
    waiting: HashMap<u32, Waiting>,
    requests: u32,
    invitations: Bucket,
}

#[derive(Debug)]
struct Guide {
    id: NodeId,
    connection: Connection,
    observed: Option<SocketAddr>,
    mapping: Mapping,
    filtering: Filtering,
}

#[derive(Debug)]
struct Waiting {
    guide: NodeId,
    peer: NodeId,
    answer: oneshot::Sender<Introduction>,
}

/// A peer that is told to be reached.
#[derive(Debug)]
pub(super) struct Introduction {
    meet: Meet,
    /// The address that stands for the relayed path.
    relayed: SocketAddr,
    heard: mpsc::Receiver<Heard>,
}

impl Introduction {
    /// Where the peer is reached, once a hole is punched.
    pub(super) async fn punch(&mut self, nat: &Nat) -> Option<SocketAddr> {
        let Meet { token, candidates, hopeless, .. } = &self.meet;
        let attempt = Attempt { socket: &nat.socket, token: *token, candidates, hopeless: *hopeless };
        attempt.run(&mut self.heard).await
    }

    /// The address that stands for the path through the gateway, if that relays.
    pub(super) fn relayed(&self) -> Option<SocketAddr> {
        self.meet.relay.then_some(self.relayed)
    }
}

impl Client {
    pub(super) fn new(now: Instant) -> Self {
        let invitations = Bucket::new(INVITATIONS_PER_S, INVITATIONS_AT_ONCE, now);
        let (wanted, guides, waiting) = Default::default();
        Self { state: Mutex::new(State { wanted, guides, waiting, requests: 0, invitations }) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it is locked")
    }

    pub(super) fn want(&self, guides: impl IntoIterator<Item = NodeId>) {
        self.lock().wanted.extend(guides);
    }

    pub(super) fn wants(&self, guide: NodeId) -> bool {
        self.lock().wanted.contains(&guide)
    }

    /// Those who can introduce `peer`: nobody introduces itself.
    pub(super) fn guides(&self, peer: NodeId) -> Vec<NodeId> {
        self.lock().guides.iter().map(|guide| guide.id).filter(|id| *id != peer).collect()
    }

    /// Where the gateways see the node, and behind what.
    pub(super) fn place(&self) -> Vec<(NodeId, Option<SocketAddr>, Mapping, Filtering)> {
        let place = |guide: &Guide| (guide.id, guide.observed, guide.mapping, guide.filtering);
        self.lock().guides.iter().map(place).collect()
    }

    pub(super) fn reachability(&self, local: SocketAddr) -> Reachability {
        let state = self.lock();
        let seen: Vec<SocketAddr> = state.guides.iter().filter_map(|guide| guide.observed).collect();
        let measured = |mapping| state.guides.iter().any(|guide| guide.mapping == mapping);
        let mapping = match &seen[..] {
            _ if measured(Mapping::Dependent) => Mapping::Dependent,
            [first, rest @ ..] if rest.iter().any(|other| other != first) => Mapping::Dependent,
            [_, _, ..] => Mapping::Independent,
            _ if measured(Mapping::Independent) => Mapping::Independent,
            _ => Mapping::Unknown,
        };
        let filtering = state.guides.iter().map(|guide| guide.filtering).find(|f| *f != Filtering::Unknown);
        let towards = state.guides.first().map(|guide| canonical(guide.connection.remote_address()));
        let local = towards.and_then(|towards| local_address(local, towards));
        Reachability {
            observed: seen.first().copied(),
            is_translated: seen.first().is_some_and(|seen| Some(*seen) != local),
            mapping,
            filtering: filtering.unwrap_or_default(),
        }
    }

    /// Asks a gateway to introduce `peer`; `None` when it does not.
    pub(super) async fn ask(&self, guide: NodeId, peer: NodeId) -> Option<Introduction> {
        let (request, connection, answered) = {
            let mut state = self.lock();
            let connection = state.guides.iter().find(|other| other.id == guide)?.connection.clone();
            // 0 is of those who did not ask.
            state.requests = state.requests.wrapping_add(1).max(1);
            let request = state.requests;
            let (answer, answered) = oneshot::channel();
            state.waiting.insert(request, Waiting { guide, peer, answer });
            (request, connection, answered)
        };
        // Also when the caller gives up.
        let _waiting = Forget { client: self, request };
        let asked = async {
            send_note(connection, Note::Ask { request, peer }).await;
            answered.await.ok()
        };
        tokio::time::timeout(INTRODUCED, asked).await.ok().flatten()
    }

    fn observed(&self, guide: NodeId, address: SocketAddr) {
        if let Some(guide) = self.lock().guides.iter_mut().find(|other| other.id == guide) {
            guide.observed = Some(address);
        }
    }

    fn measured(&self, guide: NodeId, mapping: Mapping, filtering: Filtering) {
        if let Some(guide) = self.lock().guides.iter_mut().find(|other| other.id == guide) {
            (guide.mapping, guide.filtering) = (mapping, filtering);
        }
    }
}

/// Ends the wait for an answer.
struct Forget<'a> {
    client: &'a Client,
    request: u32,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.client.lock().waiting.remove(&self.request);
    }
}

/// Listens to a gateway for as long as the link to it lasts.
pub(super) async fn follow(nat: Arc<Nat>, id: NodeId, connection: Connection) {
    connection.set_max_concurrent_uni_streams(VarInt::from_u32(MAX_NOTES));
    let guide = Guide {
        id,
        connection: connection.clone(),
        observed: None,
        mapping: Mapping::default(),
        filtering: Filtering::default(),
    };
    {
        let mut state = nat.client.lock();
        state.guides.retain(|guide| guide.id != id);
        state.guides.push(guide);
    }
    // They end with this one.
    let (mut tasks, mut measuring) = (JoinSet::new(), JoinSet::new());
    let mut reading = pin!(read_note(&connection));
    loop {
        tokio::select! {
            note = &mut reading => {
                match note {
                    Ok(Some(note)) => heed(&nat, (id, &connection), note, (&mut tasks, &mut measuring)),
                    Ok(None) => tracing::debug!(gateway = %id.short(), "a note that is none"),
                    Err(_) => break,
                }
                reading.set(read_note(&connection));
            }
            Some(_) = tasks.join_next() => {}
            Some(_) = measuring.join_next() => {}
        }
    }
    let number = connection.stable_id();
    nat.socket.paths().distrust(number);
    nat.client.lock().guides.retain(|guide| guide.connection.stable_id() != number);
}

fn heed(
    nat: &Arc<Nat>,
    (id, connection): (NodeId, &Connection),
    note: Note,
    (tasks, measuring): (&mut JoinSet<()>, &mut JoinSet<()>),
) {
    match note {
        Note::Observed { address, mirror, token, whereabouts } => {
            nat.client.observed(id, address);
            let guide = canonical(connection.remote_address());
            nat.socket.paths().trust(connection.stable_id(), guide, whereabouts);
            tracing::debug!(gateway = %id.short(), %address, "observed");
            // What was found out of another address does not matter any more.
            measuring.abort_all();
            measuring.spawn(measure(nat.clone(), (id, connection.clone()), address, (mirror, token)));
        }
        Note::Meet(meet) => meet_peer(nat, (id, connection), meet, tasks),
        Note::Refused { request, reason } => {
            tracing::debug!(gateway = %id.short(), ?reason, "not introduced");
            let mut state = nat.client.lock();
            if state.waiting.get(&request).is_some_and(|waiting| waiting.guide == id) {
                state.waiting.remove(&request);
            }
        }
        // What nodes say to gateways.
        Note::About { .. } | Note::Ask { .. } => {}
    }
}

fn meet_peer(nat: &Arc<Nat>, (id, connection): (NodeId, &Connection), meet: Meet, tasks: &mut JoinSet<()>) {
    let now = Instant::now();
    if !are_plausible(&meet.candidates) {
        return tracing::warn!(gateway = %id.short(), "introduced to addresses that no node has");
    }
    let waiting = {
        let mut state = nat.client.lock();
        let asked = |waiting: &Waiting| waiting.guide == id && waiting.peer == meet.peer;
        match meet.request {
            0 if state.invitations.take(1.0, now) => None,
            0 => return tracing::debug!(gateway = %id.short(), "introduced too often"),
            request if state.waiting.get(&request).is_some_and(asked) => state.waiting.remove(&request),
            _ => return,
        }
    };
    let (token, peer, relay) = (meet.token, meet.peer, meet.relay);
    let guide = canonical(connection.remote_address());
    let session =
        NewSession { token, peer, guide, relay, candidates: &meet.candidates, is_asked: waiting.is_some() };
    let Some((relayed, heard)) = nat.socket.paths().insert(&session, now) else { return };
    let mut introduction = Introduction { meet, relayed, heard };
    match waiting {
        // Fails only when nobody waits any more.
        Some(waiting) => drop(waiting.answer.send(introduction)),
        None => {
            let nat = nat.clone();
            tasks.spawn(async move {
                // The peer dials; here the way is opened for it.
                let found = introduction.punch(&nat).await;
                if let Some(address) = found {
                    nat.shorten(peer, address);
                }
                tracing::debug!(peer = %peer.short(), ?found, "probed for a peer");
            });
        }
    }
}

/// Whether these may be addresses of one node: where it is observed, and some of a private network. Whoever
/// introduces can thus name one public address.
fn are_plausible(candidates: &[SocketAddr]) -> bool {
    let mut rest = candidates.iter().skip(1);
    !candidates.is_empty()
        && candidates.len() <= MAX_CANDIDATES
        && rest.all(|address| is_private(address.ip()))
}

/// Whether an address is one of a private network.
pub(super) fn is_private(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_private() || ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unique_local(),
    }
}

/// Where a socket bound to `bound` is, as seen on the way to `towards` by itself.
fn local_address(bound: SocketAddr, towards: SocketAddr) -> Option<SocketAddr> {
    let bound = canonical(bound);
    if !bound.ip().is_unspecified() {
        return Some(bound);
    }
    // Connecting a UDP socket sends nothing; it only asks for the route.
    let any: IpAddr = if towards.is_ipv4() { [0; 4].into() } else { [0u16; 8].into() };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect(towards).ok()?;
    Some(SocketAddr::new(socket.local_addr().ok()?.ip(), bound.port()))
}

/// Listens for the mirror of a gateway.
struct Watch<'a> {
    nat: &'a Nat,
    token: Token,
}

impl<'a> Watch<'a> {
    fn new(nat: &'a Nat, token: Token, host: IpAddr) -> Self {
        nat.socket.paths().await_mirror(token, host);
        Self { nat, token }
    }

    fn shown(&self) -> Mirrored {
        self.nat.socket.paths().take_mirrored(self.token)
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        self.nat.socket.paths().take_mirrored(self.token);
    }
}

/// Finds out what the router does and tells the gateway.
async fn measure(
    nat: Arc<Nat>,
    (id, connection): (NodeId, Connection),
    observed: SocketAddr,
    (mirror, token): (u16, Token),
) {
    let guide = canonical(connection.remote_address());
    let local: Vec<SocketAddr> = local_address(nat.local_address, guide).into_iter().collect();
    let about = |mapping, filtering| Note::About { local: local.clone(), mapping, filtering };
    let (mapping, filtering) = Default::default();
    // Until then nothing of it is listened for, also when this task is ended.
    let watch = (mirror != 0).then(|| Watch::new(&nat, token, guide.ip()));
    send_note(connection.clone(), about(mapping, filtering)).await;
    let Some(watch) = watch else { return };
    tokio::time::sleep(MIRROR_SILENCE).await;
    for _ in 0..MIRROR_QUESTIONS {
        nat.socket.send(SocketAddr::new(guide.ip(), mirror), &Packet::MirrorAsk { token }.encode());
        tokio::time::sleep(MIRROR_INTERVAL).await;
    }
    let shown = watch.shown();
    let mapping = match shown.seen {
        Some(seen) if seen == observed => Mapping::Independent,
        Some(_) => Mapping::Dependent,
        None => Mapping::Unknown,
    };
    let filtering = match shown {
        shown if shown.pinged => Filtering::Open,
        // The mirror can be reached, so what it sent unasked was kept out.
        shown if shown.seen.is_some() => Filtering::Restricted,
        _ => Filtering::Unknown,
    };
    nat.client.measured(id, mapping, filtering);
    tracing::debug!(gateway = %id.short(), %observed, %mapping, %filtering, "measured");
    send_note(connection, about(mapping, filtering)).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gateway_can_name_one_public_address() {
        let addresses = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<_>>();
        let plausible = |texts: &[&str]| are_plausible(&addresses(texts));
        assert!(plausible(&["203.0.113.9:1"]));
        assert!(plausible(&["203.0.113.9:1", "192.168.1.7:1", "[fd00::7]:1"]));
        assert!(!plausible(&[]));
        assert!(!plausible(&["203.0.113.9:1", "203.0.113.10:1"]));
        assert!(!plausible(&["203.0.113.9:1", "127.0.0.1:1"]));
        assert!(!plausible(&["10.0.0.1:1"; MAX_CANDIDATES + 1]));
    }

    #[test]
    fn a_socket_on_all_addresses_knows_where_it_is() {
        let towards = "127.0.0.1:9".parse().unwrap();
        let local = |bound: &str| local_address(bound.parse().unwrap(), towards);
        assert_eq!(local("0.0.0.0:77"), Some("127.0.0.1:77".parse().unwrap()));
        assert_eq!(local("[::]:77"), Some("127.0.0.1:77".parse().unwrap()));
        assert_eq!(local("192.0.2.7:77"), Some("192.0.2.7:77".parse().unwrap()));
    }
}
