//! A simulated network for tests: seeded delay, jitter, loss, bandwidth, partitions, deaths.
//!
//! Links run the same machine, frames and driver as over QUIC; only the byte streams below
//! are simulated. Like QUIC's they are reliable: a lost packet costs time. Under tokio's
//! paused clock on a current-thread runtime, a run depends on nothing but its seed. In real
//! time bytes arrive at the next millisecond, which is as fine as tokio's timers are.
//!
//! ```
//! # use transport::{Identity, Limits, PeerAddress, Transport, sim};
//! # tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build()
//! #     .unwrap().block_on(async {
//! let network = sim::Network::new(7);
//! network.set_conditions(sim::Conditions::wide_area());
//! let bind = |secret| network.endpoint(&Identity::from_secret([secret; 32]), Limits::default());
//! let (a, b) = (bind(1).unwrap(), bind(2).unwrap());
//! let address = PeerAddress { id: b.id(), address: b.local_address() };
//! let (link, accepted) = tokio::join!(a.connect(&address), b.accept());
//! link.unwrap().send(vec![1, 2, 3]).await.unwrap();
//! assert_eq!(accepted.unwrap().unwrap().recv().await.unwrap(), &[1, 2, 3][..]);
//! # });
//! ```

mod endpoint;
mod pipe;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use tokio::sync::watch;
use tokio::time::Instant;

pub use endpoint::Endpoint;

use crate::limits::LimitsError;
use crate::{Identity, Limits, NodeId};

/// What a path does to the bytes on it, in one direction.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Conditions {
    /// One-way delay.
    pub delay: Duration,
    /// Up to this much more, drawn evenly per packet; order is kept.
    pub jitter: Duration,
    /// Probability that a packet is lost, and lost again when repeated.
    pub loss: f64,
    /// Rate at which bytes enter the path; `None` for no limit.
    pub bandwidth_bytes_per_s: Option<u64>,
}

impl Conditions {
    /// Delays of a local network: 0.1 ms each way, nothing lost, no limit of bandwidth.
    pub fn local() -> Self {
        let delay = Duration::from_micros(100);
        Self { delay, jitter: Duration::ZERO, loss: 0.0, bandwidth_bytes_per_s: None }
    }

    /// A decent internet path: 20 ms each way, 2 ms jitter, 0.1% loss, 100 Mbit/s.
    pub fn wide_area() -> Self {
        Self {
            delay: Duration::from_millis(20),
            jitter: Duration::from_millis(2),
            loss: 0.001,
            bandwidth_bytes_per_s: Some(12_500_000),
        }
    }
}

/// A network; clones are handles to the same one.
#[derive(Clone, Debug)]
pub struct Network(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    seed: u64,
    state: Mutex<State>,
    /// Counts partitions, heals and deaths, to wake those who wait on them.
    changes: watch::Sender<u64>,
}

#[derive(Debug)]
struct State {
    conditions: Conditions,
    paths: BTreeMap<(NodeId, NodeId), Conditions>,
    cuts: BTreeMap<(NodeId, NodeId), Instant>,
    hosts: BTreeMap<SocketAddr, Host>,
    /// Killed hosts by address, which is never used again.
    deaths: BTreeMap<SocketAddr, Instant>,
    next_host: u32,
    next_link: u64,
}

#[derive(Clone, Debug)]
struct Host {
    id: NodeId,
    door: endpoint::Door,
}

/// A node at an address; a restarted node has a new address.
#[derive(Clone, Copy, Debug)]
struct Place {
    id: NodeId,
    address: SocketAddr,
}

impl Network {
    /// An empty network with the conditions of a local one; all that is random follows `seed`.
    pub fn new(seed: u64) -> Self {
        let state = State {
            conditions: Conditions::local(),
            paths: BTreeMap::new(),
            cuts: BTreeMap::new(),
            hosts: BTreeMap::new(),
            deaths: BTreeMap::new(),
            next_host: 1,
            next_link: 0,
        };
        Self(Arc::new(Inner { seed, state: Mutex::new(state), changes: watch::Sender::new(0) }))
    }

    /// Adds a node, at an address of its own. After [`Network::kill`] this restarts it.
    pub fn endpoint(&self, identity: &Identity, limits: Limits) -> Result<Endpoint, LimitsError> {
        limits.validate()?;
        let mut state = self.0.lock();
        let host = Ipv4Addr::from_bits(Ipv4Addr::new(10, 0, 0, 0).to_bits() | state.next_host);
        state.next_host += 1;
        let place = Place { id: identity.id(), address: SocketAddr::from((host, 4100)) };
        let (endpoint, door) = Endpoint::new(self.0.clone(), place, limits);
        state.hosts.insert(place.address, Host { id: place.id, door });
        Ok(endpoint)
    }

    /// Sets the conditions of every path without its own, from now on.
    pub fn set_conditions(&self, conditions: Conditions) {
        self.0.lock().conditions = conditions;
    }

    /// Sets the conditions from one node to another, from now on.
    pub fn set_path(&self, from: NodeId, to: NodeId, conditions: Conditions) {
        self.0.lock().paths.insert((from, to), conditions);
    }

    /// Cuts two nodes off from each other. Links that stay cut for the dead-peer timeout end.
    pub fn partition(&self, a: NodeId, b: NodeId) {
        self.0.lock().cuts.entry(pair(a, b)).or_insert_with(Instant::now);
        self.0.changed();
    }

    /// Mends a partition: what was sent meanwhile arrives, on links that still live.
    pub fn heal(&self, a: NodeId, b: NodeId) {
        self.0.lock().cuts.remove(&pair(a, b));
        self.0.changed();
    }

    /// Cuts a node's power: no packet leaves it any more, its own links end, and peers find
    /// out by its silence.
    pub fn kill(&self, id: NodeId) {
        let mut state = self.0.lock();
        let state = &mut *state;
        let killed = state.hosts.iter().filter(|(_, host)| host.id == id);
        state.deaths.extend(killed.map(|(address, _)| (*address, Instant::now())));
        state.hosts.retain(|_, host| host.id != id);
        self.0.changed();
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds the simulated network")
    }

    fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    fn conditions(&self, from: NodeId, to: NodeId) -> Conditions {
        let state = self.lock();
        state.paths.get(&(from, to)).copied().unwrap_or(state.conditions)
    }

    fn is_dead(&self, place: Place) -> bool {
        self.lock().deaths.contains_key(&place.address)
    }

    /// Since when no packet passes between two places.
    fn cut_since(&self, a: Place, b: Place) -> Option<Instant> {
        let state = self.lock();
        let cut = state.cuts.get(&pair(a.id, b.id));
        let deaths = [a, b].map(|place| state.deaths.get(&place.address));
        deaths.into_iter().chain([cut]).flatten().min().copied()
    }

    /// Who is at an address, and the door to knock at.
    fn host(&self, address: SocketAddr) -> Option<(Place, endpoint::Door)> {
        let state = self.lock();
        let host = state.hosts.get(&address)?;
        Some((Place { id: host.id, address }, host.door.clone()))
    }

    fn leave(&self, place: Place) {
        self.lock().hosts.remove(&place.address);
        self.changed();
    }

    /// Two streams of randomness for the two directions of a new link.
    fn link_randomness(&self) -> [ChaCha8Rng; 2] {
        let mut state = self.lock();
        state.next_link += 1;
        [0, 1].map(|direction| {
            let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
            rng.set_stream(2 * state.next_link + direction);
            rng
        })
    }
}

fn pair(a: NodeId, b: NodeId) -> (NodeId, NodeId) {
    (a.min(b), a.max(b))
}
