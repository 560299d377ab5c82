//! What the measurements ran on.

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
}
