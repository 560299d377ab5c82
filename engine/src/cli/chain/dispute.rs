//! `dolphin dispute`: how a dispute stands, and playing one by hand.

use std::{fmt::Write, fs, path::PathBuf, process::ExitCode, sync::Arc, time::Duration};

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use engine::audit::{
    court::{Court, Outcome, play},
    evidence::{Evidence, MAX_EVIDENCE_BYTES},
};
use ledger::client::{Case, Dispute, DisputeEvent, DisputeTurn, Ledger, Party, show_address};
use serde_json::{Value, json};

use super::{ChainArgs, explained, when};
use crate::cli::options::{ModelArgs, byte_bar, follow};

/// Between two looks at the chain.
const POLL: Duration = Duration::from_secs(5);
/// What a dispute that was lost ends with.
const LOST: u8 = 3;

/// Look at the dispute over an audit, or play it by hand.
///
/// Nodes and auditors play theirs by themselves. This is for a machine that has to go on for one that is gone.
#[derive(Args, Debug)]
pub(in crate::cli) struct DisputeCommand {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show a case, and how the dispute over it stands
    Show(Show),
    /// Play the account's side to the end; stops and goes on anywhere. Ends with 3 if it is lost
    Play(Play),
}

#[derive(Args, Debug)]
struct Show {
    /// The case, 64 hexadecimal digits
    #[arg(value_parser = parse_case)]
    case: [u8; 32],
    #[command(flatten)]
    chain: ChainArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args, Debug)]
struct Play {
    /// The case, 64 hexadecimal digits
    #[arg(value_parser = parse_case)]
    case: [u8; 32],
    /// What came into the stage; an auditor keeps it under the case's name in `evidence` of its directory
    #[arg(long, value_name = "FILE")]
    evidence: PathBuf,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    chain: ChainArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn parse_case(text: &str) -> Result<[u8; 32], hex::FromHexError> {
    let mut case = [0; 32];
    hex::decode_to_slice(text.strip_prefix("0x").unwrap_or(text), &mut case)?;
    Ok(case)
}

impl DisputeCommand {
    pub(in crate::cli) async fn run(self) -> anyhow::Result<ExitCode> {
        match self.command {
            Command::Show(show) => show.run().await.map(|()| ExitCode::SUCCESS),
            Command::Play(play) => play.run().await,
        }
    }
}

impl Show {
    async fn run(self) -> anyhow::Result<()> {
        let client = self.chain.connect().await?;
        let now = client.head().await.map_err(explained)?.time;
        let case = client.audit_case(self.case).await.map_err(explained)?;
        let case = case.context("there is no such case: `dolphin audit` names those of its own")?;
        let dispute = client.dispute(self.case).await.map_err(explained)?;
        let events = client.dispute_events(self.case).await.map_err(explained)?;
        if self.json {
            let value = as_json(&self.case, &case, dispute.as_ref(), &events);
            println!("{}", serde_json::to_string_pretty(&value)?);
        } else {
            print!("{}", as_text(&self.case, &case, dispute.as_ref(), &events, now));
        }
        Ok(())
    }
}

impl Play {
    async fn run(self) -> anyhow::Result<ExitCode> {
        let length = fs::metadata(&self.evidence).with_context(|| self.evidence.display().to_string())?.len();
        if length > MAX_EVIDENCE_BYTES as u64 {
            bail!("{} is longer than evidence can be", self.evidence.display());
        }
        let evidence = Evidence::decode(&fs::read(&self.evidence)?)
            .with_context(|| format!("{} is no evidence", self.evidence.display()))?;
        if evidence.plan.terms.quantisation != self.model.quant {
            bail!(
                "the session was of another quantisation: give --quant {}",
                evidence.plan.terms.quantisation
            );
        }
        let client = self.chain.connect_with_key().await?;
        let model = Arc::new(self.model.open()?);
        let bar = byte_bar("hashing");
        let (source, quant, progress) = (model.clone(), self.model.quant, follow(&bar));
        let hash = tokio::task::spawn_blocking(move || source.hash(quant, &progress)).await??;
        bar.finish_and_clear();
        if !self.json {
            eprintln!(
                "playing; --log info shows the moves, and it can be stopped and started again at any time"
            );
        }
        let court = Court { ledger: Arc::new(client), model, hash: Arc::new(hash), poll: POLL };
        let outcome = play(&court, self.case, evidence).await?;
        if self.json {
            println!("{}", json!({ "case": digits(&self.case), "outcome": outcome_name(outcome) }));
        } else {
            println!("{}", told(outcome));
        }
        Ok(if matches!(outcome, Outcome::Lost { .. }) { ExitCode::from(LOST) } else { ExitCode::SUCCESS })
    }
}

fn digits(hash: &[u8; 32]) -> String {
    format!("0x{}", hex::encode(hash))
}

fn lower(value: impl std::fmt::Debug) -> String {
    format!("{value:?}").to_lowercase()
}

fn outcome_name(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Won { .. } => "won",
        Outcome::Lost { .. } => "lost",
        Outcome::Abandoned => "abandoned",
        Outcome::Undecided => "undecided",
    }
}

fn told(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Won { silence: false } => "won: the other side was wrong",
        Outcome::Won { silence: true } => "won: the other side fell silent",
        Outcome::Lost { silence: false } => "lost: this side was wrong",
        Outcome::Lost { silence: true } => "lost: this side's time ran out",
        Outcome::Abandoned => "abandoned: it cannot be tried, and both bonds went back",
        Outcome::Undecided => "undecided: it did not end in its time, and both bonds went back",
    }
}

fn awaited(turn: DisputeTurn) -> &'static str {
    match turn {
        DisputeTurn::Commit => "the accused has to commit to its trace",
        DisputeTurn::Choose => "the accuser has to choose a node, or the rows that were sent",
        DisputeTurn::Reveal => "the accused has to show what is below a node",
        DisputeTurn::Rows => "the accused has to show the rows of a chunk",
        DisputeTurn::Row => "the accuser has to choose a row",
        DisputeTurn::Pieces => "the accused has to show the pieces of a row",
        DisputeTurn::ChoosePiece => "the accuser has to choose a piece",
        DisputeTurn::Piece => "the accused has to show a piece",
        DisputeTurn::Prove => "the accuser has to name a word and open what it follows from",
    }
}

fn happened(event: &DisputeEvent) -> String {
    match event {
        DisputeEvent::Opened { .. } => "it was opened".into(),
        DisputeEvent::Committed { root } => format!("the accused committed to the trace {}", digits(root)),
        DisputeEvent::RootsRevealed { roots } => format!("it showed the roots of {} chunks", roots.len()),
        DisputeEvent::Revealed { nodes } => format!("it showed {} hashes", nodes.len()),
        DisputeEvent::PieceRevealed { .. } => "it showed the piece".into(),
        DisputeEvent::Chosen { level, index, .. } => {
            format!("the accuser chose number {index} of level {level}")
        }
        DisputeEvent::Resolved { accused_won, silence } => {
            let who = if *accused_won { "accused" } else { "accuser" };
            format!("the {who} won{}", if *silence { " by the clock" } else { "" })
        }
        DisputeEvent::Abandoned => "it was abandoned".into(),
    }
}

fn as_text(
    id: &[u8; 32],
    case: &Case,
    dispute: Option<&Dispute>,
    events: &[DisputeEvent],
    now: u64,
) -> String {
    let mut out = String::new();
    let mut line = |name: &str, text: String| {
        // Nothing fails in memory.
        let _ = writeln!(out, "{name:<9} {text}");
    };
    line("case", digits(id));
    let leaf = case.leaf;
    line("node", format!("{}, leaf {} of epoch {}", show_address(&leaf.account), leaf.index, leaf.epoch));
    line("stage", format!("{}, its time ends {}", lower(case.stage), when(case.deadline, now)));
    line("verdict", case.verdict.map_or_else(|| "none yet".into(), lower));
    for answer in &case.answers {
        line("auditor", format!("{}: {}", show_address(&answer.auditor), lower(answer.step)));
    }
    match dispute {
        Some(dispute) => {
            line("accused", show_address(&dispute.accused));
            line("accuser", show_address(&dispute.accuser));
            line("positions", format!("0..{} of stage {}", dispute.to, dispute.stage));
            line(
                "awaited",
                format!("{}; its time ends {}", awaited(dispute.turn), when(dispute.deadline(), now)),
            );
        }
        None => line("dispute", if events.is_empty() { "none" } else { "over" }.into()),
    }
    for (number, event) in events.iter().enumerate() {
        line(&format!("  {number}"), happened(event));
    }
    out
}

fn as_json(id: &[u8; 32], case: &Case, dispute: Option<&Dispute>, events: &[DisputeEvent]) -> Value {
    let answers = case.answers.iter();
    let answers: Vec<Value> = answers
        .map(|answer| json!({ "auditor": show_address(&answer.auditor), "step": lower(answer.step) }))
        .collect();
    let dispute = dispute.map(|dispute| {
        json!({
            "accused": show_address(&dispute.accused),
            "accuser": show_address(&dispute.accuser),
            "turn": lower(dispute.turn),
            "of": match dispute.turn.party() {
                Party::Accused => "accused",
                Party::Accuser => "accuser",
            },
            "deadline": dispute.deadline(),
            "accused_left_s": dispute.accused_left,
            "accuser_left_s": dispute.accuser_left,
            "plan": digits(&dispute.plan),
            "model": digits(&dispute.model),
            "stage": dispute.stage,
            "to": dispute.to,
            "level": dispute.level,
            "index": dispute.index,
        })
    });
    json!({
        "case": digits(id),
        "account": show_address(&case.leaf.account),
        "epoch": case.leaf.epoch,
        "index": case.leaf.index,
        "stage": lower(case.stage),
        "deadline": case.deadline,
        "verdict": case.verdict.map(lower),
        "answers": answers,
        "dispute": dispute,
        "events": events.iter().map(happened).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use ledger::{
        audit::LeafId,
        client::{AnswerStep, CaseAnswer, CaseStage, CaseVerdict},
    };

    use super::*;

    #[test]
    fn cases_are_read_with_and_without_a_prefix() {
        let text = "ab".repeat(32);
        assert_eq!(parse_case(&text), Ok([0xab; 32]));
        assert_eq!(parse_case(&format!("0x{text}")), Ok([0xab; 32]));
        assert!(parse_case("ab").is_err());
    }

    #[test]
    fn a_dispute_is_shown_to_people_and_programs() {
        let answer = CaseAnswer { auditor: [4; 20], step: AnswerStep::Opposed, value: [8; 32] };
        let case = Case {
            leaf: LeafId { account: [3; 20], epoch: 7, index: 2 },
            stage: CaseStage::Disputed,
            deadline: 1000,
            verdict: Some(CaseVerdict::Faulty),
            answers: vec![answer],
            challenger: None,
        };
        let dispute = Dispute {
            accused: [3; 20],
            accuser: [4; 20],
            turn: DisputeTurn::Choose,
            moved: 100,
            accused_left: 10,
            accuser_left: 50,
            plan: [1; 32],
            model: [2; 32],
            in_roots: [0; 32],
            sealed_roots: [0; 32],
            stage: 1,
            to: 64,
            level: 12,
            index: 0,
            node: [0; 32],
        };
        let events = [
            DisputeEvent::Opened { accused: [3; 20], accuser: [4; 20] },
            DisputeEvent::Resolved { accused_won: false, silence: true },
        ];
        let text = as_text(&[9; 32], &case, Some(&dispute), &events, 100);
        assert!(text.contains("awaited   the accuser has to choose a node, or the rows that were sent"));
        assert!(
            text.contains("its time ends in 50 s") && text.contains("the accuser won by the clock"),
            "{text}"
        );
        let value = as_json(&[9; 32], &case, Some(&dispute), &events);
        assert_eq!(value["dispute"]["of"], "accuser");
        assert_eq!(value["dispute"]["deadline"], 150);
        assert_eq!(as_json(&[9; 32], &case, None, &[])["dispute"], Value::Null);
    }
}
