//! Requests over time.

use serde::{Deserialize, Serialize};

use crate::draw::Draw;

/// One request.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Arrival {
    /// When it comes, in seconds.
    pub at_s: f64,
    /// Tokens of its prompt.
    pub prompt: u32,
    /// Tokens of its reply.
    pub output: u32,
}

/// How long prompts and replies are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Lengths {
    /// Mean tokens of a prompt.
    pub prompt: u32,
    /// Mean tokens of a reply.
    pub output: u32,
    /// Most tokens of either; `None` where all are as long as the mean.
    pub most: Option<u32>,
}

impl Lengths {
    fn draw(&self, at_s: f64, draw: &mut Draw) -> Arrival {
        let mut length = |mean: u32| match self.most {
            None => mean.max(1),
            Some(most) => {
                let value = -f64::from(mean) * (1.0 - draw.unit()).ln();
                (value.ceil() as u32).clamp(1, most)
            }
        };
        Arrival { at_s, prompt: length(self.prompt), output: length(self.output) }
    }
}

/// `count` requests that all come at once, of exponential lengths if they differ.
pub fn flood(count: usize, lengths: Lengths, seed: u64) -> Vec<Arrival> {
    let mut draw = Draw::new(seed);
    (0..count).map(|_| lengths.draw(0.0, &mut draw)).collect()
}

/// Requests that come independently of each other, `rate` per second on average, for `duration_s`; none without
/// a rate.
pub fn poisson(rate: f64, duration_s: f64, lengths: Lengths, seed: u64) -> Vec<Arrival> {
    let mut draw = Draw::new(seed);
    let mut at_s = 0.0;
    let mut next_s = |draw: &mut Draw| {
        at_s -= (1.0 - draw.unit()).ln() / rate;
        (rate > 0.0 && at_s < duration_s).then_some(at_s)
    };
    let mut arrivals = Vec::new();
    while let Some(at_s) = next_s(&mut draw) {
        arrivals.push(lengths.draw(at_s, &mut draw));
    }
    arrivals
}
