//! Once in an epoch the root, and what is over goes.

use ledger::{
    audit::LeafId,
    client::{Action, AuditAction, AuditEvent, AuditTerms, Error, Event as Happened, Head, Receipt},
};

use super::{Desk, Done, Sealed, Standing};
use crate::payment::now;

/// A root that was handed to the chain and did not appear is waited for so long, in seconds: stake is held less.
const LOST_S: u64 = 21 * 86_400;

/// When in an epoch to post, in seconds from its beginning: late, so that much is under the root, and long before the
/// end. Not all nodes at once.
pub(super) fn window(epoch_s: u64, account: &[u8; 20]) -> std::ops::Range<u64> {
    let spread = u64::from(u16::from_be_bytes([account[0], account[1]]));
    let from = epoch_s / 2 + epoch_s / 4 * spread / (1 << 16);
    from..epoch_s - (epoch_s / 16).min(300)
}

impl Desk {
    /// Hands a root to the chain, if it is time to.
    pub(super) async fn post(&mut self, terms: &AuditTerms) {
        let (time, me) = (self.time, self.config.book.account());
        let epoch_s = terms.epoch_s.max(1);
        let Ok(epoch) = u32::try_from(time / epoch_s) else { return };
        if self.posting || self.posted == Some(epoch) || !window(epoch_s, &me).contains(&(time % epoch_s)) {
            return;
        }
        let Some(sealed) = self.next_sealed().await else { return };
        // Another node of the account may have posted, or this one before it was ended.
        match self.config.ledger.audit_leaf(LeafId { account: me, epoch, index: 0 }).await {
            Err(Error::Refused(_)) => {}
            Ok(_) => {
                self.posted = Some(epoch);
                return;
            }
            Err(error) => return tracing::warn!(%error, "the root of the epoch waits for the chain"),
        }
        let Sealed { root, count, prompts, .. } = sealed;
        let post = AuditAction::Post { root: root.0, count, prompts };
        let action = Action::Audit(Box::new(post));
        // What a contract refuses or a line loses now was not sent; later there would be no telling.
        match self.config.ledger.estimate(&action).await {
            Ok(_) => {}
            Err(error @ (Error::Refused(_) | Error::Funds { .. })) => {
                tracing::error!(%error, count, epoch, "what this node computed cannot be committed to");
                self.posted = Some(epoch);
                return;
            }
            Err(error) => return tracing::warn!(%error, "the root of the epoch waits for the chain"),
        }
        let cursor = self.cursor.clone();
        let sent = Sealed { standing: Standing::Sent, cursor, ..sealed };
        if !self.set(sent.clone()).await {
            return;
        }
        (self.posting, self.posted) = (true, Some(epoch));
        let ledger = self.config.ledger.clone();
        let doing = async move { Done::Posted(sent, ledger.submit(action).await.map(|r| epoch_of(&r))) };
        self.running.push(Box::pin(doing));
    }

    /// The oldest volume that the chain was not told of; what is open, if there is none.
    async fn next_sealed(&mut self) -> Option<Sealed> {
        let unsent = |sealed: &Sealed| sealed.standing == Standing::Sealed;
        if let Some(sealed) = self.config.book.sealed().into_iter().find(unsent) {
            return Some(sealed);
        }
        let book = self.config.book.clone();
        match tokio::task::spawn_blocking(move || book.seal()).await.ok()? {
            Ok(sealed) => sealed.filter(unsent),
            Err(error) => {
                tracing::error!(%error, "the book cannot be sealed");
                None
            }
        }
    }

    pub(super) async fn posted(&mut self, sealed: Sealed, outcome: Result<Option<u32>, Error>) {
        self.posting = false;
        let (count, prompts) = (sealed.count, sealed.prompts);
        match outcome {
            Ok(epoch) => {
                tracing::info!(epoch, count, prompts, "committed to what was computed");
                if let Some(epoch) = epoch {
                    self.set(Sealed { standing: Standing::Posted { epoch }, ..sealed }).await;
                }
            }
            // Nothing is on the chain, nor will be: it is posted in another epoch.
            Err(error @ (Error::Refused(_) | Error::Funds { .. } | Error::Reverted { .. })) => {
                tracing::warn!(%error, count, "what was computed is not committed to in this epoch");
                self.set(Sealed { standing: Standing::Sealed, ..sealed }).await;
            }
            Err(error) => {
                tracing::warn!(%error, count, "it is not known whether what was computed is committed to");
            }
        }
    }

    /// Drops what no audit can come of any more.
    pub(super) async fn clear(&mut self, terms: &AuditTerms, head: &Head) {
        if !self.current {
            return;
        }
        for sealed in self.config.book.sealed() {
            let over = match sealed.standing {
                // By the chain's own time, and so late that what was drawn last has been read.
                Standing::Posted { epoch } => {
                    let last = (u64::from(epoch) + 1) * terms.epoch_s + terms.draw_window_s;
                    head.time > last + terms.epoch_s && self.docket().cases_of(sealed.volume) == 0
                }
                Standing::Sent => now() > sealed.time + LOST_S,
                Standing::Sealed | Standing::Over => false,
            };
            if over {
                self.trees.remove(&sealed.volume);
                self.set(Sealed { standing: Standing::Over, ..sealed }).await;
            }
        }
        let book = self.config.book.clone();
        if let Ok(Err(error)) = tokio::task::spawn_blocking(move || book.clear()).await {
            tracing::warn!(%error, "what is over stays in the book");
        }
    }
}

fn epoch_of(receipt: &Receipt) -> Option<u32> {
    receipt.events.iter().find_map(|event| match event {
        Happened::Audit(AuditEvent::Posted { epoch, .. }) => u32::try_from(*epoch).ok(),
        _ => None,
    })
}
