//! The cards of this machine.

use std::sync::Arc;

use cudarc::driver::sys::CUdevice_attribute as Attribute;
use thiserror::Error;

use super::{
    driver::{self, Context, Kernels},
    launch::Level,
};
use crate::backend::BackendError;

/// The least CUDA version of a driver, that of release 550: the kernels are PTX 8.4.
const DRIVER_VERSION: u32 = 12040;

/// Why there is no card to compute on.
#[derive(Debug, Error)]
pub enum CardError {
    /// The machine has no driver.
    #[error("this machine has no NVIDIA driver (libcuda.so.1 is not found)")]
    NoDriver,
    /// The driver cannot compile the kernels.
    #[error(
        "the NVIDIA driver is too old: it knows CUDA {}.{}, and 12.4 is needed (driver 550 or later)",
        version / 1000, version % 1000 / 10
    )]
    OldDriver {
        /// Its CUDA version, `1000 major + 10 minor`.
        version: u32,
    },
    /// There is no such card.
    #[error("there is no card {index}: the machine has {count}")]
    NoCard {
        /// The card asked for.
        index: usize,
        /// How many there are.
        count: usize,
    },
    /// The kernels are not made for the card.
    #[error("{name} has compute capability {}.{}, and 7.5 (Turing) is the least", capability.0, capability.1)]
    OldCard {
        /// What it is called.
        name: String,
        /// Major and minor.
        capability: (u32, u32),
    },
    /// The card failed.
    #[error(transparent)]
    Failed(#[from] BackendError),
}

/// What a card is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CardInfo {
    /// Number of the card in this process.
    pub index: usize,
    /// What it is called.
    pub name: String,
    /// Compute capability, major and minor.
    pub capability: (u32, u32),
    /// Bytes of memory.
    pub memory_bytes: usize,
    /// Bytes of memory that nobody used when it was asked.
    pub free_bytes: usize,
    /// Its multiprocessors.
    pub multiprocessors: u32,
    /// Most shared memory that a block may ask for, in bytes.
    pub shared_bytes: u32,
}

impl CardInfo {
    fn of(context: &Context, index: usize) -> Result<Self, BackendError> {
        let (free_bytes, memory_bytes) = context.memory()?;
        Ok(Self {
            index,
            name: context.name()?,
            capability: context.capability()?,
            memory_bytes,
            free_bytes,
            multiprocessors: context.attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            shared_bytes: context
                .attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
        })
    }

    /// The PTX that is made for it; none if it is too old.
    pub fn level(&self) -> Option<Level> {
        Level::of(self.capability.0, self.capability.1)
    }
}

/// The driver's CUDA version, `1000 major + 10 minor`.
///
/// # Errors
/// If there is none, or it is too old.
pub fn driver_version() -> Result<u32, CardError> {
    if !driver::is_present() {
        return Err(CardError::NoDriver);
    }
    match driver::version()? {
        version if version < DRIVER_VERSION => Err(CardError::OldDriver { version }),
        version => Ok(version),
    }
}

/// All cards, whether the kernels are made for them or not.
///
/// # Errors
/// If there is no driver that can be used, or a card does not answer.
pub fn cards() -> Result<Vec<CardInfo>, CardError> {
    driver_version()?;
    let card = |index| {
        let context = Context::new(index)?;
        Ok(CardInfo::of(&context, index)?)
    };
    (0..driver::count()?).map(card).collect()
}

/// A card with its kernels.
#[derive(Debug)]
pub(super) struct Card {
    pub(super) info: CardInfo,
    pub(super) kernels: Kernels,
    pub(super) context: Arc<Context>,
}

impl Card {
    pub(super) fn open(index: usize) -> Result<Self, CardError> {
        driver_version()?;
        let count = driver::count()?;
        if index >= count {
            return Err(CardError::NoCard { index, count });
        }
        let context = Context::new(index)?;
        let info = CardInfo::of(&context, index)?;
        let Some(level) = info.level() else {
            return Err(CardError::OldCard { name: info.name, capability: info.capability });
        };
        let kernels = Kernels::load(&context, level)?;
        Ok(Self { info, kernels, context })
    }
}
