//! What links carry, found out by nodes that have nothing else to do.

use transport::sim::Conditions;

use crate::{
    support::Golden,
    swarm::{World, reply, request},
};

const BYTES_PER_S: u64 = 4_000_000;

#[tokio::test]
async fn idle_links_are_measured_in_both_directions_and_planned_with() {
    let world = World::new("llama", 31, |_| {});
    let conditions = Conditions { bandwidth_bytes_per_s: Some(BYTES_PER_S), ..Conditions::local() };
    world.network.set_conditions(conditions);
    let nodes = world.pipeline(&[0, 2]);
    world.ready().await;
    // Nodes that have not served together have no links.
    reply(&world, request(&Golden::read("llama").input[..8], 4)).await;
    let status = world
        .until(|status| status.links.len() == 2 && status.links.iter().all(|link| link.mbit.is_some()))
        .await;
    let right = BYTES_PER_S as f64 / 125_000.0;
    for link in status.links {
        let mbit = link.mbit.expect("it was waited for");
        assert!((0.5..2.0).contains(&(mbit / right)), "{mbit} of {right} Mbit/s");
    }
    let planned = world
        .until(|status| {
            let links = status.live.as_ref().map(|live| &live.link);
            links.is_some_and(|links| links.len() == 2 && links.iter().all(|link| !link.mbit_estimated))
        })
        .await;
    let live = planned.live.expect("it was waited for");
    assert!(live.link.iter().all(|link| !link.estimated && link.mbit < 2.0 * right), "{:?}", live.link);
    world.stop(nodes).await;
}
