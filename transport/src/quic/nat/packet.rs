//! Datagrams beside QUIC on an endpoint's socket.
//!
//! The first byte of each has its two highest bits clear, which no packet of QUIC has between endpoints that do not
//! negotiate otherwise (RFC 9443). What follows, by that byte:
//!
//! | byte | | then |
//! |---|---|---|
//! | 0x01 | probe | token, id of 8 bytes |
//! | 0x02 | answer to a probe | token, id |
//! | 0x03 | relayed | token, a datagram of QUIC |
//! | 0x04 | question of the mirror | token, 19 zeros: it is as long as its answer |
//! | 0x05 | answer of the mirror | token, address that it saw |
//! | 0x06 | unasked for, from the mirror | token |

use std::net::{IpAddr, SocketAddr};

use crate::peer::{IdentityError, fill_random};

/// Bytes that a relayed datagram has more than on a direct path.
pub(super) const RELAY_HEADER_BYTES: usize = 1 + TOKEN_BYTES;
/// Most bytes of an encoded address: family, IPv6, port.
pub(super) const ADDRESS_BYTES: usize = 1 + 16 + 2;
const TOKEN_BYTES: usize = 16;
const HIGH_BITS: u8 = 0xC0;

const PROBE: u8 = 1;
const ANSWER: u8 = 2;
const RELAYED: u8 = 3;
const MIRROR_ASK: u8 = 4;
const MIRROR_ANSWER: u8 = 5;
const MIRROR_PING: u8 = 6;

/// Names what two nodes were introduced for, or a node's questions to a mirror. At random, by the gateway; known
/// to it and to those concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Token(pub(super) [u8; TOKEN_BYTES]);

impl Token {
    pub(super) fn random() -> Result<Self, IdentityError> {
        let mut bytes = [0; TOKEN_BYTES];
        fill_random(&mut bytes)?;
        Ok(Self(bytes))
    }
}

/// The id of a probe.
pub(super) fn random_id() -> Result<u64, IdentityError> {
    let mut bytes = [0; 8];
    fill_random(&mut bytes)?;
    Ok(u64::from_be_bytes(bytes))
}

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Packet<'a> {
    Probe { token: Token, id: u64 },
    Answer { token: Token, id: u64 },
    Relayed { token: Token, datagram: &'a [u8] },
    MirrorAsk { token: Token },
    MirrorAnswer { token: Token, seen: SocketAddr },
    MirrorPing { token: Token },
}

/// Whether a datagram is none of QUIC's.
pub(super) fn is_packet(datagram: &[u8]) -> bool {
    datagram.first().is_some_and(|first| first & HIGH_BITS == 0)
}

impl<'a> Packet<'a> {
    /// Reads a datagram; `None` if it is malformed.
    pub(super) fn decode(datagram: &'a [u8]) -> Option<Self> {
        let (&kind, rest) = datagram.split_first()?;
        let (token, rest) = rest.split_first_chunk()?;
        let token = Token(*token);
        let packet = match kind {
            PROBE | ANSWER => {
                let id = u64::from_be_bytes(rest.try_into().ok()?);
                if kind == PROBE { Self::Probe { token, id } } else { Self::Answer { token, id } }
            }
            RELAYED if !rest.is_empty() => Self::Relayed { token, datagram: rest },
            MIRROR_ASK if rest.len() == ADDRESS_BYTES => Self::MirrorAsk { token },
            MIRROR_ANSWER => {
                let mut rest = rest;
                let seen = take_address(&mut rest)?;
                Self::MirrorAnswer { token, seen }
            }
            MIRROR_PING if rest.is_empty() => Self::MirrorPing { token },
            _ => return None,
        };
        Some(packet)
    }

    /// The datagram.
    pub(super) fn encode(&self) -> Vec<u8> {
        let (kind, token) = match self {
            Self::Probe { token, .. } => (PROBE, token),
            Self::Answer { token, .. } => (ANSWER, token),
            Self::Relayed { token, .. } => (RELAYED, token),
            Self::MirrorAsk { token } => (MIRROR_ASK, token),
            Self::MirrorAnswer { token, .. } => (MIRROR_ANSWER, token),
            Self::MirrorPing { token } => (MIRROR_PING, token),
        };
        let mut bytes = vec![kind];
        bytes.extend_from_slice(&token.0);
        match self {
            Self::Probe { id, .. } | Self::Answer { id, .. } => bytes.extend_from_slice(&id.to_be_bytes()),
            Self::Relayed { datagram, .. } => bytes.extend_from_slice(datagram),
            Self::MirrorAsk { .. } => bytes.extend_from_slice(&[0; ADDRESS_BYTES]),
            Self::MirrorAnswer { seen, .. } => put_address(&mut bytes, *seen),
            Self::MirrorPing { .. } => {}
        }
        bytes
    }
}

/// Appends an address: 4 or 6, its bytes, the port big-endian.
pub(super) fn put_address(bytes: &mut Vec<u8>, address: SocketAddr) {
    match address.ip() {
        IpAddr::V4(ip) => {
            bytes.push(4);
            bytes.extend_from_slice(&ip.octets());
        }
        IpAddr::V6(ip) => {
            bytes.push(6);
            bytes.extend_from_slice(&ip.octets());
        }
    }
    bytes.extend_from_slice(&address.port().to_be_bytes());
}

/// Takes an address off the front; `None` if there is none that can be sent to.
pub(super) fn take_address(bytes: &mut &[u8]) -> Option<SocketAddr> {
    let (&family, rest) = bytes.split_first()?;
    let (ip, rest): (IpAddr, _) = match family {
        4 => {
            let (octets, rest) = rest.split_first_chunk::<4>()?;
            ((*octets).into(), rest)
        }
        6 => {
            let (octets, rest) = rest.split_first_chunk::<16>()?;
            ((*octets).into(), rest)
        }
        _ => return None,
    };
    let (port, rest) = rest.split_first_chunk()?;
    *bytes = rest;
    let address = SocketAddr::new(ip.to_canonical(), u16::from_be_bytes(*port));
    (!address.ip().is_unspecified() && !address.ip().is_multicast() && address.port() > 0).then_some(address)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn packets_round_trip(token: [u8; 16], id: u64, datagram in prop::collection::vec(any::<u8>(), 1..200),
                              port in 1u16.., last in 1u8..) {
            let token = Token(token);
            for seen in [SocketAddr::from(([10, 0, 0, last], port)), SocketAddr::from(([1u16; 8], port))] {
                for packet in [
                    Packet::Probe { token, id },
                    Packet::Answer { token, id },
                    Packet::Relayed { token, datagram: &datagram },
                    Packet::MirrorAsk { token },
                    Packet::MirrorAnswer { token, seen },
                    Packet::MirrorPing { token },
                ] {
                    let bytes = packet.encode();
                    prop_assert!(is_packet(&bytes));
                    prop_assert_eq!(Packet::decode(&bytes), Some(packet));
                }
            }
        }

        #[test]
        fn any_bytes_are_a_packet_or_none(kind in 0u8..8, mut bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            if let Some(first) = bytes.first_mut() {
                *first = kind;
            }
            if let Some(packet) = Packet::decode(&bytes) {
                let again = packet.encode();
                prop_assert_eq!(Packet::decode(&again), Some(packet));
            }
        }
    }

    #[test]
    fn a_question_is_no_shorter_than_its_answer() {
        let token = Token([1; 16]);
        let ask = Packet::MirrorAsk { token }.encode().len();
        for seen in ["1.2.3.4:5", "[2001:db8::1]:5"] {
            assert!(Packet::MirrorAnswer { token, seen: seen.parse().unwrap() }.encode().len() <= ask);
        }
    }
}
