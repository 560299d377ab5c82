//! What only a simulated network can do: cut, heal, kill, and repeat exactly.

use std::time::Duration;

use tokio::time::Instant;
use transport::sim::{Conditions, Network};
use transport::{Identity, Limits, Link, LinkError, sim};

use crate::world::{body, link};

async fn linked(network: &Network) -> ([sim::Endpoint; 2], [Link; 2]) {
    let [a, b] = [1, 2]
        .map(|secret| network.endpoint(&Identity::from_secret([secret; 32]), Limits::default()).unwrap());
    let links = link(&a, &b).await;
    ([a, b], links)
}

fn ids() -> [transport::NodeId; 2] {
    [1, 2].map(|secret| Identity::from_secret([secret; 32]).id())
}

#[tokio::test(start_paused = true)]
async fn a_partition_ends_links_after_the_dead_peer_timeout() {
    let network = Network::new(1);
    let (_ends, [mut a, mut b]) = linked(&network).await;
    let [id_a, id_b] = ids();
    a.send(vec![1]).await.unwrap();
    assert_eq!(b.recv().await.unwrap(), &[1][..]);
    network.partition(id_a, id_b);
    let cut = Instant::now();
    assert_eq!(a.recv().await, Err(LinkError::TimedOut));
    assert_eq!(b.recv().await, Err(LinkError::TimedOut));
    let timeout = Limits::default().dead_peer_timeout;
    assert!((timeout..timeout + Duration::from_millis(10)).contains(&cut.elapsed()));
}

#[tokio::test(start_paused = true)]
async fn a_short_partition_only_delays() {
    let network = Network::new(2);
    let (_ends, [a, mut b]) = linked(&network).await;
    let [id_a, id_b] = ids();
    network.partition(id_a, id_b);
    let cut = Instant::now();
    a.send(vec![1]).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    network.heal(id_a, id_b);
    assert_eq!(b.recv().await.unwrap(), &[1][..]);
    assert!(cut.elapsed() >= Duration::from_secs(1));
    // A second cut has its own second to live.
    network.partition(id_a, id_b);
    tokio::time::sleep(Duration::from_secs(1)).await;
    network.heal(id_a, id_b);
    a.send(vec![2]).await.unwrap();
    assert_eq!(b.recv().await.unwrap(), &[2][..]);
}

#[tokio::test(start_paused = true)]
async fn a_killed_peer_is_noticed_and_may_come_back() {
    let network = Network::new(3);
    let ([a, b], [mut link_a, mut link_b]) = linked(&network).await;
    network.kill(ids()[1]);
    let death = Instant::now();
    link_a.send(vec![1]).await.unwrap();
    assert_eq!(link_b.recv().await, Err(LinkError::EndpointGone));
    assert_eq!(link_a.recv().await, Err(LinkError::TimedOut));
    assert!(death.elapsed() < Duration::from_secs(2));
    drop(b);

    let again = network.endpoint(&Identity::from_secret([2; 32]), Limits::default()).unwrap();
    let [link_a, mut link_b] = link(&a, &again).await;
    link_a.send(vec![2]).await.unwrap();
    assert_eq!(link_b.recv().await.unwrap(), &[2][..]);
}

#[tokio::test(start_paused = true)]
async fn bandwidth_and_delay_take_their_time() {
    let network = Network::new(4);
    let conditions = Conditions { bandwidth_bytes_per_s: Some(1_000_000), ..Conditions::local() };
    network.set_conditions(Conditions { delay: Duration::from_millis(50), ..conditions });
    let (_ends, [a, mut b]) = linked(&network).await;
    let start = Instant::now();
    a.send(vec![0; 1_000_000]).await.unwrap();
    b.recv().await.unwrap();
    let taken = start.elapsed();
    assert!((1.05..1.06).contains(&taken.as_secs_f64()), "{taken:?}");
}

#[tokio::test(start_paused = true)]
async fn messages_share_the_bandwidth_and_travel_together() {
    let network = Network::new(8);
    let conditions = Conditions { bandwidth_bytes_per_s: Some(12_500_000), ..Conditions::local() };
    network.set_conditions(Conditions { delay: Duration::from_millis(50), ..conditions });
    let (_ends, [a, mut b]) = linked(&network).await;
    let start = Instant::now();
    for _ in 0..10 {
        a.send(vec![0; 125_000]).await.unwrap();
    }
    assert!(start.elapsed() < Duration::from_millis(1), "nobody waits for the path");
    for number in 1..=10 {
        b.recv().await.unwrap();
        // Each takes 10 ms to enter the path, and all of them the same 50 ms to pass it.
        let due = Duration::from_millis(50 + 10 * number);
        assert!((due..due + Duration::from_millis(3)).contains(&start.elapsed()), "{:?}", start.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn each_direction_has_its_own_bandwidth() {
    let network = Network::new(9);
    let conditions = Conditions { bandwidth_bytes_per_s: Some(1_000_000), ..Conditions::local() };
    network.set_conditions(conditions);
    let (_ends, [mut a, mut b]) = linked(&network).await;
    let start = Instant::now();
    a.send(vec![0; 500_000]).await.unwrap();
    b.send(vec![0; 500_000]).await.unwrap();
    a.recv().await.unwrap();
    b.recv().await.unwrap();
    assert!((0.5..0.51).contains(&start.elapsed().as_secs_f64()), "{:?}", start.elapsed());
}

/// The times at which messages arrive on a bad path.
fn arrivals(seed: u64) -> Vec<Duration> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.unwrap().block_on(async {
        let network = Network::new(seed);
        network.set_conditions(Conditions { loss: 0.05, ..Conditions::wide_area() });
        let (_ends, [a, mut b]) = linked(&network).await;
        let start = Instant::now();
        let sender = tokio::spawn(async move {
            for index in 0..100 {
                a.send(body(index)).await.unwrap();
            }
            a
        });
        let mut arrivals = Vec::new();
        for _ in 0..100 {
            b.recv().await.unwrap();
            arrivals.push(start.elapsed());
        }
        drop(sender.await);
        arrivals
    })
}

#[test]
fn a_seed_repeats_exactly() {
    assert_eq!(arrivals(5), arrivals(5));
    assert_ne!(arrivals(5), arrivals(6));
}
