//! Which vouchers are worth collecting, and what came of it.

use serde::{Deserialize, Serialize};

/// When a node collects.
#[derive(Clone, Debug)]
pub struct SettleRules {
    /// Seconds between two looks.
    pub every_s: u64,
    /// What a voucher must bring at least, as a multiple of what collecting it costs.
    pub worth: u64,
    /// Wei of POD that the chain's own coin is worth, by the coin: what gas costs is paid in that.
    pub coin: u128,
    /// Seconds after a plan's expiry in which its vouchers are taken.
    pub window_s: u64,
}

impl Default for SettleRules {
    fn default() -> Self {
        Self { every_s: 60, worth: 20, coin: super::ONE_POD, window_s: 86400 }
    }
}

/// A voucher that would bring something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Due {
    /// Wei of POD for the node that collects.
    pub own: u128,
    /// The plan's expiry.
    pub expiry: u64,
}

impl SettleRules {
    /// Whether to collect now, at `fee` wei of the chain's coin for this voucher. What cannot wait, since the
    /// plan is over or the node is ending (`last`), need only bring more than it costs.
    pub fn is_worth(&self, due: Due, fee: u128, now: u64, last: bool) -> bool {
        let cost = fee.checked_mul(self.coin / 1_000_000_000).map_or(u128::MAX, |cost| cost / 1_000_000_000);
        let hurry = last || now >= due.expiry;
        let times = if hurry { 1 } else { u128::from(self.worth) };
        due.own > cost.saturating_mul(times)
    }
}

/// One transaction that paid.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settlement {
    /// In seconds since 1970.
    pub time: u64,
    /// Hashes of the plans.
    #[serde(with = "hexes")]
    pub plans: Vec<[u8; 32]>,
    /// Wei of POD for this node.
    pub own: u128,
    /// Wei of POD for all stages.
    pub all: u128,
    /// Wei of the chain's coin for gas.
    pub fee: u128,
}

mod hexes {
    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(super) fn serialize<S: Serializer>(hashes: &[[u8; 32]], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(hashes.iter().map(hex::encode))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<[u8; 32]>, D::Error> {
        let decode = |text: String| {
            let mut hash = [0; 32];
            hex::decode_to_slice(text, &mut hash).map(|()| hash).map_err(de::Error::custom)
        };
        Vec::<String>::deserialize(from)?.into_iter().map(decode).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_costs_more_than_it_brings_waits() {
        let rules = SettleRules { worth: 10, ..SettleRules::default() };
        let due = Due { own: 1000, expiry: 50 };
        assert!(rules.is_worth(due, 99, 10, false));
        assert!(!rules.is_worth(due, 100, 10, false));
        assert!(rules.is_worth(due, 100, 50, false), "the plan is over");
        assert!(rules.is_worth(due, 999, 10, true), "the node is ending");
        assert!(!rules.is_worth(due, 1000, 50, true));
        let cheap = SettleRules { coin: crate::payment::ONE_POD / 100, ..rules };
        assert!(cheap.is_worth(due, 9_000, 10, false), "a coin that is worth little");
        assert!(!rules.is_worth(Due { own: u128::MAX, expiry: 0 }, u128::MAX, 0, false));
    }
}
