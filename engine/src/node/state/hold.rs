//! A node whose stage becomes another one.

use super::{Identity, State};
use crate::{
    message::{Failed, FailedReason, SessionId},
    model::Shard,
    stage::StageLimits,
};

impl State {
    /// The stage was given up, or is another one: every session and route is over.
    pub fn holds(&mut self, shard: Shard, limits: &StageLimits) {
        let sessions: Vec<SessionId> = self.sessions.keys().copied().collect();
        for session in sessions {
            let reason = "the node loads other layers".into();
            self.fail(Failed { session, reason: FailedReason::Refused(reason) });
        }
        self.forget_routes(|_| true);
        self.waiting = 0;
        self.own.clear();
        let Identity { shard: held, rows, sessions, positions, .. } = &mut self.identity;
        (*held, *rows, *sessions, *positions) = (shard, limits.rows, limits.sessions, limits.positions);
    }
}
