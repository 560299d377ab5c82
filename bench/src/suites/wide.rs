//! `bench serve --rtt`: the whole product in this process over a simulated wide-area network, at several
//! round trips and bandwidths in turn.

use std::time::Duration;

use anyhow::ensure;
use engine::local::Links;
use indicatif::ProgressBar;
use serde_json::json;
use transport::sim::{Conditions, Network};

use crate::{
    report::{Figure, Report},
    stats::{Summary, median, percentile},
    suites::serve::{Outcome, ServeArgs},
};

/// What the network is set to.
#[derive(Clone, Copy)]
struct Setting {
    rtt_ms: u64,
    bandwidth_mbit: u64,
}

/// All repetitions of a setting.
struct Measured {
    setting: Setting,
    outcomes: Vec<Outcome>,
}

/// A row passes each of `nodes` links once on its way around the ring: from node to node, and from the last
/// to the first. The gateway is as far from every node as they are from one another.
pub(crate) fn ring(rtt_ms: u64, bandwidth_mbit: u64, nodes: usize) -> Conditions {
    Conditions {
        delay: Duration::from_millis(rtt_ms) / nodes as u32,
        jitter: Duration::ZERO,
        loss: 0.0,
        bandwidth_bytes_per_s: Some(bandwidth_mbit * 125_000),
    }
}

impl Setting {
    fn conditions(self, nodes: usize) -> Conditions {
        ring(self.rtt_ms, self.bandwidth_mbit, nodes)
    }

    fn name(self) -> String {
        format!("{} Mbit/s, RTT {} ms", self.bandwidth_mbit, self.rtt_ms)
    }
}

impl Measured {
    fn each(&self, value: impl Fn(&Outcome) -> Option<f64>) -> Vec<f64> {
        self.outcomes.iter().filter_map(value).collect()
    }

    fn rates(&self) -> Vec<f64> {
        self.each(|outcome| Some(outcome.rate()))
    }

    /// Of the rates at no round trip, each beside the one of the same repetition.
    fn share(&self, near: Option<&Self>) -> Option<f64> {
        let ratios: Vec<f64> = self.rates().iter().zip(near?.rates()).map(|(far, near)| far / near).collect();
        median(&ratios)
    }

    fn figures(&self, near: Option<&Self>) -> [Figure; 3] {
        let name = self.setting.name();
        let middle = |seconds: Vec<f64>| percentile(&seconds, 0.5).map(|seconds| seconds * 1e3);
        let first = self.each(|outcome| middle(outcome.first_s()));
        let gaps = self.each(|outcome| middle(outcome.gaps_s()));
        let rtt = self.setting.rtt_ms as f64;
        let turns = median(&gaps).filter(|_| rtt > 0.0).map(|gap| gap / rtt);
        [
            Figure::summary(format!("{name}: output rate"), Summary::of(&self.rates()), "tokens/s")
                .against("the rate at RTT 0", self.share(near)),
            Figure::summary(format!("{name}: time to first token, p50"), Summary::of(&first), "ms"),
            Figure::summary(format!("{name}: inter-token time, p50"), Summary::of(&gaps), "ms")
                .against("RTT", turns),
        ]
    }
}

impl ServeArgs {
    /// Sends everything once in each setting and repetition. Failed requests are counted, not errors.
    ///
    /// # Errors
    /// If the swarm cannot start, or answers nothing.
    pub async fn run_simulated(&self) -> anyhow::Result<Report> {
        ensure!(self.repetitions > 0, "--repetitions must be at least 1");
        ensure!(!self.bandwidth.contains(&0), "--bandwidth must be at least 1");
        let workload = self.workload()?;
        let network = Network::new(self.seed);
        let setup = self.setup(Links::Simulated(network.clone()))?;
        let local = setup.start().await?;
        let url = format!("{}/v1", local.front().url());
        let mut measured: Vec<Measured> = self.settings().collect();
        let rounds = measured.len() * self.repetitions;
        let bar = ProgressBar::new(rounds as u64).with_message("settings");
        // The first requests pay for pages that are touched for the first time.
        self.drive(&url, &workload).await?;
        for _ in 0..self.repetitions {
            for one in &mut measured {
                network.set_conditions(one.setting.conditions(self.nodes));
                one.outcomes.push(self.drive(&url, &workload).await?);
                bar.inc(1);
            }
        }
        bar.finish_and_clear();
        local.stop().await;
        let mut figures = Vec::new();
        for one in &measured {
            let near = measured.iter().find(|other| {
                (other.setting.rtt_ms, other.setting.bandwidth_mbit) == (0, one.setting.bandwidth_mbit)
            });
            figures.extend(one.figures(near.filter(|_| one.setting.rtt_ms > 0)));
        }
        let outcomes = || measured.iter().flat_map(|one| &one.outcomes);
        let mut errors = std::collections::BTreeMap::<&str, usize>::new();
        for (kind, count) in outcomes().flat_map(|outcome| &outcome.errors) {
            *errors.entry(kind).or_default() += count;
        }
        let answered: usize = outcomes().map(|outcome| outcome.replies.len()).sum();
        let mut parameters = self.parameters(&setup.parameters());
        parameters["rtt_ms"] = json!(self.rtt);
        parameters["bandwidth_mbit"] = json!(self.bandwidth);
        parameters["repetitions"] = json!(self.repetitions);
        Ok(Report::new("serve", parameters, figures, json!({ "answered": answered, "errors": errors })))
    }

    fn settings(&self) -> impl Iterator<Item = Measured> {
        let of = |&bandwidth_mbit: &u64| {
            let setting = move |&rtt_ms: &u64| Setting { rtt_ms, bandwidth_mbit };
            self.rtt.iter().map(setting)
        };
        self.bandwidth.iter().flat_map(of).map(|setting| Measured { setting, outcomes: Vec::new() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_round_trip_is_shared_by_the_links_of_the_ring() {
        let conditions = ring(100, 100, 4);
        assert_eq!(conditions.delay, Duration::from_millis(25));
        assert_eq!(conditions.bandwidth_bytes_per_s, Some(12_500_000));
    }
}
