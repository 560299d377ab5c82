//! Peers that break the rules below the link protocol.

use quinn::{ClientConfig, ConnectionError};

use super::*;
use crate::frame::{self, Frame, FrameError, Hello};
use crate::{CloseReason, Violation};

fn endpoint(limits: Limits) -> Endpoint {
    let identity = Identity::generate().unwrap();
    Endpoint::bind(&identity, "127.0.0.1:0".parse().unwrap(), limits).unwrap()
}

/// A QUIC client that is no [`Endpoint`]: whatever TLS it is given, no link protocol.
fn rogue() -> quinn::Endpoint {
    quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap()
}

fn rogue_config(tls: QuicTls) -> ClientConfig {
    let mut config = ClientConfig::new(Arc::new(tls));
    config.transport_config(Arc::new(transport_config(&Limits::default(), 0)));
    config
}

type QuicTls = quinn::crypto::rustls::QuicClientConfig;

/// A connection with a proven key, on which anything may be sent.
async fn intruder(to: &Endpoint) -> (quinn::Endpoint, quinn::Connection) {
    let key = tls::certified_key(&Identity::generate().unwrap()).unwrap();
    let tls = tls::client_config(key, to.id, Arc::default(), vec![tls::ALPN.to_vec()]).unwrap();
    let rogue = rogue();
    let connecting = rogue.connect_with(rogue_config(tls), to.local_address, SERVER_NAME).unwrap();
    let connection = connecting.await.unwrap();
    (rogue, connection)
}

/// What the endpoint says of a peer that opens its stream with `bytes`.
async fn verdict_on(bytes: &[u8]) -> AcceptError {
    let b = endpoint(Limits::default());
    let (_rogue, connection) = intruder(&b).await;
    let (mut send, _recv) = connection.open_bi().await.unwrap();
    send.write_all(bytes).await.unwrap();
    b.accept().await.unwrap().unwrap_err()
}

#[tokio::test]
async fn garbage_instead_of_a_hello_is_a_named_violation() {
    for (bytes, violation) in [
        (&b"GET / HTTP/1.1\r\n"[..], FrameError::Magic(b'G').into()),
        (&[0xD0, 9, 1, 0, 0, 0, 0, 0], FrameError::Version(9).into()),
        (&frame::message_header(0), Violation::HelloExpected),
    ] {
        let AcceptError::Link { error, .. } = verdict_on(bytes).await else { panic!() };
        assert_eq!(error, LinkError::Violation(violation));
    }
}

#[tokio::test]
async fn garbage_on_an_open_link_ends_it_and_the_peer_is_told() {
    let b = endpoint(Limits::default());
    let (_rogue, connection) = intruder(&b).await;
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    let hello = Hello { protocol: crate::link::PROTOCOL, max_message_bytes: 1, window_bytes: 1000 };
    send.write_all(&frame::encode(&Frame::Hello(hello))).await.unwrap();
    let mut link = b.accept().await.unwrap().unwrap();
    send.write_all(&frame::encode(&Frame::Message(vec![8].into()))).await.unwrap();
    send.write_all(&[0xAA; 100]).await.unwrap();
    assert_eq!(link.recv().await.unwrap(), &[8][..]);
    let violation = Violation::Frame(FrameError::Magic(0xAA));
    assert_eq!(link.recv().await, Err(LinkError::Violation(violation)));

    let told = recv.read_to_end(10_000).await.unwrap();
    let (_, hello_bytes) = frame::decode(&told, 0).unwrap().unwrap();
    let Some((Frame::Close(reason), _)) = frame::decode(&told[hello_bytes..], 0).unwrap() else { panic!() };
    assert_eq!(reason.code, CloseReason::VIOLATION);
}

#[tokio::test]
async fn a_stream_that_ends_early_or_is_reset_is_a_violation() {
    for reset in [false, true] {
        let b = endpoint(Limits::default());
        let (_rogue, connection) = intruder(&b).await;
        let (mut send, _recv) = connection.open_bi().await.unwrap();
        let hello = Hello { protocol: crate::link::PROTOCOL, max_message_bytes: 1, window_bytes: 1000 };
        send.write_all(&frame::encode(&Frame::Hello(hello))).await.unwrap();
        let mut link = b.accept().await.unwrap().unwrap();
        if reset {
            send.reset(VarInt::from_u32(7)).unwrap()
        } else {
            send.finish().unwrap()
        }
        assert_eq!(link.recv().await, Err(LinkError::Violation(Violation::EndWithoutClose)));
    }
}

/// Trusts any server and shows nothing of itself.
fn nameless_tls(alpn: &[u8]) -> QuicTls {
    let mut config = rustls::ClientConfig::builder_with_provider(tls::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(tls::any_key())
        .with_no_client_auth();
    config.alpn_protocols = vec![alpn.to_vec()];
    QuicTls::try_from(config).unwrap()
}

#[tokio::test]
async fn a_client_without_a_key_is_refused() {
    let b = endpoint(Limits::default());
    let rogue = rogue();
    let config = rogue_config(nameless_tls(b"dolphin/1"));
    let connecting = rogue.connect_with(config, b.local_address, SERVER_NAME).unwrap();
    let (accepted, connected) = tokio::join!(b.accept(), connecting);
    assert!(matches!(accepted, Some(Err(AcceptError::Handshake { .. }))), "{accepted:?}");
    // The client's side of the handshake may be over before it is refused.
    if let Ok(connection) = connected {
        assert!(matches!(connection.closed().await, ConnectionError::ConnectionClosed(_)));
    }
}

#[tokio::test]
async fn another_application_is_refused() {
    let b = endpoint(Limits::default());
    let rogue = rogue();
    let config = rogue_config(nameless_tls(b"h3"));
    let connecting = rogue.connect_with(config, b.local_address, SERVER_NAME).unwrap();
    let (accepted, connected) = tokio::join!(b.accept(), connecting);
    assert!(matches!(accepted, Some(Err(AcceptError::Handshake { .. }))), "{accepted:?}");
    assert!(connected.is_err());
}

#[tokio::test]
async fn idlers_in_the_handshake_neither_block_others_nor_stay() {
    let limits = Limits {
        max_pending_handshakes: 4,
        connect_timeout: Duration::from_millis(700),
        ..Limits::default()
    };
    let b = endpoint(limits);
    // They prove a key and then never open the stream.
    let idlers = [intruder(&b).await, intruder(&b).await, intruder(&b).await];
    let a = endpoint(Limits::default());
    let address = PeerAddress { id: b.id, address: b.local_address };
    let (dialled, accepted) = tokio::join!(a.connect(&address), b.accept());
    assert_eq!(dialled.unwrap().peer(), b.id);
    assert_eq!(accepted.unwrap().unwrap().peer(), a.id);
    for _ in &idlers {
        let verdict = b.accept().await.unwrap().unwrap_err();
        assert!(matches!(verdict, AcceptError::TimedOut { .. }), "{verdict}");
    }
}

/// A laptop changes its network: the same link goes on from another address.
#[tokio::test]
async fn a_link_survives_a_change_of_address() {
    let (a, b) = (endpoint(Limits::default()), endpoint(Limits::default()));
    let address = PeerAddress { id: b.id, address: b.local_address };
    let (dialled, accepted) = tokio::join!(a.connect(&address), b.accept());
    let (mut dialled, mut accepted) = (dialled.unwrap(), accepted.unwrap().unwrap());
    for round in 0..3u8 {
        let before = a.quinn.local_addr().unwrap();
        a.quinn.rebind(open_socket("127.0.0.1:0".parse().unwrap()).unwrap()).unwrap();
        assert_ne!(a.quinn.local_addr().unwrap(), before);
        dialled.send(vec![round; 100_000]).await.unwrap();
        assert_eq!(accepted.recv().await.unwrap(), vec![round; 100_000]);
        accepted.send(vec![round; 50_000]).await.unwrap();
        assert_eq!(dialled.recv().await.unwrap(), vec![round; 50_000]);
    }
}

#[test]
fn windows_follow_from_the_path() {
    let window = |path_bytes_per_s, ms| {
        let path_round_trip = Duration::from_millis(ms);
        Limits { path_bytes_per_s, path_round_trip, ..Limits::default() }.path_window_bytes()
    };
    assert_eq!(window(125_000_000, 100), 12_500_000);
    assert_eq!(window(1_000_000, 10), 1 << 20);
    assert_eq!(window(u64::MAX, u64::MAX / 1000), 256 << 20);
}

#[tokio::test]
async fn unusable_limits_are_refused_at_bind() {
    let limits = Limits { receive_window_bytes: 1, ..Limits::default() };
    let bound = Endpoint::bind(&Identity::generate().unwrap(), "127.0.0.1:0".parse().unwrap(), limits);
    assert!(matches!(bound, Err(BindError::Limits(LimitsError::Window))));
}

#[test]
fn only_ed25519_keys_are_ids() {
    let identity = Identity::from_secret([3; 32]);
    let key = tls::certified_key(&identity).unwrap();
    let der = &key.cert[0];
    assert_eq!(tls::id_of_key(der), Some(identity.id()));
    assert_eq!(key.key.public_key().unwrap().as_ref(), &der[..]);
    assert_eq!(tls::id_of_key(&der[..43]), None);
    assert_eq!(tls::id_of_key(&[&der[..], &[0]].concat()), None);
    assert_eq!(tls::id_of_key(&[&[0x30, 0x2b][..], &der[2..]].concat()), None);
}
