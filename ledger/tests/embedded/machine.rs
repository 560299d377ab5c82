//! A contract of `artifacts/` on a chain of its own, called in this process.

use alloy_primitives::{Address, TxKind, hex};
use ledger::embedded::{Chain, Genesis, RpcError, Sealing};
use serde_json::json;

use crate::{
    contracts::creation_code,
    support::{Account, genesis},
};

/// More than the largest call takes.
const GAS: u64 = 4_000_000_000;

pub(crate) struct Machine {
    chain: Chain,
    contract: Address,
}

impl Machine {
    pub(crate) fn new(artefact: &str) -> Self {
        let account = Account::new(5);
        let chain = Chain::in_memory(Genesis { gas_limit: GAS, ..genesis(&[&account]) }, Sealing::Instant);
        let creation = account.transaction(0, TxKind::Create, creation_code(artefact));
        chain.submit(&account.encode(creation)).expect("it can be deployed");
        Self { chain, contract: account.address.create(0) }
    }

    /// What the contract returns, and what it says if it refuses.
    pub(crate) fn call(&self, input: &[u8]) -> Result<Vec<u8>, RpcError> {
        let request = json!([{ "to": self.contract, "input": hex::encode_prefixed(input) }, "latest"]);
        let answer = self.chain.request("eth_call", &request)?;
        Ok(hex::decode(answer.as_str().expect("bytes come as text")).expect("in hexadecimal"))
    }
}

/// The same numbers on every run (splitmix64).
pub(crate) struct Numbers(pub(crate) u64);

impl Numbers {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `end`.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    pub(crate) fn bits(&mut self) -> u32 {
        self.next() as u32
    }
}
