//! What two nodes show each other before either may write the other's memory.
//!
//! They talk over the QUIC stream that would else carry the link. Integers are little-endian.
//!
//! ```text
//! dialler   offer    u8 version (1), [32] challenge
//! acceptor  answer   u16 port, [32] challenge
//!           a connection is made to the port; the acceptor's challenge is its private data
//! both      proof    u8 1, u32 own queue pair, [64] signature     or u8 0 and zeros: rather QUIC
//! both      grant    u8 1, u64 address, u32 key, u32 slots, u32 bytes of each, [64] signature
//!           the dialler's first, and then it ends the QUIC connection
//! ```
//!
//! A proof is signed by the node's own key over both ids, both challenges, a secret of the QUIC
//! connection, the numbers of both queue pairs and who speaks; a grant over all of that and its fields.
//! No memory is opened to the peer before its proof was checked.

use crate::quic::Side;
use crate::{Identity, NodeId, Violation};

pub(super) const OFFER_BYTES: usize = 33;
pub(super) const ANSWER_BYTES: usize = 34;
pub(super) const PROOF_BYTES: usize = 69;
pub(super) const GRANT_BYTES: usize = 85;
const VERSION: u8 = 1;

/// Most slots, and bytes of one, that a grant may name.
const MOST_SLOTS: u32 = 4096;
const MOST_SLOT_BYTES: u32 = 16 << 20;

impl Side {
    fn other(self) -> Self {
        match self {
            Self::Dialler => Self::Acceptor,
            Self::Acceptor => Self::Dialler,
        }
    }
}

pub(super) fn offer(challenge: &[u8; 32]) -> [u8; OFFER_BYTES] {
    let mut message = [VERSION; OFFER_BYTES];
    message[1..].copy_from_slice(challenge);
    message
}

pub(super) fn read_offer(message: &[u8; OFFER_BYTES]) -> Result<[u8; 32], Violation> {
    let [version, challenge @ ..] = *message;
    if version != VERSION {
        return Err(Violation::Carrier(format!("version {version} of the RDMA exchange is unknown")));
    }
    Ok(challenge)
}

pub(super) fn answer(port: u16, challenge: &[u8; 32]) -> [u8; ANSWER_BYTES] {
    let mut message = [0; ANSWER_BYTES];
    message[..2].copy_from_slice(&port.to_le_bytes());
    message[2..].copy_from_slice(challenge);
    message
}

pub(super) fn read_answer(message: &[u8; ANSWER_BYTES]) -> (u16, [u8; 32]) {
    let [low, high, challenge @ ..] = *message;
    (u16::from_le_bytes([low, high]), challenge)
}

/// Where a side lets the other write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Grant {
    pub(super) address: u64,
    pub(super) key: u32,
    pub(super) slots: u32,
    pub(super) slot_bytes: u32,
}

impl Grant {
    fn fields(&self) -> [u8; 20] {
        let mut fields = [0; 20];
        fields[..8].copy_from_slice(&self.address.to_le_bytes());
        fields[8..12].copy_from_slice(&self.key.to_le_bytes());
        fields[12..16].copy_from_slice(&self.slots.to_le_bytes());
        fields[16..].copy_from_slice(&self.slot_bytes.to_le_bytes());
        fields
    }

    fn parse(fields: &[u8; 20]) -> Result<Self, Violation> {
        let word = |at: usize| {
            let mut bytes = [0; 4];
            bytes.copy_from_slice(&fields[at..at + 4]);
            u32::from_le_bytes(bytes)
        };
        let address = u64::from(word(0)) | u64::from(word(4)) << 32;
        let grant = Self { address, key: word(8), slots: word(12), slot_bytes: word(16) };
        let sized =
            (1..=MOST_SLOTS).contains(&grant.slots) && (1..=MOST_SLOT_BYTES).contains(&grant.slot_bytes);
        let bytes = u64::from(grant.slots) * u64::from(grant.slot_bytes);
        if !sized || address.checked_add(bytes).is_none() {
            return Err(Violation::Carrier(format!(
                "a grant of {} slots of {} bytes",
                grant.slots, grant.slot_bytes
            )));
        }
        Ok(grant)
    }
}

/// What both sides know of one exchange, and sign.
#[derive(Clone, Debug)]
pub(super) struct Transcript {
    pub(super) side: Side,
    pub(super) dialler: NodeId,
    pub(super) acceptor: NodeId,
    /// The dialler's, then the acceptor's.
    pub(super) challenges: [[u8; 32]; 2],
    /// Known to the two ends of one QUIC connection only.
    pub(super) secret: [u8; 32],
    /// The dialler's queue pair, then the acceptor's.
    pub(super) pairs: [u32; 2],
}

impl Transcript {
    fn peer(&self) -> NodeId {
        match self.side {
            Side::Dialler => self.acceptor,
            Side::Acceptor => self.dialler,
        }
    }

    fn pair_of(&self, side: Side) -> u32 {
        self.pairs[usize::from(side == Side::Acceptor)]
    }

    /// What `side` signs: `what` tells proofs from grants, and `fields` are a grant's.
    fn signed(&self, side: Side, what: &[u8], fields: &[u8]) -> Vec<u8> {
        let [dialler, acceptor] = self.pairs.map(u32::to_le_bytes);
        [
            &b"dolphin rdma 1 "[..],
            what,
            &[u8::from(side == Side::Acceptor)],
            self.dialler.as_bytes(),
            self.acceptor.as_bytes(),
            &self.challenges[0],
            &self.challenges[1],
            &self.secret,
            &dialler,
            &acceptor,
            fields,
        ]
        .concat()
    }

    pub(super) fn proof(&self, identity: &Identity) -> [u8; PROOF_BYTES] {
        let mut message = [1; PROOF_BYTES];
        message[1..5].copy_from_slice(&self.pair_of(self.side).to_le_bytes());
        message[5..].copy_from_slice(&identity.sign(&self.signed(self.side, b"proof", &[])));
        message
    }

    /// Whether the peer goes on; an error when it is not whom it says, or not on this queue pair.
    pub(super) fn check_proof(&self, message: &[u8; PROOF_BYTES]) -> Result<bool, Violation> {
        let Some((pair, signature)) = opened(message, "proof")? else { return Ok(false) };
        let theirs = self.side.other();
        if pair != self.pair_of(theirs).to_le_bytes() {
            return Err(Violation::Carrier("its proof is for another queue pair".into()));
        }
        if !self.peer().verify(&self.signed(theirs, b"proof", &[]), &signature) {
            return Err(Violation::Carrier("its proof is not signed by its key".into()));
        }
        Ok(true)
    }

    pub(super) fn grant(&self, identity: &Identity, grant: &Grant) -> [u8; GRANT_BYTES] {
        let fields = grant.fields();
        let mut message = [1; GRANT_BYTES];
        message[1..21].copy_from_slice(&fields);
        message[21..].copy_from_slice(&identity.sign(&self.signed(self.side, b"grant", &fields)));
        message
    }

    /// What the peer grants; `None` when it would rather not, an error when it did not sign this.
    pub(super) fn check_grant(&self, message: &[u8; GRANT_BYTES]) -> Result<Option<Grant>, Violation> {
        let Some((fields, signature)) = opened(message, "grant")? else { return Ok(None) };
        if !self.peer().verify(&self.signed(self.side.other(), b"grant", &fields), &signature) {
            return Err(Violation::Carrier("its grant is not signed by its key".into()));
        }
        Grant::parse(&fields).map(Some)
    }
}

/// Fields, and a signature over them and more.
type Signed<const FIELDS: usize> = ([u8; FIELDS], [u8; 64]);

/// The fields and the signature of a message that says yes.
fn opened<const BYTES: usize, const FIELDS: usize>(
    message: &[u8; BYTES],
    what: &str,
) -> Result<Option<Signed<FIELDS>>, Violation> {
    let malformed = || Violation::Carrier(format!("a malformed {what}"));
    let (yes, rest) = message.split_first().ok_or_else(malformed)?;
    let (fields, rest) = rest.split_first_chunk().ok_or_else(malformed)?;
    let signature = rest.try_into().map_err(|_| malformed())?;
    match yes {
        0 => Ok(None),
        1 => Ok(Some((*fields, signature))),
        _ => Err(malformed()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn identities() -> [Identity; 2] {
        [1, 2].map(|secret| Identity::from_secret([secret; 32]))
    }

    /// The same exchange as both sides see it.
    fn transcripts() -> [Transcript; 2] {
        let [dialler, acceptor] = identities().map(|identity| identity.id());
        let (challenges, secret, pairs) = ([[3; 32], [4; 32]], [5; 32], [17, 18]);
        [Side::Dialler, Side::Acceptor].map(|side| Transcript {
            side,
            dialler,
            acceptor,
            challenges,
            secret,
            pairs,
        })
    }

    const GRANT: Grant = Grant { address: 0x7f00_1234_5000, key: 77, slots: 16, slot_bytes: 4096 };

    #[test]
    fn each_side_believes_the_other_and_not_its_own_echo() {
        let ([dialler, acceptor], [a, b]) = (transcripts(), identities());
        assert_eq!(acceptor.check_proof(&dialler.proof(&a)), Ok(true));
        assert_eq!(dialler.check_proof(&acceptor.proof(&b)), Ok(true));
        assert_eq!(acceptor.check_grant(&dialler.grant(&a, &GRANT)), Ok(Some(GRANT)));
        assert!(dialler.check_proof(&dialler.proof(&a)).is_err());
        assert!(dialler.check_grant(&dialler.grant(&a, &GRANT)).is_err());
        assert_eq!(dialler.check_proof(&[0; PROOF_BYTES]), Ok(false));
        assert_eq!(dialler.check_grant(&[0; GRANT_BYTES]), Ok(None));
    }

    #[test]
    fn a_proof_is_worth_nothing_in_another_exchange() {
        let ([_, acceptor], [a, b]) = (transcripts(), identities());
        let [honest, _] = transcripts();
        let others = [
            Transcript { challenges: [[3; 32], [9; 32]], ..honest.clone() },
            Transcript { challenges: [[9; 32], [4; 32]], ..honest.clone() },
            Transcript { secret: [9; 32], ..honest.clone() },
            Transcript { pairs: [17, 19], ..honest.clone() },
            Transcript { pairs: [16, 18], ..honest.clone() },
            Transcript { acceptor: a.id(), ..honest.clone() },
        ];
        for other in others {
            assert!(acceptor.check_proof(&other.proof(&a)).is_err(), "{other:?}");
            assert!(acceptor.check_grant(&other.grant(&a, &GRANT)).is_err(), "{other:?}");
        }
        assert!(acceptor.check_proof(&honest.proof(&b)).is_err(), "signed by another key");
    }

    #[test]
    fn grants_of_nothing_or_too_much_are_refused() {
        let ([dialler, acceptor], [a, _]) = (transcripts(), identities());
        for grant in [
            Grant { slots: 0, ..GRANT },
            Grant { slots: MOST_SLOTS + 1, ..GRANT },
            Grant { slot_bytes: 0, ..GRANT },
            Grant { slot_bytes: u32::MAX, ..GRANT },
            Grant { address: u64::MAX - 4096, ..GRANT },
        ] {
            assert!(acceptor.check_grant(&dialler.grant(&a, &grant)).is_err(), "{grant:?}");
        }
    }

    proptest! {
        #[test]
        fn no_changed_byte_is_believed(at in 0..GRANT_BYTES, change in 1u8..) {
            let ([dialler, acceptor], [a, _]) = (transcripts(), identities());
            let mut grant = dialler.grant(&a, &GRANT);
            grant[at] ^= change;
            // Only the first byte may say no instead.
            prop_assert!(!matches!(acceptor.check_grant(&grant), Ok(Some(_))));
            let mut proof = dialler.proof(&a);
            proof[at % PROOF_BYTES] ^= change;
            prop_assert!(!matches!(acceptor.check_proof(&proof), Ok(true)));
        }
    }
}
