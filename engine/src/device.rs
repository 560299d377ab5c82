//! What stages compute on: the processor, or a card.

use std::{fmt, str::FromStr};

#[cfg(feature = "cuda")]
use kernels::cuda::{CardError, Cuda, cards};
use kernels::{backend::Backend, cpu::Cpu};
use thiserror::Error;

/// What a user asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The first card that can be used, else the processor.
    #[default]
    Auto,
    /// The processor.
    Cpu,
    /// A card: the one with this number, or the first that can be used.
    Cuda(Option<usize>),
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let card = |index: &str| index.parse().ok().map(|index| Self::Cuda(Some(index)));
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(None)),
            _ => text
                .strip_prefix("cuda:")
                .and_then(card)
                .ok_or_else(|| "expected `auto`, `cpu`, `cuda` or `cuda:N` with the card's number".into()),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(None) => f.write_str("cuda"),
            Self::Cuda(Some(index)) => write!(f, "cuda:{index}"),
        }
    }
}

/// Why the device that was asked for cannot be had.
#[derive(Debug, Error)]
pub enum DeviceError {
    /// The card cannot be used.
    #[cfg(feature = "cuda")]
    #[error(transparent)]
    Card(#[from] CardError),
    /// No card can be used.
    #[error("none of this machine's {count} cards can be used; `dolphin doctor` says why")]
    NoCard {
        /// How many there are.
        count: usize,
    },
    /// The program knows no cards.
    #[error("this program was built without support for cards")]
    NotBuilt,
}

/// A device to start stages on. Clones share it. [`on_device`](crate::on_device) tells the kinds apart.
#[derive(Clone, Debug)]
pub enum Device {
    /// The processor.
    Cpu(Cpu),
    /// A card.
    #[cfg(feature = "cuda")]
    Cuda(Cuda),
}

/// Runs the same code on whichever backend a [`Device`](crate::device::Device) is.
#[macro_export]
macro_rules! on_device {
    ($device:expr, $backend:ident => $body:expr) => {
        match $device {
            $crate::device::Device::Cpu($backend) => $body,
            #[cfg(feature = "cuda")]
            $crate::device::Device::Cuda($backend) => $body,
        }
    };
}

impl Device {
    /// The device asked for; `cpu` is what there is without a card. Where the choice is free and no card can be
    /// used, the log says why in a line.
    ///
    /// # Errors
    /// If a card is asked for and cannot be used.
    pub fn choose(choice: DeviceChoice, cpu: Cpu) -> Result<Self, DeviceError> {
        match choice {
            DeviceChoice::Cpu => Ok(Self::Cpu(cpu)),
            DeviceChoice::Cuda(index) => Self::card(index),
            DeviceChoice::Auto => Ok(Self::card(None).unwrap_or_else(|error| {
                match error {
                    // What most machines without a card would say every time.
                    #[cfg(feature = "cuda")]
                    DeviceError::Card(CardError::NoDriver) => tracing::info!(%error, "computing on the CPU"),
                    DeviceError::NotBuilt => {}
                    _ => tracing::warn!(%error, "computing on the CPU"),
                }
                Self::Cpu(cpu)
            })),
        }
    }

    #[cfg(feature = "cuda")]
    fn card(index: Option<usize>) -> Result<Self, DeviceError> {
        if let Some(index) = index {
            return Ok(Self::Cuda(Cuda::open(index)?));
        }
        let cards = cards()?;
        let usable = cards.iter().find(|card| card.level().is_some());
        let usable = usable.ok_or(DeviceError::NoCard { count: cards.len() })?;
        Ok(Self::Cuda(Cuda::open(usable.index)?))
    }

    #[cfg(not(feature = "cuda"))]
    fn card(_index: Option<usize>) -> Result<Self, DeviceError> {
        Err(DeviceError::NotBuilt)
    }

    /// Leaves so many bytes of a card's memory to others; the processor's is not bounded here.
    #[must_use]
    #[cfg_attr(
        not(feature = "cuda"),
        expect(unused_variables, reason = "only cards have memory of their own")
    )]
    pub fn leaving(self, bytes: u64) -> Self {
        match self {
            Self::Cpu(cpu) => Self::Cpu(cpu),
            #[cfg(feature = "cuda")]
            Self::Cuda(cuda) => Self::Cuda(cuda.leaving(usize::try_from(bytes).unwrap_or(usize::MAX))),
        }
    }

    /// Whether it has memory of its own.
    pub fn is_card(&self) -> bool {
        !matches!(self, Self::Cpu(_))
    }

    /// One phrase for people.
    pub fn describe(&self) -> String {
        on_device!(self, backend => backend.describe())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_are_written_as_they_are_read() {
        for text in ["auto", "cpu", "cuda", "cuda:0", "cuda:12"] {
            assert_eq!(text.parse::<DeviceChoice>().expect("a choice").to_string(), text);
        }
        for text in ["", "gpu", "cuda:", "cuda:-1", "cuda:x", "cuda0"] {
            assert!(text.parse::<DeviceChoice>().is_err(), "{text}");
        }
    }
}
