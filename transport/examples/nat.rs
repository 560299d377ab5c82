//! Nodes behind routers, one process each. `transport/tests/behind-nat` runs them in network namespaces.
//!
//! ```text
//! nat gateway ADDRESS RELAY_BYTES_PER_S   introduces nodes; prints its address, then what it has relayed
//! nat serve GATEWAY SEED                  joins, prints its address, and sends back what it is sent
//! nat dial GATEWAY SEED PEER              joins, dials, prints the path, the time it took and a round trip
//! nat hold GATEWAY SEED PEER              joins, dials, sends numbered messages, and prints the path when it changes
//! ```

use std::error::Error;
use std::time::{Duration, Instant};

use transport::quic::{Endpoint, nat::Filtering};
use transport::{Identity, Limits, Link, PeerAddress, Transport};

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// Longest wait for what the gateway shows of the router.
const MEASURED: Duration = Duration::from_secs(3);
const ROUND_TRIPS: u32 = 10;
const BYTES: usize = 16 << 10;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["gateway", address, relay] => gateway(address, relay.parse()?).await,
        ["serve", gateway, seed] => serve(&gateway.parse()?, seed.parse()?).await,
        ["dial", gateway, seed, peer] => dial(&gateway.parse()?, seed.parse()?, &peer.parse()?).await,
        ["hold", gateway, seed, peer] => hold(&gateway.parse()?, seed.parse()?, &peer.parse()?).await,
        _ => Err("usage: nat gateway ADDRESS RELAY_BYTES_PER_S | serve GATEWAY SEED | \
                  dial GATEWAY SEED PEER | hold GATEWAY SEED PEER"
            .into()),
    }
}

async fn gateway(address: &str, relay_bytes_per_s: u64) -> Outcome<()> {
    let endpoint = Endpoint::bind(&Identity::from_secret([255; 32]), address.parse()?, Limits::default())?;
    endpoint.introduce_peers(relay_bytes_per_s, None)?;
    println!("{}", PeerAddress { id: endpoint.id(), address: endpoint.local_address() });
    let view = endpoint.nat();
    let mut links = Vec::new();
    let (mut look, mut told) = (tokio::time::interval(Duration::from_millis(200)), 0);
    loop {
        tokio::select! {
            Some(link) = endpoint.accept() => links.extend(link.ok()),
            _ = look.tick() => {
                let relay = view.relay();
                if relay.relayed_bytes != told {
                    println!("relayed {} bytes, dropped {}", relay.relayed_bytes, relay.dropped_bytes);
                    told = relay.relayed_bytes;
                }
            }
        }
    }
}

/// A node that has joined, once it knows its router.
async fn join(gateway: &PeerAddress, seed: u8) -> Outcome<(Endpoint, Link)> {
    let any = if gateway.address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let endpoint = Endpoint::bind(&Identity::from_secret([seed; 32]), any.parse()?, Limits::default())?;
    endpoint.meet_through([gateway.id]);
    let link = endpoint.connect(gateway).await?;
    let (view, begun) = (endpoint.nat(), Instant::now());
    while view.reachability().filtering == Filtering::Unknown && begun.elapsed() < MEASURED {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let found = view.reachability();
    eprintln!("observed at {:?}; ports: {}; filtering: {}", found.observed, found.mapping, found.filtering);
    Ok((endpoint, link))
}

/// Where the node believes to be.
fn own_address(endpoint: &Endpoint, gateway: &PeerAddress) -> Outcome<PeerAddress> {
    // Connecting a UDP socket sends nothing; it only asks for the route.
    let any = if gateway.address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = std::net::UdpSocket::bind(any)?;
    socket.connect(gateway.address)?;
    let address = (socket.local_addr()?.ip(), endpoint.local_address().port()).into();
    Ok(PeerAddress { id: endpoint.id(), address })
}

async fn serve(gateway: &PeerAddress, seed: u8) -> Outcome<()> {
    let (endpoint, _link) = join(gateway, seed).await?;
    println!("{}", own_address(&endpoint, gateway)?);
    while let Some(link) = endpoint.accept().await {
        // One that lost the race between two ways is over before it is a link.
        let Ok(mut link) = link else { continue };
        eprintln!("accepted: {}", link.path());
        while let Ok(message) = link.recv().await {
            link.send(message).await?;
        }
    }
    Ok(())
}

async fn dial(gateway: &PeerAddress, seed: u8, peer: &PeerAddress) -> Outcome<()> {
    let (endpoint, _link) = join(gateway, seed).await?;
    let begun = Instant::now();
    let mut link = endpoint.connect(peer).await?;
    let connected = begun.elapsed();
    let begun = Instant::now();
    for round in 0..ROUND_TRIPS {
        link.send(vec![round as u8; BYTES]).await?;
        if link.recv().await?.len() != BYTES {
            return Err("another message came back".into());
        }
    }
    let round_trip = begun.elapsed() / ROUND_TRIPS;
    println!("{} {} {:.1}", link.path(), connected.as_millis(), round_trip.as_secs_f64() * 1e3);
    endpoint.close().await;
    Ok(())
}

async fn hold(gateway: &PeerAddress, seed: u8, peer: &PeerAddress) -> Outcome<()> {
    let (endpoint, _link) = join(gateway, seed).await?;
    let mut link = endpoint.connect(peer).await?;
    let mut shown = None;
    for number in 0u64.. {
        let message = number.to_be_bytes();
        link.send(message.to_vec()).await?;
        if *link.recv().await? != message {
            return Err("another message came back".into());
        }
        if shown.replace(link.path()) != Some(link.path()) {
            println!("{} after {number} messages", link.path());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}
