//! Where a test runs: real UDP on loopback, real queue pairs, or a seeded simulated network.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use transport::{CarrierKind, Identity, Limits, Link, PeerAddress, Transport, quic, sim};

pub(crate) enum World {
    Quic,
    /// Between two devices, whose addresses take turns.
    #[cfg(feature = "rdma")]
    Rdma {
        addresses: [std::net::IpAddr; 2],
        next: AtomicU8,
    },
    Simulated {
        network: sim::Network,
        seed: u64,
        next_identity: AtomicU8,
    },
}

impl World {
    pub(crate) fn simulated(seed: u64) -> Self {
        let network = sim::Network::new(seed);
        if seed % 2 == 1 {
            network.set_conditions(sim::Conditions { loss: 0.02, ..sim::Conditions::wide_area() });
        }
        Self::Simulated { network, seed, next_identity: AtomicU8::new(1) }
    }

    /// The addresses of two devices are in `RDMA_ADDRESSES`; elsewhere there is nothing to test.
    #[cfg(feature = "rdma")]
    pub(crate) fn rdma() -> Option<Self> {
        let Ok(addresses) = std::env::var("RDMA_ADDRESSES") else {
            eprintln!("skipped: no RDMA device (RDMA_ADDRESSES names none)");
            return None;
        };
        let addresses: Vec<_> = addresses.split(',').map(|address| address.parse().unwrap()).collect();
        Some(Self::Rdma { addresses: addresses.try_into().unwrap(), next: AtomicU8::new(0) })
    }

    /// Limits of this world: an emulated machine takes its time.
    pub(crate) fn limits(&self) -> Limits {
        match self {
            #[cfg(feature = "rdma")]
            Self::Rdma { .. } => Limits {
                connect_timeout: std::time::Duration::from_secs(30),
                dead_peer_timeout: std::time::Duration::from_secs(10),
                close_timeout: std::time::Duration::from_secs(10),
                ..Limits::default()
            },
            Self::Quic | Self::Simulated { .. } => Limits::default(),
        }
    }

    /// What links of this world are carried by.
    pub(crate) fn carrier(&self) -> CarrierKind {
        match self {
            Self::Quic => CarrierKind::Quic,
            #[cfg(feature = "rdma")]
            Self::Rdma { .. } => CarrierKind::Rdma,
            Self::Simulated { .. } => CarrierKind::Simulated,
        }
    }

    pub(crate) fn endpoint(&self, limits: Limits) -> Arc<dyn Transport> {
        match self {
            Self::Quic => Arc::new(quic_endpoint(limits)),
            #[cfg(feature = "rdma")]
            Self::Rdma { addresses, next } => {
                let address = addresses[usize::from(next.fetch_add(1, Ordering::Relaxed) % 2)];
                Arc::new(rdma_endpoint(address, limits))
            }
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
        assert_eq!([links[0].carrier(), links[1].carrier()], [self.carrier(); 2]);
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

#[cfg(feature = "rdma")]
pub(crate) fn rdma_endpoint(address: std::net::IpAddr, limits: Limits) -> quic::Endpoint {
    let identity = Identity::generate().unwrap();
    let endpoint = quic::Endpoint::bind_with_rdma(&identity, (address, 0).into(), limits).unwrap();
    assert!(endpoint.carriers().contains("RDMA"), "{}", endpoint.carriers());
    endpoint
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
    let mut body = vec![index as u8; length];
    for at in (0..length).step_by(61) {
        body[at] = (at / 61 + index) as u8;
    }
    body
}
