//! A gateway's side: it tells nodes where it sees them, introduces them to each other, and may relay between them.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use quinn::{Connection, VarInt};
use tokio::net::UdpSocket;
use tokio::task::{AbortHandle, JoinSet};

use super::client::is_private;
use super::note::{MAX_CANDIDATES, Meet, Note, Refusal};
use super::packet::{Packet, Token, random_id};
use super::paths::is_virtual;
use super::quota::Quotas;
use super::relay::End;
use super::socket::canonical;
use super::{Filtering, MAX_NOTES, Mapping, Nat, read_note, send_note};
use crate::NodeId;

/// How often a link is looked at for another address.
pub(super) const LOOK: Duration = Duration::from_millis(250);
/// When the mirror sends what nobody asked it for, after the node was told of it.
const PINGS: [Duration; 3] =
    [Duration::from_millis(50), Duration::from_millis(150), Duration::from_millis(250)];

/// See the module.
#[derive(Debug)]
pub(super) struct Server {
    /// Whom it serves; all if there is no list.
    allow: Option<HashSet<NodeId>>,
    members: Mutex<HashMap<NodeId, Member>>,
    quotas: Mutex<Quotas>,
    /// Beside the endpoint's: what a node sends to both shows whether its mapping depends on where to.
    mirror_port: u16,
    answering: AbortHandle,
}

/// A node there is a link to.
#[derive(Debug)]
struct Member {
    connection: Connection,
    /// Where it is, as it has shown by what it received there.
    address: SocketAddr,
    /// What it is asked under where it is.
    whereabouts: Token,
    local: Vec<SocketAddr>,
    mapping: Mapping,
    filtering: Filtering,
}

impl Server {
    /// Listens on a second port: the next after the endpoint's, or one that the system chooses.
    pub(super) fn start(local: SocketAddr, allow: Option<HashSet<NodeId>>) -> io::Result<Self> {
        let next = SocketAddr::new(local.ip(), local.port().wrapping_add(1));
        let socket = std::net::UdpSocket::bind(next)
            .or_else(|_| std::net::UdpSocket::bind(SocketAddr::new(local.ip(), 0)))?;
        socket.set_nonblocking(true)?;
        let mirror = UdpSocket::from_std(socket)?;
        let mirror_port = mirror.local_addr()?.port();
        let answering = tokio::spawn(reflect(mirror)).abort_handle();
        let (members, quotas) = Default::default();
        Ok(Self { allow, members, quotas, mirror_port, answering })
    }

    /// Whether a node is served.
    pub(super) fn allows(&self, node: NodeId) -> bool {
        self.allow.as_ref().is_none_or(|allow| allow.contains(&node))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<NodeId, Member>> {
        self.members.lock().expect("nothing panics while it is locked")
    }

    /// The link to a node.
    #[cfg(test)]
    pub(super) fn connection(&self, node: NodeId) -> Option<Connection> {
        Some(self.lock().get(&node)?.connection.clone())
    }

    #[cfg(test)]
    pub(super) fn address(&self, node: NodeId) -> Option<SocketAddr> {
        Some(self.lock().get(&node)?.address)
    }

    /// What is to be said to whom when `from` asks for `peer`.
    fn introduce(&self, nat: &Nat, from: NodeId, request: u32, peer: NodeId) -> Vec<(Connection, Note)> {
        let now = Instant::now();
        let members = self.lock();
        let mut quotas = self.quotas.lock().expect("nothing panics while it is locked");
        let Some(asking) = members.get(&from) else { return Vec::new() };
        let refuse = |reason| vec![(asking.connection.clone(), Note::Refused { request, reason })];
        if !quotas.may_ask(from, now) {
            return refuse(Refusal::TooOften);
        }
        let (Some([a, b]), Ok(token)) = (pair(&members, from, peer), Token::random()) else {
            return refuse(Refusal::Unknown);
        };
        if !quotas.may_be_asked_for(peer, now) {
            return refuse(Refusal::TooOften);
        }
        let ends = [a.end(from), b.end(peer)];
        let relay = nat.socket.relay().is_some_and(|mut relay| relay.open(token, ends, now));
        let meet = |request, peer, of: &Member, by: &Member| {
            Note::Meet(Meet {
                request,
                token,
                peer,
                relay,
                hopeless: hopeless(a, b),
                candidates: of.candidates(by),
            })
        };
        // The one that is dialled opens its router first.
        vec![(b.connection.clone(), meet(0, from, a, b)), (a.connection.clone(), meet(request, peer, b, a))]
    }

    /// Notes what a node says of itself. It can only spoil its own ways.
    fn describe(
        &self,
        (id, connection): (NodeId, &Connection),
        local: Vec<SocketAddr>,
        mapping: Mapping,
        filtering: Filtering,
    ) {
        if let Some(member) = self.lock().get_mut(&id).filter(|member| member.is(connection)) {
            (member.local, member.mapping, member.filtering) = (local, mapping, filtering);
        }
    }

    /// Notes where a link is now, and says so if that is new. QUIC follows a peer at once, and for seconds also one
    /// that is not there: who forges a sender's address must not have something relayed there. So the node is asked
    /// at the new address, and has to answer from there.
    fn look(&self, nat: &Nat, id: NodeId, connection: &Connection) -> Option<SocketAddr> {
        let address = canonical(connection.remote_address());
        let mut members = self.lock();
        let member = members.get_mut(&id).filter(|member| member.is(connection))?;
        let token = member.whereabouts;
        if address == member.address {
            nat.socket.paths().settle(token);
            return None;
        }
        let question = nat.socket.paths().question(token, address, random_id().ok()?);
        if let Some(id) = question {
            nat.socket.send_from(connection.local_ip(), address, &Packet::Probe { token, id }.encode());
            return None;
        }
        nat.socket.paths().settle(token);
        member.address = address;
        if let Some(mut relay) = nat.socket.relay() {
            relay.moved(member.end(id));
        }
        Some(address)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.answering.abort();
    }
}

impl Member {
    fn is(&self, connection: &Connection) -> bool {
        self.connection.stable_id() == connection.stable_id()
    }

    fn end(&self, node: NodeId) -> End {
        End { node, address: self.address, via: self.connection.local_ip() }
    }

    /// Where this node may be tried from where `by` is.
    fn candidates(&self, by: &Self) -> Vec<SocketAddr> {
        let mut candidates = vec![self.address];
        // Behind one router, which may not send back what goes to its own address.
        if self.address.ip() == by.address.ip() {
            candidates
                .extend(self.local.iter().filter(|local| is_private(local.ip()) && **local != self.address));
        }
        candidates.truncate(MAX_CANDIDATES);
        candidates
    }
}

fn pair(members: &HashMap<NodeId, Member>, a: NodeId, b: NodeId) -> Option<[&Member; 2]> {
    (a != b).then_some([members.get(&a)?, members.get(&b)?])
}

/// Whether a hole cannot be punched: one maps each destination to a port of its own, and the other lets nothing in
/// from a port that it did not send to.
fn hopeless(a: &Member, b: &Member) -> bool {
    let strict =
        |member: &Member| member.mapping == Mapping::Dependent || member.filtering == Filtering::Restricted;
    [(a, b), (b, a)].iter().any(|(one, other)| one.mapping == Mapping::Dependent && strict(other))
}

/// Serves a node, which is at `address`, for as long as its link lasts.
pub(super) async fn host(nat: Arc<Nat>, id: NodeId, connection: Connection, address: SocketAddr) {
    let Some(server) = nat.server.get() else { return };
    let Ok(whereabouts) = Token::random() else { return };
    if is_virtual(address.ip()) {
        return;
    }
    connection.set_max_concurrent_uni_streams(VarInt::from_u32(MAX_NOTES));
    let member = Member {
        connection: connection.clone(),
        address,
        whereabouts,
        local: Vec::new(),
        mapping: Mapping::default(),
        filtering: Filtering::default(),
    };
    {
        let mut members = server.lock();
        if let Some(mut relay) = nat.socket.relay() {
            relay.moved(member.end(id));
        }
        members.insert(id, member);
    }
    converse(&nat, server, (id, &connection), (address, whereabouts)).await;
    nat.socket.paths().settle(whereabouts);
    let mut members = server.lock();
    if members.get(&id).is_some_and(|member| member.is(&connection)) {
        members.remove(&id);
        if let Some(mut relay) = nat.socket.relay() {
            relay.gone(id);
        }
    }
}

async fn converse(
    nat: &Nat,
    server: &Server,
    (id, connection): (NodeId, &Connection),
    (address, whereabouts): (SocketAddr, Token),
) {
    // They end with this one.
    let mut tasks = JoinSet::new();
    let mut look = tokio::time::interval(LOOK);
    let mut address = Some(address);
    let mut reading = pin!(read_note(connection));
    loop {
        if let Some(address) = address.take() {
            tasks.spawn(observe(connection.clone(), (address, whereabouts), server.mirror_port));
        }
        tokio::select! {
            note = &mut reading, if tasks.len() < MAX_NOTES as usize => {
                match note {
                    Ok(Some(Note::Ask { request, peer })) => {
                        for (to, note) in server.introduce(nat, id, request, peer) {
                            tasks.spawn(send_note(to, note));
                        }
                    }
                    Ok(Some(Note::About { local, mapping, filtering })) => {
                        server.describe((id, connection), local, mapping, filtering);
                    }
                    // What gateways say to nodes, and what is no note.
                    Ok(_) => tracing::debug!(node = %id.short(), "a note that is none of a node's"),
                    Err(_) => return,
                }
                reading.set(read_note(connection));
            }
            Some(_) = tasks.join_next() => {}
            _ = connection.closed() => return,
            _ = look.tick() => address = server.look(nat, id, connection),
        }
    }
}

/// Tells a node where it is seen, and shows whether something it has not asked for gets through to it.
async fn observe(connection: Connection, (address, whereabouts): (SocketAddr, Token), mirror: u16) {
    let Ok(token) = Token::random() else { return };
    // From a port of its own: the node's router may still let in what comes from one that was sent to before.
    let unspecified = if address.is_ipv4() { [0; 4].into() } else { [0u16; 8].into() };
    let from = connection.local_ip().map_or(unspecified, |ip| ip.to_canonical());
    let unasked = UdpSocket::bind((from, 0)).await.ok();
    // Without, what the mirror shows would be taken for more than it is.
    let mirror = unasked.as_ref().map_or(0, |_| mirror);
    let begun = tokio::time::Instant::now();
    send_note(connection, Note::Observed { address, mirror, token, whereabouts }).await;
    let Some(unasked) = unasked else { return };
    for after in PINGS {
        tokio::time::sleep_until(begun + after).await;
        // What is lost is lost.
        let _ = unasked.send_to(&Packet::MirrorPing { token }.encode(), address).await;
    }
}

/// Answers who asks with the address that it asks from; no answer is longer than its question.
async fn reflect(mirror: UdpSocket) {
    let mut buffer = [0; 64];
    loop {
        match mirror.recv_from(&mut buffer).await {
            Ok((len, from)) => {
                if let Some(Packet::MirrorAsk { token }) = Packet::decode(&buffer[..len]) {
                    let seen = canonical(from);
                    let _ = mirror.send_to(&Packet::MirrorAnswer { token, seen }.encode(), from).await;
                }
            }
            // An earlier answer that could not be delivered, or a system that is short of something.
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}
