//! What a node was introduced for, by token, and the addresses that stand for relayed paths. Pure.
//!
//! QUIC knows a path by its address. A path through a relay gets one of 240.0.0.0/5, which no host has: what is
//! sent there goes to the relay under the path's token, and what comes from the relay under it comes from there.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::packet::Token;
use crate::{NodeId, PathKind};

/// Most introductions that are remembered.
const MAX_SESSIONS: usize = 256;
/// Those of them that this node did not ask for.
const MAX_UNASKED: usize = 128;
/// How long one is, after something was last relayed under it.
const FORGOTTEN: Duration = Duration::from_secs(30);
/// Probes that are answered under one token.
const MAX_ANSWERS: u8 = 32;
/// Addresses of the peer that are remembered under one token.
const MAX_HEARD: usize = 8;
/// What is heard and not yet taken by whoever tries the path.
const HEARD_QUEUE: usize = 32;
/// Other hosts of the peer that later introductions have named, and are remembered.
const MAX_HOSTS: usize = 16;
/// After so long without a word on the short way, what is sent goes by the gateway as well.
const STALE: Duration = Duration::from_millis(700);
/// And after so long by the gateway alone, until the way is found again.
const CLOSED: Duration = Duration::from_secs(10);
/// How often something goes by the gateway, so that it keeps the way open.
const KEPT: Duration = Duration::from_secs(5);
const VIRTUAL_NET: u32 = 0xF000_0000;
const VIRTUAL_BITS: u32 = 27;
const VIRTUAL_PORT: u16 = 1;

#[derive(Debug, Default)]
pub(super) struct Paths {
    sessions: HashMap<Token, Session>,
    /// Tokens by the number in a relayed path's address.
    tokens: HashMap<u32, Token>,
    next: u32,
    mirrors: HashMap<Token, Mirrored>,
    /// Gateways that may ask where this node is, and under which token, by link.
    guides: HashMap<usize, (SocketAddr, Token)>,
    /// What nodes are asked that seem to be elsewhere, by the token of each.
    questions: HashMap<Token, Question>,
}

/// Whether a node is where its packets seem to come from: it shows that by the id that was sent there.
#[derive(Debug)]
struct Question {
    address: SocketAddr,
    id: u64,
    is_answered: bool,
}

/// One introduction.
#[derive(Debug)]
struct Session {
    peer: NodeId,
    /// The gateway that introduced, which relays what carries the token if it said so.
    guide: SocketAddr,
    relay: bool,
    is_asked: bool,
    number: u32,
    /// Where the peer may be; nothing is sent anywhere else.
    hosts: Vec<IpAddr>,
    answers_left: u8,
    heard: Vec<SocketAddr>,
    events: mpsc::Sender<Heard>,
    used: Instant,
    /// A way past the gateway.
    short: Option<Short>,
}

/// A hole that was punched after a connection had begun through the gateway. What went there goes here instead, under
/// the same token: to QUIC it is the path that it was.
#[derive(Debug)]
struct Short {
    address: SocketAddr,
    heard: Instant,
    /// When something last went by the gateway.
    relayed: Instant,
}

/// Where a datagram of a relayed path goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Way {
    pub(super) token: Token,
    pub(super) to: SocketAddr,
    /// Where the same goes in case that is no way any more.
    pub(super) copy: Option<SocketAddr>,
}

/// What comes of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// The peer's probe arrived from there.
    Probe(SocketAddr),
    /// The peer answers the probe with this id, from there.
    Answer { id: u64, from: SocketAddr },
}

/// What the mirror of a gateway showed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Mirrored {
    pub(super) host: Option<IpAddr>,
    /// From where it sees the node.
    pub(super) seen: Option<SocketAddr>,
    /// Whether what it sent unasked has arrived.
    pub(super) pinged: bool,
}

/// An introduction as the peer that is to be reached is told of.
pub(super) struct NewSession<'a> {
    pub(super) token: Token,
    pub(super) peer: NodeId,
    pub(super) guide: SocketAddr,
    pub(super) relay: bool,
    pub(super) candidates: &'a [SocketAddr],
    /// Whether this node asked for it.
    pub(super) is_asked: bool,
}

/// Whether an address stands for a relayed path.
pub(crate) fn is_virtual(ip: IpAddr) -> bool {
    matches!(ip.to_canonical(), IpAddr::V4(ip) if ip.to_bits() >> VIRTUAL_BITS == VIRTUAL_NET >> VIRTUAL_BITS)
}

fn virtual_address(number: u32) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::from_bits(VIRTUAL_NET | number), VIRTUAL_PORT))
}

impl Session {
    fn is_alive(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.used) < FORGOTTEN
    }
}

impl Paths {
    /// Remembers an introduction: the address that stands for its relayed path, and what will be heard. `None`
    /// when there are too many, or it is known already.
    pub(super) fn insert(
        &mut self,
        new: &NewSession<'_>,
        now: Instant,
    ) -> Option<(SocketAddr, mpsc::Receiver<Heard>)> {
        self.forget(now);
        let unasked = self.sessions.values().filter(|session| !session.is_asked).count();
        let room = self.sessions.len() < MAX_SESSIONS && (new.is_asked || unasked < MAX_UNASKED);
        if !room || self.sessions.contains_key(&new.token) {
            return None;
        }
        // Fewer are alive than there are numbers.
        let number = loop {
            let number = self.next;
            self.next = (self.next + 1) % (1 << VIRTUAL_BITS);
            if !self.tokens.contains_key(&number) {
                break number;
            }
        };
        let hosts: Vec<IpAddr> = new.candidates.iter().map(SocketAddr::ip).collect();
        for session in self.sessions.values_mut().filter(|session| session.peer == new.peer) {
            // It may be found there before it is found from here.
            let more = hosts.iter().filter(|host| !session.hosts.contains(*host)).copied();
            let more: Vec<IpAddr> = more.take(MAX_HOSTS.saturating_sub(session.hosts.len())).collect();
            session.hosts.extend(more);
        }
        let (events, heard) = mpsc::channel(HEARD_QUEUE);
        let session = Session {
            peer: new.peer,
            guide: new.guide,
            relay: new.relay,
            is_asked: new.is_asked,
            number,
            hosts,
            answers_left: MAX_ANSWERS,
            heard: Vec::new(),
            events,
            used: now,
            short: None,
        };
        self.sessions.insert(new.token, session);
        self.tokens.insert(number, new.token);
        Some((virtual_address(number), heard))
    }

    fn forget(&mut self, now: Instant) {
        self.sessions.retain(|_, session| session.is_alive(now));
        let sessions = &self.sessions;
        self.tokens.retain(|_, token| sessions.contains_key(token));
    }

    fn session_at(&mut self, address: SocketAddr, now: Instant) -> Option<(Token, &mut Session)> {
        let IpAddr::V4(ip) = address.ip().to_canonical() else { return None };
        let token = *self.tokens.get(&(ip.to_bits() & !VIRTUAL_NET))?;
        let usable = |session: &&mut Session| session.relay && session.is_alive(now);
        let session = self.sessions.get_mut(&token).filter(usable)?;
        Some((token, session))
    }

    /// Where a datagram to `address`, one of a relayed path, goes.
    pub(super) fn way(&mut self, address: SocketAddr, now: Instant) -> Option<Way> {
        let (token, session) = self.session_at(address, now)?;
        session.used = now;
        let guide = session.guide;
        let silent = |short: &Short| now.saturating_duration_since(short.heard);
        session.short = session.short.take().filter(|short| silent(short) < CLOSED);
        let Some(short) = &mut session.short else { return Some(Way { token, to: guide, copy: None }) };
        let is_due = now.saturating_duration_since(short.relayed) >= KEPT;
        let copy = (is_due || silent(short) >= STALE).then_some(guide);
        if copy.is_some() {
            short.relayed = now;
        }
        Some(Way { token, to: short.address, copy })
    }

    /// The address of the path on which a relayed datagram came.
    pub(super) fn relayed(&mut self, token: Token, from: SocketAddr, now: Instant) -> Option<SocketAddr> {
        let usable = |session: &&mut Session| session.relay && session.is_alive(now);
        let session = self.sessions.get_mut(&token).filter(usable)?;
        match &mut session.short {
            Some(short) if short.address == from => short.heard = now,
            // The peer may have found the way before.
            _ if session.guide == from || session.hosts.contains(&from.ip()) => {}
            _ => return None,
        }
        session.used = now;
        Some(virtual_address(session.number))
    }

    /// A packet to `address` came to `peer`, and its answer back: what goes to it through a gateway goes there.
    pub(super) fn shorten(&mut self, peer: NodeId, address: SocketAddr, now: Instant) {
        for session in
            self.sessions.values_mut().filter(|session| session.peer == peer && session.is_alive(now))
        {
            session.short = Some(Short { address, heard: now, relayed: now });
        }
    }

    /// Whether what is sent to `address`, one of a relayed path, goes past the gateway.
    pub(super) fn is_short(&mut self, address: SocketAddr, now: Instant) -> bool {
        let short = self.session_at(address, now).and_then(|(_, session)| session.short.as_ref());
        short.is_some_and(|short| now.saturating_duration_since(short.heard) < 2 * STALE)
    }

    /// Whether a probe is to be answered.
    pub(super) fn probed(&mut self, token: Token, from: SocketAddr, now: Instant) -> bool {
        if self.guides.values().any(|guide| *guide == (from, token)) {
            return true;
        }
        let Some(session) = self.sessions.get_mut(&token) else { return false };
        let may_answer = session.answers_left > 0 && session.is_alive(now);
        if !may_answer || !session.hosts.contains(&from.ip()) {
            return false;
        }
        session.answers_left -= 1;
        if !session.heard.contains(&from) && session.heard.len() < MAX_HEARD {
            session.heard.push(from);
        }
        // Whoever tries the path is done, or is told by the next.
        let _ = session.events.try_send(Heard::Probe(from));
        true
    }

    /// Notes an answer to a probe.
    pub(super) fn answered(&mut self, token: Token, id: u64, from: SocketAddr) {
        if let Some(question) = self.questions.get_mut(&token) {
            question.is_answered |= (question.address, question.id) == (from, id);
        }
        if let Some(session) = self.sessions.get_mut(&token) {
            let _ = session.events.try_send(Heard::Answer { id, from });
        }
    }

    /// By what kind of path an accepted peer came.
    pub(super) fn kind(&self, peer: NodeId, from: SocketAddr) -> PathKind {
        if is_virtual(from.ip()) {
            return PathKind::Relayed;
        }
        let came = |session: &Session| session.peer == peer && session.heard.contains(&from);
        if self.sessions.values().any(came) { PathKind::Punched } else { PathKind::Direct }
    }

    /// Lets a gateway ask where this node is, under `token`, until its `link` is over.
    pub(super) fn trust(&mut self, link: usize, guide: SocketAddr, token: Token) {
        self.guides.insert(link, (guide, token));
    }

    pub(super) fn distrust(&mut self, link: usize) {
        self.guides.remove(&link);
    }

    /// The id to be sent to `address`, to see whether the node that was told `token` is there; `None` once it has
    /// sent that back from there. `fresh` is taken if it was not asked yet.
    pub(super) fn question(&mut self, token: Token, address: SocketAddr, fresh: u64) -> Option<u64> {
        let new = || Question { address, id: fresh, is_answered: false };
        let question = self.questions.entry(token).or_insert_with(new);
        if question.address != address {
            *question = new();
        }
        (!question.is_answered).then_some(question.id)
    }

    /// The node that was told `token` needs not say any more where it is.
    pub(super) fn settle(&mut self, token: Token) {
        self.questions.remove(&token);
    }

    /// Begins to listen for the mirror at `host`.
    pub(super) fn await_mirror(&mut self, token: Token, host: IpAddr) {
        self.mirrors.insert(token, Mirrored { host: Some(host), ..Mirrored::default() });
    }

    /// What the mirror showed; it is not listened for any more.
    pub(super) fn take_mirrored(&mut self, token: Token) -> Mirrored {
        self.mirrors.remove(&token).unwrap_or_default()
    }

    pub(super) fn mirrored(&mut self, token: Token, from: SocketAddr, seen: Option<SocketAddr>) {
        let Some(mirrored) = self.mirrors.get_mut(&token).filter(|mirrored| mirrored.host == Some(from.ip()))
        else {
            return;
        };
        match seen {
            Some(_) => mirrored.seen = seen,
            None => mirrored.pinged = true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: NodeId = NodeId([7; 32]);

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn session(paths: &mut Paths, token: u8, now: Instant) -> (SocketAddr, mpsc::Receiver<Heard>) {
        let candidates = [address("192.0.2.7:7")];
        let guide = address("192.0.2.1:7700");
        let token = Token([token; 16]);
        let new =
            NewSession { token, peer: PEER, guide, relay: true, candidates: &candidates, is_asked: true };
        paths.insert(&new, now).expect("there is room")
    }

    #[test]
    fn a_relayed_path_has_one_address_and_only_its_relay_is_believed() {
        let (mut paths, now) = (Paths::default(), Instant::now());
        let ((first, _), (second, _)) = (session(&mut paths, 1, now), session(&mut paths, 2, now));
        assert!(is_virtual(first.ip()) && is_virtual(second.ip()) && first != second);
        let guide = address("192.0.2.1:7700");
        let way = Way { token: Token([2; 16]), to: guide, copy: None };
        assert_eq!(paths.way(second, now), Some(way));
        assert_eq!(paths.relayed(Token([2; 16]), guide, now), Some(second));
        assert_eq!(paths.relayed(Token([2; 16]), address("192.0.2.1:7701"), now), None);
        assert_eq!(paths.relayed(Token([3; 16]), guide, now), None);
        assert_eq!(paths.way(address("240.0.9.9:1"), now), None);
        assert_eq!(paths.kind(PEER, first), PathKind::Relayed);
    }

    #[test]
    fn what_went_through_the_gateway_goes_past_it_while_the_peer_is_heard_there() {
        let (mut paths, now) = (Paths::default(), Instant::now());
        let (path, _) = session(&mut paths, 1, now);
        let (token, guide, hole) = (Token([1; 16]), address("192.0.2.1:7700"), address("192.0.2.7:9"));
        assert_eq!(paths.relayed(token, hole, now), Some(path), "the peer has found the way first");
        assert!(!paths.is_short(path, now));
        paths.shorten(PEER, hole, now);
        let mut at = |ms, heard: bool| {
            let now = now + Duration::from_millis(ms);
            if heard {
                assert_eq!(paths.relayed(token, hole, now), Some(path));
            }
            let way = paths.way(path, now).unwrap();
            (way.to, way.copy, paths.is_short(path, now))
        };
        assert_eq!(at(100, false), (hole, None, true));
        assert_eq!(at(800, false), (hole, Some(guide), true), "in doubt both");
        assert_eq!(at(900, true), (hole, None, true));
        assert_eq!(at(5900, true), (hole, Some(guide), true), "so that the gateway remembers");
        assert_eq!(at(6000, true), (hole, None, true));
        assert_eq!(at(8000, false), (hole, Some(guide), false));
        assert_eq!(at(16_000, false), (guide, None, false));
        let other = address("192.0.2.8:9");
        let now = now + Duration::from_secs(16);
        assert_eq!(paths.relayed(token, other, now), None, "a host that nobody named");
        paths.shorten(NodeId([8; 32]), other, now);
        assert_eq!(paths.way(path, now).unwrap().to, guide, "it is another peer");
        // The peer is elsewhere, as another introduction shows.
        let candidates = [other];
        let new = NewSession {
            token: Token([2; 16]),
            peer: PEER,
            guide,
            relay: true,
            candidates: &candidates,
            is_asked: true,
        };
        paths.insert(&new, now).unwrap();
        assert_eq!(paths.relayed(token, other, now), Some(path));
    }

    #[test]
    fn probes_are_answered_a_few_times_and_only_to_hosts_the_gateway_named() {
        let (mut paths, now) = (Paths::default(), Instant::now());
        let (_, mut heard) = session(&mut paths, 1, now);
        let token = Token([1; 16]);
        assert!(!paths.probed(token, address("203.0.113.9:7"), now), "a host that was not named");
        assert!(!paths.probed(Token([9; 16]), address("192.0.2.7:7"), now), "a token of nobody");
        // Another port of the host: a NAT that maps each destination to a port of its own.
        let from = address("192.0.2.7:999");
        assert_eq!(paths.kind(PEER, from), PathKind::Direct);
        let answered = (0..200).filter(|_| paths.probed(token, from, now)).count();
        assert_eq!(answered, usize::from(MAX_ANSWERS));
        assert_eq!(heard.try_recv(), Ok(Heard::Probe(from)));
        assert_eq!(paths.kind(PEER, from), PathKind::Punched);
        assert_eq!(paths.kind(NodeId([8; 32]), from), PathKind::Direct);
    }

    #[test]
    fn introductions_are_bounded_and_forgotten() {
        let (mut paths, now) = (Paths::default(), Instant::now());
        let candidates = [address("192.0.2.7:7")];
        let insert = |paths: &mut Paths, token: u16, is_asked, now| {
            let mut bytes = [0; 16];
            bytes[..2].copy_from_slice(&token.to_be_bytes());
            let guide = address("192.0.2.1:7700");
            let token = Token(bytes);
            let new = NewSession { token, peer: PEER, guide, relay: true, candidates: &candidates, is_asked };
            paths.insert(&new, now).map(|(address, _)| address)
        };
        let first = insert(&mut paths, 0, false, now).unwrap();
        assert_eq!(insert(&mut paths, 0, false, now), None, "the same twice");
        let more = (1..1000).filter(|token| insert(&mut paths, *token, false, now).is_some()).count();
        assert_eq!(more + 1, MAX_UNASKED);
        let more = (1000..2000).filter(|token| insert(&mut paths, *token, true, now).is_some()).count();
        assert_eq!(more, MAX_SESSIONS - MAX_UNASKED, "what the node asks for has a place");
        // The first is in use.
        assert!(paths.way(first, now + FORGOTTEN / 2).is_some());
        let later = now + FORGOTTEN;
        assert!(!paths.probed(Token([0; 16]), address("192.0.2.7:7"), now + FORGOTTEN * 3 / 2), "it is over");
        assert!(insert(&mut paths, 1000, false, later).is_some());
        assert_eq!(paths.sessions.len(), 2);
        assert!(paths.way(first, later).is_some());
    }

    #[test]
    fn only_the_gateways_host_is_its_mirror() {
        let mut paths = Paths::default();
        let token = Token([4; 16]);
        paths.await_mirror(token, address("192.0.2.1:1").ip());
        paths.mirrored(token, address("192.0.2.2:9"), Some(address("10.0.0.1:1")));
        paths.mirrored(token, address("192.0.2.1:9"), None);
        let mirrored = paths.take_mirrored(token);
        assert_eq!((mirrored.seen, mirrored.pinged), (None, true));
        assert_eq!(paths.take_mirrored(token), Mirrored::default());
    }
}
