//! The demo model drafting for itself: every guess is right, unless the reply is made to leave it.

use std::collections::HashMap;

use kernels::cpu::{Cpu, Isa};

use super::*;
use crate::{
    local::{StageBudget, load_stage},
    model::{Quantisation, tests::everything},
    sampler::Sampler,
};

const POSITIONS: u32 = 128;

fn stage(model: &Model, sessions: usize) -> Stage<Cpu> {
    let budget = StageBudget { rows: 24, chunk: 24, sessions, context: POSITIONS, kv_bytes: 1 << 30 };
    let cpu = Cpu::new(1, Isa::detect()).unwrap();
    load_stage(model, &everything(model.config()), Quantisation::Q8, &budget, cpu, &|_| ()).unwrap()
}

fn prompt(model: &Model, text: &str) -> Vec<u32> {
    let text = format!("<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n");
    model.tokenizer().unwrap().encode(&text, false).unwrap()
}

/// A whole model decoding one session plainly.
struct Plain {
    host: Host<Cpu>,
    tokens: Vec<u32>,
    sampler: Sampler,
}

const ID: SessionId = SessionId(7);

impl Plain {
    fn new(model: &Model, prompt: &[u32], sampling: Sampling) -> Self {
        let mut host = Host::new(stage(model, 1));
        assert!(host.open(ID, POSITIONS));
        Self { host, tokens: prompt.to_vec(), sampler: Sampler::new(sampling, prompt) }
    }

    /// Draws the next `count` tokens; rows before `from` are processed already.
    fn draw(&mut self, count: usize, mut from: usize) -> Vec<u32> {
        let start = self.tokens.len();
        while self.tokens.len() < start + count {
            let to = self.tokens.len().min(from + self.host.rows());
            let draw = to == self.tokens.len();
            let segment = Segment {
                session: ID,
                from: from as u32,
                rows: (to - from) as u32,
                drawn: Vec::new(),
                drafted: 0,
            };
            let last_rows = if draw { vec![segment.rows - 1] } else { vec![] };
            let batch = Batch { segments: vec![segment], tokens: self.tokens[from..to].to_vec(), last_rows };
            assert_eq!(self.host.reserve(&batch), []);
            assert_eq!(self.host.run(&batch), []);
            from = to;
            if draw {
                let logits = self.host.logits().next().unwrap();
                let token = self.sampler.draw(logits, to as u32).token;
                self.tokens.push(token);
            }
        }
        self.tokens[start..].to_vec()
    }
}

fn samplings() -> [Sampling; 3] {
    let sampled = Sampling { temperature: 0.8, top_p: 0.95, seed: 11, ..Sampling::default() };
    [
        Sampling { temperature: 0.0, ..Sampling::default() },
        Sampling { frequency_penalty: 0.4, repetition_penalty: 1.1, choice: 2, ..sampled.clone() },
        sampled,
    ]
}

fn open(session: SessionId, prompt: &[u32], sampling: &Sampling) -> Command {
    let (prompt, sampling) = (prompt.to_vec(), sampling.clone());
    Command::Open { session, prompt, max_tokens: POSITIONS, stop_tokens: vec![], sampling }
}

/// Collects a session's latest chain until it reaches `end`.
fn read(drafts: &mut mpsc::Receiver<Draft>, chain: u32, start: usize, end: usize) -> Vec<u32> {
    let mut tokens = Vec::new();
    while start + tokens.len() < end {
        let draft = drafts.blocking_recv().expect("the drafter lives");
        if draft.chain == chain {
            assert_eq!(draft.position as usize, start + tokens.len(), "a chain has no gap");
            tokens.extend(draft.tokens);
        }
    }
    tokens
}

#[test]
fn drafts_are_the_draws_of_the_same_model() {
    let model = Model::demo().unwrap();
    let prompt = prompt(&model, "Tell me a story about a fox.");
    for sampling in samplings() {
        let reply = Plain::new(&model, &prompt, sampling.clone()).draw(40, 0);
        let config = DrafterConfig { ahead: 16, burst: 3 };
        let (drafter, mut drafts) = Drafter::start(stage(&model, 2), config).unwrap();
        drafter.submit(open(ID, &prompt, &sampling));
        let mut guesses = read(&mut drafts, 0, prompt.len(), prompt.len() + 16);
        for known in [1, 2, 10, 16] {
            let from = guesses.len() - 16;
            drafter.submit(Command::Accepted { session: ID, tokens: reply[from..from + known].to_vec() });
            let told = prompt.len() + guesses.len();
            guesses.extend(read(&mut drafts, 0, told, told + known));
        }
        assert_eq!(guesses[..40], reply, "{sampling:?}");
        drop(drafts);
        drafter.stop();
    }
}

#[test]
fn a_reply_that_leaves_the_drafts_is_followed() {
    let model = Model::demo().unwrap();
    let prompt = prompt(&model, "What is the capital of France?");
    for sampling in samplings() {
        let config = DrafterConfig { ahead: 8, burst: 8 };
        let (drafter, mut drafts) = Drafter::start(stage(&model, 2), config).unwrap();
        drafter.submit(open(ID, &prompt, &sampling));
        let guesses = read(&mut drafts, 0, prompt.len(), prompt.len() + 8);
        let other = (guesses[2] + 1) % 2048;
        // As if the reply's own model had drawn otherwise at its third token, and on.
        let reply = [guesses[0], guesses[1], other, 300, 301];
        drafter.submit(Command::Accepted { session: ID, tokens: reply[..2].to_vec() });
        drafter.submit(Command::Accepted { session: ID, tokens: reply[2..].to_vec() });
        let known = [&prompt[..], &reply].concat();
        let found = read(&mut drafts, 1, known.len(), known.len() + 8);
        let mut plain = Plain::new(&model, &prompt, sampling.clone());
        reply.iter().for_each(|&token| plain.sampler.accept(token));
        plain.tokens = known;
        assert_eq!(found, plain.draw(8, 0), "{sampling:?}");
        drop(drafts);
        drafter.stop();
    }
}

#[test]
fn sessions_share_steps_and_end_alone() {
    let model = Model::demo().unwrap();
    let texts = ["Hello", "Tell me a story about a fox and a wolf, please.", "What is Dolphin?"];
    let prompts = texts.map(|text| prompt(&model, text));
    let sampling = Sampling { seed: 5, ..Sampling::default() };
    let (drafter, mut drafts) =
        Drafter::start(stage(&model, 2), DrafterConfig { ahead: 6, burst: 2 }).unwrap();
    for (number, prompt) in prompts.iter().enumerate() {
        drafter.submit(open(SessionId(number as u128), prompt, &sampling));
    }
    let mut guesses: HashMap<SessionId, Vec<u32>> = HashMap::new();
    while guesses.values().map(Vec::len).sum::<usize>() < 12 {
        let draft = drafts.blocking_recv().unwrap();
        guesses.entry(draft.session).or_default().extend(draft.tokens);
    }
    for (number, prompt) in prompts.iter().enumerate().take(2) {
        let reply = Plain::new(&model, prompt, sampling.clone()).draw(6, 0);
        assert_eq!(guesses[&SessionId(number as u128)], reply, "{number}");
    }
    assert_eq!(guesses.len(), 2, "there is room for two");
    drafter.submit(Command::Close(SessionId(0)));
    drafter.submit(Command::Accepted { session: SessionId(0), tokens: vec![1] });
    drafter.submit(open(SessionId(2), &prompts[2], &sampling));
    let draft = drafts.blocking_recv().unwrap();
    assert_eq!(draft.session, SessionId(2), "in the room of the one that ended");
    drop(drafts);
    drafter.stop();
}

#[test]
fn what_does_not_fit_is_not_drafted_for() {
    let model = Model::demo().unwrap();
    let (drafter, mut drafts) =
        Drafter::start(stage(&model, 8), DrafterConfig { ahead: 9, burst: 1 }).unwrap();
    let sampling = Sampling::default();
    let long = vec![300; POSITIONS as usize];
    let refused = [&long[..], &[], &[300, 2048], &[u32::MAX]];
    for (number, prompt) in refused.into_iter().enumerate() {
        drafter.submit(open(SessionId(number as u128), prompt, &sampling));
    }
    let greedy = Sampling { temperature: 0.0, ..sampling };
    drafter.submit(open(ID, &long[..POSITIONS as usize - 3], &greedy));
    drafter.submit(open(SessionId(8), &long[..4], &greedy));
    drafter.submit(Command::Accepted { session: SessionId(8), tokens: vec![2048] });
    let mut places = Vec::new();
    while places.len() < 3 {
        let draft = drafts.blocking_recv().unwrap();
        places.extend((draft.session == ID).then_some(draft.position));
    }
    assert_eq!(places, [POSITIONS - 3, POSITIONS - 2, POSITIONS - 1], "up to its last position");
    // Ends the thread while nobody reads.
    drop(drafts);
    drafter.submit(open(SessionId(9), &long[..4], &greedy));
    drafter.stop();
}

#[test]
fn the_demo_models_draft_model_is_mostly_right() {
    let (model, draft) = (Model::demo().unwrap(), Model::demo_draft().unwrap());
    let (mut right, mut all) = (0, 0);
    for text in ["What is Dolphin?", "Tell me a story about a fox.", "How does one boil an egg?"] {
        for sampling in samplings() {
            let prompt = prompt(&model, text);
            let reply = Plain::new(&model, &prompt, sampling.clone()).draw(16, 0);
            let config = DrafterConfig { ahead: 1, burst: 1 };
            let (drafter, mut drafts) = Drafter::start(stage(&draft, 1), config).unwrap();
            drafter.submit(open(ID, &prompt, &sampling));
            for (place, &token) in reply.iter().enumerate() {
                let guess = drafts.blocking_recv().unwrap();
                assert_eq!((guess.position as usize, guess.tokens.len()), (prompt.len() + place, 1));
                right += usize::from(guess.tokens[0] == token);
                all += 1;
                drafter.submit(Command::Accepted { session: ID, tokens: vec![token] });
            }
            drop(drafts);
            drafter.stop();
        }
    }
    assert!(right * 3 > all * 2, "{right} of {all} guesses");
}

#[test]
fn nothing_is_drafted_after_the_end_of_a_reply() {
    let mut sequence =
        Sequence::new(ID, vec![1, 2], 50, vec![3], Sampling { temperature: 0.0, ..Sampling::default() });
    assert_eq!(sequence.send(10), (0, 0..2));
    sequence.guess(&mut [0.0, 0.0, 0.0, 1.0]);
    assert!(!sequence.wants(9));
    assert_eq!(sequence.report(9, 4), Some(Draft { session: ID, chain: 0, position: 2, tokens: vec![3] }));
    sequence.accept(&[0]);
    assert!(sequence.wants(9), "it was not the end");
    assert_eq!(sequence.send(10), (2, 2..3));
}

#[test]
fn a_part_of_a_model_is_refused() {
    let model = Model::demo().unwrap();
    let shard = crate::model::Shard { embedding: false, ..everything(model.config()) };
    let budget = StageBudget { rows: 4, chunk: 4, sessions: 1, context: 64, kv_bytes: 1 << 20 };
    let cpu = Cpu::new(1, Isa::detect()).unwrap();
    let part = load_stage(&model, &shard, Quantisation::Q8, &budget, cpu, &|_| ()).unwrap();
    assert!(matches!(Drafter::start(part, DrafterConfig::default()), Err(DrafterError::Part)));
}

#[test]
fn vocabularies_are_compared() {
    let demo = Model::demo().unwrap();
    check_vocabulary(&demo, &Model::demo_draft().unwrap()).unwrap();
    let other = Model::open(&crate::model::tests::golden("stories260K")).unwrap();
    let error = check_vocabulary(&demo, &other).unwrap_err();
    assert!(matches!(error, DraftModelError::Vocabulary { id: 0, .. }), "{error}");
}
