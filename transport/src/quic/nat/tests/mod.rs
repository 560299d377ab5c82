//! Endpoints behind simulated routers, over real sockets on loopback.

mod router;

use std::sync::atomic::{AtomicU8, Ordering};

use super::*;
use crate::quic::Endpoint;
use crate::quic::dial::Reached;
use crate::{ConnectError, Identity, Limits, Link, PeerAddress, Transport};
use router::{Kind, Router};

const KINDS: [Kind; 5] =
    [Kind::Open, Kind::FullCone, Kind::AddressRestricted, Kind::PortRestricted, Kind::Symmetric];
const RELAY_BYTES_PER_S: u64 = 4 << 20;

/// Each router of this process has a host of its own.
static ROUTERS: AtomicU8 = AtomicU8::new(1);

fn identity() -> Identity {
    Identity::generate().unwrap()
}

fn gateway(relay_bytes_per_s: u64) -> Endpoint {
    let gateway = Endpoint::bind(&identity(), "127.0.0.1:0".parse().unwrap(), Limits::default()).unwrap();
    gateway.introduce_peers(relay_bytes_per_s, None).unwrap();
    gateway
}

fn address(endpoint: &Endpoint) -> PeerAddress {
    PeerAddress { id: endpoint.id(), address: endpoint.local_address() }
}

/// A node and its link to the gateway.
struct Node {
    endpoint: Arc<Endpoint>,
    router: Arc<Router>,
    _gateway: [Link; 2],
}

impl Node {
    async fn join(kind: Kind, gateway: &Endpoint) -> Self {
        let router = Router::new(kind, ROUTERS.fetch_add(1, Ordering::Relaxed));
        let any = "0.0.0.0:0".parse().unwrap();
        let endpoint =
            Endpoint::over(router.clone(), &identity(), any, Limits::default(), |host, _| host).unwrap();
        endpoint.meet_through([gateway.id()]);
        let to = address(gateway);
        let (dialled, accepted) = tokio::join!(endpoint.connect(&to), gateway.accept());
        let links = [dialled.unwrap(), accepted.unwrap().unwrap()];
        let node = Self { endpoint: Arc::new(endpoint), router, _gateway: links };
        node.until(|reachability| reachability.observed.is_some()).await;
        node
    }

    async fn until(&self, holds: impl Fn(&Reachability) -> bool) -> Reachability {
        let view = self.endpoint.nat();
        let wait = async {
            loop {
                let reachability = view.reachability();
                if holds(&reachability) {
                    return reachability;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(5), wait).await.expect("the gateway tells it")
    }

    /// Dials another node, which accepts.
    async fn link(&self, to: &Self) -> Result<[Link; 2], ConnectError> {
        let peer = address(&to.endpoint);
        let accept = async {
            loop {
                // What loses the race between two ways ends in its handshake.
                if let Ok(link) = to.endpoint.accept().await.expect("it is open") {
                    return Ok(link);
                }
            }
        };
        let (dialled, accepted) = tokio::try_join!(self.endpoint.connect(&peer), accept)?;
        Ok([dialled, accepted])
    }
}

async fn talk([a, b]: &mut [Link; 2]) {
    for round in 0..3u8 {
        a.send(vec![round; 40_000]).await.unwrap();
        assert_eq!(b.recv().await.unwrap(), vec![round; 40_000]);
        b.send(vec![round; 40_000]).await.unwrap();
        assert_eq!(a.recv().await.unwrap(), vec![round; 40_000]);
    }
}

/// What the rules of the two routers allow.
fn expected(from: Kind, to: Kind) -> PathKind {
    let strict = |kind| matches!(kind, Kind::PortRestricted | Kind::Symmetric);
    match (from, to) {
        (_, Kind::Open) => PathKind::Direct,
        (Kind::Symmetric, other) | (other, Kind::Symmetric) if strict(other) => PathKind::Relayed,
        _ => PathKind::Punched,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_pair_of_routers_is_passed_as_well_as_their_rules_allow() {
    let mut pairs = tokio::task::JoinSet::new();
    // A busy machine is late as a bad network is.
    let few = Arc::new(tokio::sync::Semaphore::new(5));
    for (from, to) in KINDS.into_iter().flat_map(|from| KINDS.map(|to| (from, to))) {
        let few = few.clone();
        pairs.spawn(async move {
            let _turn = few.acquire().await;
            let gateway = gateway(RELAY_BYTES_PER_S);
            let (a, b) = (Node::join(from, &gateway).await, Node::join(to, &gateway).await);
            let begun = Instant::now();
            let links = a.link(&b).await;
            let mut links = links.unwrap_or_else(|error| panic!("{from:?} to {to:?}: {error}"));
            let path = match expected(from, to) {
                // One that is late is overtaken.
                PathKind::Direct if links[0].path() == PathKind::Punched => PathKind::Punched,
                path => path,
            };
            eprintln!("{from:?} to {to:?}: {}, {} ms", links[0].path(), begun.elapsed().as_millis());
            assert_eq!([links[0].peer(), links[1].peer()], [b.endpoint.id(), a.endpoint.id()]);
            assert_eq!([links[0].path(), links[1].path()], [path; 2], "{from:?} to {to:?}");
            talk(&mut links).await;
            let relay = gateway.nat().relay();
            assert_eq!(
                relay.relayed_bytes > 240_000,
                path == PathKind::Relayed,
                "{from:?} to {to:?}: {relay:?}"
            );
            if path == PathKind::Relayed {
                assert_eq!(relay.pairs[0].nodes, [a.endpoint.id(), b.endpoint.id()]);
            }
        });
    }
    while let Some(pair) = pairs.join_next().await {
        pair.unwrap();
    }
}

/// The gateway finds out what stands between it and a node, and spares hopeless tries.
#[tokio::test]
async fn routers_are_told_apart() {
    let gateway = gateway(RELAY_BYTES_PER_S);
    for (kind, mapping, filtering) in [
        (Kind::Open, Mapping::Independent, Filtering::Open),
        (Kind::AddressRestricted, Mapping::Independent, Filtering::Open),
        (Kind::PortRestricted, Mapping::Independent, Filtering::Restricted),
        (Kind::Symmetric, Mapping::Dependent, Filtering::Restricted),
    ] {
        let node = Node::join(kind, &gateway).await;
        let found = node.until(|reachability| reachability.filtering != Filtering::Unknown).await;
        assert_eq!((found.mapping, found.filtering), (mapping, filtering), "{kind:?}");
        assert_eq!(found.is_translated, kind != Kind::Open);
    }
}

/// Two gateways that see a node at two addresses show the same as one with a mirror.
#[tokio::test]
async fn two_gateways_are_two_observers() {
    for (kind, mapping) in [(Kind::FullCone, Mapping::Independent), (Kind::Symmetric, Mapping::Dependent)] {
        let (first, second) = (gateway(0), gateway(0));
        let node = Node::join(kind, &first).await;
        node.endpoint.meet_through([second.id()]);
        let to = address(&second);
        let (link, _accepted) = tokio::join!(node.endpoint.connect(&to), second.accept());
        let _link = link.unwrap();
        // Long before the mirrors have shown anything.
        let found = node.until(|reachability| reachability.mapping != Mapping::Unknown).await;
        assert_eq!((found.mapping, found.filtering), (mapping, Filtering::Unknown));
    }
}

#[tokio::test]
async fn without_a_relay_what_cannot_be_punched_fails_in_time() {
    let gateway = gateway(0);
    let (a, b) = (Node::join(Kind::Symmetric, &gateway).await, Node::join(Kind::Symmetric, &gateway).await);
    let begun = Instant::now();
    let failed = a.link(&b).await.map(|_| ()).unwrap_err();
    assert_eq!(failed, ConnectError::TimedOut);
    assert!(begun.elapsed() < Limits::default().connect_timeout + Duration::from_secs(1));
    assert_eq!(gateway.nat().relay().relayed_bytes, 0);
}

/// What goes through the relay is bounded, and the link goes on.
#[tokio::test]
async fn a_relayed_link_lives_within_the_relays_bandwidth() {
    let gateway = gateway(400_000);
    let (a, b) = (Node::join(Kind::Symmetric, &gateway).await, Node::join(Kind::Symmetric, &gateway).await);
    let mut links = a.link(&b).await.unwrap();
    let begun = Instant::now();
    let bytes = 1_000_000;
    let [dialled, accepted] = &mut links;
    let (sent, received) = tokio::join!(dialled.send(vec![7; bytes]), accepted.recv());
    sent.unwrap();
    assert_eq!(received.unwrap().len(), bytes);
    assert!(begun.elapsed() > Duration::from_secs(2), "{:?}", begun.elapsed());
    let relay = gateway.nat().relay();
    assert!(relay.relayed_bytes > bytes as u64 && relay.dropped_bytes > 0, "{relay:?}");
    assert_eq!(links[0].path(), PathKind::Relayed);
}

/// Sends numbered messages both ways, until both ends say that the link goes by `path`.
async fn talk_until(links: &mut [Link; 2], path: PathKind) {
    let [a, b] = links;
    let talk = async {
        for number in 0u32.. {
            let message = [&number.to_be_bytes()[..], &[7; 4000]].concat();
            a.send(message.clone()).await.unwrap();
            b.send(message.clone()).await.unwrap();
            assert_eq!(
                [&b.recv().await.unwrap(), &a.recv().await.unwrap()],
                [&message; 2],
                "in order, and once"
            );
            if number > 20 && [a.path(), b.path()] == [path; 2] {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let limit = Duration::from_secs(40);
    tokio::time::timeout(limit, talk).await.unwrap_or_else(|_| panic!("it does not come to be {path}"));
}

/// A link that began through the gateway goes past it once that can be, and through it again when it cannot: the same
/// link, nothing lost, everything in order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relayed_link_comes_to_be_punched_when_a_router_is_another() {
    for dialler_moves in [true, false] {
        let gateway = gateway(RELAY_BYTES_PER_S);
        let (a, b) =
            (Node::join(Kind::Symmetric, &gateway).await, Node::join(Kind::Symmetric, &gateway).await);
        let mut links = a.link(&b).await.unwrap();
        talk_until(&mut links, PathKind::Relayed).await;
        let (moving, staying) = if dialler_moves { (&a, &b) } else { (&b, &a) };
        moving.router.replace(Kind::FullCone);
        talk_until(&mut links, PathKind::Punched).await;
        let before = gateway.nat().relay().relayed_bytes;
        for _ in 0..25 {
            talk(&mut links).await;
        }
        let relayed = gateway.nat().relay().relayed_bytes - before;
        assert!(relayed < 1_000_000, "{relayed} of 6 MB");
        moving.router.shut(staying.router.host());
        talk_until(&mut links, PathKind::Relayed).await;
    }
}

/// Nobody is told when a router begins to let more in: it is tried again after a while.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relayed_link_is_tried_again_after_a_while() {
    let gateway = gateway(RELAY_BYTES_PER_S);
    let (a, b) = (Node::join(Kind::FullCone, &gateway).await, Node::join(Kind::FullCone, &gateway).await);
    a.router.shut(b.router.host());
    let mut links = a.link(&b).await.unwrap();
    talk_until(&mut links, PathKind::Relayed).await;
    a.router.open_up();
    talk_until(&mut links, PathKind::Punched).await;
}

/// A node that the gateway has no link to cannot be met, and asking for it costs little time.
#[tokio::test]
async fn strangers_are_not_introduced() {
    let gateway = gateway(RELAY_BYTES_PER_S);
    let a = Node::join(Kind::FullCone, &gateway).await;
    let nat = a.endpoint.host.nat.clone();
    let begun = Instant::now();
    for stranger in [identity().id(), a.endpoint.id()] {
        assert!(nat.ask(gateway.id(), stranger).await.is_none());
    }
    assert!(begun.elapsed() < Duration::from_secs(1));
    // The address of a relayed path is none that may be dialled.
    let peer = PeerAddress { id: identity().id(), address: "240.0.0.0:1".parse().unwrap() };
    assert!(matches!(a.endpoint.connect(&peer).await, Err(ConnectError::Address(_))));
}

/// Who is not on the gateway's list is neither told anything nor introduced, and nobody is to it.
#[tokio::test]
async fn those_that_are_not_listed_are_not_introduced() {
    let gateway = Endpoint::bind(&identity(), "127.0.0.1:0".parse().unwrap(), Limits::default()).unwrap();
    let (listed, other) = (identity(), identity());
    gateway.introduce_peers(RELAY_BYTES_PER_S, Some(HashSet::from([listed.id()]))).unwrap();
    let again = gateway.introduce_peers(0, None).unwrap_err();
    assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
    let to = address(&gateway);
    let join = async |identity: &Identity| {
        let any = "127.0.0.1:0".parse().unwrap();
        let node = Endpoint::bind(identity, any, Limits::default()).unwrap();
        node.meet_through([gateway.id()]);
        let (dialled, accepted) = tokio::join!(node.connect(&to), gateway.accept());
        let links = [dialled.unwrap(), accepted.unwrap().unwrap()];
        (node, links)
    };
    let (other, _others) = join(&other).await;
    let (listed, _links) = join(&listed).await;
    until_at(&gateway, listed.id(), listed.local_address()).await;
    assert!(gateway.host.nat.server.get().unwrap().connection(other.id()).is_none());
    assert!(listed.host.nat.ask(gateway.id(), other.id()).await.is_none());
    assert!(other.host.nat.ask(gateway.id(), listed.id()).await.is_none());
    assert_eq!(other.nat().reachability().observed, None);
}

/// A node that asks again and again has others sent little.
#[tokio::test]
async fn introductions_are_rationed() {
    let gateway = gateway(RELAY_BYTES_PER_S);
    let (a, b) = (Node::join(Kind::FullCone, &gateway).await, Node::join(Kind::FullCone, &gateway).await);
    let nat = &a.endpoint.host.nat;
    let mut introduced = 0;
    let begun = Instant::now();
    for _ in 0..60 {
        introduced += u64::from(nat.ask(gateway.id(), b.endpoint.id()).await.is_some());
    }
    let Node { endpoint, _gateway: links, .. } = a;
    drop(links);
    let server = gateway.host.nat.server.get().unwrap();
    while server.connection(endpoint.id()).is_some() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // A new link does not buy more.
    let to = address(&gateway);
    let (dialled, accepted) = tokio::join!(endpoint.connect(&to), gateway.accept());
    let _links = [dialled.unwrap(), accepted.unwrap().unwrap()];
    while endpoint.host.nat.guides(b.endpoint.id()).is_empty() || server.connection(endpoint.id()).is_none() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for _ in 0..20 {
        introduced += u64::from(endpoint.host.nat.ask(gateway.id(), b.endpoint.id()).await.is_some());
    }
    let most = 16 + 1 + begun.elapsed().as_secs();
    assert!((16..=most).contains(&introduced), "{introduced}");
}

/// A gateway that lies about where a node is has whoever believes it send some small packets there, and no more. What
/// the node asks for itself is answered all the same.
#[tokio::test]
async fn a_gateway_cannot_make_a_node_flood_another() {
    let gateway = gateway(0);
    let (a, b) = (Node::join(Kind::FullCone, &gateway).await, Node::join(Kind::Open, &gateway).await);
    let victim = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = victim.local_addr().unwrap();
    // It speaks for itself, on the connection of the node's link.
    let nat = gateway.host.nat.clone();
    let connection = nat.server.get().unwrap().connection(a.endpoint.id()).unwrap();
    let lie = |number: u32, candidates: Vec<SocketAddr>| {
        let mut token = [0; 16];
        token[..4].copy_from_slice(&number.to_be_bytes());
        let (token, peer) = (packet::Token(token), identity().id());
        Note::Meet(note::Meet { request: 0, token, peer, relay: true, hopeless: false, candidates })
    };
    // Two public addresses at once are refused.
    send_note(connection.clone(), lie(0, vec![address, address])).await;
    for number in 1..200 {
        send_note(connection.clone(), lie(number, vec![address])).await;
    }
    assert!(a.endpoint.host.nat.ask(gateway.id(), b.endpoint.id()).await.is_some());
    let (mut packets, mut bytes, mut buffer) = (0, 0, [0; 2000]);
    let begun = Instant::now();
    let count = async {
        loop {
            bytes += victim.recv(&mut buffer).await.unwrap();
            packets += 1;
        }
    };
    let _: Result<(), _> = tokio::time::timeout(Duration::from_secs(3), count).await;
    let introductions = 32 + 2 * (1 + begun.elapsed().as_secs());
    assert!((15..=15 * introductions).contains(&packets), "{packets} packets");
    assert!(bytes as u64 <= 25 * packets, "{bytes} bytes");
}

#[tokio::test]
async fn notes_that_are_none_are_ignored() {
    let gateway = gateway(RELAY_BYTES_PER_S);
    let (a, b) =
        (Node::join(Kind::FullCone, &gateway).await, Node::join(Kind::PortRestricted, &gateway).await);
    let connection = gateway.host.nat.server.get().unwrap().connection(a.endpoint.id()).unwrap();
    for bytes in [&[][..], &[9, 9, 9], &[2, 4, 0], &[0; 5000]] {
        let mut stream = connection.open_uni().await.unwrap();
        // The reader may stop at what is too long.
        let _ = stream.write_all(bytes).await;
        let _ = stream.finish();
    }
    let mut links = a.link(&b).await.unwrap();
    assert_eq!(links[0].path(), PathKind::Punched);
    talk(&mut links).await;
}

/// Where a gateway has a node, once that is known to be `wanted`.
async fn until_at(gateway: &Endpoint, node: NodeId, wanted: SocketAddr) {
    let server = gateway.host.nat.server.get().unwrap();
    let wait = async {
        while server.address(node) != Some(wanted) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), wait).await.expect("it gets there");
}

/// Who forges the sender's address right after the handshake has nothing sent there.
#[tokio::test]
async fn a_link_begins_where_the_handshake_was() {
    let gateway = gateway(RELAY_BYTES_PER_S);
    let number = ROUTERS.fetch_add(1, Ordering::Relaxed);
    let router = Router::new(Kind::Open, number);
    let here = router.local_addr().unwrap();
    let any = "0.0.0.0:0".parse().unwrap();
    let node = Endpoint::over(router.clone(), &identity(), any, Limits::default(), |host, _| host).unwrap();
    let dialled = node.shake_hands(gateway.id(), gateway.local_address(), PathKind::Direct).await;
    let Ok(Reached { connection: _connection, streams: (mut send, _recv), .. }) = dialled else {
        panic!("the gateway can be reached");
    };
    // The last packet of the handshake is on its way.
    tokio::time::sleep(Duration::from_millis(100)).await;
    let there = router.forge(number);
    send.write_all(&[0]).await.unwrap();
    until_at(&gateway, node.id(), here).await;
    let server = gateway.host.nat.server.get().unwrap();
    let connection = server.connection(node.id()).unwrap();
    let begun = Instant::now();
    while begun.elapsed() < 3 * server::LOOK {
        assert_eq!(server.address(node.id()), Some(here));
        assert_eq!(canonical(connection.remote_address()), there, "QUIC has followed");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Whose packets come from elsewhere is believed once it has heard something there.
#[tokio::test]
async fn a_node_has_moved_once_it_answers_from_there() {
    let gateway = gateway(RELAY_BYTES_PER_S);
    let node = Node::join(Kind::Open, &gateway).await;
    let (id, here) = (node.endpoint.id(), node.router.local_addr().unwrap());
    until_at(&gateway, id, here).await;
    let connection = gateway.host.nat.server.get().unwrap().connection(id).unwrap();
    let there = node.router.forge(200);
    let follows = async {
        while canonical(connection.remote_address()) != there {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), follows).await.expect("QUIC follows");
    tokio::time::sleep(server::LOOK).await;
    assert_eq!(gateway.host.nat.server.get().unwrap().address(id), Some(here));
    node.router.moved();
    until_at(&gateway, id, there).await;
}
