//! What it costs to prove what was computed: hashing and signing beside a stage's own time, bytes on the
//! wire, replies with receipts beside such without, and the check of a receipt beside its making.

use std::{
    hint::black_box,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::ensure;
use clap::Args;
use engine::{
    audit::{
        commitment::{Chain, Chunk, Committed, Follower, Signer},
        evidence::Evidence,
        plan::Digest,
        receipt::Receipt,
        rows::{Boundary, CHUNK, chunk_root, row_roots},
        trace::Entered,
        verify::verify,
        watch::{Budget, Worker},
    },
    device::Device,
    local::Local,
    message::{Message, SessionId, row_bytes},
    model::{Model, ModelHash, Quantisation},
    stage::{StageLimits, kv::pages_for},
};
use kernels::cpu::{Cpu, Isa};
use serde_json::json;
use tokio::task::block_in_place;
use transport::Identity;

use crate::{
    machine::cores,
    report::{Figure, Report},
    rig::{Rig, open_model, positions},
    stats::{Summary, ratio},
    swarm::{Served, Setup},
    workload::Workload,
};

/// What to run.
#[derive(Args, Clone, Debug)]
pub struct VerifyArgs {
    /// Model [default: the embedded demo model]
    #[arg(long, value_name = "DIR|FILE")]
    pub model: Option<PathBuf>,
    /// How its weights are held; a quantised GGUF's as they are
    #[arg(long, default_value = "q8", value_name = "q8|q4|f32")]
    pub quant: Quantisation,
    /// Threads that compute, shared by the stages [default: one per core]
    #[arg(long)]
    pub threads: Option<usize>,
    /// Stages that the model is cut into
    #[arg(long, default_value_t = 3)]
    pub stages: usize,
    /// Tokens of the prompt
    #[arg(long, default_value_t = 128)]
    pub prompt_tokens: usize,
    /// Tokens of a reply
    #[arg(long, default_value_t = 128)]
    pub max_tokens: u32,
    /// Measurements of each, which take turns
    #[arg(long, default_value_t = 5)]
    pub repetitions: usize,
}

/// Seconds for each row: what hashing and signing take of prompts, a chunk at once, and of replies, row by row,
/// and what a stage takes.
struct Rows {
    root: Vec<f64>,
    prompt_proof: Vec<f64>,
    reply_proof: Vec<f64>,
    prefill: Vec<f64>,
    decode: Vec<f64>,
}

/// Milliseconds of a token with and without receipts, and seconds of a reply, of its check, and of an audit of its
/// first stage with its weights loaded or not.
#[derive(Default)]
struct Replies {
    without: Vec<f64>,
    with: Vec<f64>,
    made: Vec<f64>,
    checked: Vec<f64>,
    audited: Vec<f64>,
    begun: Vec<f64>,
}

impl VerifyArgs {
    /// Runs everything.
    ///
    /// # Errors
    /// If a swarm cannot start, a request fails, or a receipt does not hold.
    pub async fn run(&self) -> anyhow::Result<Report> {
        ensure!(self.stages > 0 && self.repetitions > 0, "--stages and --repetitions must be at least 1");
        ensure!(self.max_tokens > 1 && self.prompt_tokens > 0, "a reply needs 2 tokens, a prompt 1");
        let rows = block_in_place(|| self.rows())?;
        let (replies, name) = self.replies().await?;
        let parameters = json!({
            "quantisation": self.quant, "stages": self.stages, "threads": self.threads(),
            "prompt_tokens": self.prompt_tokens, "max_tokens": self.max_tokens,
            "repetitions": self.repetitions,
        });
        let figures = self.figures(&rows, &replies)?;
        Ok(Report::new("verify", parameters, figures, json!({ "model": name })))
    }

    fn threads(&self) -> usize {
        self.threads.unwrap_or_else(cores)
    }

    fn rows(&self) -> anyhow::Result<Rows> {
        let model = open_model(self.model.as_deref())?;
        let reach = positions(self.prompt_tokens + self.max_tokens as usize)?;
        let limits = StageLimits { rows: 256, pages: pages_for(reach), sessions: 1, positions: reach };
        let cpu = Cpu::new(self.threads(), Isa::detect())?;
        let mut rig = Rig::load(cpu, &model, self.quant, 256, limits)?;
        let wide = row_bytes(model.config().hidden, self.quant.profile());
        let share = self.stages as f64;
        let mut rows = Rows {
            root: Vec::new(),
            prompt_proof: Vec::new(),
            reply_proof: Vec::new(),
            prefill: Vec::new(),
            decode: Vec::new(),
        };
        for repetition in 0..=self.repetitions {
            let (root, prompt_proof) = proof_s(wide, CHUNK as usize)?;
            let (_, reply_proof) = proof_s(wide, 1)?;
            let prefill = 1.0 / rig.time_prefill(0, self.prompt_tokens)? / share;
            rig.open(0..1, reach as usize)?;
            rig.prefill(0, self.prompt_tokens)?;
            let steps = self.max_tokens as usize - 1;
            let decode = rig.decode(1, self.prompt_tokens, steps)?.as_secs_f64() / steps as f64 / share;
            rig.close(0..1);
            // The first does not count.
            if repetition > 0 {
                rows.root.push(root);
                rows.prompt_proof.push(prompt_proof);
                rows.reply_proof.push(reply_proof);
                rows.prefill.push(prefill);
                rows.decode.push(decode);
            }
        }
        Ok(rows)
    }

    async fn replies(&self) -> anyhow::Result<(Replies, String)> {
        let model = Arc::new(open_model(self.model.as_deref())?);
        let reach = positions(self.prompt_tokens + self.max_tokens as usize)?;
        let setup = Setup::of_one_client(model.clone(), self.quant, self.stages, self.threads(), reach);
        let without = Served::start(&setup, self.max_tokens).await?;
        let with = Served::start(&Setup { receipts: true, ..setup }, self.max_tokens).await?;
        let hash = Arc::new(block_in_place(|| model.hash(self.quant, &|_| ()))?);
        let cpu = Cpu::new(self.threads(), Isa::detect())?;
        let workload = Workload::Random { tokens: self.prompt_tokens, seed: 1 };
        let mut replies = Replies::default();
        for repetition in 0..=self.repetitions {
            let prompt = workload.prompt(repetition);
            let plain = without.token_ms(prompt.clone()).await?;
            let proved = with.token_ms(prompt).await?;
            let (made, receipt) = receipt(&with.local, repetition, self.max_tokens).await?;
            let started = Instant::now();
            let verdict = block_in_place(|| verify(&receipt, &model, &Digest(hash.hash), &cpu, &|_| ()))?;
            ensure!(verdict.sound, "a receipt does not hold: {verdict:?}");
            if repetition > 0 {
                replies.without.push(plain);
                replies.with.push(proved);
                replies.made.push(made);
                replies.checked.push(started.elapsed().as_secs_f64());
            }
            let (begun, audited) = self.audit(&model, &hash, receipt).await?;
            if repetition > 0 {
                replies.begun.push(begun);
                replies.audited.push(audited);
            }
        }
        without.local.stop().await;
        with.local.stop().await;
        Ok((replies, model.name().to_owned()))
    }

    /// Seconds of an audit of all that the first stage did for a reply, with loading its weights and without.
    async fn audit(
        &self,
        model: &Arc<Model>,
        hash: &Arc<ModelHash>,
        receipt: Receipt,
    ) -> anyhow::Result<(f64, f64)> {
        let mut tokens = [receipt.prompt, receipt.reply].concat();
        // Nothing is computed from the last one.
        tokens.pop();
        let evidence = Arc::new(Evidence { plan: receipt.plan, stage: 0, entered: Entered::Tokens(tokens) });
        let device = Device::Cpu(Cpu::new(self.threads(), Isa::detect())?);
        let budget = Budget { at_once: 1, positions: evidence.to(), memory: 1 << 30 };
        let worker = Arc::new(Worker::new(model.clone(), self.quant, hash.clone(), device, budget));
        let started = Instant::now();
        worker.replay(evidence.clone()).await?;
        let begun = started.elapsed().as_secs_f64();
        let started = Instant::now();
        worker.replay(evidence).await?;
        Ok((begun, started.elapsed().as_secs_f64()))
    }

    fn figures(&self, rows: &Rows, replies: &Replies) -> anyhow::Result<Vec<Figure>> {
        let micro = |name: &str, seconds: &[f64]| {
            let scaled: Vec<f64> = seconds.iter().map(|seconds| seconds * 1e6).collect();
            Figure::summary(name, Summary::of(&scaled), "us")
        };
        let part = |audit: &[f64]| ratio(audit, &replies.made).map(|ratio| ratio * self.stages as f64);
        Ok(vec![
            micro("hash of a row among others", &rows.root),
            micro("rows of a prompt's position hashed and signed at a stage", &rows.prompt_proof)
                .against("a row of prefill at the stage", ratio(&rows.prompt_proof, &rows.prefill)),
            micro("rows of a reply's position hashed and signed at a stage", &rows.reply_proof)
                .against("a row of a reply at the stage", ratio(&rows.reply_proof, &rows.decode)),
            Figure::new("sent of commitments for a token by a stage", Some(wire_bytes()?), "B", 1),
            Figure::summary("a token without receipts", Summary::of(&replies.without), "ms"),
            Figure::summary("a token with receipts", Summary::of(&replies.with), "ms")
                .against("without", ratio(&replies.with, &replies.without)),
            Figure::summary("a reply with its receipt", Summary::of(&replies.made), "s"),
            Figure::summary("the check of its receipt", Summary::of(&replies.checked), "s")
                .against("the reply", ratio(&replies.checked, &replies.made)),
            Figure::summary(
                "an audit of its first stage, weights to be loaded",
                Summary::of(&replies.begun),
                "s",
            )
            .against("the stage's part of the reply", part(&replies.begun)),
            Figure::summary(
                "an audit of its first stage, weights loaded",
                Summary::of(&replies.audited),
                "s",
            )
            .against("the stage's part of the reply", part(&replies.audited)),
        ])
    }
}

/// Seconds of one row's hash, and of all that a stage does to prove a position: rows in and out, leaves, and
/// its part of the chunk's roots, signature and check of the signature before. `at_once` positions come
/// together.
fn proof_s(wide: usize, at_once: usize) -> anyhow::Result<(f64, f64)> {
    const CHUNKS: usize = 8;
    let rows: Vec<Vec<u8>> = (0..CHUNK as u8).map(|n| vec![n; wide]).collect();
    let identity = Identity::from_secret([1; 32]);
    let (node, signer) = (Digest(*identity.id().as_bytes()), Signer::new(identity));
    let at = Boundary { model: Digest([1; 32]), layer: 1 };
    let started = Instant::now();
    for rows in rows.chunks(at_once).cycle().take(CHUNKS * rows.len() / at_once) {
        black_box(row_roots(black_box(rows)));
    }
    let root = started.elapsed().as_secs_f64() / (CHUNKS * rows.len()) as f64;
    let (mut own, mut signing, mut previous) = (
        Chain::new(Digest([2; 32]), 1),
        Chain::new(Digest([2; 32]), 0),
        Follower::new(Digest([2; 32]), 0, node),
    );
    let mut spent = Duration::ZERO;
    for index in 0..CHUNKS as u32 {
        let (from, to) = (index * CHUNK, (index + 1) * CHUNK);
        let (zero, other) = (Digest::default(), Digest([3; 32]));
        let hash = signing.next(to, &other, &other, &zero);
        signing.push(to, hash);
        let heard = Chunk { from, to, in_root: other, out_root: other, signature: signer.sign(&hash) };
        let started = Instant::now();
        let before = previous.take(&heard, &zero)?;
        let both = rows.chunks(at_once).map(|rows| row_roots(black_box(&[rows, rows].concat())));
        let both: Vec<_> = both.flatten().collect();
        let roots = [&both[..rows.len()], &both[rows.len()..]];
        let roots = roots.map(|roots| chunk_root(&at.rows(from, roots)));
        let hash = own.next(to, &roots[0], &roots[1], &before);
        own.push(to, hash);
        black_box(signer.sign(&hash));
        spent += started.elapsed();
    }
    Ok((root, spent.as_secs_f64() / (CHUNKS * rows.len()) as f64))
}

/// Bytes for each token that a stage sends to the gateway and to the next stage.
fn wire_bytes() -> anyhow::Result<f64> {
    let identity = Identity::from_secret([1; 32]);
    let signature = Signer::new(identity).sign(&Digest([1; 32]));
    let (in_root, out_root) = (Digest([0xee; 32]), Digest([0xdd; 32]));
    let chunk = Chunk { from: 100 * CHUNK, to: 101 * CHUNK, in_root, out_root, signature };
    let committed = Committed { session: SessionId(u128::MAX), before: in_root, chunk };
    let message = Message::Committed(Box::new(committed)).encode();
    Ok(2.0 * message.len() as f64 / f64::from(CHUNK))
}

/// A reply and its receipt, and the seconds of the reply.
async fn receipt(local: &Local, seed: usize, max_tokens: u32) -> anyhow::Result<(f64, Receipt)> {
    let (http, url) = (reqwest::Client::new(), local.front().url());
    let body = json!({
        "model": local.front().model_name(), "prompt": "What is it?", "seed": seed, "ignore_eos": true,
        "max_tokens": max_tokens,
    });
    for _ in 0..600 {
        let started = Instant::now();
        let response = http.post(format!("{url}/v1/completions")).json(&body).send().await?;
        let response = response.error_for_status()?;
        let id = response.headers().get("x-dolphin-receipt").cloned();
        response.bytes().await?;
        let made = started.elapsed().as_secs_f64();
        if let Some(id) = id {
            let text = http.get(format!("{url}/v1/receipts/{}", id.to_str()?)).send().await?.bytes().await?;
            return Ok((made, Receipt::read(&text[..])?));
        }
        // The model is still being hashed.
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    anyhow::bail!("replies have no receipts")
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use crate::cli::{Cli, Suite};

    #[tokio::test(flavor = "multi_thread")]
    async fn receipts_of_the_demo_model_are_measured() {
        let command = ["bench", "verify", "--prompt-tokens", "9", "--max-tokens", "12", "--threads", "1"];
        let cli = Cli::try_parse_from(command.into_iter().chain(["--repetitions", "1"])).expect("parses");
        let Suite::Verify(args) = cli.suite else { panic!("another suite") };
        let report = args.run().await.expect("measures");
        assert!(report.figures.iter().all(|figure| figure.value.is_some_and(|value| value > 0.0)));
        let wire = report.figures.iter().find(|figure| figure.unit == "B").and_then(|figure| figure.value);
        assert!(wire.is_some_and(|bytes| bytes <= 8.0), "{wire:?}");
    }
}
