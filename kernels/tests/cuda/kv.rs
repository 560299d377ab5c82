//! A KV store on the host, and its twin on a card.

use kernels::{
    backend::{KvShape, PAGE, Profile},
    cuda::{launch::DevicePtr, ops::heads::KvLayout},
    round::{f16_from_f32, f32_from_f16},
};

use crate::card::Card;

/// K and V of one layer, `[pages][kv_heads][64][head_dim]` each, as they are stored.
#[derive(Clone)]
pub(crate) struct Store {
    pub(crate) shape: KvShape,
    pub(crate) keys: Vec<f32>,
    pub(crate) values: Vec<f32>,
}

impl Store {
    pub(crate) fn new(pages: usize, kv_heads: usize, head_dim: usize, profile: Profile) -> Self {
        let size = pages * kv_heads * PAGE * head_dim;
        Self {
            shape: KvShape { layers: 1, pages, kv_heads, head_dim, profile },
            keys: vec![0.0; size],
            values: vec![0.0; size],
        }
    }

    /// Where the head of a slot starts.
    pub(crate) fn at(&self, page: usize, kv_head: usize, slot: usize) -> usize {
        ((page * self.shape.kv_heads + kv_head) * PAGE + slot) * self.shape.head_dim
    }

    /// A value as the store holds it.
    pub(crate) fn stored(&self, value: f32) -> f32 {
        match self.shape.profile {
            Profile::Quantised => f32_from_f16(f16_from_f32(value)),
            Profile::F32 => value,
        }
    }

    /// Elements of the store as the card has them: `(element, K of page, head, slot, d)`.
    fn elements(&self) -> Vec<f32> {
        let KvShape { pages, kv_heads, head_dim, profile, .. } = self.shape;
        let (width, chunk) =
            (head_dim.next_multiple_of(8), if profile == Profile::Quantised { 8 } else { 4 });
        let mut all = vec![0.0; pages * kv_heads * 2 * PAGE * width];
        for (head, all) in all.chunks_exact_mut(2 * PAGE * width).enumerate() {
            for slot in 0..PAGE {
                for d in 0..head_dim {
                    let from = (head * PAGE + slot) * head_dim + d;
                    all[(d / chunk * PAGE + slot) * chunk + d % chunk] = self.keys[from];
                    all[PAGE * width + slot * width + d] = self.values[from];
                }
            }
        }
        all
    }

    /// A copy on a card.
    pub(crate) fn upload(&self, card: &mut Card) -> DevicePtr {
        let elements = self.elements();
        let address = match self.shape.profile {
            Profile::Quantised => {
                card.upload(&elements.iter().map(|&e| f16_from_f32(e)).collect::<Vec<u16>>())
            }
            Profile::F32 => card.upload(&elements),
        };
        let size = if self.shape.profile == Profile::Quantised { 2 } else { 4 };
        assert_eq!(KvLayout::of(&self.shape).bytes, elements.len() * size);
        address
    }

    /// Fails unless the card's store is this one.
    #[track_caller]
    pub(crate) fn assert_on(&self, card: &Card, address: DevicePtr) {
        let expected = self.elements();
        let got: Vec<f32> = match self.shape.profile {
            Profile::Quantised => {
                card.download::<u16>(address, expected.len()).into_iter().map(f32_from_f16).collect()
            }
            Profile::F32 => card.download(address, expected.len()),
        };
        crate::rows::assert_bits(&got, &expected);
    }
}
