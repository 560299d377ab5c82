//! Amounts of POD, and how they and addresses are written.

use std::{fmt, iter::Sum, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use thiserror::Error;

use crate::eip712::Address;

const DECIMALS: usize = 18;
const ONE: u128 = 10u128.pow(DECIMALS as u32);

/// An amount of POD, in wei: 10^18 are one POD. People write and read it in POD (`1.5`), files hold wei.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pod(pub u128);

/// Why a text is no amount.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum AmountError {
    /// It is no decimal number.
    #[error("an amount is a decimal number such as 12 or 0.5")]
    NotANumber,
    /// It is finer than a wei.
    #[error("an amount has at most 18 decimals")]
    TooFine,
    /// It is more than can ever exist.
    #[error("the amount is too large")]
    TooLarge,
}

impl Pod {
    /// Nothing.
    pub const ZERO: Self = Self(0);

    /// The sum, or `None` where it does not fit.
    pub fn checked_add(self, other: Self) -> Option<Self> {
        self.0.checked_add(other.0).map(Self)
    }

    /// The difference, or nothing where `other` is more.
    pub fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

impl fmt::Display for Pod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fraction = format!("{:018}", self.0 % ONE);
        let fraction = fraction.trim_end_matches('0');
        let text = match fraction {
            "" => (self.0 / ONE).to_string(),
            _ => format!("{}.{fraction}", self.0 / ONE),
        };
        f.pad_integral(true, "", &text)
    }
}

impl FromStr for Pod {
    type Err = AmountError;

    /// Reads an amount in POD, such as `12`, `0.5` or `1_000`.
    fn from_str(text: &str) -> Result<Self, AmountError> {
        let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
        let whole: String = whole.chars().filter(|&c| c != '_').collect();
        let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
        if !digits(&whole) || !digits(fraction) || (whole.is_empty() && fraction.is_empty()) {
            return Err(AmountError::NotANumber);
        }
        let fraction = fraction.trim_end_matches('0');
        if fraction.len() > DECIMALS {
            return Err(AmountError::TooFine);
        }
        let digits = format!("0{whole}{fraction:0<DECIMALS$}");
        digits.parse().map(Self).map_err(|_| AmountError::TooLarge)
    }
}

impl Sum for Pod {
    /// Saturates.
    fn sum<I: Iterator<Item = Self>>(amounts: I) -> Self {
        Self(amounts.fold(0, |sum, amount| sum.saturating_add(amount.0)))
    }
}

impl Serialize for Pod {
    /// As the text of a number of wei: larger numbers do not survive every reader.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Pod {
    /// From a number of wei, as text or as a number.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either {
            Number(u64),
            Text(String),
        }
        match Either::deserialize(deserializer)? {
            Either::Number(wei) => Ok(Self(wei.into())),
            Either::Text(text) => text.parse().map(Self).map_err(de::Error::custom),
        }
    }
}

/// Why a text is no address.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("an address is 0x and 40 hexadecimal digits; with capitals among them, they must fit (EIP-55)")]
pub struct AddressError;

/// Writes an address as `0x…` with the capitals of EIP-55, by which wallets notice mistakes.
pub fn show_address(address: &Address) -> String {
    let lower = hex::encode(address);
    let hash = crate::eip712::keccak(lower.as_bytes());
    let nibble = |index: usize| hash[index / 2] >> (4 * (1 - index % 2)) & 15;
    let digits = lower.chars().enumerate();
    let text: String =
        digits.map(|(index, c)| if nibble(index) > 7 { c.to_ascii_uppercase() } else { c }).collect();
    format!("0x{text}")
}

/// Reads an address. Where it has capitals and small letters, it must be written as [`show_address`] does.
pub fn parse_address(text: &str) -> Result<Address, AddressError> {
    let digits = text.strip_prefix("0x").ok_or(AddressError)?;
    let mut address = Address::default();
    hex::decode_to_slice(digits, &mut address).map_err(|_| AddressError)?;
    let mixed =
        digits.bytes().any(|c| c.is_ascii_uppercase()) && digits.bytes().any(|c| c.is_ascii_lowercase());
    if mixed && show_address(&address) != text {
        return Err(AddressError);
    }
    Ok(address)
}

/// An address in files, for `#[serde(with = "address")]`.
pub(crate) mod address {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(address: &Address, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&show_address(address))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Address, D::Error> {
        parse_address(&String::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn amounts_are_read_as_people_write_them() {
        for (text, wei) in [("1", ONE), ("0.5", ONE / 2), (".5", ONE / 2), ("1_000.", 1000 * ONE)] {
            assert_eq!(text.parse(), Ok(Pod(wei)), "{text}");
        }
        assert_eq!("0.000000000000000001".parse(), Ok(Pod(1)));
        assert_eq!("0.0000000000000000010".parse(), Ok(Pod(1)));
        for text in ["", ".", "-1", "+1", "1e3", "1,5", "0x1", "1.2.3", " 1", "1.5_0"] {
            assert_eq!(text.parse::<Pod>(), Err(AmountError::NotANumber), "{text}");
        }
        assert_eq!("0.0000000000000000001".parse::<Pod>(), Err(AmountError::TooFine));
        assert_eq!("340282366920938463464".parse::<Pod>(), Err(AmountError::TooLarge));
    }

    #[test]
    fn amounts_are_written_without_what_says_nothing() {
        assert_eq!(Pod(0).to_string(), "0");
        assert_eq!(Pod(ONE).to_string(), "1");
        assert_eq!(Pod(ONE + ONE / 4).to_string(), "1.25");
        assert_eq!(format!("{:>6}", Pod(ONE / 2)), "   0.5");
    }

    #[test]
    fn addresses_are_checked_where_they_can_be() {
        // The first example of EIP-55.
        let text = "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed";
        let address = parse_address(text).unwrap();
        assert_eq!(show_address(&address), text);
        assert_eq!(parse_address(&text.to_lowercase()), Ok(address));
        assert_eq!(parse_address(&text.replace("5aA", "5aa")), Err(AddressError));
        assert_eq!(parse_address(&text[2..]), Err(AddressError));
        assert_eq!(parse_address(&text[..41]), Err(AddressError));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(wei: u128) {
            prop_assert_eq!(Pod(wei).to_string().parse(), Ok(Pod(wei)));
            let json = serde_json::to_string(&Pod(wei)).unwrap();
            prop_assert_eq!(serde_json::from_str::<Pod>(&json).unwrap(), Pod(wei));
        }

        #[test]
        fn every_address_is_read_as_it_is_written(address: Address) {
            prop_assert_eq!(parse_address(&show_address(&address)), Ok(address));
        }

        #[test]
        fn no_text_is_too_odd(text: String) {
            let _ = text.parse::<Pod>();
            let _ = parse_address(&text);
        }
    }
}
