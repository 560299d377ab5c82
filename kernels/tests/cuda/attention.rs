//! Attention, over few and over many rows of a session.

use kernels::{
    backend::{AttentionShape, Grouping, Operation, PAGE, Profile},
    cuda::ops::attention::{Attention, Card as Limits, Plan},
    reference::{Fold, attend_block},
};

use crate::{
    card::{Card, on_every_card},
    kv::Store,
    rng::{Flavour, Rng},
    rows::{Rows, activation, assert_row, fault},
};

#[derive(Clone)]
struct Case {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    profile: Profile,
    window: Option<u32>,
    grouping: Grouping,
    /// Positions of each session's rows.
    sessions: Vec<Vec<u32>>,
}

const NARROW: Grouping = Grouping { narrow: true, wide: false, float: false };

impl Case {
    fn new(heads: usize, kv_heads: usize, head_dim: usize, sessions: &[&[u32]]) -> Self {
        let sessions = sessions.iter().map(|positions| positions.to_vec()).collect();
        let (profile, grouping) = (Profile::Quantised, NARROW);
        Self { heads, kv_heads, head_dim, profile, window: None, grouping, sessions }
    }

    fn shape(&self) -> AttentionShape {
        let Self { heads, kv_heads, head_dim, window, .. } = *self;
        AttentionShape { heads, kv_heads, head_dim, scale: 0.31, window }
    }
}

/// Rows, queries and a store, and what attention makes of them.
struct Data {
    rows: Vec<(u32, u32)>,
    pages: Vec<u32>,
    queries: Vec<f32>,
    store: Store,
    expected: Vec<Vec<f32>>,
}

impl Data {
    /// Slots that no row sees hold what must not be touched.
    fn new(case: &Case) -> Self {
        let mut rng = Rng((case.heads * 512 + case.head_dim) as u64);
        let lengths = case.sessions.iter().map(|rows| *rows.iter().max().unwrap() as usize + 1);
        let count: usize = lengths.clone().map(|length| length.div_ceil(PAGE)).sum();
        let pages: Vec<u32> = (0..count as u32).map(|page| (page * 7 + 3) % count as u32).collect();
        let pages = if count.is_multiple_of(7) { (0..count as u32).rev().collect() } else { pages };
        let mut store = Store::new(count, case.kv_heads, case.head_dim, case.profile);
        store.keys.fill(f32::NAN);
        store.values.fill(f32::INFINITY);
        let (mut rows, mut first) = (Vec::new(), 0);
        for (positions, length) in case.sessions.iter().zip(lengths) {
            for position in 0..length {
                for kv_head in 0..case.kv_heads {
                    let at = store.at(pages[first + position / PAGE] as usize, kv_head, position % PAGE);
                    for d in at..at + case.head_dim {
                        store.keys[d] = store.stored(2.0 * rng.value(Flavour::Plain));
                        store.values[d] = store.stored(rng.value(Flavour::Wide));
                    }
                }
            }
            rows.extend(positions.iter().map(|&position| (position, first as u32)));
            first += length.div_ceil(PAGE);
        }
        let queries = rng.values(rows.len() * case.heads * case.head_dim, Flavour::Plain);
        let mut data = Self { rows, pages, queries, store, expected: Vec::new() };
        data.expected = (0..data.rows.len()).map(|row| data.attend(case, row)).collect();
        assert!(data.expected.iter().flatten().all(|value| value.is_finite()), "what is hidden stays hidden");
        data
    }

    fn attend(&self, case: &Case, row: usize) -> Vec<f32> {
        let (position, first_page) = self.rows[row];
        let last = position as usize;
        let first = case.window.map_or(0, |window| (last + 1).saturating_sub(window as usize));
        let width = case.heads * case.head_dim;
        let mut out = Vec::new();
        for (head, q) in self.queries[row * width..][..width].chunks_exact(case.head_dim).enumerate() {
            let kv_head = head / (case.heads / case.kv_heads);
            let q: Vec<f32> = q.iter().map(|q| q * case.shape().scale).collect();
            let mut fold: Option<Fold> = None;
            for block in first / PAGE..=last / PAGE {
                let page = self.pages[first_page as usize + block] as usize;
                let (from, to) = (first.max(block * PAGE), last.min(block * PAGE + PAGE - 1));
                let place = |position: usize| self.store.at(page, kv_head, position % PAGE);
                let read = |all: &'_ [f32]| -> Vec<Vec<f32>> {
                    (from..=to).map(|at| all[place(at)..][..case.head_dim].to_vec()).collect()
                };
                let (keys, values) = (read(&self.store.keys), read(&self.store.values));
                let keys: Vec<&[f32]> = keys.iter().map(Vec::as_slice).collect();
                let values: Vec<&[f32]> = values.iter().map(Vec::as_slice).collect();
                let part = attend_block(&q, from % PAGE, &keys, &values);
                match &mut fold {
                    None => fold = Some(part),
                    Some(fold) => fold.add(&part),
                }
            }
            out.extend(fold.unwrap().finish());
        }
        out
    }
}

/// Runs a plan twice on the same scratch: a captured graph does.
fn check(card: &mut Card, case: &Case, data: &Data, plan: impl Fn(u32) -> Plan) {
    let (count, width) = (data.rows.len(), case.heads * case.head_dim);
    let bucket = count + 1;
    let plan = plan(bucket as u32);
    let rows = Rows::new(card, &data.rows, &data.pages, bucket);
    let values = case.profile == Profile::F32 || case.head_dim == 64;
    let out = activation(card, bucket, width, case.profile, case.grouping, values);
    let params = Attention {
        step: rows.step,
        rows: rows.rows,
        pages: rows.pages,
        faults: rows.faults,
        q: card.upload(&data.queries),
        kv: data.store.upload(card),
        partials: card.blank::<u8>(plan.partial_bytes()),
        counters: card.zeros::<u32>(plan.counters()),
        raw: card.blank::<f32>(bucket * width),
        out,
        heads: case.heads as u32,
        kv_heads: case.kv_heads as u32,
        head_dim: case.head_dim as u32,
        window: case.window.unwrap_or(0),
        scale: case.shape().scale,
        layer: 8,
        splits: 0,
        slots: 0,
    };
    for _ in 0..2 {
        card.launch(&plan.launch(params));
        for (row, expected) in data.expected.iter().enumerate() {
            assert_row(card, &out, row, expected);
        }
        assert_row(card, &out, count, &[]);
        let faulty =
            |row: &Vec<f32>| case.profile == Profile::Quantised && row.iter().any(|v| !v.is_finite());
        let words =
            data.expected.iter().map(|row| if faulty(row) { fault(8, Operation::Quantise) } else { 0 });
        assert_eq!(card.download::<u32>(rows.faults, count), words.collect::<Vec<_>>());
        assert!(card.download::<u32>(params.counters, plan.counters()).iter().all(|&count| count == 0));
    }
}

const LARGE: u32 = 160 << 10;

fn check_few(card: &mut Card, case: &Case, multiprocessors: u32) {
    let data = Data::new(case);
    let limits = Limits { multiprocessors, shared_bytes: LARGE };
    check(card, case, &data, |rows| Plan::decode(&case.shape(), case.profile, rows, 320, limits));
}

fn check_many(card: &mut Card, case: &Case, shared_bytes: u32) {
    let data = Data::new(case);
    let limits = Limits { multiprocessors: 4, shared_bytes };
    check(card, case, &data, |rows| Plan::prefill(&case.shape(), case.profile, rows, limits));
}

#[test]
fn few_rows_see_their_keys() {
    let edges: &[&[u32]] = &[&[0], &[1], &[63], &[64], &[200]];
    on_every_card(|card| {
        // One query a warp and many splits, one block for a row in rounds, some of both.
        for multiprocessors in [1, 10, 132] {
            check_few(card, &Case::new(4, 1, 64, edges), multiprocessors);
        }
        check_few(card, &Case::new(2, 2, 128, &[&[127], &[65]]), 8);
        check_few(card, &Case::new(3, 1, 96, &[&[130], &[3]]), 2);
        check_few(card, &Case { window: Some(70), ..Case::new(2, 1, 64, &[&[200], &[69], &[70]]) }, 2);
        check_few(card, &Case { window: Some(1), ..Case::new(1, 1, 32, &[&[64], &[5]]) }, 1);
    });
}

#[test]
fn few_rows_of_other_shapes() {
    let both = Grouping { narrow: true, wide: true, float: false };
    on_every_card(|card| {
        check_few(card, &Case { grouping: both, ..Case::new(2, 1, 128, &[&[66], &[2]]) }, 1);
        check_few(card, &Case { grouping: both, ..Case::new(4, 2, 64, &[&[130]]) }, 64);
        check_few(card, &Case::new(5, 1, 72, &[&[66]]), 2);
        check_few(card, &Case::new(3, 3, 10, &[&[66], &[129]]), 16);
        check_few(card, &Case::new(9, 1, 256, &[&[70]]), 1);
        check_few(card, &Case::new(1, 1, 320, &[&[70]]), 4);
        let f32 = |case| Case { profile: Profile::F32, grouping: Grouping::default(), ..case };
        check_few(card, &f32(Case::new(4, 2, 64, &[&[64], &[20]])), 9);
        check_few(card, &f32(Case::new(2, 1, 80, &[&[64]])), 1);
        check_few(card, &f32(Case::new(2, 1, 160, &[&[64], &[3]])), 4);
    });
}

#[test]
fn many_rows_see_their_keys() {
    let chunk: Vec<u32> = (58..75).collect();
    let mixed: &[&[u32]] = &[&[129, 130], &chunk, &[0, 1, 2, 3, 4], &[63]];
    on_every_card(|card| {
        check_many(card, &Case::new(4, 1, 64, mixed), LARGE);
        check_many(card, &Case::new(4, 2, 128, &[&chunk, &[5]]), 64 << 10);
        check_many(card, &Case { window: Some(60), ..Case::new(2, 1, 64, &[&[127, 128, 129, 130]]) }, LARGE);
    });
}

#[test]
fn many_rows_of_other_shapes() {
    let wide = Grouping { narrow: false, wide: true, float: false };
    on_every_card(|card| {
        check_many(card, &Case::new(3, 1, 96, &[&[62, 63, 64]]), LARGE);
        check_many(card, &Case { grouping: wide, ..Case::new(4, 2, 64, &[&[62, 63, 64, 65], &[7]]) }, LARGE);
        check_many(card, &Case::new(2, 2, 10, &[&[62, 63, 64], &[0]]), 16 << 10);
        check_many(card, &Case::new(1, 1, 256, &[&[64, 65]]), LARGE);
        check_many(card, &Case::new(1, 1, 256, &[&[64, 65]]), 64 << 10);
        check_many(card, &Case::new(12, 1, 320, &[&[2, 3]]), LARGE);
        let f32 = |case| Case { profile: Profile::F32, grouping: Grouping::default(), ..case };
        check_many(card, &f32(Case::new(2, 1, 64, &[&[64, 65], &[20]])), 64 << 10);
        check_many(card, &f32(Case::new(1, 1, 72, &[&[3, 4, 5]])), 64 << 10);
        check_many(card, &f32(Case::new(3, 1, 160, &[&[63, 64, 65]])), 64 << 10);
    });
}

/// A key or value that is not finite spoils the rows that see it, and no other.
#[test]
fn rows_that_see_what_is_not_finite_are_faulty() {
    let case = Case::new(2, 1, 64, &[&[62, 63, 64, 65], &[64]]);
    on_every_card(|card| {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for of_values in [false, true] {
                let mut data = Data::new(&case);
                let at = data.store.at(data.pages[0] as usize, 0, 63) + 5;
                let all = if of_values { &mut data.store.values } else { &mut data.store.keys };
                all[at] = bad;
                data.expected = (0..data.rows.len()).map(|row| data.attend(&case, row)).collect();
                let limits = Limits { multiprocessors: 4, shared_bytes: LARGE };
                check(card, &case, &data, |rows| {
                    Plan::decode(&case.shape(), case.profile, rows, 320, limits)
                });
                check(card, &case, &data, |rows| Plan::prefill(&case.shape(), case.profile, rows, limits));
            }
        }
    });
}
