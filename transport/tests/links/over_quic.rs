//! What only real sockets show.

use std::time::{Duration, Instant};

use transport::quic::Endpoint;
use transport::{CarrierKind, Identity, Limits, LinkError, Transport};

use crate::world::{address, link, quic_endpoint};

/// A peer whose machine loses power says nothing; its silence is noticed in time.
#[test]
fn a_peer_that_falls_silent_is_noticed_within_two_seconds() {
    let runtime =
        || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (here, there) = (runtime(), runtime());
    let a = here.block_on(async { quic_endpoint(Limits::default()) });
    let b = there.block_on(async { quic_endpoint(Limits::default()) });
    let (b_address, b) = (address(&b), std::sync::Arc::new(b));
    let accepting = b.clone();
    let accepted = there.spawn(async move { accepting.accept().await.unwrap().unwrap() });
    let mut dialled = here.block_on(a.connect(&b_address)).unwrap();
    let accepted = here.block_on(accepted).unwrap();

    // Its tasks stop without a word; the socket closes with them.
    there.shutdown_background();
    let death = Instant::now();
    let end = here.block_on(async { tokio::time::timeout(Duration::from_secs(5), dialled.recv()).await });
    assert_eq!(end.unwrap(), Err(LinkError::TimedOut));
    assert!(death.elapsed() < Duration::from_secs(2), "noticed after {:?}", death.elapsed());
    drop((accepted, b));
}

/// Many idle links outlive many dead-peer timeouts.
#[tokio::test]
async fn idle_links_are_kept_alive() {
    let limits = Limits { dead_peer_timeout: Duration::from_millis(400), ..Limits::default() };
    let (a, b) = (quic_endpoint(limits.clone()), quic_endpoint(limits));
    let [link_a, mut link_b] = link(&a, &b).await;
    let idle = tokio::time::timeout(Duration::from_millis(1300), link_b.recv()).await;
    assert!(idle.is_err(), "an idle link ended: {idle:?}");
    link_a.send(vec![1]).await.unwrap();
    assert_eq!(link_b.recv().await.unwrap(), &[1][..]);
}

/// Where there is no RDMA, whether it is not built in or there is no device, an endpoint that asks for it says
/// so and uses QUIC.
#[tokio::test]
async fn without_a_device_links_stay_on_quic() {
    let bind = || {
        let identity = Identity::generate().unwrap();
        Endpoint::bind_with_rdma(&identity, "127.0.0.1:0".parse().unwrap(), Limits::default()).unwrap()
    };
    let (a, b) = (bind(), bind());
    assert_eq!([a.carriers(), b.carriers()], ["QUIC", "QUIC"]);
    let [link_a, mut link_b] = link(&a, &b).await;
    assert_eq!([link_a.carrier(), link_b.carrier()], [CarrierKind::Quic; 2]);
    link_a.send(vec![1]).await.unwrap();
    assert_eq!(link_b.recv().await.unwrap(), &[1][..]);
}

/// Datagrams that are no QUIC do not disturb an endpoint.
#[tokio::test]
async fn stray_datagrams_are_ignored() {
    let (a, b) = (quic_endpoint(Limits::default()), quic_endpoint(Limits::default()));
    let stray = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    for length in [0, 1, 20, 1200, 1472] {
        let bytes: Vec<u8> = (0..length).map(|at| (at * 31 + length) as u8).collect();
        stray.send_to(&bytes, b.local_address()).await.unwrap();
    }
    let [link_a, mut link_b] = link(&a, &b).await;
    link_a.send(vec![1]).await.unwrap();
    assert_eq!(link_b.recv().await.unwrap(), &[1][..]);
}
