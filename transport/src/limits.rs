//! Every bound and timeout of a link and its endpoint.

use std::time::Duration;

use crate::link::cost;

/// A shorter path is filled by this too, and its buffers cost nothing.
const LEAST_WINDOW_BYTES: u32 = 1 << 20;
/// 10 Gbit/s at 200 ms.
const MOST_WINDOW_BYTES: u32 = 256 << 20;

/// Bounds and timeouts, checked once when an endpoint is made.
///
/// An endpoint's links hold at most `max_links x (receive_window_bytes + send_queue_bytes +
/// 2 x path_window_bytes())` bytes, the last term being QUIC's own buffers.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Largest message body, in both directions.
    pub max_message_bytes: u32,
    /// What a peer may have sent us that the application has not yet taken. At least twice
    /// the cost of the largest message, so that a withheld grant never blocks one.
    pub receive_window_bytes: u64,
    /// What may wait here for the network to take it; one message may always wait.
    pub send_queue_bytes: u64,
    /// A peer that is silent for this long is dead. Keep-alives run at a quarter of it. Paths
    /// whose round trip is over a fifth of it take longer: three probe timeouts.
    pub dead_peer_timeout: Duration,
    /// From the first packet of a dial, or of an incoming peer, until the link is usable.
    pub connect_timeout: Duration,
    /// How long a closing link may take to deliver what was sent before.
    pub close_timeout: Duration,
    /// Links alive at once, dialled and accepted together.
    pub max_links: usize,
    /// Incoming peers between their first packet and [`accept`](crate::Transport::accept).
    pub max_pending_handshakes: usize,
    /// Cap of the path MTU search (UDP payload). Above about 6550 bytes the segmentation
    /// offload of Linux fails.
    pub max_mtu_bytes: u16,
    /// The fastest path that a link should fill.
    pub path_bytes_per_s: u64,
    /// The longest round trip at which it should.
    pub path_round_trip: Duration,
    /// How the sending rate adapts.
    pub congestion: Congestion,
}

/// Congestion control of a QUIC endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Congestion {
    /// Loss-based: fair, and steady on clean paths.
    #[default]
    Cubic,
    /// Model-based: keeps its rate on paths that lose packets at random (5 MB/s against
    /// Cubic's 1 MB/s at 1% loss, 40 ms round trip, 100 Mbit/s).
    Bbr,
}

impl std::str::FromStr for Congestion {
    type Err = LimitsError;

    fn from_str(text: &str) -> Result<Self, LimitsError> {
        match text {
            "cubic" => Ok(Self::Cubic),
            "bbr" => Ok(Self::Bbr),
            _ => Err(LimitsError::Congestion),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_message_bytes: 16 << 20,
            receive_window_bytes: 48 << 20,
            send_queue_bytes: 16 << 20,
            dead_peer_timeout: Duration::from_millis(1500),
            connect_timeout: Duration::from_secs(5),
            close_timeout: Duration::from_secs(2),
            max_links: 128,
            max_pending_handshakes: 64,
            max_mtu_bytes: 6500,
            path_bytes_per_s: 125_000_000,
            path_round_trip: Duration::from_millis(100),
            congestion: Congestion::Cubic,
        }
    }
}

impl Limits {
    /// The same limits for messages of up to `bytes`, with the windows that need.
    pub fn with_max_message_bytes(self, bytes: u32) -> Self {
        let receive_window_bytes = 3 * cost(bytes as usize);
        Self { max_message_bytes: bytes, receive_window_bytes, ..self }
    }

    /// What QUIC has under way on a link at most, in each direction: the product of the path's bandwidth and
    /// delay, and at least 1 MiB.
    pub fn path_window_bytes(&self) -> u32 {
        let product =
            u128::from(self.path_bytes_per_s).saturating_mul(self.path_round_trip.as_micros()) / 1_000_000;
        u32::try_from(product).unwrap_or(u32::MAX).clamp(LEAST_WINDOW_BYTES, MOST_WINDOW_BYTES)
    }

    /// Checks what the rest of the crate relies on.
    pub fn validate(&self) -> Result<(), LimitsError> {
        if self.receive_window_bytes < 2 * cost(self.max_message_bytes as usize) {
            return Err(LimitsError::Window);
        }
        if self.max_links == 0 || self.max_pending_handshakes == 0 {
            return Err(LimitsError::Zero);
        }
        let timeouts = [self.dead_peer_timeout, self.connect_timeout, self.close_timeout];
        if timeouts.iter().any(|t| *t < Duration::from_millis(40) || *t > Duration::from_secs(3600)) {
            return Err(LimitsError::Timeout);
        }
        if !(1200..=6550).contains(&self.max_mtu_bytes) {
            return Err(LimitsError::Mtu);
        }
        Ok(())
    }
}

/// Why limits cannot work; the fault is in the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LimitsError {
    /// The receive window is too small for the largest message.
    #[error("receive_window_bytes must be at least twice max_message_bytes and a little more")]
    Window,
    /// A count is zero.
    #[error("max_links and max_pending_handshakes must not be zero")]
    Zero,
    /// A timeout is too short to work or too long to mean anything.
    #[error("timeouts must be between 40 ms and an hour")]
    Timeout,
    /// No congestion control has this name.
    #[error("congestion control is cubic or bbr")]
    Congestion,
    /// The MTU cap is outside of what QUIC and segmentation offload can do.
    #[error("max_mtu_bytes must be between 1200 and 6550")]
    Mtu,
}
