//! The one place that knows `ethers`: calls, transactions and logs of an EVM chain over JSON-RPC.

mod audits;
mod bindings;
mod calls;
mod convert;
mod deploy;
mod disputes;
mod events;
mod fees;
mod http;
mod logs;
mod reads;
mod refusals;
mod rpc;
mod sender;

use std::{fmt, path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use ethers_core::types::{TransactionReceipt, U256};
use serde_json::json;
use tokio::sync::Mutex;

use self::{
    calls::{Order, Plan},
    convert::{to_u64, to_u128},
    fees::Fees,
    http::Http,
    reads::Reader,
    rpc::Wire,
    sender::{Manner, Sender, Until},
};
pub use self::{
    disputes::{dispute_call, dispute_id},
    rpc::{Rpc, RpcFault},
};
use super::{
    Action, AuditLeaf, AuditRound, AuditTerms, Balances, BeaconParameters, Case, Cursor, Deployment, Dispute,
    DisputeEvent, Error, Estimate, Head, Key, Ledger, Lock, News, NodeEntry, Parameters, Pod, Proposal,
    Receipt, Rewards, Stake, StakeThaw,
};
use crate::{audit::LeafId, eip712::Address};

/// What a transaction takes that cannot be estimated before the approval ahead of it is there.
const GAS_AFTER_APPROVAL: u64 = 200_000;

/// How a chain is reached, and how carefully it is used.
#[derive(Clone)]
pub struct Config {
    /// What answers.
    pub node: Node,
    /// Blocks, its own included, until a transaction or an event counts. One where blocks are made for
    /// transactions alone and never undone, as on the embedded chain.
    pub confirmations: u64,
    /// For one request.
    pub timeout: Duration,
    /// How long to ask again while a node is down, or fees are above the limit.
    pub patience: Duration,
    /// Longest answer that is read, in bytes.
    pub max_response_bytes: usize,
    /// How often pending transactions are looked at.
    pub poll: Duration,
    /// How long a transaction is stuck until it offers more.
    pub raise_after: Duration,
    /// Most that is offered for a unit of gas, in the native token's wei.
    pub max_fee_wei: u128,
    /// Most blocks whose events are asked for at once.
    pub log_range: u64,
    /// Where pending transactions are kept, so that a restart goes on with them; nowhere if not set.
    pub directory: Option<PathBuf>,
}

/// A chain's node.
#[derive(Clone)]
pub enum Node {
    /// Behind a URL, `http://` or `https://`.
    Url(String),
    /// Behind any other wire.
    Rpc(Arc<dyn Rpc>),
}

impl Config {
    /// A chain's node behind a URL, `http://` or `https://`.
    pub fn new(url: impl Into<String>) -> Self {
        Self::with(Node::Url(url.into()))
    }

    /// A chain behind any other wire, such as one in the same process, where a block is not undone.
    pub fn over(rpc: Arc<dyn Rpc>) -> Self {
        Self { confirmations: 1, poll: Duration::from_millis(100), ..Self::with(Node::Rpc(rpc)) }
    }

    fn with(node: Node) -> Self {
        Self {
            node,
            confirmations: 3,
            timeout: Duration::from_secs(10),
            patience: Duration::from_secs(120),
            max_response_bytes: 16 << 20,
            poll: Duration::from_secs(1),
            raise_after: Duration::from_secs(30),
            max_fee_wei: 200_000_000_000,
            log_range: 2_000,
            directory: None,
        }
    }

    fn wire(&self) -> Result<Wire, Error> {
        let rpc: Arc<dyn Rpc> = match &self.node {
            Node::Url(url) => Arc::new(Http::new(url, self.timeout, self.max_response_bytes)?),
            Node::Rpc(rpc) => rpc.clone(),
        };
        Ok(Wire::new(rpc, self.patience))
    }

    fn manner(&self) -> Manner {
        Manner {
            confirmations: self.confirmations,
            poll: self.poll,
            raise_after: self.raise_after,
            patience: self.patience,
            max_fee_wei: self.max_fee_wei,
        }
    }
}

impl fmt::Debug for Config {
    /// Without the URL: many hold a key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config").field("confirmations", &self.confirmations).finish_non_exhaustive()
    }
}

/// A chain with our contracts, over JSON-RPC.
#[derive(Debug)]
pub struct Client {
    reader: Reader,
    confirmations: u64,
    max_fee_wei: u128,
    account: Option<(Address, Sender)>,
    /// An approval and what spends it are not to mix with others.
    spending: Mutex<()>,
}

impl Client {
    /// Connects to a chain that has the contracts. Without a key the client only reads; with one it goes on with
    /// what an earlier client of the account left in [`Config::directory`].
    pub async fn connect(config: Config, deployment: Deployment, key: Option<Key>) -> Result<Self, Error> {
        let wire = config.wire()?;
        let found = chain_id(&wire).await?;
        if found != deployment.chain_id {
            return Err(Error::WrongChain { expected: deployment.chain_id, found });
        }
        let account = match key {
            Some(key) => {
                let address = key.address();
                let sender = start(&config, wire.clone(), key, found).await?;
                Some((address, sender))
            }
            None => None,
        };
        Ok(Self {
            reader: Reader { wire, deployment: Arc::new(deployment), log_range: config.log_range.max(1) },
            confirmations: config.confirmations,
            max_fee_wei: config.max_fee_wei,
            account,
            spending: Mutex::new(()),
        })
    }

    /// Deploys all contracts, hands them over to the timelock, and says where they are.
    pub async fn deploy(config: Config, key: Key, parameters: &Parameters) -> Result<Deployment, Error> {
        let wire = config.wire()?;
        let chain_id = chain_id(&wire).await?;
        let account = key.address();
        let sender = start(&config, wire, key, chain_id).await?;
        deploy::deploy(&sender, account, chain_id, parameters).await
    }

    fn sender(&self) -> Result<&(Address, Sender), Error> {
        self.account.as_ref().ok_or(Error::NoKey)
    }

    async fn plan(&self, action: &Action) -> Result<Plan, Error> {
        let d = &self.reader.deployment;
        let (proposal, execute) = match action {
            Action::Queue { proposal } => (proposal, false),
            Action::Execute { proposal } => (proposal, true),
            action => return calls::plan(d, action),
        };
        let (calls, description) = self.reader.contents(proposal).await?;
        Ok(Plan { spends: None, order: calls::of_proposal(d, &calls, &description, execute) })
    }

    /// The approval that must go ahead of an action, if one must.
    async fn approval(&self, account: Address, plan: &Plan) -> Result<Option<Order>, Error> {
        let Some((spender, amount)) = plan.spends else { return Ok(None) };
        let allowed = self.reader.allowance(account, spender).await?;
        let order = calls::approval(&self.reader.deployment, &spender, amount);
        Ok((allowed < amount).then_some(order))
    }

    async fn gas(&self, account: Address, order: &Order) -> Result<u64, Error> {
        let call = sender::call_params(convert::to_h160(&account), order);
        let gas = self.reader.wire.ask::<U256>("eth_estimateGas", json!([call, "latest"])).await;
        Ok(to_u64(gas.map_err(refusals::call_fault)?))
    }

    fn receipt(&self, receipts: &[TransactionReceipt]) -> Receipt {
        let mut sum =
            Receipt { transaction: [0; 32], block: 0, gas: 0, fee_wei: 0, l1_fee_wei: 0, events: Vec::new() };
        for receipt in receipts {
            let gas = to_u64(receipt.gas_used.unwrap_or_default());
            let price = to_u128(receipt.effective_gas_price.unwrap_or_default());
            // What a layer 2 adds; other chains have no such field.
            let l1_fee = receipt.other.get_deserialized::<U256>("l1Fee").and_then(Result::ok);
            let l1_fee_wei = l1_fee.map_or(0, to_u128);
            sum.gas = sum.gas.saturating_add(gas);
            sum.l1_fee_wei = sum.l1_fee_wei.saturating_add(l1_fee_wei);
            let fee_wei = price.saturating_mul(gas.into()).saturating_add(l1_fee_wei);
            sum.fee_wei = sum.fee_wei.saturating_add(fee_wei);
            sum.transaction = receipt.transaction_hash.0;
            sum.block = receipt.block_number.map_or(0, |block| block.as_u64());
            let logs = receipt.logs.iter();
            sum.events = logs.filter_map(|log| events::decode(&self.reader.deployment, log)).collect();
        }
        sum
    }
}

async fn chain_id(wire: &Wire) -> Result<u64, Error> {
    Ok(to_u64(wire.ask::<U256>("eth_chainId", json!([])).await?))
}

async fn start(config: &Config, wire: Wire, key: Key, chain_id: u64) -> Result<Sender, Error> {
    Sender::start(wire, key, chain_id, config.manner(), config.directory.as_deref()).await
}

/// Whether a transaction did what it was to do.
fn succeeded(receipt: &TransactionReceipt) -> Result<(), Error> {
    if receipt.status == Some(1.into()) {
        return Ok(());
    }
    let block = receipt.block_number.map_or(0, |block| block.as_u64());
    Err(Error::Reverted { transaction: receipt.transaction_hash.0, block })
}

#[async_trait]
impl Ledger for Client {
    fn deployment(&self) -> &Deployment {
        &self.reader.deployment
    }

    fn account(&self) -> Option<Address> {
        self.account.as_ref().map(|(address, _)| *address)
    }

    async fn submit(&self, action: Action) -> Result<Receipt, Error> {
        let (account, sender) = self.sender()?;
        let plan = self.plan(&action).await?;
        let mut receipts = Vec::new();
        let _alone = match plan.spends {
            Some(_) => Some(self.spending.lock().await),
            None => None,
        };
        if let Some(order) = self.approval(*account, &plan).await? {
            let receipt = sender.send(order, Until::Included).await?;
            succeeded(&receipt)?;
            receipts.push(receipt);
        }
        let receipt = sender.send(plan.order, Until::Confirmed).await?;
        succeeded(&receipt)?;
        receipts.push(receipt);
        Ok(self.receipt(&receipts))
    }

    async fn estimate(&self, action: &Action) -> Result<Estimate, Error> {
        let (account, _) = self.sender()?;
        let plan = self.plan(action).await?;
        let wire = &self.reader.wire;
        let fees = Fees::of_next_block(wire).await?;
        let offer = fees.offer(self.max_fee_wei)?;
        let mut orders = Vec::new();
        match self.approval(*account, &plan).await? {
            Some(approval) => {
                let gas = self.gas(*account, &approval).await?;
                orders.extend([(approval, gas), (plan.order, GAS_AFTER_APPROVAL)]);
            }
            None => {
                let gas = self.gas(*account, &plan.order).await?;
                orders.push((plan.order, gas));
            }
        }
        let mut estimate = Estimate::default();
        for (order, gas) in orders {
            let bytes = sender::unsigned(self.reader.deployment.chain_id, 0, &order, gas, offer);
            let l1_fee_wei = fees::l1_fee_wei(wire, &bytes).await?;
            let cost = |price: u128| price.saturating_mul(gas.into()).saturating_add(l1_fee_wei);
            estimate.transactions += 1;
            estimate.gas = estimate.gas.saturating_add(gas);
            estimate.fee_wei = estimate.fee_wei.saturating_add(cost(fees.now_wei()));
            estimate.most_wei = estimate.most_wei.saturating_add(cost(offer.max_wei));
            estimate.l1_fee_wei = estimate.l1_fee_wei.saturating_add(l1_fee_wei);
        }
        Ok(estimate)
    }

    async fn head(&self) -> Result<Head, Error> {
        self.reader.head().await
    }

    async fn balances(&self, account: Address) -> Result<Balances, Error> {
        self.reader.balances(account).await
    }

    async fn lock(&self, payer: Address, plan: [u8; 32]) -> Result<Lock, Error> {
        self.reader.lock(payer, plan).await
    }

    async fn is_signer(&self, payer: Address, signer: Address) -> Result<bool, Error> {
        self.reader.is_signer(payer, signer).await
    }

    async fn node(&self, account: Address, node: [u8; 32]) -> Result<Option<NodeEntry>, Error> {
        self.reader.node(account, node).await
    }

    async fn is_active_model(&self, model: [u8; 32]) -> Result<bool, Error> {
        self.reader.is_active_model(model).await
    }

    async fn stake(&self, operator: Address, role: u32, owner: Address) -> Result<Stake, Error> {
        self.reader.stake(operator, role, owner).await
    }

    async fn thaws(&self, owner: Address) -> Result<Vec<StakeThaw>, Error> {
        self.reader.thaws(owner).await
    }

    async fn rewards(&self, account: Address) -> Result<Rewards, Error> {
        self.reader.rewards(account).await
    }

    async fn audit_terms(&self) -> Result<AuditTerms, Error> {
        self.reader.audit_terms().await
    }

    async fn beacon(&self) -> Result<BeaconParameters, Error> {
        self.reader.beacon().await
    }

    async fn auditors(&self) -> Result<Vec<Address>, Error> {
        self.reader.auditors().await
    }

    async fn audit_round(&self, epoch: u32) -> Result<AuditRound, Error> {
        self.reader.audit_round(epoch).await
    }

    async fn audit_leaf(&self, leaf: LeafId) -> Result<AuditLeaf, Error> {
        self.reader.audit_leaf(leaf).await
    }

    async fn audit_case(&self, case: [u8; 32]) -> Result<Option<Case>, Error> {
        self.reader.audit_case(case).await
    }

    async fn audit_claimable(&self, account: Address) -> Result<Pod, Error> {
        self.reader.audit_claimable(account).await
    }

    async fn dispute(&self, case: [u8; 32]) -> Result<Option<Dispute>, Error> {
        self.reader.dispute(case).await
    }

    async fn dispute_events(&self, case: [u8; 32]) -> Result<Vec<DisputeEvent>, Error> {
        self.reader.dispute_events(case).await
    }

    async fn proposals(&self) -> Result<Vec<Proposal>, Error> {
        self.reader.proposals().await
    }

    async fn events(&self, after: &Cursor) -> Result<News, Error> {
        self.reader.news(after, self.confirmations).await
    }
}
