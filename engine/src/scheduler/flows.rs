//! Fair shares: the rows of a busy pipeline are dealt to the flow that has had the fewest. A flow is
//! one tenant's work at one priority.

use std::collections::HashMap;

use crate::message::Priority;

/// Whose work, and at what priority.
pub(super) type Flow = (u64, Priority);

#[derive(Debug, Default)]
struct Account {
    /// Rows served, weighted by priority.
    served: u64,
    sequences: usize,
}

/// The accounts of every flow with a sequence.
#[derive(Debug, Default)]
pub(super) struct Flows {
    accounts: HashMap<Flow, Account>,
}

impl Flows {
    /// A flow has one more sequence. A new flow starts level with the one that has had the fewest rows,
    /// so that nobody gains by staying away.
    pub(super) fn enter(&mut self, flow: Flow) {
        let level = self.accounts.values().map(|account| account.served).min().unwrap_or(0);
        self.accounts.entry(flow).or_insert(Account { served: level, sequences: 0 }).sequences += 1;
    }

    /// A flow has one fewer.
    pub(super) fn leave(&mut self, flow: Flow) {
        if let Some(account) = self.accounts.get_mut(&flow) {
            account.sequences -= 1;
            if account.sequences == 0 {
                self.accounts.remove(&flow);
            }
        }
    }

    /// Rows went out for a flow.
    pub(super) fn charge(&mut self, flow: Flow, rows: usize) {
        let weight = match flow.1 {
            Priority::Low => 4,
            Priority::Normal => 2,
            Priority::High => 1,
        };
        if let Some(account) = self.accounts.get_mut(&flow) {
            account.served += rows as u64 * weight;
        }
    }

    /// What a flow has had; the least goes first.
    pub(super) fn served(&self, flow: Flow) -> u64 {
        self.accounts.get(&flow).map_or(0, |account| account.served)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_priority_is_a_share_and_a_newcomer_has_no_claim_on_the_past() {
        let mut flows = Flows::default();
        let (low, high) = ((1, Priority::Low), (1, Priority::High));
        flows.enter(low);
        flows.enter(high);
        flows.charge(low, 10);
        flows.charge(high, 40);
        assert_eq!(flows.served(low), flows.served(high));
        let new = (2, Priority::Normal);
        flows.enter(new);
        assert_eq!(flows.served(new), 40);
        flows.leave(high);
        assert_eq!(flows.served(high), 0);
    }
}
