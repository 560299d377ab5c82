//! Heads between their product and attention.

use kernels::{
    backend::{Operation, PAGE, Profile},
    cuda::ops::heads::{Heads, Place, place},
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

fn check(card: &mut Card, case: &Case) {
    let &Case { heads, kv_heads, head_dim, pairs, adjacent, norms, biases, profile, poison } = case;
    let mut rng = Rng((heads * 1000 + head_dim) as u64);
    let rows = [(0, 0), (1, 0), (63, 0), (64, 3), (127, 3), (129, 3)];
    let pages = [4, 1, 3, 0, 5, 2];
    let all = heads + 2 * kv_heads;
    let mut products = rng.values(rows.len() * all * head_dim, Flavour::Plain);
    if let Some(poison) = poison {
        products[(2 * all + heads) * head_dim] = poison;
        products[(4 * all + heads + kv_heads) * head_dim] = poison;
    }
    let angles = rng.values(POSITIONS * pairs, Flavour::Plain);
    let (cos, sin): (Vec<f32>, Vec<f32>) = angles.iter().map(|a| (1.0 - a * a, *a)).unzip();
    let bias = [heads, kv_heads, kv_heads].map(|heads| rng.values(heads * head_dim, Flavour::Plain));
    let norm = [(); 2].map(|()| rng.values(head_dim, Flavour::Plain));
    let mut store = Store::new(6, kv_heads, head_dim, profile);
    let on = Rows::new(card, &rows, &pages, rows.len() + 1);
    let kv = store.upload(card);
    let blank = vec![7.0f32; (rows.len() + 1) * heads * head_dim];
    let mut optional = |wanted: bool, values: &[f32]| if wanted { card.upload(values) } else { 0 };
    let params = Heads {
        rows: on.rows,
        pages: on.pages,
        faults: on.faults,
        q_bias: optional(biases, &bias[0]),
        k_bias: optional(biases, &bias[1]),
        v_bias: optional(biases, &bias[2]),
        q_norm: optional(norms, &norm[0]),
        k_norm: optional(norms, &norm[1]),
        cos: optional(true, &cos),
        sin: optional(true, &sin),
        q: optional(true, &blank),
        kv,
        heads: heads as u32,
        kv_heads: kv_heads as u32,
        head_dim: head_dim as u32,
        pairs: pairs as u32,
        adjacent: adjacent.into(),
        wide: u32::from(profile == Profile::F32),
        layer: 1,
        q_eps: 1e-5,
        k_eps: 1e-6,
        zero: 0,
    };
    let products_at = card.upload(&products);
    card.launch(&place(Place { step: on.step, products: products_at, heads: params }, rows.len() as u32 + 1));

    let mut queries = Vec::new();
    for (i, &(position, first)) in rows.iter().enumerate() {
        let page = pages[first as usize + position as usize / PAGE] as usize;
        let (cos, sin) =
            (&cos[position as usize * pairs..][..pairs], &sin[position as usize * pairs..][..pairs]);
        for (head, x) in products[i * all * head_dim..][..all * head_dim].chunks_exact(head_dim).enumerate() {
            let (kind, index) = match head {
                _ if head < heads => (0, head),
                _ if head < heads + kv_heads => (1, head - heads),
                _ => (2, head - heads - kv_heads),
            };
            let mut x = x.to_vec();
            if biases {
                x.iter_mut().zip(&bias[kind][index * head_dim..]).for_each(|(x, b)| *x += b);
            }
            if norms && kind < 2 {
                rms_norm(&mut x, &norm[kind], [1e-5, 1e-6][kind]);
            }
            if kind < 2 {
                turn(&mut x, cos, sin, adjacent);
            }
            let at = store.at(page, index, position as usize % PAGE);
            let x: Vec<f32> = if kind == 0 { x } else { x.into_iter().map(|x| store.stored(x)).collect() };
            match kind {
                0 => queries.extend(x),
                1 => store.keys[at..][..head_dim].copy_from_slice(&x),
                _ => store.values[at..][..head_dim].copy_from_slice(&x),
            }
        }
    }
    queries.extend(&blank[..heads * head_dim]);
    assert_bits(&card.download(params.q, queries.len()), &queries);
    store.assert_on(card, kv);
    let word = if poison.is_some() { fault(1, Operation::KvRound) } else { 0 };
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
