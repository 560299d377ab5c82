//! What happened and what was found.

use std::{collections::BTreeMap, time::Instant};

use engine::audit::{
    plan::Digest,
    receipt::Receipt,
    verify::{Finding, Verdict},
};
use serde_json::json;

use super::{HonestArgs, swarm::Seat};
use crate::report::{Figure, Report};

#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Replies that were audited.
    pub(super) sessions: u64,
    pub(super) chunks: u64,
    /// By what was found of them.
    findings: BTreeMap<String, u64>,
    /// Stages that had not signed the end of a reply when their node was taken away, or one before it.
    cut_off: [u64; 2],
    pub(super) blamed: Vec<String>,
    pub(super) tokens: u64,
    /// Replies that broke off, as some do when a node dies.
    pub(super) broken: u64,
    pub(super) refused: u64,
    /// Replies that ended well without a receipt.
    pub(super) missing: u64,
    /// Nodes that were taken away, and when.
    taken: Vec<(Digest, Instant)>,
    killed: u64,
    pub(super) restarts: u64,
    pub(super) replans: u64,
    pub(super) moved: u64,
    preempted: u64,
    reused: u64,
    drafted: u64,
    accepted: u64,
    pub(super) elapsed_s: f64,
}

impl Tally {
    /// Counts what a node has done since the last look. One that loads other layers begins at nothing again.
    pub(super) fn watch(&mut self, seat: &mut Seat) {
        let Some(now) = seat.now() else { return };
        let since = |now: u64, then: u64| now.checked_sub(then).unwrap_or(now);
        self.preempted += since(now.preempted, seat.seen.preempted);
        self.reused += since(now.reused, seat.seen.reused);
        self.drafted += since(now.drafted, seat.seen.drafted);
        self.accepted += since(now.accepted, seat.seen.accepted);
        seat.seen = now;
    }

    /// A node is about to be taken away.
    pub(super) fn taken(&mut self, seat: &Seat, killed: bool) {
        self.taken.push((Digest(*seat.id().as_bytes()), Instant::now()));
        self.killed += u64::from(killed);
    }

    /// A reply that was asked for at `begun` was replayed.
    pub(super) fn audited(&mut self, verdict: &Verdict, receipt: &Receipt, begun: Instant) {
        self.sessions += 1;
        self.chunks += receipt.stages.iter().map(|chunks| chunks.len() as u64).sum::<u64>();
        let mut before = false;
        for (index, stage) in verdict.stages.iter().enumerate() {
            let kind = kind(&stage.finding);
            // Nobody signs for a node that is gone, and it may have told the gateway what it did not tell the
            // next stage any more.
            let itself = self.taken.iter().any(|(node, at)| *node == stage.node && *at >= begun);
            let unsigned = matches!(stage.finding, Finding::Unsigned { .. });
            if unsigned && (itself || before) {
                self.cut_off[usize::from(!itself)] += 1;
            } else if stage.finding.blames() {
                let at = format!(
                    "stage {index} ({}, layers {}..{})",
                    stage.node, stage.from_layer, stage.to_layer
                );
                self.blamed.push(format!("session {}: {at}: {:?}", verdict.session, stage.finding));
            }
            before |= itself;
            *self.findings.entry(kind).or_default() += 1;
        }
        for problem in &verdict.problems {
            self.blamed.push(format!("session {}: the gateway: {problem:?}", verdict.session));
        }
    }

    pub(super) fn report(&self, args: &HonestArgs, devices: &[String]) -> Report {
        let count = |name: &str, value: u64, unit| Figure::new(name, Some(value as f64), unit, 1);
        let figures = vec![
            count("chunks replayed", self.chunks, "chunks"),
            count("stages, gateways blamed", self.blamed.len() as u64, "findings"),
            count("replies audited", self.sessions, "replies"),
            count("unsigned ends of stages whose node was taken away", self.cut_off[0], "stages"),
            count("unsigned ends of stages after such a one", self.cut_off[1], "stages"),
            count("replies that broke off", self.broken, "replies"),
            count("replies without a receipt", self.missing, "replies"),
            count("nodes started again", self.restarts, "nodes"),
            count("of them after their power was cut", self.killed, "nodes"),
            count("other pipelines", self.replans, "replans"),
            count("nodes told to hold other layers", self.moved, "moves"),
            count("sessions that lost their keys and values", self.preempted, "times"),
            count("positions taken from earlier sessions", self.reused, "positions"),
            count("tokens guessed", self.drafted, "tokens"),
            count("of them right", self.accepted, "tokens"),
            Figure::new("the whole", Some(self.elapsed_s), "s", 1),
        ];
        let parameters = json!({
            "quantisation": args.quant, "chunks": args.chunks, "nodes": args.nodes, "pages": args.pages,
            "clients": args.clients, "every": args.every, "seed": args.seed, "devices": devices,
        });
        let details = json!({
            "findings": self.findings, "blamed": self.blamed, "tokens": self.tokens, "refused": self.refused,
        });
        Report::new("honest", parameters, figures, details)
    }
}

fn kind(finding: &Finding) -> String {
    let value = serde_json::to_value(finding).unwrap_or_default();
    value["finding"].as_str().unwrap_or("unknown").to_owned()
}
