//! Passes: recorded once and repeated, and what becomes of them when the card fails.

use kernels::{
    backend::{Backend, BackendError, Batch, Pass, Profile, Question, Row, StepShape},
    cuda::Cuda,
    reference::{self, Change, Choice, Edit, fixed},
};
use stand_in_driver::StandIn;

/// Rows that are gathered from others: the smallest pass there is.
struct Gathering<'a> {
    cuda: &'a Cuda,
    step: <Cuda as Backend>::Step,
    from: <Cuda as Backend>::Buffer,
    to: <Cuda as Backend>::Buffer,
}

impl<'a> Gathering<'a> {
    fn new(cuda: &'a Cuda) -> Self {
        let shape = StepShape {
            rows: 9,
            pages: 0,
            positions: 0,
            profile: Profile::Quantised,
            attention: None,
            vocabulary: 0,
        };
        let mut from = cuda.buffer(9, 3).expect("a buffer");
        let values: Vec<f32> = (0..27).map(|value| value as f32).collect();
        cuda.upload(&values, &mut from);
        Self { cuda, step: cuda.step(shape).expect("a step"), from, to: cuda.buffer(9, 3).expect("a buffer") }
    }

    /// The first value of each gathered row.
    fn pass(&mut self, sources: &[u32]) -> Result<Vec<f32>, BackendError> {
        let Self { cuda, step, from, to } = self;
        let rows: Vec<Row> = sources.iter().map(|_| Row { position: 0, pages: 0..0 }).collect();
        cuda.begin(step, Batch { rows: &rows, pages: &[], sources });
        cuda.run(step, Pass::Head, |step| cuda.gather(from, step, to));
        cuda.end(step)?;
        let mut out = vec![0.0; sources.len() * 3];
        cuda.download(to, 0..sources.len(), &mut out)?;
        Ok(out.iter().step_by(3).copied().collect())
    }
}

#[test]
fn a_pass_is_recorded_once_for_each_size() {
    let stand_in = StandIn::fresh("");
    let cuda = Cuda::open(0).expect("a card");
    let mut gathering = Gathering::new(&cuda);
    for sources in [&[4, 0, 2][..], &[1, 1, 8, 7], &[5, 6, 0], &[3], &[]] {
        let expected: Vec<f32> = sources.iter().map(|&row| 3.0 * row as f32).collect();
        assert_eq!(gathering.pass(sources).expect("a sound card"), expected);
    }
    assert_eq!(stand_in.alive().executables, 2, "for up to four rows, and for one");
    assert_eq!(stand_in.tally().graph_launches, 4);
}

#[test]
fn tokens_are_drawn() {
    const VOCABULARY: usize = 300;
    let _stand_in = StandIn::fresh("races");
    let cuda = Cuda::open(0).expect("a card");
    let shape = StepShape {
        rows: 3,
        pages: 0,
        positions: 0,
        profile: Profile::Quantised,
        attention: None,
        vocabulary: VOCABULARY,
    };
    let mut step = cuda.step(shape).expect("a step");
    let mut buffer = cuda.buffer(3, VOCABULARY).expect("a buffer");
    let logits: Vec<f32> = (0..3 * VOCABULARY).map(|i| (i * 7919 % 641) as f32 / 80.0).collect();
    let choice = |temperature, random| Choice { random, temperature, top_k: 40, min_p: 0, top_p: fixed(0.9) };
    let edit = |token, change| Edit { token, change };
    let many: Vec<Edit> = (0..5000).map(|i| edit(i / 9, Change::Add(i as f32 / 9000.0))).collect();
    for (temperature, edits) in [
        (0.0, vec![edit(5, Change::Add(90.0)), edit(7, Change::Repeat(1.5))]),
        (1.0, Vec::new()),
        (0.7, many),
    ] {
        let question = |row: usize| Question {
            choice: choice(temperature, row as u64 * 0x1234_5678_9abc_def1),
            edits: if row == 1 { edits.clone() } else { Vec::new() },
        };
        let questions: Vec<Question> = (0..3).map(question).collect();
        let expected = questions.iter().zip(logits.chunks(VOCABULARY)).map(|(question, logits)| {
            let mut logits = logits.to_vec();
            reference::edit(&mut logits, &question.edits);
            reference::draw(&logits, &question.choice)
        });
        let rows = vec![Row { position: 0, pages: 0..0 }; 3];
        cuda.upload(&logits, &mut buffer);
        cuda.begin(&mut step, Batch { rows: &rows, pages: &[], sources: &[] });
        cuda.draw(&mut buffer, &mut step, &questions);
        assert!(!cuda.end(&mut step).expect("a sound card").any());
        let mut tokens = Vec::new();
        cuda.drawn(&mut step, &mut tokens).expect("a sound card");
        assert_eq!(tokens, expected.collect::<Vec<_>>(), "at temperature {temperature}");
    }
}

/// The error stays, and nothing waits or panics any more.
fn lost(stand_in: &StandIn, what: &str, cuda: &Cuda, setting: &str) {
    let mut gathering = Gathering::new(cuda);
    gathering.pass(&[1, 2]).expect("a sound card");
    stand_in.set(setting);
    let first = gathering.pass(&[1, 2]).expect_err("the card fails").to_string();
    assert!(first.contains(what), "{first}");
    let again = gathering.pass(&[3]).expect_err("it stays so").to_string();
    assert_eq!(first, again);
    assert!(matches!(cuda.buffer(1, 1), Err(BackendError::Device(_))));
    let another = cuda.clone().step(StepShape {
        rows: 1,
        pages: 0,
        positions: 0,
        profile: Profile::F32,
        attention: None,
        vocabulary: 0,
    });
    assert!(matches!(another, Err(BackendError::Device(_))), "clones share the card");
}

#[test]
fn a_kernel_that_strays_loses_the_card() {
    let stand_in = StandIn::fresh("");
    let cuda = Cuda::open(0).expect("a card");
    lost(&stand_in, "ILLEGAL_ADDRESS", &cuda, "fault-at=1");
}

#[test]
fn a_card_that_is_gone_is_lost() {
    let stand_in = StandIn::fresh("");
    let cuda = Cuda::open(0).expect("a card");
    lost(&stand_in, "device", &cuda, "lose=0");
}

#[test]
fn a_kernel_that_hangs_is_not_waited_for() {
    let stand_in = StandIn::fresh("");
    let cuda = Cuda::open(0).expect("a card").patient_for(std::time::Duration::from_millis(200));
    lost(&stand_in, "does not answer", &cuda, "hang-at=1");
}
