//! Draws, against the scalar rule.

use kernels::{
    backend::Operation,
    cuda::ops::draw::{self, Draw, scratch_bytes},
    reference::{Change, Choice, Edit, draw, edit, exp, fixed},
};

use crate::{
    card::{Card, on_every_card},
    rng::{Flavour, Rng},
    rows::{assert_bits, fault},
};

struct Row {
    logits: Vec<f32>,
    choice: Choice,
    edits: Vec<Edit>,
}

const GREEDY: Choice = Choice { random: 0, temperature: 0.0, top_k: 0, min_p: 0, top_p: 1 << 32 };

/// Draws from all rows at once, twice over the same scratch.
fn check(card: &mut Card, rows: &[Row]) {
    let vocabulary = rows[0].logits.len();
    let (mut choices, mut edits) = (Vec::new(), Vec::new());
    for (i, row) in rows.iter().enumerate() {
        let Choice { random, temperature, top_k, min_p, top_p } = row.choice;
        let (first_edit, count) = (edits.len() as u32, row.edits.len() as u32);
        choices.push(draw::Choice {
            random,
            min_p,
            top_p,
            temperature,
            top_k,
            first_edit,
            edits: count,
            row: (rows.len() - 1 - i) as u32,
            zero: 0,
        });
        edits.extend(row.edits.iter().map(|edit| {
            let (repeats, value) = match edit.change {
                Change::Add(value) => (0, value),
                Change::Repeat(value) => (1, value),
            };
            draw::Edit { token: edit.token, repeats, value }
        }));
    }
    edits.push(draw::Edit::default());
    let logits: Vec<f32> = rows.iter().flat_map(|row| &row.logits).copied().collect();
    let params = Draw {
        count: card.upload(&[rows.len() as u32, 0, 0, 0]),
        logits: card.upload(&logits),
        choices: card.upload(&choices),
        edits: card.upload(&edits),
        faults: card.zeros::<u32>(rows.len()),
        scratch: card.zeros::<u8>(scratch_bytes(rows.len(), vocabulary)),
        tokens: card.blank::<u32>(rows.len()),
        vocabulary: vocabulary as u32,
        rows: rows.len() as u32,
        layer: 30,
        zero: 0,
    };
    let greedy = rows.iter().all(|row| row.choice.temperature == 0.0);
    for _ in 0..2 {
        card.write(params.logits, &logits);
        for launch in draw::draw(params, rows.len() as u32 + 1, greedy) {
            card.launch(&launch);
        }
        let tokens = card.download::<u32>(params.tokens, rows.len());
        let edited = card.download::<f32>(params.logits, logits.len());
        let faults = card.download::<u32>(params.faults, rows.len());
        for (i, row) in rows.iter().enumerate() {
            let mut expected = row.logits.clone();
            edit(&mut expected, &row.edits);
            assert_bits(&edited[i * vocabulary..][..vocabulary], &expected);
            assert_eq!(tokens[i], draw(&expected, &row.choice), "row {i}: {:?}", row.choice);
            let faulty = row.logits.iter().any(|l| !l.is_finite());
            let word = if faulty { fault(30, Operation::Logits) } else { 0 };
            assert_eq!(faults[rows.len() - 1 - i], word, "row {i}");
        }
    }
}

fn random_choice(rng: &mut Rng, vocabulary: usize) -> Choice {
    let share = |rng: &mut Rng| match rng.below(4) {
        0 => 0.0,
        1 => 1.0,
        2 => 1e-4 * rng.below(100) as f32,
        _ => rng.below(1000) as f32 / 1000.0,
    };
    Choice {
        random: match rng.below(6) {
            0 => 0,
            1 => u64::MAX,
            _ => rng.bits(),
        },
        temperature: [0.0, 0.3, 0.7, 1.0, 2.0, 1.0 / 1024.0][rng.below(6)],
        top_k: [0, 0, 1, 2, 20, vocabulary as u32, 2 * vocabulary as u32][rng.below(7)],
        min_p: [0, fixed(share(rng))][rng.below(2)],
        top_p: [1 << 32, fixed(share(rng))][rng.below(2)],
    }
}

/// Logits that are alike, tied, far apart, or beyond f32 once they are divided.
fn random_logits(rng: &mut Rng, vocabulary: usize) -> Vec<f32> {
    let kind = rng.below(7);
    (0..vocabulary)
        .map(|i| match kind {
            0 => 1.5,
            1 => rng.below(3) as f32,
            2 => 20.0 * rng.value(Flavour::Plain),
            3 => rng.value(Flavour::Wide),
            4 => rng.value(Flavour::Tiny),
            5 => [3e38, -3e38, 1.0][rng.below(3)],
            _ => -(i as f32) * 0.01,
        })
        .collect()
}

fn random_edits(rng: &mut Rng, vocabulary: usize) -> Vec<Edit> {
    let mut tokens: Vec<u32> = (0..rng.below(12)).map(|_| rng.below(vocabulary + 1) as u32).collect();
    tokens.sort_unstable();
    let change = |rng: &mut Rng| match rng.below(2) {
        0 => Change::Add(3.0 * rng.value(Flavour::Plain)),
        _ => Change::Repeat(1.0 + rng.below(5) as f32 / 8.0),
    };
    tokens.into_iter().map(|token| Edit { token, change: change(rng) }).collect()
}

#[test]
fn draws_follow_the_scalar_rule() {
    on_every_card(|card| {
        for (seed, vocabulary) in [1, 2, 31, 500, 4096, 4099].into_iter().enumerate() {
            let mut rng = Rng(seed as u64 + 40);
            let row = |rng: &mut Rng| Row {
                logits: random_logits(rng, vocabulary),
                choice: random_choice(rng, vocabulary),
                edits: random_edits(rng, vocabulary),
            };
            let rows: Vec<Row> = (0..12).map(|_| row(&mut rng)).collect();
            check(card, &rows);
        }
    });
}

#[test]
fn draws_from_a_large_vocabulary() {
    on_every_card(|card| {
        let mut rng = Rng(3);
        let vocabulary = 50_257;
        let logits: Vec<f32> = (0..vocabulary).map(|_| 12.0 * rng.value(Flavour::Plain)).collect();
        let choice = Choice {
            random: rng.bits(),
            temperature: 0.8,
            top_k: 40,
            min_p: fixed(0.05),
            top_p: fixed(0.95),
        };
        let alike = Choice { top_k: 30_000, min_p: 0, top_p: fixed(0.5), ..choice };
        check(
            card,
            &[
                Row { logits, choice, edits: Vec::new() },
                Row { logits: vec![0.25; vocabulary], choice: alike, edits: Vec::new() },
            ],
        );
    });
}

/// Random bits on either side of where the draw goes from one token to the next: the least unit of a weight shows.
#[test]
fn draws_turn_at_the_exact_weight() {
    on_every_card(|card| {
        let mut rng = Rng(17);
        let temperature = 0.7;
        let mut rows = Vec::new();
        for _ in 0..20 {
            let logits: Vec<f32> = (0..700).map(|_| 5.0 * rng.value(Flavour::Plain)).collect();
            let max = logits.iter().fold(f32::NEG_INFINITY, |max, &l| max.max(l / temperature));
            let weight = |l: &f32| u128::from((exp(l / temperature - max) * 2f32.powi(40)) as u64);
            let total: u128 = logits.iter().map(weight).sum();
            let before: u128 = logits[..1 + rng.below(698)].iter().map(weight).sum();
            let turn = ((before << 64).div_ceil(total)) as u64;
            for random in [turn - 1, turn] {
                let choice = Choice { random, temperature, ..GREEDY };
                rows.push(Row { logits: logits.clone(), choice, edits: Vec::new() });
            }
        }
        check(card, &rows);
        assert!(
            rows.chunks_exact(2)
                .all(|two| draw(&two[0].logits, &two[0].choice) < draw(&two[1].logits, &two[1].choice))
        );
    });
}

#[test]
fn greedy_rows_need_the_first_kernel_alone() {
    on_every_card(|card| {
        let mut logits = vec![-1.0f32; 9000];
        logits[8999] = 4.0;
        logits[4100] = 4.0;
        let zeros = [-0.0, 0.0, -0.0].repeat(3000);
        let edits =
            vec![Edit { token: 5, change: Change::Add(9.0) }, Edit { token: 5, change: Change::Repeat(1.5) }];
        let row = |logits: &[f32], edits: &[Edit]| Row {
            logits: logits.to_vec(),
            choice: GREEDY,
            edits: edits.to_vec(),
        };
        check(card, &[row(&logits, &[]), row(&zeros, &[]), row(&logits, &edits)]);
    });
}

#[test]
fn logits_that_are_not_finite_are_faults() {
    on_every_card(|card| {
        let with = |at: usize, bad: f32| {
            let mut logits = vec![0.5f32; 5000];
            logits[at] = bad;
            Row { logits, choice: Choice { temperature: 1.0, ..GREEDY }, edits: Vec::new() }
        };
        let plain = with(0, 0.25);
        // An edit that leaves f32 is no fault of the model's.
        let edits = vec![Edit { token: 4999, change: Change::Add(f32::MAX) }];
        let edited = Row { edits, ..with(4999, f32::MAX) };
        check(
            card,
            &[
                plain,
                with(4999, f32::NAN),
                with(0, f32::NAN),
                with(7, f32::INFINITY),
                with(4500, f32::NEG_INFINITY),
                edited,
            ],
        );
    });
}
