//! Checks a finished reply: signatures and chains first, then a replay of the whole session as one prefill,
//! stage by stage, that compares every root and every drawn token. Nothing is needed but the receipt and the
//! model's files, and any hardware will do.
//!
//! The replay follows the true rows. So the first stage whose output differs where its input does not is the
//! one that is wrong; those after it were given wrong rows, and nothing can be said of them from there on.

mod replay;

use kernels::backend::Backend;
use serde::Serialize;
use thiserror::Error;

use super::{
    commitment::{Chunk, Follower, is_signed},
    plan::{Digest, prompt_hash},
    receipt::Receipt,
    rows::{Boundary, chunk_end, chunk_root, token_leaves},
};
use crate::{
    local::LoadError,
    model::{Model, Progress},
    request::Finish,
    stage::ComputeError,
};
use replay::{Replay, Replayed};

/// Why a receipt, or what one stage of a session did, could not be computed anew.
#[derive(Debug, Error)]
pub enum VerifyError {
    /// It is of another model.
    #[error("it is of model {claimed}, and these files are {found}")]
    OtherModel {
        /// As the receipt has it.
        claimed: Digest,
        /// Of the files.
        found: Digest,
    },
    /// It has more positions, layers or tokens than the model.
    #[error("it has {0} that the model does not have")]
    OtherShape(&'static str),
    /// The model's files are at fault.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The device is.
    #[error("the replay failed: {0}")]
    Compute(#[from] ComputeError),
    /// The session does not fit the device.
    #[error("the replay does not fit this device: {0}")]
    Room(String),
}

/// What is wrong with what the gateway says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Problem {
    /// The gateway did not sign the receipt.
    GatewaySignature,
    /// The prompt is another than the one agreed on.
    Prompt,
    /// The reply does not end as it says.
    Finish,
}

/// What is known of a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "finding", rename_all = "snake_case")]
pub enum Finding {
    /// It signed all it did, and all of it is right.
    Proved,
    /// It did not sign the positions from here on.
    Unsigned {
        /// First position.
        from: u32,
    },
    /// A signature is not its own, or a chunk does not follow the one before.
    Forged {
        /// First position.
        from: u32,
    },
    /// It signed that other rows came in than the stage before signed that went out; at the first stage, other
    /// tokens than those of the session.
    Input {
        /// First position of the chunk.
        from: u32,
        /// One past its last.
        to: u32,
    },
    /// What came in was right, and what went out was not.
    Output {
        /// First position of the chunk.
        from: u32,
        /// One past its last.
        to: u32,
    },
    /// The row was right, and another token follows from it than the one told.
    Token {
        /// Position of the token.
        position: u32,
        /// What was told.
        told: u32,
        /// What follows.
        drawn: u32,
    },
    /// What it did is right up to here; from here on it was given wrong rows, or nothing shows that the stage
    /// before had signed what this one signs over.
    Misled {
        /// First position.
        from: u32,
    },
}

impl Finding {
    /// Whether the stage itself is to blame.
    pub fn blames(&self) -> bool {
        !matches!(self, Self::Proved | Self::Misled { .. })
    }
}

/// What is known of one stage of a reply.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StageVerdict {
    /// Its node.
    pub node: Digest,
    /// First layer.
    pub from_layer: u32,
    /// One past the last layer.
    pub to_layer: u32,
    /// What is known of it.
    #[serde(flatten)]
    pub finding: Finding,
}

/// What is known of a reply.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// Whether everything is right.
    pub sound: bool,
    /// The session.
    pub session: String,
    /// The model hash.
    pub model: Digest,
    /// Rows that were replayed.
    pub positions: u32,
    /// Tokens of the reply.
    pub tokens: usize,
    /// What is wrong at the gateway.
    pub problems: Vec<Problem>,
    /// The stages in order.
    pub stages: Vec<StageVerdict>,
}

/// Replays a receipt. `hash` is the hash of `model` at the receipt's quantisation. It blocks; `progress` is
/// called from this thread, with rows times layers.
///
/// # Errors
/// If it cannot be checked with this model and device. A receipt that does not hold is no error.
pub fn verify<B: Backend + Clone>(
    receipt: &Receipt,
    model: &Model,
    hash: &Digest,
    backend: &B,
    progress: &dyn Fn(Progress),
) -> Result<Verdict, VerifyError> {
    let plan = &receipt.plan;
    if plan.terms.model != *hash {
        return Err(VerifyError::OtherModel { claimed: plan.terms.model, found: *hash });
    }
    fits(receipt, model)?;
    let signed = signatures(receipt);
    let mut stages = Vec::new();
    let mut replay = Replay::new(receipt, model, backend, progress);
    let tokens: Vec<u32> = receipt.prompt.iter().chain(&receipt.reply).copied().collect();
    let mut expected: Vec<Digest> = bounds(receipt.rows())
        .map(|(from, to)| chunk_root(&token_leaves(hash, from, &tokens[from as usize..to as usize])))
        .collect();
    for (index, stage) in plan.stages.iter().enumerate() {
        let replayed = replay.stage(index)?;
        let roots = roots(receipt, index, &replayed);
        let before = index.checked_sub(1).map(|before| receipt.stages[before].as_slice());
        let compared = compare(receipt.stages[index].as_slice(), before, &expected, &roots, &replayed);
        // What is not signed says nothing, so signatures come first unless something is found before.
        let finding = earlier(signed[index], compared);
        let (from_layer, to_layer) = (stage.from, stage.to);
        stages.push(StageVerdict { node: stage.node, from_layer, to_layer, finding });
        expected = roots;
    }
    let problems = problems(receipt);
    let sound = problems.is_empty() && stages.iter().all(|stage| stage.finding == Finding::Proved);
    Ok(Verdict {
        sound,
        session: plan.session.clone(),
        model: *hash,
        positions: receipt.rows(),
        tokens: receipt.reply.len(),
        problems,
        stages,
    })
}

/// The chunks of a session of `rows` rows.
fn bounds(rows: u32) -> impl Iterator<Item = (u32, u32)> {
    let mut from = 0;
    std::iter::from_fn(move || {
        let bounds = (from, chunk_end(from, rows));
        from = bounds.1;
        (bounds.0 < rows).then_some(bounds)
    })
}

fn fits(receipt: &Receipt, model: &Model) -> Result<(), VerifyError> {
    let (plan, config) = (&receipt.plan, model.config());
    let ensure = |holds: bool, what| if holds { Ok(()) } else { Err(VerifyError::OtherShape(what)) };
    let layers = plan.stages.last().map_or(0, |stage| stage.to as usize);
    ensure(layers == config.layers, "layers")?;
    ensure(receipt.rows() <= config.max_positions, "positions")?;
    let mut tokens = receipt.prompt.iter().chain(&receipt.reply);
    ensure(tokens.all(|&token| (token as usize) < config.vocabulary), "tokens")
}

fn problems(receipt: &Receipt) -> Vec<Problem> {
    let plan = &receipt.plan;
    let stopped = receipt.reply.last().is_some_and(|token| plan.stop_tokens.contains(token));
    let early = receipt.reply.iter().rev().skip(1).any(|token| plan.stop_tokens.contains(token));
    let full = receipt.reply.len() == plan.max_tokens as usize;
    let ends = match receipt.finish {
        Some(Finish::Stop) => stopped,
        Some(Finish::Length) => full && !stopped,
        None => true,
    };
    let checks = [
        (is_signed(&plan.gateway, &receipt.digest(), &receipt.signature), Problem::GatewaySignature),
        (prompt_hash(&plan.terms.salt, &receipt.prompt) == plan.terms.prompt_hash, Problem::Prompt),
        (ends && !early, Problem::Finish),
    ];
    checks.into_iter().filter(|(holds, _)| !holds).map(|(_, problem)| problem).collect()
}

/// Whether each stage signed every chunk, and over what the stage before signed.
fn signatures(receipt: &Receipt) -> Vec<Finding> {
    let (plan, rows) = (receipt.plan.hash(), receipt.rows());
    let chunks = bounds(rows).count();
    // As far as the stage before signed.
    let mut before = vec![Digest::default(); chunks];
    let mut findings = Vec::new();
    for (index, (stage, signed)) in receipt.plan.stages.iter().zip(&receipt.stages).enumerate() {
        let mut follower = Follower::new(plan, index as u32, stage.node);
        let mut hashes = Vec::with_capacity(chunks);
        for ((chunk, before), (from, to)) in signed.iter().zip(&before).zip(bounds(rows)) {
            match follower.take(chunk, before).ok().filter(|_| (chunk.from, chunk.to) == (from, to)) {
                Some(hash) => hashes.push(hash),
                None => break,
            }
        }
        let from = bounds(rows).nth(hashes.len()).map_or(rows, |(from, _)| from);
        findings.push(match hashes.len() {
            all if all == chunks && signed.len() == chunks => Finding::Proved,
            // Without the commitment before, nobody signs, nor can what was signed be checked.
            some if some == before.len() && some < chunks => Finding::Misled { from },
            some if some < signed.len() => Finding::Forged { from },
            _ => Finding::Unsigned { from },
        });
        before = hashes;
    }
    findings
}

/// What should have gone out of a stage.
fn roots(receipt: &Receipt, index: usize, replayed: &Replayed) -> Vec<Digest> {
    let (stage, plan) = (&receipt.plan.stages[index], &receipt.plan);
    let at = Boundary { model: plan.terms.model, layer: stage.to };
    let token = |position: u32| {
        let index = (position + 1).checked_sub(plan.prompt_length)?;
        receipt.reply.get(index as usize).copied()
    };
    let leaves = |from: u32, to: u32| {
        let roots = &replayed.roots[from as usize..to as usize];
        if stage.head { at.drawn(from, roots, token) } else { at.rows(from, roots) }
    };
    // After a fault there is nothing to compare with.
    let end = replayed.roots.len() as u32;
    bounds(receipt.rows())
        .take_while(|&(_, to)| to <= end)
        .map(|(from, to)| chunk_root(&leaves(from, to)))
        .collect()
}

/// Compares what a stage signed with what is right. `came` should have come in and `went` have gone out.
fn compare(
    signed: &[Chunk],
    before: Option<&[Chunk]>,
    came: &[Digest],
    went: &[Digest],
    replayed: &Replayed,
) -> Finding {
    for (index, chunk) in signed.iter().enumerate() {
        let (from, to) = (chunk.from, chunk.to);
        if came.get(index) != Some(&chunk.in_root) {
            let told = before.map(|before| before.get(index).map(|chunk| chunk.out_root));
            return match told {
                Some(told) if told == Some(chunk.in_root) => Finding::Misled { from },
                _ => Finding::Input { from, to },
            };
        }
        if went.get(index) != Some(&chunk.out_root) {
            return Finding::Output { from, to };
        }
        // The token at `to` is drawn from the last row of the chunk.
        if let Some(&(position, told, drawn)) = replayed.token.as_ref().filter(|token| token.0 <= to) {
            return Finding::Token { position, told, drawn };
        }
    }
    Finding::Proved
}

/// Of what signatures and replay say of a stage, what comes first.
fn earlier(signed: Finding, compared: Finding) -> Finding {
    let place = |finding: &Finding| match *finding {
        Finding::Proved => u32::MAX,
        Finding::Token { position, .. } => position,
        Finding::Unsigned { from }
        | Finding::Forged { from }
        | Finding::Misled { from }
        | Finding::Input { from, .. }
        | Finding::Output { from, .. } => from,
    };
    if place(&signed) <= place(&compared) { signed } else { compared }
}
