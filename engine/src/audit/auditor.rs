//! What an auditor does with finished replies: draws which of them to replay, and remembers who was right.
//! Pure.

use std::collections::HashMap;

use ledger::eip712::keccak;

use super::{
    draw::{Rates, Work, is_drawn},
    plan::Digest,
    receipt::Receipt,
    rows::CHUNK,
    verify::{Finding, Verdict},
};

const SESSION_DOMAIN: &[u8] = b"dolphin/session/1";

/// See the module.
#[derive(Clone, Debug)]
pub struct Auditor {
    rates: Rates,
    /// Audits that each node has passed since it last failed one.
    passed: HashMap<Digest, u32>,
}

impl Auditor {
    /// One that knows nobody.
    pub fn new(rates: Rates) -> Self {
        Self { rates, passed: HashMap::new() }
    }

    /// Whether the beacon draws any stage of a reply. The beacon must not have been known when the stages
    /// signed. A session is drawn as a whole: its stages are replayed from the first on.
    pub fn draws(&self, beacon: &Digest, receipt: &Receipt) -> bool {
        let prefill = receipt.plan.prompt_length.div_ceil(CHUNK);
        let decode = (receipt.reply.len() as u32).div_ceil(CHUNK);
        let stages = receipt.plan.stages.iter().zip(0..);
        stages.into_iter().any(|(stage, index)| {
            let passed = self.passed.get(&stage.node).copied().unwrap_or(0);
            let drawn = |work: Work, chunks: u32| {
                let commitment = commitment(receipt, index, work);
                is_drawn(&beacon.0, &commitment.0, self.rates.of(work, passed), chunks)
            };
            drawn(Work::Prefill, prefill) || drawn(Work::Decode, decode)
        })
    }

    /// Remembers what came of a replay.
    pub fn learn(&mut self, verdict: &Verdict) {
        for stage in &verdict.stages {
            let passed = self.passed.entry(stage.node).or_default();
            match stage.finding {
                Finding::Proved => *passed = passed.saturating_add(1),
                // It may have done no wrong, but that was not seen either.
                Finding::Misled { .. } => {}
                _ => *passed = 0,
            }
        }
    }
}

/// What a stage signed of a session, of which the draw is made. Nobody but the stage can change it, and it not
/// after the next stage has countersigned.
fn commitment(receipt: &Receipt, stage: u32, work: Work) -> Digest {
    let mut bytes = [SESSION_DOMAIN, &receipt.plan.hash().0, &stage.to_be_bytes()].concat();
    bytes.push(match work {
        Work::Prefill => 0,
        Work::Decode => 1,
    });
    for chunk in &receipt.stages[stage as usize] {
        bytes.extend_from_slice(&chunk.in_root.0);
        bytes.extend_from_slice(&chunk.out_root.0);
    }
    Digest(keccak(&bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::{draw::Rate, verify::StageVerdict};

    fn receipt() -> Receipt {
        let bytes = include_bytes!("../../fuzz/seeds/receipt/short");
        Receipt::read(&bytes[..]).expect("a receipt")
    }

    fn drawn(auditor: &Auditor) -> usize {
        let receipt = receipt();
        (0..4000u32).filter(|n| auditor.draws(&Digest(keccak(&n.to_be_bytes())), &receipt)).count()
    }

    fn verdict(finding: Finding) -> Verdict {
        let stages = receipt().plan.stages;
        let stage = |stage: &crate::audit::plan::PlannedStage| StageVerdict {
            node: stage.node,
            from_layer: stage.from,
            to_layer: stage.to,
            finding,
        };
        Verdict {
            sound: finding == Finding::Proved,
            session: String::new(),
            model: Digest::default(),
            positions: 3,
            tokens: 3,
            problems: Vec::new(),
            stages: stages.iter().map(stage).collect(),
        }
    }

    #[test]
    fn nodes_that_were_right_are_asked_less_until_one_is_wrong() {
        let rates =
            Rates { prefill: Rate::per_mille(0), decode: Rate::per_mille(100), floor: 10, half_life: 1 };
        let mut auditor = Auditor::new(rates);
        // Two stages at a rate of a tenth.
        let fresh = drawn(&auditor);
        assert!((650..870).contains(&fresh), "{fresh}");
        (0..40).for_each(|_| auditor.learn(&verdict(Finding::Proved)));
        let trusted = drawn(&auditor);
        assert!((40..130).contains(&trusted), "{trusted}");
        auditor.learn(&verdict(Finding::Misled { from: 0 }));
        assert_eq!(drawn(&auditor), trusted);
        auditor.learn(&verdict(Finding::Output { from: 0, to: 3 }));
        assert_eq!(drawn(&auditor), fresh);
    }
}
