//! Where a test runs: real UDP on loopback, or a seeded simulated network.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use transport::{Identity, Limits, Link, PeerAddress, Transport, quic, sim};

pub(crate) enum World {
    Quic,
    Simulated { network: sim::Network, seed: u64, next_identity: AtomicU8 },
}

impl World {
    pub(crate) fn simulated(seed: u64) -> Self {
        let network = sim::Network::new(seed);
        if seed % 2 == 1 {
            network.set_conditions(sim::Conditions { loss: 0.02, ..sim::Conditions::wide_area() });
        }
        Self::Simulated { network, seed, next_identity: AtomicU8::new(1) }
    }

    pub(crate) fn endpoint(&self, limits: Limits) -> Arc<dyn Transport> {
        match self {
            Self::Quic => Arc::new(quic_endpoint(limits)),
            Self::Simulated { network, next_identity, .. } => {
                let secret = [next_identity.fetch_add(1, Ordering::Relaxed); 32];
                Arc::new(network.endpoint(&Identity::from_secret(secret), limits).unwrap())
            }
        }
    }

    /// Two endpoints and a link between them: dialler, acceptor, and the link's two ends.
    pub(crate) async fn linked(&self, limits: Limits) -> ([Arc<dyn Transport>; 2], [Link; 2]) {
        let (a, b) = (self.endpoint(limits.clone()), self.endpoint(limits));
        let links = link(&*a, &*b).await;
        ([a, b], links)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Self::Simulated { seed, .. } = self
            && std::thread::panicking()
        {
            eprintln!("failed in the simulated network with seed {seed}");
        }
    }
}

pub(crate) fn quic_endpoint(limits: Limits) -> quic::Endpoint {
    let identity = Identity::generate().unwrap();
    quic::Endpoint::bind(&identity, "127.0.0.1:0".parse().unwrap(), limits).unwrap()
}

pub(crate) fn address(endpoint: &dyn Transport) -> PeerAddress {
    PeerAddress { id: endpoint.id(), address: endpoint.local_address() }
}

pub(crate) async fn link(from: &dyn Transport, to: &dyn Transport) -> [Link; 2] {
    let to_address = address(to);
    let dial = async { from.connect(&to_address).await.unwrap() };
    let accept = async { to.accept().await.unwrap().unwrap() };
    tokio::join!(dial, accept).into()
}

/// The bytes of message `index`, recognisable and of many sizes.
pub(crate) fn body(index: usize) -> Vec<u8> {
    let length = [0, 1, 17, 1000, 2048, 16_384, 65_536, 300_000][index % 8];
    (0..length).map(|at| (at + index) as u8).collect()
}
