//! Peers that break the rules of the exchange and of the slots. They need two devices, whose addresses
//! are in `RDMA_ADDRESSES`.

use std::net::IpAddr;
use std::sync::OnceLock;

use super::verbs::{Outcome, Region};
use super::*;
use crate::frame::{self, Frame, FrameError, Hello};
use crate::quic::{Endpoint, SERVER_NAME, tls, transport_config};
use crate::{AcceptError, CarrierKind, Link, PeerAddress, Transport};

fn addresses() -> Option<[IpAddr; 2]> {
    let Ok(addresses) = std::env::var("RDMA_ADDRESSES") else {
        eprintln!("skipped: no RDMA device (RDMA_ADDRESSES names none)");
        return None;
    };
    let addresses: Vec<IpAddr> = addresses.split(',').map(|address| address.parse().unwrap()).collect();
    Some(addresses.try_into().unwrap())
}

fn limits() -> Limits {
    Limits {
        connect_timeout: Duration::from_secs(20),
        dead_peer_timeout: Duration::from_secs(4),
        ..Limits::default()
    }
}

fn endpoint(address: IpAddr) -> Endpoint {
    Endpoint::bind_with_rdma(&Identity::generate().unwrap(), (address, 0).into(), limits()).unwrap()
}

/// Who dials and then does as it likes.
struct Rogue {
    identity: Identity,
    from: IpAddr,
    to: (NodeId, SocketAddr),
    _endpoint: quinn::Endpoint,
    connection: quinn::Connection,
    send: SendStream,
    recv: RecvStream,
}

/// A rogue that has connected.
struct Connected {
    rogue: Rogue,
    pair: Arc<QueuePair>,
    transcript: Transcript,
}

/// A rogue that has been let in.
struct Inside {
    _connection: quinn::Connection,
    pair: Arc<QueuePair>,
    _slots: Region,
    victim: Grant,
    posted: u64,
}

impl Rogue {
    async fn dial(from: IpAddr, to: &Endpoint) -> Self {
        let identity = Identity::generate().unwrap();
        let endpoint = quinn::Endpoint::client((from, 0).into()).unwrap();
        let key = tls::certified_key(&identity).unwrap();
        let protocols = vec![tls::ALPN_RDMA.to_vec()];
        let tls = tls::client_config(key, to.id(), Arc::new(OnceLock::new()), protocols).unwrap();
        let mut config = quinn::ClientConfig::new(Arc::new(tls));
        config.transport_config(Arc::new(transport_config(&limits(), 0)));
        let connection =
            endpoint.connect_with(config, to.local_address(), SERVER_NAME).unwrap().await.unwrap();
        let (send, recv) = connection.open_bi().await.unwrap();
        let to = (to.id(), to.local_address());
        Self { identity, from, to, _endpoint: endpoint, connection, send, recv }
    }

    async fn say(&mut self, bytes: &[u8]) {
        self.send.write_all(bytes).await.unwrap();
    }

    async fn hear<const BYTES: usize>(&mut self) -> [u8; BYTES] {
        let mut bytes = [0; BYTES];
        self.recv.read_exact(&mut bytes).await.unwrap();
        bytes
    }

    async fn connect(mut self) -> Connected {
        let ours = [7; 32];
        self.say(&agreement::offer(&ours)).await;
        let (port, theirs) = agreement::read_answer(&self.hear().await);
        let to = SocketAddr::new(self.to.1.ip(), port);
        let pair = verbs::connect(Some((self.from, 0).into()), to, &theirs, SIZES).await.unwrap();
        let mut secret = [0; 32];
        self.connection.export_keying_material(&mut secret, b"EXPORTER-dolphin-rdma", &[]).unwrap();
        let (dialler, acceptor) = (self.identity.id(), self.to.0);
        let (challenges, pairs) = ([ours, theirs], pair.numbers().unwrap());
        let side = Side::Dialler;
        let transcript = Transcript { side, dialler, acceptor, challenges, secret, pairs };
        Connected { rogue: self, pair, transcript }
    }
}

impl Connected {
    async fn prove(&mut self) {
        let proof = self.transcript.proof(&self.rogue.identity);
        self.rogue.say(&proof).await;
        let theirs = self.rogue.hear().await;
        assert_eq!(self.transcript.check_proof(&theirs), Ok(true));
    }

    /// Grants what `tell` makes of the truth.
    async fn grant(mut self, tell: impl FnOnce(Grant) -> Grant) -> Inside {
        self.prove().await;
        let slots = self.pair.expose(SLOTS as usize * SLOT_BYTES).await.unwrap();
        let (address, key) = (slots.address(), slots.remote_key());
        let grant = tell(Grant { address, key, slots: SLOTS, slot_bytes: SLOT_BYTES as u32 });
        let message = self.transcript.grant(&self.rogue.identity, &grant);
        self.rogue.say(&message).await;
        let victim = self.transcript.check_grant(&self.rogue.hear().await).unwrap().unwrap();
        self.rogue.connection.close(MOVED, b"");
        Inside { _connection: self.rogue.connection, pair: self.pair, _slots: slots, victim, posted: 0 }
    }
}

impl Inside {
    /// Writes bytes where and as it likes, and waits for what becomes of it.
    async fn write(&mut self, bytes: usize, offset: u64, key: u32, immediate: u32) -> Outcome {
        let to = (self.victim.address.wrapping_add(offset), key);
        self.pair.write(self.posted, (0, bytes), to, immediate).unwrap();
        self.outcome().await
    }

    async fn send(&mut self, message: &[u8]) -> Outcome {
        self.pair.staging().write(0, message);
        self.pair.send(self.posted, 0, message.len()).unwrap();
        self.outcome().await
    }

    async fn outcome(&mut self) -> Outcome {
        let number = self.posted;
        self.posted += 1;
        loop {
            self.pair.arm().unwrap();
            while let Some(done) = self.pair.poll().unwrap() {
                let theirs = matches!(done.outcome, Outcome::Received { .. } | Outcome::Written { .. });
                if !theirs && done.number == number {
                    return done.outcome;
                }
            }
            self.pair.woken().await.unwrap();
        }
    }

    /// Says hello as an honest peer would.
    async fn hello(&mut self) {
        let hello = Hello { protocol: crate::link::PROTOCOL, max_message_bytes: 1000, window_bytes: 10_000 };
        let hello = frame::encode(&Frame::Hello(hello));
        self.pair.staging().write(0, &hello);
        assert_eq!(self.write(hello.len(), 0, self.victim.key, 0).await, Outcome::Sent);
    }
}

/// A rogue with a link to the victim.
async fn linked(from: IpAddr, victim: &Endpoint) -> (Inside, Link) {
    let mut rogue = Rogue::dial(from, victim).await.connect().await.grant(|grant| grant).await;
    rogue.hello().await;
    let link = victim.accept().await.unwrap().unwrap();
    assert_eq!(link.carrier(), CarrierKind::Rdma);
    (rogue, link)
}

/// The victim still serves an honest peer.
async fn still_serves(victim: &Endpoint, from: IpAddr) {
    let honest = endpoint(from);
    let address = PeerAddress { id: victim.id(), address: victim.local_address() };
    let (dialled, accepted) = tokio::join!(honest.connect(&address), victim.accept());
    let (dialled, mut accepted) = (dialled.unwrap(), accepted.unwrap().unwrap());
    assert_eq!(accepted.carrier(), CarrierKind::Rdma);
    dialled.send(vec![1, 2, 3]).await.unwrap();
    assert_eq!(accepted.recv().await.unwrap(), &[1, 2, 3][..]);
}

fn violation(error: Option<Result<Link, AcceptError>>) -> String {
    match error {
        Some(Err(AcceptError::Link { error: LinkError::Violation(violation), .. })) => violation.to_string(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_proof_that_is_none_is_refused_before_memory_is_opened() {
    let Some([from, at]) = addresses() else { return };
    let victim = endpoint(at);
    let mut rogue = Rogue::dial(from, &victim).await.connect().await;
    let proof = rogue.transcript.proof(&Identity::generate().unwrap());
    rogue.rogue.say(&proof).await;
    assert!(violation(victim.accept().await).contains("not signed by its key"));
    let mut rogue = Rogue::dial(from, &victim).await.connect().await;
    rogue.transcript.pairs[0] ^= 1;
    let proof = rogue.transcript.proof(&rogue.rogue.identity);
    rogue.rogue.say(&proof).await;
    assert!(violation(victim.accept().await).contains("another queue pair"));
    let mut rogue = Rogue::dial(from, &victim).await.connect().await;
    rogue.prove().await;
    let grant = Grant { address: 1 << 40, key: 1, slots: 16, slot_bytes: 4096 };
    let grant = rogue.transcript.grant(&Identity::generate().unwrap(), &grant);
    rogue.rogue.say(&grant).await;
    assert!(violation(victim.accept().await).contains("grant is not signed"));
    still_serves(&victim, from).await;
}

#[tokio::test]
async fn a_rogue_that_lies_about_its_memory_only_loses_its_link() {
    let Some([from, at]) = addresses() else { return };
    let victim = endpoint(at);
    for lie in [
        |grant: Grant| Grant { key: grant.key ^ 0x100, ..grant },
        |grant: Grant| Grant { address: grant.address + (1 << 30), ..grant },
    ] {
        let _rogue = Rogue::dial(from, &victim).await.connect().await.grant(lie).await;
        // Its hello goes nowhere, so that the link never opens.
        let refused = victim.accept().await.unwrap().unwrap_err();
        assert!(matches!(refused, AcceptError::Link { .. }), "{refused}");
    }
    still_serves(&victim, from).await;
}

#[tokio::test]
async fn writes_outside_of_the_slots_reach_nothing() {
    let Some([from, at]) = addresses() else { return };
    let victim = endpoint(at);
    let bytes = u64::from(SLOTS) * SLOT_BYTES as u64;
    // Past the slots, before them, across their end, and with the key of something else.
    for (offset, other_key) in [(bytes, 0), (4096u64.wrapping_neg(), 0), (bytes - 8, 0), (0, 0x100)] {
        let (mut rogue, mut link) = linked(from, &victim).await;
        let key = rogue.victim.key ^ other_key;
        let outcome = rogue.write(16, offset, key, 1).await;
        assert!(matches!(outcome, Outcome::Failed(_)), "{outcome:?}");
        drop(rogue);
        assert!(link.recv().await.is_err());
    }
    still_serves(&victim, from).await;
}

#[tokio::test]
async fn garbage_in_the_slots_and_beside_them_is_a_named_violation() {
    let Some([from, at]) = addresses() else { return };
    let victim = endpoint(at);
    let verdict = async |link: &mut Link| match link.recv().await.unwrap_err() {
        LinkError::Violation(violation) => violation,
        other => panic!("{other}"),
    };
    let (mut rogue, mut link) = linked(from, &victim).await;
    rogue.pair.staging().write(0, &[0xAA; 100]);
    rogue.write(100, SLOT_BYTES as u64, rogue.victim.key, 1).await;
    assert_eq!(verdict(&mut link).await, FrameError::Magic(0xAA).into());

    let (mut rogue, mut link) = linked(from, &victim).await;
    rogue.write(SLOT_BYTES + 1, SLOT_BYTES as u64, rogue.victim.key, 1).await;
    assert!(verdict(&mut link).await.to_string().contains("bytes in a slot"));

    let (mut rogue, mut link) = linked(from, &victim).await;
    rogue.write(100, SLOT_BYTES as u64, rogue.victim.key, 2).await;
    assert!(verdict(&mut link).await.to_string().contains("where 1 was due"));

    for (message, cause) in [
        (&b"\x09"[..], "control message"),
        (&[9; 9], "control message"),
        (&[1, 99, 0, 0, 0, 0, 0, 0, 0], "slots freed"),
        (&[3, 255, 255, 255, 255, 255, 255, 255, 255], "of the future"),
    ] {
        let (mut rogue, mut link) = linked(from, &victim).await;
        rogue.send(message).await;
        let said = verdict(&mut link).await.to_string();
        assert!(said.contains(cause), "{said}");
    }
    still_serves(&victim, from).await;
}

#[tokio::test]
async fn a_key_opens_nothing_once_the_link_is_closed() {
    let Some([from, at]) = addresses() else { return };
    let victim = endpoint(at);
    let (mut rogue, link) = linked(from, &victim).await;
    drop(victim);
    assert_eq!(link.closed().await, LinkError::EndpointGone);
    let outcome = rogue.write(16, 0, rogue.victim.key, 1).await;
    assert_ne!(outcome, Outcome::Sent);
}

#[tokio::test]
async fn who_has_no_rdma_is_met_on_quic() {
    let Some([from, at]) = addresses() else { return };
    let plain = Endpoint::bind(&Identity::generate().unwrap(), (from, 0).into(), limits()).unwrap();
    let able = endpoint(at);
    assert_eq!(plain.carriers(), "QUIC");
    for (a, b) in [(&plain, &able), (&able, &plain)] {
        let address = PeerAddress { id: b.id(), address: b.local_address() };
        let (dialled, accepted) = tokio::join!(a.connect(&address), b.accept());
        let (dialled, mut accepted) = (dialled.unwrap(), accepted.unwrap().unwrap());
        assert_eq!((dialled.carrier(), accepted.carrier()), (CarrierKind::Quic, CarrierKind::Quic));
        dialled.send(vec![4; 100_000]).await.unwrap();
        assert_eq!(accepted.recv().await.unwrap(), vec![4; 100_000]);
    }
}

/// A dialler whose packets reach the peer's program but not its device says so, and stays on QUIC.
#[tokio::test]
async fn a_link_that_cannot_move_stays_on_quic() {
    let Some([from, at]) = addresses() else { return };
    let victim = endpoint(at);
    let mut rogue = Rogue::dial(from, &victim).await;
    rogue.say(&agreement::offer(&[7; 32])).await;
    rogue.hear::<ANSWER_BYTES>().await;
    rogue.say(&[0; PROOF_BYTES]).await;
    assert_eq!(rogue.hear::<PROOF_BYTES>().await[0], 0);
    let hello = Hello { protocol: crate::link::PROTOCOL, max_message_bytes: 1000, window_bytes: 10_000 };
    rogue.say(&frame::encode(&Frame::Hello(hello))).await;
    rogue.say(&frame::encode(&Frame::Message(vec![5; 9].into()))).await;
    let mut link = victim.accept().await.unwrap().unwrap();
    assert_eq!(link.carrier(), CarrierKind::Quic);
    assert_eq!(link.recv().await.unwrap(), &[5; 9][..]);
}

#[tokio::test]
async fn a_silent_peer_is_noticed() {
    let Some([from, at]) = addresses() else { return };
    let victim = endpoint(at);
    // The rogue's device goes on acknowledging; only its program is silent.
    let (_rogue, mut link) = linked(from, &victim).await;
    let since = std::time::Instant::now();
    assert_eq!(link.recv().await, Err(LinkError::TimedOut));
    assert!(since.elapsed() < limits().dead_peer_timeout * 2, "{:?}", since.elapsed());
}

#[tokio::test]
async fn a_peer_may_die_at_every_step() {
    let Some([from, at]) = addresses() else { return };
    let victim = endpoint(at);
    for step in 0..6 {
        let mut rogue = Rogue::dial(from, &victim).await;
        if step == 0 {
            rogue.say(&[1]).await;
            drop(rogue);
        } else if step == 1 {
            rogue.say(&agreement::offer(&[7; 32])).await;
            drop(rogue);
        } else {
            let mut rogue = rogue.connect().await;
            match step {
                2 => drop(rogue),
                3 => {
                    rogue.prove().await;
                    drop(rogue);
                }
                4 => drop(rogue.grant(|grant| grant).await),
                _ => {
                    let mut rogue = rogue.grant(|grant| grant).await;
                    rogue.hello().await;
                    drop(rogue);
                }
            }
        }
        match victim.accept().await.unwrap() {
            Err(AcceptError::Link { .. } | AcceptError::Handshake { .. }) => {}
            Err(error) => panic!("step {step}: {error}"),
            Ok(mut link) => assert!(step == 5 && link.recv().await.is_err(), "step {step}"),
        }
    }
    still_serves(&victim, from).await;
}
