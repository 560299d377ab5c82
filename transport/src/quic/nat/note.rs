//! What nodes and the gateway that introduces them say to each other: each on a unidirectional stream of its own of
//! the connection of their link, so that both are who they say.
//!
//! Layout: version (1), kind, then big-endian numbers, node ids and addresses as in [`super::packet`]. A list is its
//! length and its items.

use std::net::SocketAddr;

use super::packet::{Token, put_address, take_address};
use super::{Filtering, Mapping};
use crate::NodeId;

/// Most bytes of a note.
pub(super) const MAX_NOTE_BYTES: usize = 512;
/// Most addresses at which a node may be tried.
pub(super) const MAX_CANDIDATES: usize = 4;
const VERSION: u8 = 2;

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Note {
    /// Gateway to node: where it sees you, and where its mirror is (port 0: nowhere), which answers to this token.
    /// Under the other it asks where you are.
    Observed { address: SocketAddr, mirror: u16, token: Token, whereabouts: Token },
    /// Node to gateway: where else I am, and what I found out about what is between us.
    About { local: Vec<SocketAddr>, mapping: Mapping, filtering: Filtering },
    /// Node to gateway: introduce me to this node.
    Ask { request: u32, peer: NodeId },
    /// Gateway to both: try to reach each other.
    Meet(Meet),
    /// Gateway to node: it does not introduce you.
    Refused { request: u32, reason: Refusal },
}

/// An introduction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Meet {
    /// Of the one that asked; 0 for the other.
    pub(super) request: u32,
    pub(super) token: Token,
    pub(super) peer: NodeId,
    /// Whether the gateway relays what carries the token.
    pub(super) relay: bool,
    /// Whether what is known of both NATs says that they cannot be passed.
    pub(super) hopeless: bool,
    /// Where the peer was observed, then where it says to be within the same network.
    pub(super) candidates: Vec<SocketAddr>,
}

/// Why a gateway does not introduce a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// It has no link to the peer.
    Unknown,
    /// The node asks too often.
    TooOften,
}

impl Note {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION];
        match self {
            Self::Observed { address, mirror, token, whereabouts } => {
                bytes.push(1);
                put_address(&mut bytes, *address);
                bytes.extend_from_slice(&mirror.to_be_bytes());
                bytes.extend_from_slice(&token.0);
                bytes.extend_from_slice(&whereabouts.0);
            }
            Self::About { local, mapping, filtering } => {
                bytes.extend_from_slice(&[2, mapping.code(), filtering.code()]);
                put_addresses(&mut bytes, local);
            }
            Self::Ask { request, peer } => {
                bytes.push(3);
                bytes.extend_from_slice(&request.to_be_bytes());
                bytes.extend_from_slice(peer.as_bytes());
            }
            Self::Meet(meet) => {
                bytes.push(4);
                bytes.extend_from_slice(&meet.request.to_be_bytes());
                bytes.extend_from_slice(&meet.token.0);
                bytes.extend_from_slice(meet.peer.as_bytes());
                bytes.extend_from_slice(&[meet.relay.into(), meet.hopeless.into()]);
                put_addresses(&mut bytes, &meet.candidates);
            }
            Self::Refused { request, reason } => {
                bytes.push(5);
                bytes.extend_from_slice(&request.to_be_bytes());
                bytes.push(match reason {
                    Refusal::Unknown => 0,
                    Refusal::TooOften => 1,
                });
            }
        }
        bytes
    }

    /// Reads a note; `None` if it is malformed or of another version.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (&[version, kind], mut rest) = bytes.split_first_chunk()?;
        if version != VERSION {
            return None;
        }
        let rest = &mut rest;
        let note = match kind {
            1 => Self::Observed {
                address: take_address(rest)?,
                mirror: u16::from_be_bytes(take(rest)?),
                token: Token(take(rest)?),
                whereabouts: Token(take(rest)?),
            },
            2 => {
                let [mapping, filtering] = take(rest)?;
                let (mapping, filtering) = (Mapping::of_code(mapping)?, Filtering::of_code(filtering)?);
                Self::About { mapping, filtering, local: take_addresses(rest)? }
            }
            3 => Self::Ask { request: u32::from_be_bytes(take(rest)?), peer: NodeId(take(rest)?) },
            4 => Self::Meet(Meet {
                request: u32::from_be_bytes(take(rest)?),
                token: Token(take(rest)?),
                peer: NodeId(take(rest)?),
                relay: take_bool(rest)?,
                hopeless: take_bool(rest)?,
                candidates: take_addresses(rest)?,
            }),
            5 => Self::Refused {
                request: u32::from_be_bytes(take(rest)?),
                reason: if take_bool(rest)? { Refusal::TooOften } else { Refusal::Unknown },
            },
            _ => return None,
        };
        rest.is_empty().then_some(note)
    }
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(*taken)
}

fn take_bool(bytes: &mut &[u8]) -> Option<bool> {
    match take(bytes)? {
        [0] => Some(false),
        [1] => Some(true),
        _ => None,
    }
}

fn put_addresses(bytes: &mut Vec<u8>, addresses: &[SocketAddr]) {
    let addresses = &addresses[..addresses.len().min(MAX_CANDIDATES)];
    bytes.push(addresses.len() as u8);
    addresses.iter().for_each(|address| put_address(bytes, *address));
}

fn take_addresses(bytes: &mut &[u8]) -> Option<Vec<SocketAddr>> {
    let [count] = take(bytes)?;
    if usize::from(count) > MAX_CANDIDATES {
        return None;
    }
    (0..count).map(|_| take_address(bytes)).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn note() -> impl Strategy<Value = Note> {
        let address = (any::<[u8; 3]>(), 1u16..).prop_map(|([a, b, c], port)| {
            if a % 2 == 0 {
                SocketAddr::from(([10, a, b, c], port))
            } else {
                SocketAddr::from(([0x2001, 0xdb8, a.into(), b.into(), c.into(), 0, 0, 1], port))
            }
        });
        let addresses = prop::collection::vec(address.clone(), 0..=MAX_CANDIDATES);
        let (token, peer) = (any::<[u8; 16]>().prop_map(Token), any::<[u8; 32]>().prop_map(NodeId));
        prop_oneof![
            (address, any::<u16>(), token.clone(), token.clone()).prop_map(
                |(address, mirror, token, whereabouts)| Note::Observed {
                    address,
                    mirror,
                    token,
                    whereabouts
                }
            ),
            (addresses.clone(), 0u8..3, 0u8..3).prop_map(|(local, mapping, filtering)| Note::About {
                local,
                mapping: Mapping::of_code(mapping).unwrap(),
                filtering: Filtering::of_code(filtering).unwrap(),
            }),
            (any::<u32>(), peer.clone()).prop_map(|(request, peer)| Note::Ask { request, peer }),
            (any::<(u32, bool, bool)>(), token, peer, addresses).prop_map(
                |((request, relay, hopeless), token, peer, candidates)| {
                    Note::Meet(Meet { request, token, peer, relay, hopeless, candidates })
                }
            ),
            (any::<u32>(), any::<bool>()).prop_map(|(request, often)| Note::Refused {
                request,
                reason: if often { Refusal::TooOften } else { Refusal::Unknown },
            }),
        ]
    }

    proptest! {
        #[test]
        fn notes_round_trip(note in note()) {
            let bytes = note.encode();
            prop_assert!(bytes.len() <= MAX_NOTE_BYTES);
            prop_assert_eq!(Note::decode(&bytes), Some(note));
            for end in 0..bytes.len() {
                prop_assert_eq!(Note::decode(&bytes[..end]), None);
            }
        }

        #[test]
        fn any_bytes_are_a_note_or_none(kind in 0u8..7, bytes in prop::collection::vec(any::<u8>(), 0..120)) {
            let bytes = [&[VERSION, kind][..], &bytes].concat();
            if let Some(note) = Note::decode(&bytes) {
                prop_assert_eq!(Note::decode(&note.encode()), Some(note));
            }
        }
    }

    #[test]
    fn another_version_and_too_many_addresses_are_refused() {
        let mut bytes = Note::Ask { request: 1, peer: NodeId([1; 32]) }.encode();
        bytes[0] = VERSION + 1;
        assert_eq!(Note::decode(&bytes), None);
        let mut bytes = vec![VERSION, 2, 0, 0, 5];
        (0..5).for_each(|_| put_address(&mut bytes, "10.0.0.1:1".parse().unwrap()));
        assert_eq!(Note::decode(&bytes), None);
    }
}
