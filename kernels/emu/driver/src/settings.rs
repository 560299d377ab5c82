//! What the stand-in driver pretends, as text: the variable `DOLPHIN_STANDIN`, or [`StandIn::set`](crate::StandIn::set).
//!
//! Settings are separated by `;`:
//!
//! | setting | meaning |
//! | --- | --- |
//! | `lazy` (default), `eager` | work runs when something synchronises with it, or at once |
//! | `cards=9.0,8.9:My card` | compute capabilities, each with a name if wanted; `cards=` for none; before `cuInit` |
//! | `memory=64m` | each card's memory, in bytes or with `k`, `m`, `g`; before `cuInit` |
//! | `driver=12040` | the CUDA version of the driver; before `cuInit` |
//! | `order=ascending`, `descending` or a number | in which order blocks and warps run; a number shuffles them |
//! | `copies=late`, `eager` | when asynchronous copies to shared memory land |
//! | `races` | unordered accesses within a launch fail it |
//! | `budget=1000000` | most instructions of a launch |
//! | `oom-at=3` | the third allocation of device memory from now fails |
//! | `fault-at=3` | the third launch from now touches memory that it may not |
//! | `hang-at=3` | the third launch from now does not end until `resume` |
//! | `resume` | hanging launches go on |
//! | `lose=0` | card 0 is gone |
//! | `trace` | every call is reported on stderr |
//!
//! Compute capabilities are 6.1, 7.0, 7.5, 8.0, 8.6, 8.9, 9.0, 10.0 and 12.0.

use ptx_machine::{Copies, Options, Order};

use crate::card::Model;

/// What holds until it is set anew.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) eager: bool,
    pub(crate) cards: Vec<Model>,
    pub(crate) memory_bytes: u64,
    pub(crate) driver_version: u32,
    pub(crate) machine: Options,
    pub(crate) trace: bool,
}

/// Events that come once.
#[derive(Clone, Debug, Default)]
pub(crate) struct Events {
    /// Allocations until one fails, that one included.
    pub(crate) oom_at: Option<u64>,
    /// Launches until one faults.
    pub(crate) fault_at: Option<u64>,
    /// Launches until one hangs.
    pub(crate) hang_at: Option<u64>,
    pub(crate) resume: bool,
    /// Cards that are gone from now on.
    pub(crate) lose: Vec<usize>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            eager: false,
            cards: Model::parse("8.9").into_iter().collect(),
            memory_bytes: 8 << 30,
            driver_version: 12040,
            machine: Options::default(),
            trace: false,
        }
    }
}

impl Settings {
    /// Takes over what `text` says and returns what shall happen; else what is wrong with it.
    pub(crate) fn apply(&mut self, text: &str) -> Result<Events, String> {
        let mut events = Events::default();
        for setting in text.split(';').map(str::trim).filter(|setting| !setting.is_empty()) {
            let (key, value) = setting.split_once('=').map_or((setting, None), |(k, v)| (k, Some(v.trim())));
            let known = self.apply_one(key.trim(), value) || events.apply_one(key.trim(), value);
            known.then_some(()).ok_or_else(|| format!("unknown setting `{setting}`"))?;
        }
        Ok(events)
    }

    fn apply_one(&mut self, key: &str, value: Option<&str>) -> bool {
        match (key, value) {
            ("lazy", None) => self.eager = false,
            ("eager", None) => self.eager = true,
            ("trace", None) => self.trace = true,
            ("races", None) => self.machine.races = true,
            ("cards", Some(list)) => {
                let models: Option<Vec<Model>> =
                    list.split(',').filter(|card| !card.is_empty()).map(Model::parse).collect();
                return models.map(|models| self.cards = models).is_some();
            }
            ("memory", Some(size)) => return bytes(size).map(|bytes| self.memory_bytes = bytes).is_some(),
            ("driver", Some(version)) => {
                return version.parse().map(|version| self.driver_version = version).is_ok();
            }
            ("order", Some("ascending")) => self.machine.order = Order::Ascending,
            ("order", Some("descending")) => self.machine.order = Order::Descending,
            ("order", Some(seed)) => {
                return seed.parse().map(|seed| self.machine.order = Order::Shuffled(seed)).is_ok();
            }
            ("copies", Some("late")) => self.machine.copies = Copies::Late,
            ("copies", Some("eager")) => self.machine.copies = Copies::Eager,
            ("budget", Some(most)) => {
                return most.parse().map(|most| self.machine.budget = Some(most)).is_ok();
            }
            _ => return false,
        }
        true
    }
}

impl Events {
    fn apply_one(&mut self, key: &str, value: Option<&str>) -> bool {
        let number: Option<u64> = value.and_then(|value| value.parse().ok());
        match (key, number) {
            ("oom-at", Some(1..)) => self.oom_at = number,
            ("fault-at", Some(1..)) => self.fault_at = number,
            ("hang-at", Some(1..)) => self.hang_at = number,
            ("lose", Some(card)) => self.lose.push(card as usize),
            ("resume", None) if value.is_none() => self.resume = true,
            _ => return false,
        }
        true
    }
}

/// `64m`, `2g`, `4096`.
fn bytes(text: &str) -> Option<u64> {
    let (digits, shift) = match text.as_bytes().last()? {
        b'k' => (&text[..text.len() - 1], 10),
        b'm' => (&text[..text.len() - 1], 20),
        b'g' => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read() {
        let mut settings = Settings::default();
        let events = settings
            .apply("eager; cards=9.0,7.5:Old card; memory=3m; order=7; races; oom-at=2; lose=1; resume;")
            .unwrap();
        assert!(settings.eager && settings.machine.races);
        assert_eq!(settings.machine.order, Order::Shuffled(7));
        assert_eq!(settings.memory_bytes, 3 << 20);
        assert_eq!(settings.cards.len(), 2);
        assert_eq!(settings.cards[1].name, "Old card");
        assert_eq!((events.oom_at, events.lose.as_slice(), events.resume), (Some(2), &[1][..], true));
    }

    #[test]
    fn what_is_no_setting_is_refused() {
        for text in ["eagre", "memory=", "memory=9q", "cards=9", "cards=1.0", "oom-at=0", "lose", "resume=1"]
        {
            assert!(Settings::default().apply(text).is_err(), "{text}");
        }
    }

    #[test]
    fn no_cards_is_a_setting() {
        let mut settings = Settings::default();
        settings.apply("cards=").unwrap();
        assert!(settings.cards.is_empty());
    }
}
