//! One conformance suite for every transport.

use transport::{CloseReason, Identity, Limits, LinkError, PeerAddress, Transport, quic};

#[tokio::test]
async fn messages_arrive_and_a_close_is_read() {
    let bind = || {
        let identity = Identity::generate().unwrap();
        quic::Endpoint::bind(&identity, "127.0.0.1:0".parse().unwrap(), Limits::default()).unwrap()
    };
    let (a, b) = (bind(), bind());
    let address = PeerAddress { id: b.id(), address: b.local_address() };
    let (dialled, accepted) = tokio::join!(a.connect(&address), b.accept());
    let (dialled, mut accepted) = (dialled.unwrap(), accepted.unwrap().unwrap());
    assert_eq!(accepted.peer(), a.id());
    for length in [0, 1, 100_000, 16 << 20] {
        dialled.send(vec![7; length]).await.unwrap();
        assert_eq!(accepted.recv().await.unwrap().len(), length);
    }
    dialled.send(vec![1]).await.unwrap();
    let reason = CloseReason::new(9, "done");
    dialled.close(reason.clone());
    assert_eq!(dialled.closed().await, LinkError::ClosedLocally(reason.clone()));
    assert_eq!(accepted.recv().await.unwrap().len(), 1);
    assert_eq!(accepted.recv().await, Err(LinkError::ClosedByPeer(reason)));
}
