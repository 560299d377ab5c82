//! What confirmed events have told so far, as far as an auditor needs it. Bounded, whatever is posted. The chain's
//! answers decide what is done; this only says what to ask for.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use ledger::{
    audit::Chunk,
    client::{AuditEvent, Case, Event, Logged},
    draw::Rate,
    eip712::Address,
};
use serde::{Deserialize, Serialize};

use crate::audit::duty::lots::Posted;

/// Most cases, and most roots of an epoch, that are followed.
const MOST_CASES: usize = 1 << 16;
const MOST_ROOTS: usize = 1 << 14;
/// Most accounts whose nodes are known, most nodes of each, and most models.
const MOST_ACCOUNTS: usize = 1 << 16;
const MOST_NODES: usize = 16;
const MOST_MODELS: usize = 1 << 12;

/// A node of an account, as the registry has it. Whoever uses it checks the proof.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// Its ed25519 key.
    pub node: [u8; 32],
    /// Where it is reached.
    pub endpoint: String,
    /// Its signature that ties it to the account.
    pub proof: Vec<u8>,
}

/// A case that is followed.
#[derive(Clone, Debug, Default)]
pub(super) struct Tracked {
    /// The block of the first event about it.
    block: u64,
    /// What the leaf holds, once it was opened.
    pub(super) chunk: Option<Box<Chunk>>,
    /// How it stood when it was last asked for.
    pub(super) case: Option<Case>,
    /// Whether something has happened since.
    pub(super) stale: bool,
    /// Whether this auditor was drawn for it.
    pub(super) mine: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Known {
    me: Address,
    lists: BTreeMap<u32, (u64, Vec<(Address, u64)>)>,
    roots: BTreeMap<u32, (u64, Vec<Posted>)>,
    pub(super) cases: HashMap<[u8; 32], Tracked>,
    nodes: HashMap<Address, VecDeque<Host>>,
    models: HashSet<[u8; 32]>,
    /// Somebody joined or left since this was last looked at.
    pub(super) members_changed: bool,
}

/// What outlives a restart beside the chain itself: the rest is read again from `block` on.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Saved {
    /// Nothing older matters, but for what is here.
    pub(super) block: u64,
    pub(super) nodes: Vec<(Address, Vec<Host>)>,
    pub(super) models: Vec<[u8; 32]>,
}

impl Known {
    /// Goes on from what was saved, for the auditor `me`.
    pub(super) fn from_saved(saved: Saved, me: Address) -> Self {
        let nodes = saved.nodes.into_iter().map(|(account, hosts)| (account, hosts.into())).collect();
        let models = saved.models.into_iter().collect();
        Self { me, nodes, models, members_changed: true, ..Self::default() }
    }

    /// What to save; `next` is the first block that was not read.
    pub(super) fn to_saved(&self, next: u64) -> Saved {
        let lists = self.lists.values().map(|(block, _)| *block);
        let roots = self.roots.values().map(|(block, _)| *block);
        let cases = self.cases.values().map(|tracked| tracked.block);
        let nodes = self.nodes.iter().map(|(account, hosts)| (*account, hosts.iter().cloned().collect()));
        Saved {
            block: lists.chain(roots).chain(cases).min().unwrap_or(next).min(next),
            nodes: nodes.collect(),
            models: self.models.iter().copied().collect(),
        }
    }

    /// Learns from a confirmed event.
    pub(super) fn take(&mut self, logged: &Logged) {
        match &logged.event {
            Event::Audit(event) => self.take_audit(event, logged.block),
            Event::NodeRegistered { account, node, endpoint, proof, .. } => {
                self.forget_node(account, node);
                if self.nodes.len() >= MOST_ACCOUNTS && !self.nodes.contains_key(account) {
                    return;
                }
                let hosts = self.nodes.entry(*account).or_default();
                if hosts.len() == MOST_NODES {
                    hosts.pop_back();
                }
                // The newest is the likeliest to be there.
                let (node, endpoint, proof) = (*node, endpoint.clone(), proof.to_vec());
                hosts.push_front(Host { node, endpoint, proof });
            }
            Event::NodeRemoved { account, node } => self.forget_node(account, node),
            Event::ModelRegistered { model, .. } if self.models.len() < MOST_MODELS => {
                self.models.insert(*model);
            }
            _ => {}
        }
    }

    fn forget_node(&mut self, account: &Address, node: &[u8; 32]) {
        if let Some(hosts) = self.nodes.get_mut(account) {
            hosts.retain(|host| host.node != *node);
            if hosts.is_empty() {
                self.nodes.remove(account);
            }
        }
    }

    fn take_audit(&mut self, event: &AuditEvent, block: u64) {
        match event {
            AuditEvent::AuditorsListed { epoch, auditors } => {
                if let Ok(epoch) = u32::try_from(*epoch) {
                    self.lists.insert(epoch, (block, auditors.clone()));
                }
            }
            AuditEvent::Posted { account, epoch, root, count, prompts } => {
                let Ok(epoch) = u32::try_from(*epoch) else { return };
                let (_, roots) = self.roots.entry(epoch).or_insert_with(|| (block, Vec::new()));
                if roots.len() < MOST_ROOTS && roots.iter().all(|known| known.account != *account) {
                    let (account, root) = (*account, *root);
                    let rates = [Rate::from_bits(0); 2];
                    roots.push(Posted { account, epoch, root, count: *count, prompts: *prompts, rates });
                }
            }
            AuditEvent::AuditorJoined { .. } | AuditEvent::AuditorLeft { .. } => self.members_changed = true,
            AuditEvent::LeafOpened { case, chunk, .. } => {
                if let Some(tracked) = self.track(case, block) {
                    tracked.chunk = Some(chunk.clone());
                }
            }
            AuditEvent::AuditorDrawn { case, auditor, .. } => {
                let mine = *auditor == Some(self.me);
                if let Some(tracked) = self.track(case, block) {
                    tracked.mine |= mine;
                }
            }
            AuditEvent::LeafDrawn { case, .. }
            | AuditEvent::AnswerCommitted { case, .. }
            | AuditEvent::AnswerDiffers { case, .. }
            | AuditEvent::AnswerRevealed { case, .. }
            | AuditEvent::Decided { case, .. }
            | AuditEvent::DisputeAsked { case, .. }
            | AuditEvent::DisputeOpened { case, .. } => _ = self.track(case, block),
            AuditEvent::Closed { case, .. } => {
                // What came of its own is still to be told and claimed.
                match self.cases.get_mut(case) {
                    Some(tracked) if tracked.mine => tracked.stale = true,
                    _ => _ = self.cases.remove(case),
                }
            }
            _ => {}
        }
    }

    /// Follows a case that this auditor has an answer for.
    pub(super) fn follow(&mut self, case: &[u8; 32], block: u64) {
        if let Some(tracked) = self.track(case, block) {
            tracked.mine = true;
        }
    }

    fn track(&mut self, case: &[u8; 32], block: u64) -> Option<&mut Tracked> {
        if self.cases.len() >= MOST_CASES && !self.cases.contains_key(case) {
            return None;
        }
        let tracked = self.cases.entry(*case).or_insert_with(|| Tracked { block, ..Tracked::default() });
        tracked.stale = true;
        Some(tracked)
    }

    /// The auditors as listed in an epoch.
    pub(super) fn list(&self, epoch: u32) -> Option<&[(Address, u64)]> {
        self.lists.get(&epoch).map(|(_, list)| list.as_slice())
    }

    /// The epochs with roots, and these.
    pub(super) fn roots(&self) -> impl Iterator<Item = (u32, &[Posted])> {
        self.roots.iter().map(|(epoch, (_, roots))| (*epoch, roots.as_slice()))
    }

    /// The nodes of an account, newest first.
    pub(super) fn nodes(&self, account: &Address) -> Vec<Host> {
        self.nodes.get(account).map(|hosts| hosts.iter().cloned().collect()).unwrap_or_default()
    }

    /// The models that the chain knows.
    pub(super) fn models(&self) -> &HashSet<[u8; 32]> {
        &self.models
    }

    /// Forgets roots of epochs before `drawn`, and lists that neither those since nor a case needs.
    pub(super) fn forget(&mut self, drawn: u32) {
        self.roots.retain(|epoch, _| *epoch >= drawn);
        let cases = self.cases.values().filter_map(|tracked| tracked.case.as_ref());
        let oldest = cases.map(|case| case.leaf.epoch).min().unwrap_or(drawn).min(drawn);
        self.lists.retain(|epoch, _| epoch.saturating_add(1) >= oldest);
    }
}

#[cfg(test)]
mod tests {
    use ledger::{
        audit::LeafId,
        client::{CaseStage, EventId},
    };

    use super::*;

    fn logged(block: u64, event: Event) -> Logged {
        Logged { id: EventId { transaction: [0; 32], number: 0 }, block, event }
    }

    fn audit(block: u64, event: AuditEvent) -> Logged {
        logged(block, Event::Audit(event))
    }

    fn posted(account: u8, epoch: u64) -> AuditEvent {
        AuditEvent::Posted { account: [account; 20], epoch, root: [account; 32], count: 9, prompts: 2 }
    }

    fn node(account: u8, node: u16) -> Event {
        let mut key = [0; 32];
        key[..2].copy_from_slice(&node.to_le_bytes());
        let (account, endpoint) = ([account; 20], node.to_string());
        Event::NodeRegistered { account, node: key, roles: 1, metadata: [0; 32], endpoint, proof: [4; 64] }
    }

    #[test]
    fn a_restart_begins_where_the_oldest_open_matter_did() {
        let mut known = Known::default();
        let leaf = LeafId { account: [1; 20], epoch: 7, index: 0 };
        known.take(&audit(10, AuditEvent::AuditorsListed { epoch: 6, auditors: vec![([5; 20], 3)] }));
        known.take(&audit(11, posted(1, 7)));
        known.take(&audit(12, posted(1, 7)));
        known.take(&audit(20, AuditEvent::LeafDrawn { case: [9; 32], leaf, deadline: 5 }));
        assert_eq!(known.roots().map(|(epoch, roots)| (epoch, roots.len())).collect::<Vec<_>>(), [(7, 1)]);
        assert_eq!(known.to_saved(99).block, 10);
        let case = Case {
            leaf,
            stage: CaseStage::Drawing,
            deadline: 9,
            verdict: None,
            challenger: None,
            answers: Vec::new(),
        };
        known.cases.get_mut(&[9; 32]).expect("tracked").case = Some(case);
        known.forget(30);
        // The case's auditors are still to be drawn from the list.
        assert_eq!((known.to_saved(99).block, known.list(6).map(<[_]>::len)), (10, Some(1)));
        known.cases.clear();
        known.forget(30);
        assert_eq!((known.to_saved(99).block, known.list(6)), (99, None));
    }

    #[test]
    fn nodes_are_few_and_the_newest_first_and_outlive_restarts() {
        let mut known = Known::default();
        for number in 0..40 {
            known.take(&logged(1, node(1, number)));
        }
        known.take(&logged(1, node(1, 30)));
        known.take(&logged(
            1,
            Event::ModelRegistered { model: [8; 32], numerics: 1, layers: vec![], name: "m".into() },
        ));
        let endpoints: Vec<String> = known.nodes(&[1; 20]).into_iter().map(|host| host.endpoint).collect();
        assert_eq!((endpoints.len(), &endpoints[..2]), (16, &["30".to_owned(), "39".to_owned()][..]));
        let text = serde_json::to_string(&known.to_saved(5)).expect("is written");
        let again = Known::from_saved(serde_json::from_str(&text).expect("is read"), [1; 20]);
        assert_eq!(again.nodes(&[1; 20]), known.nodes(&[1; 20]));
        assert!(again.models().contains(&[8; 32]) && again.nodes(&[2; 20]).is_empty());
        let mut key = [0; 32];
        key[0] = 30;
        known.take(&logged(1, Event::NodeRemoved { account: [1; 20], node: key }));
        assert_eq!(known.nodes(&[1; 20]).len(), 15);
    }
}
