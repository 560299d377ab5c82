//! A node that cheats, for tests alone: what it does is not what it says it does.

use std::cell::RefCell;

use kernels::backend::Backend;

use super::{Desk, Reply};
use crate::{
    message::{Segment, Step},
    model::Shard,
    stage::Input,
};

/// How a node cheats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cheat {
    /// It computes another token than it was given at a position.
    Edit { position: u32, token: u32 },
    /// Keys and values of the position before this one are left from something else.
    Stale { position: u32 },
    /// It says that another token was drawn at a position.
    Forge { position: u32, token: u32 },
    /// It draws as if a token were likelier.
    Bias { token: u32 },
}

thread_local! {
    static NEXT: RefCell<Option<Cheat>> = const { RefCell::new(None) };
}

/// The next node that is started on this thread cheats.
pub(crate) fn next(cheat: Option<Cheat>) {
    NEXT.set(cheat);
}

/// How the node that is being started cheats.
pub(super) fn taken() -> Option<Cheat> {
    NEXT.take()
}

impl Cheat {
    pub(super) fn reply(&self, reply: &mut Reply) {
        if let Self::Bias { token } = *self {
            reply.sampling.logit_bias.push((token, 4.0));
        }
    }

    /// Position and token of a forged draw.
    pub(super) fn forged(&self) -> Option<(u32, u32)> {
        match *self {
            Self::Forge { position, token } => Some((position, token)),
            _ => None,
        }
    }

    pub(super) fn tokens(&self, segments: &[Segment], tokens: &mut [u32]) {
        let Self::Edit { position, token } = *self else { return };
        let mut first = 0;
        for segment in segments {
            if (segment.from..segment.to()).contains(&position) {
                tokens[first + (position - segment.from) as usize] = token;
            }
            first += segment.rows as usize;
        }
    }
}

impl<B: Backend> Desk<B> {
    /// Leaves wrong keys and values where a step goes on.
    pub(super) fn spoil(&mut self, step: &Step, shard: &Shard) {
        let Some(Cheat::Stale { position }) = self.cheat else { return };
        let Some(found) = step.segments.iter().find(|segment| segment.from == position) else { return };
        let (session, from) = (found.session, position - 1);
        let segments = [Segment { session, from, rows: 1, drawn: Vec::new(), drafted: 0 }];
        let (mut short, mut faults) = (Vec::new(), Vec::new());
        self.stage.reserve(&segments, &mut short);
        let rows = vec![0.5; self.stage.hidden()];
        let input = if shard.embedding { Input::Tokens(&[1]) } else { Input::Rows(&rows) };
        let spoilt = self.stage.step(shard.layers.clone(), &segments, input, &mut faults);
        spoilt.expect("a step of one row");
    }
}
