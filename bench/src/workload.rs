//! Prompts to send.

use std::path::Path;

use anyhow::{Context, ensure};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;

/// Ids that nearly every vocabulary has and that mark no structure in it.
const PLAIN_IDS: std::ops::Range<u32> = 16..256;

/// Where prompts come from.
#[derive(Clone, Debug)]
pub enum Workload {
    /// Random token ids, so that no two requests share a prefix.
    Random {
        /// Length of each prompt.
        tokens: usize,
        /// Seed of the ids.
        seed: u64,
    },
    /// A span of random token ids again and again, so that whatever copies has much to copy. Every prompt
    /// has a span of its own.
    Repeated {
        /// Length of each prompt.
        tokens: usize,
        /// Length of the span.
        span: usize,
        /// Seed of the ids.
        seed: u64,
    },
    /// Texts, in turn.
    Texts(Vec<String>),
}

/// Questions, and what the embedded demo model answers.
const TURNS: [[&str; 2]; 5] = [
    [
        "Tell me a story about a fox.",
        "Once upon a time, a little fox named Rusty lived in a green forest. Rusty dreamed of touching the moon. \
         He climbed the highest hill and reached up, but the moon was still far away. A wise crow pointed at the \
         lake below, where the moon was shining on the water. Rusty touched it gently and went home happy.\n\
         The moral: sometimes what we look for is very near.",
    ],
    [
        "What is Dolphin?",
        "Dolphin is an open network in which many small GPUs together serve one large language model. Each node \
         holds a few layers of the model, and every token can be proved.",
    ],
    ["Tell me a joke.", "Why did the bicycle fall over? Because it was two tired!"],
    [
        "Write a poem about the sea.",
        "The sea is deep, the sea is wide,\nthe dolphins travel with the tide.\n\
         They leap and sing, they dive and play,\nand help each other on their way.",
    ],
    [
        "What is a token?",
        "A token is a small piece of text, such as a word or a part of a word. A language model reads and writes \
         tokens.",
    ],
];

impl Workload {
    /// Chats in which a question is asked again after its answer: the demo model, as larger ones do, says
    /// most of it again, so nearly the whole reply stands in the prompt.
    pub fn copying() -> Self {
        let text = |[question, answer]: [&str; 2]| {
            format!("{}{answer}<|im_end|>\n{}", asked(question), asked(question))
        };
        Self::Texts(TURNS.into_iter().map(text).collect())
    }

    /// The same questions asked once: nothing of the reply stands in the prompt.
    pub fn novel() -> Self {
        Self::Texts(TURNS.into_iter().map(|[question, _]| asked(question)).collect())
    }

    /// Texts in it; those of the others never end.
    pub(crate) fn prompts(&self) -> usize {
        match self {
            Self::Texts(texts) => texts.len(),
            Self::Random { .. } | Self::Repeated { .. } => usize::MAX,
        }
    }

    /// Texts from a file, one on each line; empty lines are left out.
    ///
    /// # Errors
    /// If the file cannot be read or has no text.
    pub fn from_file(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let lines: Vec<String> =
            text.lines().filter(|line| !line.trim().is_empty()).map(str::to_owned).collect();
        ensure!(!lines.is_empty(), "{} has no prompt", path.display());
        Ok(Self::Texts(lines))
    }

    /// The prompt of request `index`, as `/v1/completions` takes it.
    pub fn prompt(&self, index: usize) -> Value {
        match self {
            Self::Random { tokens, seed } => {
                let mut rng = ChaCha8Rng::seed_from_u64(*seed);
                rng.set_stream(index as u64);
                (0..*tokens).map(|_| Value::from(rng.random_range(PLAIN_IDS))).collect()
            }
            Self::Repeated { tokens, span, seed } => {
                let once = Self::Random { tokens: *span, seed: *seed }.prompt(index);
                once.as_array().into_iter().flatten().cycle().take(*tokens).cloned().collect()
            }
            Self::Texts(texts) => texts[index % texts.len()].clone().into(),
        }
    }
}

/// A question in the demo model's chat format (ChatML), up to where the answer begins.
fn asked(question: &str) -> String {
    format!("<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n")
}

#[cfg(test)]
mod tests {
    use engine::{
        model::{Model, Quantisation},
        stage::StageLimits,
    };

    use super::*;
    use crate::rig::Rig;
    use kernels::cpu::{Cpu, Isa};

    /// Share of a reply that is foreseen by looking up its last two tokens in all before them: what followed
    /// them the last time.
    fn foreseen(prompt: &[u32], reply: &[u32]) -> f64 {
        let text = [prompt, reply].concat();
        let hit = |at: usize| {
            let before = text[..at - 1].windows(2).rposition(|pair| pair == &text[at - 2..at]);
            before.is_some_and(|from| text[from + 2] == text[at])
        };
        let hits = (prompt.len()..text.len()).filter(|&at| hit(at)).count();
        hits as f64 / reply.len() as f64
    }

    #[test]
    fn the_demo_model_copies_what_it_said_and_nothing_else() {
        let model = Model::demo().expect("opens");
        let tokenizer = model.tokenizer().expect("a tokenizer");
        let limits = StageLimits { rows: 256, pages: 8, sessions: 1, positions: 512 };
        let cpu = Cpu::new(1, Isa::detect()).expect("a CPU");
        let mut rig = Rig::load(cpu, &model, Quantisation::Q8, 256, limits).expect("loads");
        let mut share = |workload: Workload, index: usize| {
            let prompt = workload.prompt(index);
            let prompt = tokenizer.encode(prompt.as_str().expect("a text"), true).expect("encodes");
            let answer = tokenizer.encode(TURNS[index][1], false).expect("encodes");
            foreseen(&prompt, &rig.reply(&prompt, answer.len()).expect("replies"))
        };
        for index in 0..TURNS.len() {
            let (copied, novel) = (share(Workload::copying(), index), share(Workload::novel(), index));
            assert!(copied > 0.7 && novel < 0.1, "prompt {index}: {copied} and {novel} are foreseen");
        }
    }

    #[test]
    fn repeated_prompts_repeat_their_own_span() {
        let workload = Workload::Repeated { tokens: 10, span: 4, seed: 1 };
        let prompts = [0, 1].map(|index| workload.prompt(index));
        let ids = prompts[0].as_array().expect("ids");
        assert_eq!((ids.len(), &ids[..4], &ids[8..]), (10, &ids[4..8], &ids[..2]));
        assert_ne!(prompts[0], prompts[1]);
    }

    #[test]
    fn random_prompts_differ_and_come_again() {
        let workload = Workload::Random { tokens: 12, seed: 3 };
        let prompts: Vec<Value> = (0..4).map(|index| workload.prompt(index)).collect();
        assert_eq!(prompts[2], workload.prompt(2));
        assert!(prompts.iter().all(|prompt| prompt.as_array().is_some_and(|ids| ids.len() == 12)));
        assert!(prompts.windows(2).all(|pair| pair[0] != pair[1]));
    }

    #[test]
    fn texts_come_in_turn() {
        let file = tempfile::NamedTempFile::new().expect("temporary file");
        std::fs::write(file.path(), "one\n\n  \ntwo\n").expect("written");
        let workload = Workload::from_file(file.path()).expect("two prompts");
        assert_eq!([workload.prompt(0), workload.prompt(1), workload.prompt(2)], ["one", "two", "one"]);
        std::fs::write(file.path(), "\n").expect("written");
        assert!(Workload::from_file(file.path()).is_err());
    }
}
