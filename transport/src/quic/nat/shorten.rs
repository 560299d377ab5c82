//! A shorter way for a connection that began through a gateway: from time to time, and when this node is seen
//! elsewhere or behind another router, the peers are introduced anew and try to punch a hole. Once a packet has gone
//! through and an answer come back, the datagrams of the connection go that way ([`super::paths`]). QUIC and the link
//! above it notice nothing but the round trip.

use std::sync::Arc;
use std::time::Duration;

use quinn::Connection;
use tokio::time::{Instant, interval};

use super::{Nat, Side};
use crate::NodeId;

/// How often it is looked whether something has changed.
const LOOK: Duration = Duration::from_secs(1);
/// What comes together with a change is waited for: the mirror takes a second.
const SETTLE: Duration = Duration::from_millis(1500);
/// Until the first attempt; the wait doubles up to [`LONGEST_WAIT`].
const FIRST_WAIT: Duration = Duration::from_secs(15);
const LONGEST_WAIT: Duration = Duration::from_secs(900);

/// Sees to a relayed connection with `peer` for as long as it lasts.
pub(super) async fn shorten(nat: Arc<Nat>, side: Side, peer: NodeId, connection: Connection) {
    let (mut place, mut wait) = (nat.client.place(), FIRST_WAIT);
    // One of the two is enough, but each alone knows when its own place has changed.
    let by_time = |wait| (side == Side::Dialler).then(|| Instant::now() + wait);
    let mut next = by_time(wait);
    let mut look = interval(LOOK);
    loop {
        tokio::select! {
            _ = connection.closed() => return,
            _ = look.tick() => {}
        }
        let now = nat.client.place();
        if now != place {
            (place, wait) = (now, FIRST_WAIT);
            next = Some(Instant::now() + SETTLE);
        }
        if nat.is_short(connection.remote_address()) {
            // What is lost later is looked for soon.
            wait = FIRST_WAIT;
        } else if next.is_some_and(|next| next <= Instant::now()) {
            let is_found = find(&nat, peer).await;
            tracing::debug!(peer = %peer.short(), is_found, "looked for a way past the gateway");
            wait = (wait * 2).min(LONGEST_WAIT);
            next = by_time(wait);
        }
    }
}

async fn find(nat: &Nat, peer: NodeId) -> bool {
    for guide in nat.guides(peer) {
        let Some(mut meeting) = nat.ask(guide, peer).await else { continue };
        if let Some(address) = meeting.punch().await {
            nat.shorten(peer, address);
            return true;
        }
    }
    false
}
