//! Links between nodes: ordered, reliable, message-preserving, authenticated by node id.
//!
//! - [`peer`]: identities, node ids, addresses
//! - [`limits`]: every bound and timeout, with its default
//! - [`frame`]: the bytes on a link
//! - [`link`]: the link itself; its protocol as a machine without sockets or clock
//!   ([`link::Machine`]), the handles the application holds, the errors
//! - [`quic`]: links over QUIC, the transport of real nodes, also behind routers that translate addresses
//! - `rdma`: where that feature is built in and both ends have a device, queue pairs that carry the
//!   links of a QUIC endpoint instead ([`quic::Endpoint::bind_with_rdma`])
//! - [`sim`]: links over a seeded simulated network, for tests
//!
//! [`Transport`] is what an endpoint of any kind offers: dial, accept, close.

#![deny(unsafe_code)]

mod backlog;
pub mod frame;
pub mod limits;
pub mod link;
pub mod peer;
pub mod quic;
#[cfg_attr(not(feature = "rdma"), path = "rdma/absent.rs")]
mod rdma;
pub mod sim;
mod transport;

pub use frame::CloseReason;
pub use limits::Limits;
pub use link::{
    CarrierKind, Fault, Link, LinkError, LinkReceiver, LinkSender, LinkStats, Message, PathKind, Throughput,
    Violation,
};
pub use link::{SendError, TrySendError};
pub use peer::{Identity, NodeId, PeerAddress};
pub use transport::{AcceptError, BoxFuture, ConnectError, Transport};
