//! What the measurements ran on.

use std::{sync::LazyLock, time::Instant};

use kernels::cpu::Isa;
use serde::Serialize;

/// The machine, as far as it decides the figures.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// Model name of the CPU.
    pub cpu: String,
    /// Cores this process may use.
    pub cores: usize,
    /// Largest instruction set of ours that the CPU has.
    pub isa: &'static str,
    /// Operating system and architecture.
    pub system: String,
    /// Runnable tasks over the last minute when the report was made: how busy others kept it.
    pub load: Option<f64>,
}

impl Machine {
    /// This machine, now.
    pub fn here() -> Self {
        let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let load = std::fs::read_to_string("/proc/loadavg").ok();
        Self {
            cpu: cpu_name(&info).unwrap_or("unknown").to_owned(),
            cores: cores(),
            isa: Isa::detect().name(),
            system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            load: load.and_then(|load| load.split_whitespace().next()?.parse().ok()),
        }
    }
}

/// Cores this process may use.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Seconds of processor time that this process has used, to a hundredth; the time since the first call where the
/// system does not tell.
pub fn processor_s() -> f64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    ticks(&stat).map_or_else(|| START.elapsed().as_secs_f64(), |ticks| ticks / 100.0)
}

/// In user mode and in the kernel, of `/proc/self/stat`: hundredths of a second on every Linux.
fn ticks(stat: &str) -> Option<f64> {
    // Numbered from the end of the name, which may hold anything and is in parentheses.
    let mut fields = stat.rsplit(')').next()?.split_whitespace().skip(11).map(str::parse::<f64>);
    Some(fields.next()?.ok()? + fields.next()?.ok()?)
}

fn cpu_name(info: &str) -> Option<&str> {
    let line = info.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_the_cpu_is_found() {
        let info = "processor\t: 0\nmodel\t\t: 17\nmodel name\t: AMD EPYC 9654: sample\n";
        assert_eq!(cpu_name(info), Some("AMD EPYC 9654: sample"));
        assert_eq!(cpu_name(""), None);
    }

    #[test]
    fn processor_time_is_read_after_the_name() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194304 90 0 0 0 125 17 3 4 20 0 1 0";
        assert_eq!(ticks(stat), Some(142.0));
        assert_eq!((ticks(""), ticks("7 (a) S 1 2")), (None, None));
        assert!(processor_s() >= 0.0);
    }
}
