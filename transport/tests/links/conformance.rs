//! What every transport must do.

use std::time::Duration;

use bytes::Bytes;
use transport::link::cost;
use transport::{
    AcceptError, CloseReason, ConnectError, Fault, Identity, Limits, LinkError, PeerAddress, SendError,
    TrySendError,
};

use crate::world::{World, address, body, link};

macro_rules! conformance {
    ($($test:ident),* $(,)?) => {
        mod quic {
            use super::World;
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                let limit = std::time::Duration::from_secs(20);
                tokio::time::timeout(limit, super::$test(&World::Quic)).await.expect("the test hangs");
            })*
        }
        #[cfg(feature = "rdma")]
        mod rdma {
            use super::World;
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                let Some(world) = World::rdma() else { return };
                let limit = std::time::Duration::from_secs(60);
                tokio::time::timeout(limit, super::$test(&world)).await.expect("the test hangs");
            })*
        }
        mod simulated {
            use super::World;
            $(#[tokio::test(start_paused = true)]
            async fn $test() {
                for seed in 0..6 {
                    let world = World::simulated(seed);
                    let limit = std::time::Duration::from_secs(600);
                    tokio::time::timeout(limit, super::$test(&world)).await.expect("the test hangs");
                }
            })*
        }
    };
}

conformance!(
    messages_keep_their_order_and_bytes_in_both_directions,
    empty_and_largest_messages_pass_and_larger_ones_fail,
    a_slow_receiver_bounds_the_sender,
    cancelled_sends_leave_whole_messages,
    many_peers_share_an_endpoint,
    a_close_delivers_everything_and_its_reason,
    halves_live_until_the_last_is_dropped,
    an_endpoint_closes_its_links_in_good_order,
    a_dropped_endpoint_is_noticed_and_replaced,
    a_peer_may_die_in_the_middle_of_anything,
    a_close_ends_a_flood_of_the_other_side,
    another_node_at_the_address_is_refused,
    nobody_at_the_address_times_out,
    links_are_limited_on_both_sides,
);

async fn messages_keep_their_order_and_bytes_in_both_directions(world: &World) {
    let (ends, links) = world.linked(world.limits()).await;
    assert_eq!([links[0].peer(), links[1].peer()], [ends[1].id(), ends[0].id()]);
    let [a, b] = links.map(|link| async move {
        let (sender, mut receiver) = link.split();
        let send = async {
            for index in 0..200 {
                sender.send(body(index)).await.unwrap();
            }
        };
        let receive = async {
            for index in 0..200 {
                assert_eq!(receiver.recv().await.unwrap(), body(index), "message {index}");
            }
        };
        tokio::join!(send, receive);
        (sender, receiver)
    });
    let ((a, _a), (b, _b)) = tokio::join!(a, b);
    assert_eq!(a.stats().messages_received, 200);
    // Grants travel behind the last messages; everything else is counted on both sides.
    assert!(b.stats().bytes_received <= a.stats().bytes_sent);
    assert!(a.rtt().unwrap() > Duration::ZERO);
}

async fn empty_and_largest_messages_pass_and_larger_ones_fail(world: &World) {
    let limits = world.limits();
    let largest = limits.max_message_bytes as usize;
    let (_ends, [a, mut b]) = world.linked(limits).await;
    let parts = [Bytes::from(vec![1; largest - 3]), Bytes::new(), Bytes::from(vec![2; 3])];
    a.send(vec![]).await.unwrap();
    a.send(transport::Message::from_parts(parts)).await.unwrap();
    let too_large = a.send(vec![0; largest + 1]).await;
    assert!(matches!(too_large, Err(SendError::TooLarge { .. })), "{too_large:?}");
    a.send(vec![3]).await.unwrap();
    assert_eq!(b.recv().await.unwrap().len(), 0);
    let message = b.recv().await.unwrap();
    assert_eq!((message.len(), message[0], message[largest - 1]), (largest, 1, 2));
    assert_eq!(b.recv().await.unwrap(), &[3][..]);
}

async fn a_slow_receiver_bounds_the_sender(world: &World) {
    let limits = Limits { send_queue_bytes: 100_000, ..world.limits() }.with_max_message_bytes(10_000);
    let most = limits.receive_window_bytes / cost(10_000);
    let (_ends, [a, mut b]) = world.linked(limits).await;
    let (sender, _receiver) = a.split();
    let mut sent = 0;
    while let Ok(sending) =
        tokio::time::timeout(Duration::from_millis(300), sender.send(vec![0; 10_000])).await
    {
        sending.unwrap();
        sent += 1;
        assert!(sent <= most, "sent {sent} messages where credit was for {most}");
    }
    assert_eq!(sent, most, "credit was not used");
    assert!(matches!(sender.try_send(vec![0; 10_000]), Err(TrySendError::Full(_))));

    let producer = tokio::spawn(async move {
        for _ in 0..100 {
            sender.send(vec![1; 10_000]).await.unwrap();
        }
        sender
    });
    for _ in 0..sent + 100 {
        b.recv().await.unwrap();
    }
    producer.await.unwrap();
}

async fn cancelled_sends_leave_whole_messages(world: &World) {
    let limits = world.limits().with_max_message_bytes(10_000);
    let (_ends, [a, mut b]) = world.linked(limits).await;
    let mut sent = 0u32;
    let mut received = 0u32;
    for attempt in 0..200u32 {
        let message = vec![sent as u8; 5_000 + attempt as usize];
        match tokio::time::timeout(Duration::from_millis(1), a.send(message)).await {
            Ok(outcome) => {
                outcome.unwrap();
                sent += 1;
            }
            Err(_) if received < sent => {
                assert_eq!(b.recv().await.unwrap()[0], received as u8);
                received += 1;
            }
            Err(_) => {}
        }
    }
    assert!(received > 0, "no send had to wait");
    a.close(CloseReason::new(0, ""));
    while let Ok(message) = b.recv().await {
        assert_eq!(message[0], received as u8);
        received += 1;
    }
    assert_eq!(received, sent);
}

async fn many_peers_share_an_endpoint(world: &World) {
    let hub = world.endpoint(world.limits());
    let spokes: Vec<_> = (0..16).map(|_| world.endpoint(world.limits())).collect();
    let hub_address = address(&*hub);
    let echo = async {
        let mut tasks = tokio::task::JoinSet::new();
        for _ in &spokes {
            let mut link = hub.accept().await.unwrap().unwrap();
            tasks.spawn(async move {
                while let Ok(message) = link.recv().await {
                    link.send(message).await.unwrap();
                }
            });
        }
        while tasks.join_next().await.is_some() {}
    };
    let mut clients = tokio::task::JoinSet::new();
    for (index, spoke) in spokes.iter().cloned().enumerate() {
        clients.spawn(async move {
            let mut link = spoke.connect(&hub_address).await.unwrap();
            for round in 0..20 {
                link.send(body(index + round)).await.unwrap();
                assert_eq!(link.recv().await.unwrap(), body(index + round));
            }
        });
    }
    let clients = async {
        while let Some(client) = clients.join_next().await {
            client.unwrap();
        }
    };
    tokio::join!(echo, clients);
}

async fn a_close_delivers_everything_and_its_reason(world: &World) {
    let (_ends, [a, mut b]) = world.linked(world.limits()).await;
    for index in 0..50 {
        a.send(body(index)).await.unwrap();
    }
    let reason = CloseReason::new(42, "model unloaded");
    a.close(reason.clone());
    let local = LinkError::ClosedLocally(reason.clone());
    assert_eq!(a.send(vec![1]).await, Err(SendError::Ended(local.clone())));
    assert_eq!(a.closed().await, local);
    for index in 0..50 {
        assert_eq!(b.recv().await.unwrap(), body(index));
    }
    let end = LinkError::ClosedByPeer(reason);
    assert_eq!(end.fault(), Fault::None);
    assert_eq!(b.recv().await, Err(end.clone()));
    assert_eq!(b.recv().await, Err(end.clone()));
    assert_eq!(b.send(vec![1]).await, Err(SendError::Ended(end.clone())));
    assert_eq!(b.closed().await, end);
}

async fn halves_live_until_the_last_is_dropped(world: &World) {
    let (_ends, [a, mut b]) = world.linked(world.limits()).await;
    let (sender, receiver) = a.split();
    drop(receiver);
    let clone = sender.clone();
    drop(sender);
    clone.send(vec![1]).await.unwrap();
    assert_eq!(b.recv().await.unwrap(), &[1][..]);

    let (b_sender, mut b_receiver) = b.split();
    drop(b_sender);
    clone.send(vec![2; 100_000]).await.unwrap();
    drop(clone);
    assert_eq!(b_receiver.recv().await.unwrap().len(), 100_000);
    let end = b_receiver.recv().await.unwrap_err();
    assert!(matches!(end, LinkError::ClosedByPeer(reason) if reason.code == CloseReason::DROPPED));
}

async fn an_endpoint_closes_its_links_in_good_order(world: &World) {
    let ([a, b], [link, mut other]) = world.linked(world.limits()).await;
    for index in 0..50 {
        link.send(body(index)).await.unwrap();
    }
    let waiting = b.accept();
    a.close().await;
    for index in 0..50 {
        assert_eq!(other.recv().await.unwrap(), body(index));
    }
    let end = other.recv().await.unwrap_err();
    assert!(matches!(end, LinkError::ClosedByPeer(reason) if reason.code == CloseReason::SHUTDOWN));
    assert!(matches!(link.closed().await, LinkError::ClosedLocally(_)));
    assert!(a.accept().await.is_none());
    assert_eq!(a.connect(&address(&*b)).await.unwrap_err(), ConnectError::Closed);
    b.close().await;
    assert!(waiting.await.is_none());
}

async fn a_dropped_endpoint_is_noticed_and_replaced(world: &World) {
    let ([a, b], [mut link_a, link_b]) = world.linked(world.limits()).await;
    drop(b);
    let end = tokio::time::timeout(Duration::from_secs(2), link_a.recv()).await.unwrap().unwrap_err();
    assert_eq!(end.fault(), Fault::Network, "{end}");
    assert_eq!(link_b.closed().await, LinkError::EndpointGone);

    let b = world.endpoint(world.limits());
    let [link_a, mut link_b] = link(&*a, &*b).await;
    link_a.send(vec![5]).await.unwrap();
    assert_eq!(link_b.recv().await.unwrap(), &[5][..]);
}

/// What arrived before is a prefix of what was sent, and a new endpoint of the peer can be dialled at once.
async fn a_peer_may_die_in_the_middle_of_anything(world: &World) {
    let a = world.endpoint(world.limits());
    for received in [0, 1, 2, 7, 20] {
        let b = world.endpoint(world.limits());
        let [link_a, mut link_b] = link(&*a, &*b).await;
        let (sender, mut receiver) = link_a.split();
        let flood = async {
            for index in 0.. {
                if let Err(error) = sender.send(body(index)).await {
                    return error;
                }
            }
            unreachable!("a flood ends by an error only");
        };
        let dying = async {
            for index in 0..received {
                assert_eq!(link_b.recv().await.unwrap(), body(index));
            }
            drop(b);
            assert_eq!(link_b.closed().await, LinkError::EndpointGone);
        };
        let (error, ()) = tokio::join!(flood, dying);
        let SendError::Ended(end) = error else { panic!("{error}") };
        assert_eq!(end.fault(), Fault::Network, "{end}");
        assert_eq!(receiver.recv().await, Err(end.clone()));
        assert_eq!(sender.closed().await, end);
    }
}

/// A side that closes is heard although the other sends without pause, and drops what comes after.
async fn a_close_ends_a_flood_of_the_other_side(world: &World) {
    let (_ends, [a, b]) = world.linked(world.limits()).await;
    let (sender, mut receiver) = b.split();
    let flood = async {
        for index in 0.. {
            if let Err(error) = sender.send(body(index)).await {
                return error;
            }
        }
        unreachable!("a flood ends by an error only");
    };
    let (a_sender, mut a_receiver) = a.split();
    let closing = async {
        assert_eq!(a_receiver.recv().await.unwrap(), body(0));
        a_sender.send(vec![9; 70_000]).await.unwrap();
        a_sender.close(CloseReason::new(7, "enough"));
        // The flooding side's word that it has everything may be lost among what it sent, and is not repeated
        // for ever.
        let end = a_sender.closed().await;
        let known = LinkError::ClosedLocally(CloseReason::new(7, "enough"));
        assert!(end == known || matches!(end, LinkError::PeerLost(_)), "{end}");
    };
    let (error, ()) = tokio::join!(flood, closing);
    let end = LinkError::ClosedByPeer(CloseReason::new(7, "enough"));
    assert_eq!(error, SendError::Ended(end.clone()));
    assert_eq!(receiver.recv().await.unwrap().len(), 70_000);
    assert_eq!(receiver.recv().await, Err(end));
}

async fn another_node_at_the_address_is_refused(world: &World) {
    let (a, b) = (world.endpoint(world.limits()), world.endpoint(world.limits()));
    let expected = Identity::from_secret([99; 32]).id();
    let stale = PeerAddress { id: expected, address: b.local_address() };
    let refused = a.connect(&stale).await.unwrap_err();
    assert_eq!(refused, ConnectError::WrongPeer { expected, found: b.id() });
    // The endpoint goes on: an honest dial succeeds, after at most a report of the other.
    let honest = address(&*b);
    let accepted = async {
        loop {
            match b.accept().await.unwrap() {
                Ok(link) => return link,
                Err(AcceptError::Handshake { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
    };
    let (dialled, accepted) = tokio::join!(a.connect(&honest), accepted);
    assert_eq!((dialled.unwrap().peer(), accepted.peer()), (b.id(), a.id()));
}

async fn nobody_at_the_address_times_out(world: &World) {
    let limits = Limits { connect_timeout: Duration::from_millis(500), ..world.limits() };
    let a = world.endpoint(limits);
    let gone = world.endpoint(world.limits());
    let gone_address = address(&*gone);
    gone.close().await;
    drop(gone);
    assert_eq!(a.connect(&gone_address).await.unwrap_err(), ConnectError::TimedOut);
}

async fn links_are_limited_on_both_sides(world: &World) {
    let b = world.endpoint(Limits { max_links: 2, ..world.limits() });
    let a = world.endpoint(Limits { max_links: 3, ..world.limits() });
    let first = link(&*a, &*b).await;
    let _second = link(&*a, &*b).await;
    let b_address = address(&*b);
    let refused = a.connect(&b_address).await.unwrap_err();
    assert!(matches!(refused, ConnectError::Refused(_)), "{refused}");

    let c = world.endpoint(world.limits());
    let _third = link(&*a, &*c).await;
    assert_eq!(a.connect(&address(&*c)).await.unwrap_err(), ConnectError::TooManyLinks);

    let [dialled, accepted] = first;
    dialled.close(CloseReason::new(0, ""));
    dialled.closed().await;
    accepted.closed().await;
    link(&*a, &*b).await;
}
