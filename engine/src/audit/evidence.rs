//! What a node shows of a stage's part of a session: everything that came in, from position 0 to the end of one
//! chunk. It is all that a replay or a dispute needs beside the model, and proves itself against the leaf that the
//! node opened on the chain.

use kernels::backend::Backend;
use ledger::audit::roots;
use thiserror::Error;

use super::{
    plan::{Digest, Plan, PlannedStage, prompt_hash},
    receipt::MAX_POSITIONS,
    replay::{Came, StageReplay},
    rows::{Boundary, CHUNK, row_roots},
    trace::{
        Entered,
        dispute::{chunk_roots, entered_leaves},
    },
    verify::VerifyError,
};
use crate::{
    message::row_bytes,
    model::{Model, Progress},
};

/// Longest encoding of evidence.
pub const MAX_EVIDENCE_BYTES: usize = 1 << 30;
/// Longest plan in it.
const MAX_PLAN_BYTES: usize = 1 << 20;
/// Longest row.
const MAX_ROW_BYTES: usize = 1 << 18;
const MAGIC: &[u8; 16] = b"dolphin proof 1\n";
/// Mark, stage, length of the plan, whether rows follow, bytes of each row, rows.
const HEADER_BYTES: usize = 16 + 5 * 4;

/// See the module.
#[derive(Clone, Debug, PartialEq)]
pub struct Evidence {
    /// The session's plan.
    pub plan: Plan,
    /// Number of the stage in it.
    pub stage: u32,
    /// What came in: the tokens or rows of positions 0 to the end of the chunk.
    pub entered: Entered,
}

/// What is wrong with evidence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum EvidenceError {
    /// It is not what [`Evidence::encode`] makes.
    #[error("it is malformed: {0}")]
    Malformed(&'static str),
    /// Its plan is none.
    #[error("its plan has {0}")]
    Plan(&'static str),
    /// It is of another chunk than the one that was opened.
    #[error("it is of another {0} than was opened")]
    OtherChunk(&'static str),
    /// What came in is not what was opened.
    #[error("what came in is not what the node committed to")]
    Input,
    /// The tokens do not begin with the plan's prompt.
    #[error("the prompt is not the plan's")]
    Prompt,
}

impl Evidence {
    /// Positions, which is where the chunk ends.
    pub fn to(&self) -> u32 {
        self.entered.positions()
    }

    /// The stage as planned; `None` if the plan has no such stage.
    pub fn planned(&self) -> Option<&PlannedStage> {
        self.plan.stages.get(self.stage as usize)
    }

    /// Whether it holds what the node opened on the chain.
    ///
    /// # Errors
    /// [`EvidenceError`], which is the node's fault.
    pub fn check(&self, chunk: &ledger::audit::Chunk) -> Result<(), EvidenceError> {
        let same = |holds: bool, what| if holds { Ok(()) } else { Err(EvidenceError::OtherChunk(what)) };
        self.check_shape()?;
        same(self.plan.hash().0 == chunk.plan, "session")?;
        same(self.plan.terms.model.0 == chunk.model, "model")?;
        same(self.stage == chunk.stage, "stage")?;
        let from = self.to().saturating_sub(1) / CHUNK * CHUNK;
        same((from, self.to()) == (chunk.from, chunk.to), "length")?;
        if roots(&self.in_roots()) != chunk.in_roots {
            return Err(EvidenceError::Input);
        }
        if let Entered::Tokens(tokens) = &self.entered
            && let Some(prompt) = tokens.get(..self.plan.prompt_length as usize)
            && prompt_hash(&self.plan.terms.salt, prompt) != self.plan.terms.prompt_hash
        {
            return Err(EvidenceError::Prompt);
        }
        Ok(())
    }

    fn check_shape(&self) -> Result<(), EvidenceError> {
        let ensure = |holds: bool, what| if holds { Ok(()) } else { Err(EvidenceError::Malformed(what)) };
        self.plan.check().map_err(EvidenceError::Plan)?;
        let planned = self.planned().ok_or(EvidenceError::Plan("no such stage"))?;
        ensure((1..=MAX_POSITIONS).contains(&self.to()), "no positions or too many")?;
        match &self.entered {
            Entered::Tokens(_) => ensure(planned.embedding, "tokens where rows come in"),
            Entered::Rows(rows) => {
                ensure(!planned.embedding, "rows where tokens come in")?;
                let wide = rows.first().map_or(0, Vec::len);
                ensure(wide > 0 && wide <= MAX_ROW_BYTES, "rows of no length or too long")?;
                ensure(rows.iter().all(|row| row.len() == wide), "rows of different lengths")
            }
        }
    }

    /// Roots of the chunks of what came in. Empty if the plan has no such stage.
    pub fn in_roots(&self) -> Vec<[u8; 32]> {
        let Some(planned) = self.planned() else { return Vec::new() };
        chunk_roots(&entered_leaves(&self.entered, self.plan.terms.model, planned.from))
    }

    /// Roots of the chunks of rows that went out, from position 0 on, as a leaf on the chain has them: over rows
    /// alone, without the tokens that the last stage drew. Empty if the plan has no such stage.
    pub fn out_roots(&self, rows: &[Vec<u8>]) -> Vec<[u8; 32]> {
        let Some(planned) = self.planned() else { return Vec::new() };
        let at = Boundary { model: self.plan.terms.model, layer: planned.to };
        chunk_roots(&at.rows(0, &row_roots(rows)))
    }

    /// As it travels.
    pub fn encode(&self) -> Vec<u8> {
        // Plans are texts, numbers and lists: they always have a JSON.
        let plan = serde_json::to_vec(&self.plan).unwrap_or_default();
        let (tokens, wide) = match &self.entered {
            Entered::Tokens(_) => (true, 4),
            Entered::Rows(rows) => (false, rows.first().map_or(0, Vec::len) as u32),
        };
        let mut bytes = header(&plan, self.stage, tokens, wide, self.to());
        match &self.entered {
            Entered::Tokens(tokens) => {
                tokens.iter().for_each(|token| bytes.extend_from_slice(&token.to_le_bytes()));
            }
            Entered::Rows(rows) => rows.iter().for_each(|row| bytes.extend_from_slice(row)),
        }
        bytes
    }

    /// Reads an encoding, and checks that it is within its bounds. It takes no more memory than a few times
    /// the bytes' length.
    ///
    /// # Errors
    /// [`EvidenceError::Malformed`] or [`EvidenceError::Plan`], whatever the bytes are.
    pub fn decode(bytes: &[u8]) -> Result<Self, EvidenceError> {
        let malformed = EvidenceError::Malformed;
        if bytes.len() > MAX_EVIDENCE_BYTES {
            return Err(malformed("too long"));
        }
        let (header, rest) = bytes.split_first_chunk::<HEADER_BYTES>().ok_or(malformed("too short"))?;
        let fields = header.strip_prefix(MAGIC).ok_or(malformed("no mark"))?;
        let (fields, _) = fields.as_chunks::<4>();
        let [stage, plan, kind, wide, count] = fields else { return Err(malformed("too short")) };
        let [stage, kind] = [stage, kind].map(|field| u32::from_le_bytes(*field));
        let [plan, wide, count] = [plan, wide, count].map(|field| u32::from_le_bytes(*field) as usize);
        if plan > MAX_PLAN_BYTES || wide == 0 || wide > MAX_ROW_BYTES || count > MAX_POSITIONS as usize {
            return Err(malformed("lengths out of their bounds"));
        }
        let (plan, body) = rest.split_at_checked(plan).ok_or(malformed("too short"))?;
        if body.len() != wide * count {
            return Err(malformed("another length than it says"));
        }
        let plan = serde_json::from_slice(plan).map_err(|_| malformed("no plan"))?;
        let entered = match (kind, wide) {
            (0, 4) => Entered::Tokens(body.as_chunks().0.iter().map(|&t| u32::from_le_bytes(t)).collect()),
            (1, _) => Entered::Rows(body.chunks_exact(wide).map(<[u8]>::to_vec).collect()),
            _ => return Err(malformed("neither tokens nor rows")),
        };
        let evidence = Self { plan, stage, entered };
        evidence.check_shape()?;
        Ok(evidence)
    }
}

/// What stands before the tokens or rows in an encoding: `count` of them, each of `wide` bytes.
pub(super) fn header(plan: &[u8], stage: u32, tokens: bool, wide: u32, count: u32) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    let fields = [stage, plan.len() as u32, u32::from(!tokens), wide, count];
    fields.iter().for_each(|field| bytes.extend_from_slice(&field.to_le_bytes()));
    bytes.extend_from_slice(plan);
    bytes
}

/// Computes the rows that the stage should have sent, as they travel. There are fewer than came in if one is a
/// fault: of the step with the fault and those after it there are none. `hash` is the hash of `model` at the plan's
/// quantisation. It blocks; `progress` is called from this thread, with rows.
///
/// # Errors
/// If it cannot be computed with this model and device.
pub fn replay<B: Backend + Clone>(
    evidence: &Evidence,
    model: &Model,
    hash: &Digest,
    backend: &B,
    progress: &dyn Fn(Progress),
) -> Result<Vec<Vec<u8>>, VerifyError> {
    let planned = fits(evidence, model, hash)?;
    let quantisation = evidence.plan.terms.quantisation;
    let mut stage = StageReplay::new(model, planned, quantisation, evidence.to(), backend)?;
    replay_on(evidence, &mut stage, progress)
}

/// The same with a stage that is loaded, and has begun a session for evidence that fits its model.
pub(super) fn replay_on<B: Backend + Clone>(
    evidence: &Evidence,
    stage: &mut StageReplay<B>,
    progress: &dyn Fn(Progress),
) -> Result<Vec<Vec<u8>>, VerifyError> {
    let entered = &evidence.entered;
    let to = entered.positions();
    let (mut rows, wide, step) = (Vec::new(), stage.row_bytes(), stage.rows());
    for from in (0..to).step_by(step) {
        let range = from as usize..(from as usize + step).min(to as usize);
        let end = range.end as u64;
        let bytes = match entered {
            Entered::Tokens(tokens) => stage.step(from, Came::Tokens(&tokens[range]))?,
            Entered::Rows(rows) => stage.step(from, Came::Rows(&rows[range].concat()))?,
        };
        let Some(bytes) = bytes else { break };
        rows.extend(bytes.chunks_exact(wide).map(<[u8]>::to_vec));
        progress(Progress { done: end, total: to.into() });
    }
    Ok(rows)
}

/// The stage, if the evidence is of this model and has its shape.
pub(super) fn fits<'a>(
    evidence: &'a Evidence,
    model: &Model,
    hash: &Digest,
) -> Result<&'a PlannedStage, VerifyError> {
    let planned = evidence.planned().ok_or(VerifyError::OtherShape("stages"))?;
    let ensure = |holds: bool, what| if holds { Ok(()) } else { Err(VerifyError::OtherShape(what)) };
    let (terms, config) = (&evidence.plan.terms, model.config());
    if terms.model != *hash {
        return Err(VerifyError::OtherModel { claimed: terms.model, found: *hash });
    }
    let last = evidence.plan.stages.last().map_or(0, |stage| stage.to as usize);
    ensure(last == config.layers && planned.from <= planned.to, "layers")?;
    ensure((1..=config.max_positions).contains(&evidence.to()), "positions")?;
    match &evidence.entered {
        Entered::Tokens(tokens) => {
            ensure(planned.embedding, "an embedding")?;
            ensure(tokens.iter().all(|&token| (token as usize) < config.vocabulary), "tokens")
        }
        Entered::Rows(rows) => {
            let wide = row_bytes(config.hidden, terms.quantisation.profile());
            ensure(!planned.embedding, "an embedding")?;
            ensure(rows.iter().all(|row| row.len() == wide), "rows")
        }
    }?;
    Ok(planned)
}

#[cfg(test)]
mod tests {
    use kernels::{cpu::Cpu, reference::Reference};
    use proptest::prelude::*;

    use super::*;
    use crate::{
        audit::{plan::Terms, verify::VerifyError},
        model::{Quantisation, tests::golden},
        request::Sampling,
    };

    const PROMPT: [u32; 3] = [5, 6, 7];

    fn model() -> Model {
        Model::open(&golden("llama")).expect("opens")
    }

    fn plan(model: Digest) -> Plan {
        let salt = Digest([3; 32]);
        let stage = |from, to, embedding, head| PlannedStage {
            node: Digest([to as u8; 32]),
            from,
            to,
            embedding,
            head,
        };
        Plan {
            session: "0".repeat(32),
            gateway: Digest([1; 32]),
            terms: Terms {
                model,
                quantisation: Quantisation::Q8,
                salt,
                prompt_hash: prompt_hash(&salt, &PROMPT),
            },
            prompt_length: 3,
            max_tokens: 200,
            stop_tokens: vec![1, 2],
            sampling: Sampling { temperature: 0.7, ..Sampling::default() },
            stages: vec![stage(0, 2, true, false), stage(2, 5, false, true)],
        }
    }

    fn first(model: Digest, to: u32) -> Evidence {
        let tokens = PROMPT.into_iter().chain((3..to).map(|n| n * 7 % 60)).take(to as usize);
        Evidence { plan: plan(model), stage: 0, entered: Entered::Tokens(tokens.collect()) }
    }

    fn chunk(evidence: &Evidence) -> ledger::audit::Chunk {
        let from = (evidence.to() - 1) / CHUNK * CHUNK;
        ledger::audit::Chunk {
            model: evidence.plan.terms.model.0,
            plan: evidence.plan.hash().0,
            in_roots: roots(&evidence.in_roots()),
            stage: evidence.stage,
            from,
            to: evidence.to(),
            ..Default::default()
        }
    }

    #[test]
    fn it_proves_itself_against_the_leaf() {
        let evidence = first(Digest([9; 32]), 70);
        let opened = chunk(&evidence);
        assert_eq!(evidence.check(&opened), Ok(()));
        let other = EvidenceError::OtherChunk;
        let wrong = [
            (ledger::audit::Chunk { plan: [0; 32], ..opened }, other("session")),
            (ledger::audit::Chunk { model: [0; 32], ..opened }, other("model")),
            (ledger::audit::Chunk { stage: 1, ..opened }, other("stage")),
            (ledger::audit::Chunk { to: 71, ..opened }, other("length")),
            (ledger::audit::Chunk { from: 0, ..opened }, other("length")),
            (ledger::audit::Chunk { in_roots: [0; 32], ..opened }, EvidenceError::Input),
        ];
        for (opened, error) in wrong {
            assert_eq!(evidence.check(&opened), Err(error));
        }
        let mut other = evidence.clone();
        other.entered = Entered::Tokens(vec![1; 70]);
        assert_eq!(other.check(&opened), Err(EvidenceError::Input));
        assert_eq!(other.check(&chunk(&other)), Err(EvidenceError::Prompt));
        let rows = Evidence { entered: Entered::Rows(vec![vec![0; 8]; 70]), ..evidence.clone() };
        assert!(matches!(rows.check(&opened), Err(EvidenceError::Malformed(_))));
        let nowhere = Evidence { stage: 2, ..evidence };
        assert_eq!(nowhere.check(&opened), Err(EvidenceError::Plan("no such stage")));
    }

    /// Stage by stage, on two devices, whose rows are the next stage's evidence.
    #[test]
    fn stages_are_computed_from_what_came_in() {
        let model = model();
        let hash = Digest(model.hash(Quantisation::Q8, &|_| ()).expect("hashes").hash);
        let evidence = first(hash, 70);
        let cpu = Cpu::new(1, kernels::cpu::Isa::detect()).expect("a processor");
        let rows = replay(&evidence, &model, &hash, &cpu, &|_| ()).expect("computes");
        assert_eq!(rows.len(), 70);
        assert_eq!(evidence.out_roots(&rows).len(), 2);
        let second = Evidence { stage: 1, entered: Entered::Rows(rows), ..evidence.clone() };
        assert_eq!(second.in_roots().len(), 2);
        let fast = replay(&second, &model, &hash, &cpu, &|_| ()).expect("computes");
        let plain = replay(&second, &model, &hash, &Reference, &|_| ()).expect("computes");
        assert_eq!(second.out_roots(&fast), second.out_roots(&plain));
        let other = replay(&evidence, &model, &Digest([1; 32]), &cpu, &|_| ());
        assert!(matches!(other, Err(VerifyError::OtherModel { .. })));
        let wide = Evidence { entered: Entered::Rows(vec![vec![0; 6]; 3]), ..second };
        let wide = replay(&wide, &model, &hash, &cpu, &|_| ());
        assert!(matches!(wide, Err(VerifyError::OtherShape("rows"))));
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_read_again(to in 1u32..200, wide in 1usize..40, rows: bool) {
            let mut evidence = first(Digest([9; 32]), to);
            if rows {
                let row = |n: u32| (0..wide).map(|i| (n as usize * 31 + i) as u8).collect();
                evidence.stage = 1;
                evidence.entered = Entered::Rows((0..to).map(row).collect());
            }
            let bytes = evidence.encode();
            let read = Evidence::decode(&bytes).expect("is read");
            prop_assert_eq!(read.plan.hash(), evidence.plan.hash());
            prop_assert_eq!(read, evidence);
        }

        #[test]
        fn no_bytes_do_harm(cut: prop::sample::Index, at: prop::sample::Index, value: u8) {
            let bytes = first(Digest([9; 32]), 70).encode();
            prop_assert!(Evidence::decode(&bytes[..cut.index(bytes.len())]).is_err());
            let mut changed = bytes.clone();
            changed[at.index(bytes.len())] = value;
            if let Ok(read) = Evidence::decode(&changed) {
                prop_assert!(read.check(&chunk(&read)).is_ok() || changed != bytes);
            }
        }
    }
}
