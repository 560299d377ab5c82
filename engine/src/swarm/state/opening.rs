//! What a session's opening says, and which requests have none.

use super::{State, replies::Reply};
use crate::{
    message::{BlockHash, Drafts, Hop, MAX_LIST, Open, SessionId},
    request::{Refusal, Request},
    swarm::tabs::Fare,
};
use transport::NodeId;

impl State {
    /// The opening of a session that a reply begins with, or goes on with.
    pub(super) fn opening(
        &mut self,
        session: SessionId,
        hops: Vec<Hop>,
        reply: &Reply,
        fare: Option<Fare>,
    ) -> Open {
        let (route, request) = (self.route(&hops), &reply.request);
        let rows =
            hops.iter().filter_map(|hop| self.members.get(&NodeId(hop.node))).map(|m| m.join.rows).min();
        // A reply that began without a receipt has none in the end.
        let proved = reply.receipt.is_some() || reply.losses.is_empty();
        let terms = proved.then(|| self.recordings.terms(&request.prompt)).flatten();
        let root = self.root(request.tenant, terms.is_some());
        let blocks = BlockHash::chain(root, &request.prompt);
        let mut open = Open {
            session,
            route,
            hops,
            gateway: *self.identity.id().as_bytes(),
            fingerprint: self.config.fingerprint,
            prompt_length: request.prompt.len() as u32,
            prompt: request.prompt.clone(),
            begun: reply.said.clone(),
            max_tokens: request.max_tokens,
            stop_tokens: request.stop_tokens.clone(),
            sampling: request.sampling.clone(),
            rows: rows.unwrap_or(1),
            blocks,
            // Nodes tell tenants apart, and learn nothing of their keys.
            tenant: root.0.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes)),
            priority: request.priority,
            drafts: self.drafts(),
            terms,
            tab: fare.map(|fare| fare.plan),
            signature: Vec::new(),
        };
        open.signature = self.identity.sign(&open.signed_bytes()).to_vec();
        open
    }

    /// The hash of no tokens of a tenant. What was computed without proof is not shared with what is proved.
    fn root(&self, tenant: u64, proved: bool) -> BlockHash {
        let mut salt = self.salt.to_vec();
        salt.extend_from_slice(&tenant.to_le_bytes());
        salt.push(proved.into());
        BlockHash::root(&salt)
    }

    /// Drafts show tokens to every stage, which private ends rule out.
    pub(super) fn drafts(&self) -> Drafts {
        let shown = self.config.speculation && self.config.private_ends.is_none();
        Drafts { lookup: shown, model: shown && self.drafter }
    }

    /// What this swarm does not do for a request.
    pub(super) fn unsupported(&self, request: &Request) -> Option<Refusal> {
        let sampling = &request.sampling;
        let private = self.config.private_ends.is_some();
        let told = "with private ends it would show tokens to the nodes between them";
        let many = "the list is longer than a pipeline takes";
        let (parameter, reason) = match () {
            () if private && sampling.repetition_penalty != 1.0 => ("repetition_penalty", told),
            () if private && !sampling.logit_bias.is_empty() => ("logit_bias", told),
            () if sampling.logit_bias.len() > MAX_LIST => ("logit_bias", many),
            () if request.stop_tokens.len() > MAX_LIST => ("stop_token_ids", many),
            () => return None,
        };
        Some(Refusal::Unsupported { parameter, reason })
    }
}
