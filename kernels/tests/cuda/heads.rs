//! Heads between their product and attention.

use kernels::{
    backend::{Operation, PAGE, Profile},
    cuda::{
        launch::DevicePtr,
        ops::heads::{Heads, Place, place},
    },
    reference::{rms_norm, rotate},
};

use crate::{
    card::{Card, on_every_card},
    kv::Store,
    rng::{Flavour, Rng},
    rows::{Rows, assert_bits, fault},
};

struct Case {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    pairs: usize,
    adjacent: bool,
    norms: bool,
    biases: bool,
    profile: Profile,
    poison: Option<f32>,
}

const POSITIONS: usize = 130;

/// `(position, first page in the list)`.
const ROWS: [(u32, u32); 6] = [(0, 0), (1, 0), (63, 0), (64, 3), (127, 3), (129, 3)];

const PAGES: [u32; 6] = [4, 1, 3, 0, 5, 2];

const EPS: [f32; 2] = [1e-5, 1e-6];

struct Inputs {
    /// Of each row its q, k and v heads.
    products: Vec<f32>,
    cos: Vec<f32>,
    sin: Vec<f32>,
    bias: [Vec<f32>; 3],
    norm: [Vec<f32>; 2],
}

impl Inputs {
    fn new(case: &Case) -> Self {
        let &Case { heads, kv_heads, head_dim, pairs, poison, .. } = case;
        let mut rng = Rng((heads * 1000 + head_dim) as u64);
        let all = heads + 2 * kv_heads;
        let mut products = rng.values(ROWS.len() * all * head_dim, Flavour::Plain);
        if let Some(poison) = poison {
            products[(2 * all + heads) * head_dim] = poison;
            products[(4 * all + heads + kv_heads) * head_dim] = poison;
        }
        let angles = rng.values(POSITIONS * pairs, Flavour::Plain);
        let (cos, sin) = angles.iter().map(|a| (1.0 - a * a, *a)).unzip();
        let bias = [heads, kv_heads, kv_heads].map(|heads| rng.values(heads * head_dim, Flavour::Plain));
        let norm = [(); 2].map(|()| rng.values(head_dim, Flavour::Plain));
        Self { products, cos, sin, bias, norm }
    }

    fn upload(&self, card: &mut Card, case: &Case, on: &Rows, q: DevicePtr, kv: DevicePtr) -> Place {
        let &Case { heads, kv_heads, head_dim, pairs, adjacent, norms, biases, profile, .. } = case;
        let mut optional = |wanted: bool, values: &[f32]| if wanted { card.upload(values) } else { 0 };
        let heads = Heads {
            rows: on.rows,
            pages: on.pages,
            faults: on.faults,
            q_bias: optional(biases, &self.bias[0]),
            k_bias: optional(biases, &self.bias[1]),
            v_bias: optional(biases, &self.bias[2]),
            q_norm: optional(norms, &self.norm[0]),
            k_norm: optional(norms, &self.norm[1]),
            cos: optional(true, &self.cos),
            sin: optional(true, &self.sin),
            q,
            kv,
            heads: heads as u32,
            kv_heads: kv_heads as u32,
            head_dim: head_dim as u32,
            pairs: pairs as u32,
            adjacent: adjacent.into(),
            wide: u32::from(profile == Profile::F32),
            layer: 1,
            q_eps: EPS[0],
            k_eps: EPS[1],
            zero: 0,
        };
        Place { step: on.step, products: optional(true, &self.products), heads }
    }

    /// Head `head` of a row, in the order q, k, v: which of the three, its index there, and what becomes of it.
    fn head(&self, case: &Case, position: u32, head: usize, products: &[f32]) -> (usize, usize, Vec<f32>) {
        let &Case { heads, kv_heads, head_dim, pairs, adjacent, norms, biases, .. } = case;
        let (kind, index) = match head {
            _ if head < heads => (0, head),
            _ if head < heads + kv_heads => (1, head - heads),
            _ => (2, head - heads - kv_heads),
        };
        let mut x = products.to_vec();
        if biases {
            x.iter_mut().zip(&self.bias[kind][index * head_dim..]).for_each(|(x, b)| *x += b);
        }
        if norms && kind < 2 {
            rms_norm(&mut x, &self.norm[kind], EPS[kind]);
        }
        if kind < 2 {
            let at = position as usize * pairs;
            turn(&mut x, &self.cos[at..][..pairs], &self.sin[at..][..pairs], adjacent);
        }
        (kind, index, x)
    }

    /// Puts K and V of every row in the store and gives the queries.
    fn place(&self, case: &Case, store: &mut Store) -> Vec<f32> {
        let (head_dim, all) = (case.head_dim, case.heads + 2 * case.kv_heads);
        let mut queries = Vec::new();
        for (products, (position, first)) in self.products.chunks_exact(all * head_dim).zip(ROWS) {
            let page = PAGES[first as usize + position as usize / PAGE] as usize;
            for (head, products) in products.chunks_exact(head_dim).enumerate() {
                let (kind, index, x) = self.head(case, position, head, products);
                let at = store.at(page, index, position as usize % PAGE);
                let stored: Vec<f32> = x.iter().map(|&x| store.stored(x)).collect();
                match kind {
                    0 => queries.extend(x),
                    1 => store.keys[at..][..head_dim].copy_from_slice(&stored),
                    _ => store.values[at..][..head_dim].copy_from_slice(&stored),
                }
            }
        }
        queries
    }
}

/// One more row has room than is in use, and must stay as it is.
fn check(card: &mut Card, case: &Case) {
    let inputs = Inputs::new(case);
    let mut store = Store::new(PAGES.len(), case.kv_heads, case.head_dim, case.profile);
    let on = Rows::new(card, &ROWS, &PAGES, ROWS.len() + 1);
    let kv = store.upload(card);
    let blank = vec![7.0f32; case.heads * case.head_dim];
    let q = card.upload(&blank.repeat(ROWS.len() + 1));
    let params = inputs.upload(card, case, &on, q, kv);
    card.launch(&place(params, ROWS.len() as u32 + 1));

    let mut queries = inputs.place(case, &mut store);
    queries.extend(blank);
    assert_bits(&card.download(q, queries.len()), &queries);
    store.assert_on(card, kv);
    let word = if case.poison.is_some() { fault(1, Operation::KvRound) } else { 0 };
    assert_eq!(card.download::<u32>(on.faults, 7), [0, 0, word, 0, word, 0, 0]);
}

/// Pairs `(2 i, 2 i + 1)` are the reference's in another order.
fn turn(x: &mut [f32], cos: &[f32], sin: &[f32], adjacent: bool) {
    if !adjacent {
        return rotate(x, cos, sin);
    }
    for ((pair, c), s) in x.chunks_exact_mut(2).zip(cos).zip(sin) {
        rotate(pair, &[*c], &[*s]);
    }
}

#[test]
fn heads_reach_their_places() {
    let case = |heads, kv_heads, head_dim, pairs| Case {
        heads,
        kv_heads,
        head_dim,
        pairs,
        adjacent: false,
        norms: false,
        biases: false,
        profile: Profile::Quantised,
        poison: None,
    };
    on_every_card(|card| {
        check(card, &case(4, 2, 128, 64));
        check(card, &Case { norms: true, ..case(2, 1, 64, 32) });
        check(card, &Case { norms: true, biases: true, profile: Profile::F32, ..case(3, 3, 80, 16) });
        check(card, &Case { biases: true, adjacent: true, ..case(2, 2, 96, 24) });
        check(card, &Case { norms: true, adjacent: true, ..case(2, 1, 256, 128) });
        check(card, &Case { norms: true, ..case(1, 1, 300, 150) });
        check(card, &Case { biases: true, ..case(5, 1, 10, 3) });
    });
}

#[test]
fn keys_and_values_that_leave_f16_are_faults() {
    on_every_card(|card| {
        for (poison, profile) in
            [(f32::NAN, Profile::Quantised), (65520.0, Profile::Quantised), (f32::INFINITY, Profile::F32)]
        {
            let case = Case {
                heads: 2,
                kv_heads: 1,
                head_dim: 16,
                pairs: 4,
                adjacent: false,
                norms: false,
                biases: false,
                profile,
                poison: Some(poison),
            };
            // The key's poisoned value is turned by an angle whose cosine must not shrink it.
            check(card, &Case { pairs: 0, ..case });
        }
    });
}
