//! The methods of JSON-RPC.

use alloy_eips::{BlockId, BlockNumberOrTag, RpcBlockHash};
use alloy_primitives::{Address, B256, Bytes, TxHash, U64, U256};
use alloy_rpc_types_eth::{Filter, FilterBlockOption, Log, TransactionRequest};
use revm::database::CacheDB;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    Chain,
    error::RpcError,
    evm::{self, Checks},
    state::State,
    views,
};

/// Most logs that one request returns, and how much data they may hold.
const LOGS: (usize, usize) = (10_000, 16 << 20);
/// Most blocks that a fee history covers, and most percentiles of each.
const FEE_HISTORY: (u64, usize) = (1024, 100);
/// What is proposed as tip, in wei per gas.
const TIP: u64 = 1_000_000_000;

impl Chain {
    /// Answers a JSON-RPC request made in this process: the methods of `eth`, `net` and `web3` that
    /// [`serve`](super::serve) answers too, and those of `evm` that move time and return to snapshots.
    pub fn request(&self, method: &str, params: &Value) -> Result<Value, RpcError> {
        if method.starts_with("evm_") { self.control(method, params) } else { self.answer(method, params) }
    }

    /// Answers what anybody may ask.
    pub(super) fn answer(&self, method: &str, params: &Value) -> Result<Value, RpcError> {
        let params = Params::new(params)?;
        match method {
            "eth_sendRawTransaction" => {
                let raw: Bytes = params.required(0)?;
                show(&B256::from(self.submit(&raw)?))
            }
            "eth_call" | "eth_estimateGas" => {
                let request: TransactionRequest = params.required(0)?;
                let state = &self.read()?.state;
                newest(state, params.optional(1)?)?;
                overrides(&params)?;
                if method == "eth_call" {
                    show(&call(state, &request, super::now())?)
                } else {
                    show(&U64::from(estimate(state, &request, super::now())?))
                }
            }
            "eth_getBalance" | "eth_getTransactionCount" | "eth_getCode" | "eth_getStorageAt" => {
                account(&self.read()?.state, method, &params)
            }
            _ => match constant(method) {
                Some(answer) => Ok(answer),
                None => history(&self.read()?.state, method, &params),
            },
        }
    }

    fn control(&self, method: &str, params: &Value) -> Result<Value, RpcError> {
        let params = Params::new(params)?;
        match method {
            "evm_increaseTime" => Ok(json!(self.advance_time(params.quantity(0)?)?)),
            "evm_setNextBlockTimestamp" => {
                self.set_next_time(params.quantity(0)?)?;
                Ok(Value::Null)
            }
            "evm_mine" => {
                self.mine()?;
                Ok(json!("0x0"))
            }
            "evm_snapshot" => show(&U64::from(self.snapshot()?)),
            "evm_revert" => Ok(json!(self.revert(params.quantity(0)?)?)),
            _ => Err(not_found(method)),
        }
    }
}

fn constant(method: &str) -> Option<Value> {
    Some(match method {
        "web3_clientVersion" => json!(concat!("dolphin/", env!("CARGO_PKG_VERSION"))),
        "eth_maxPriorityFeePerGas" => json!(U64::from(TIP)),
        "eth_accounts" => json!([]),
        "eth_syncing" => json!(false),
        "net_listening" => json!(true),
        "net_peerCount" => json!("0x0"),
        _ => return None,
    })
}

/// What a request asks of the chain's past, or of its next block's fees.
fn history(state: &State, method: &str, params: &Params) -> Result<Value, RpcError> {
    match method {
        "eth_chainId" => show(&U64::from(state.genesis.chain_id)),
        "net_version" => Ok(json!(state.genesis.chain_id.to_string())),
        "eth_blockNumber" => show(&U64::from(state.head().header.number)),
        "eth_gasPrice" => show(&U256::from(u128::from(state.next_base_fee()) + u128::from(TIP))),
        "eth_feeHistory" => fee_history(state, params),
        "eth_getLogs" => logs(state, &params.required(0)?),
        "eth_getBlockByNumber" | "eth_getBlockByHash" => {
            let number = block_number(state, method == "eth_getBlockByHash", params)?;
            let full = params.optional(1)?.unwrap_or(false);
            show(&number.and_then(|number| state.block(number)).map(|block| views::block(block, full)))
        }
        "eth_getBlockTransactionCountByNumber" | "eth_getBlockTransactionCountByHash" => {
            let number = block_number(state, method == "eth_getBlockTransactionCountByHash", params)?;
            let block = number.and_then(|number| state.block(number));
            show(&block.map(|block| U64::from(block.transactions.len())))
        }
        "eth_getBlockReceipts" => {
            let block = state.number_at(params.required(0)?).and_then(|number| state.block(number));
            show(&block.map(|block| {
                let receipts = (0..block.transactions.len()).filter_map(|index| views::receipt(block, index));
                receipts.collect::<Vec<_>>()
            }))
        }
        "eth_getTransactionByHash" => {
            let hash: TxHash = params.required(0)?;
            let mined = state.place_of(&hash).and_then(|(block, index)| views::transaction(block, index));
            show(&mined.or_else(|| state.pool.find(&hash).map(views::waiting)))
        }
        "eth_getTransactionReceipt" => {
            let hash: TxHash = params.required(0)?;
            show(&state.place_of(&hash).and_then(|(block, index)| views::receipt(block, index)))
        }
        _ => Err(not_found(method)),
    }
}

fn not_found(method: &str) -> RpcError {
    let name: String = method.chars().take(64).collect();
    RpcError::new(RpcError::METHOD_NOT_FOUND, format!("the method {name} does not exist/is not available"))
}

fn account(state: &State, method: &str, params: &Params) -> Result<Value, RpcError> {
    let address: Address = params.required(0)?;
    let block = params.optional(if method == "eth_getStorageAt" { 2 } else { 1 })?;
    newest(state, block)?;
    match method {
        "eth_getBalance" => show(&state.account(address).balance),
        "eth_getCode" => show(&evm::code(&state.accounts, address)),
        "eth_getStorageAt" => {
            let slot: U256 = params.required(1)?;
            show(&B256::from(evm::storage(&state.accounts, address, slot)))
        }
        _ => {
            let nonce = state.account(address).nonce;
            let is_pending = block == Some(BlockId::Number(BlockNumberOrTag::Pending));
            show(&U64::from(if is_pending { state.pool.next_nonce(&address, nonce) } else { nonce }))
        }
    }
}

impl State {
    /// The number of a block that exists.
    fn number_at(&self, block: BlockId) -> Option<u64> {
        let head = self.head().header.number;
        match block {
            BlockId::Hash(RpcBlockHash { block_hash, .. }) => self.number_of(&block_hash),
            BlockId::Number(BlockNumberOrTag::Number(number)) => (number <= head).then_some(number),
            BlockId::Number(BlockNumberOrTag::Earliest) => Some(0),
            BlockId::Number(_) => Some(head),
        }
    }
}

fn block_number(state: &State, by_hash: bool, params: &Params) -> Result<Option<u64>, RpcError> {
    if by_hash {
        let hash: B256 = params.required(0)?;
        return Ok(state.number_of(&hash));
    }
    let tag: BlockNumberOrTag = params.required(0)?;
    Ok(state.number_at(BlockId::Number(tag)))
}

/// Refuses a block other than the newest: only that one's state is kept.
fn newest(state: &State, block: Option<BlockId>) -> Result<(), RpcError> {
    match block.map(|block| state.number_at(block)) {
        None => Ok(()),
        Some(None) => Err(RpcError::input("unknown block")),
        Some(Some(number)) if number == state.head().header.number => Ok(()),
        Some(Some(number)) => {
            Err(RpcError::input(format!("state of block {number} is not available: only the newest is kept")))
        }
    }
}

fn overrides(params: &Params) -> Result<(), RpcError> {
    match params.optional::<Value>(2)? {
        Some(Value::Object(fields)) if !fields.is_empty() => {
            Err(RpcError::params("state overrides are not supported"))
        }
        _ => Ok(()),
    }
}

/// Runs a call as the next block would, so that contracts see the time that a transaction would see.
fn call(state: &State, request: &TransactionRequest, now: u64) -> Result<Bytes, RpcError> {
    let limit = state.genesis.gas_limit;
    let gas = request.gas.unwrap_or(limit).min(limit);
    evm::output(trial(state, request, gas, now)?)
}

fn trial(
    state: &State,
    request: &TransactionRequest,
    gas: u64,
    now: u64,
) -> Result<revm::context_interface::result::ExecutionResult, RpcError> {
    let chain_id = state.genesis.chain_id;
    let asked = evm::unsigned(request, chain_id, gas)?;
    let environment = state.next_environment(now);
    let mut accounts = CacheDB::new(&state.accounts);
    Ok(evm::run(&mut accounts, chain_id, &environment, asked, Checks::Call)?.result)
}

/// The least gas with which a call succeeds.
fn estimate(state: &State, request: &TransactionRequest, now: u64) -> Result<u64, RpcError> {
    let most = affordable(state, request)?;
    let first = trial(state, request, most, now)?;
    let spent = first.gas().total_gas_spent().max(first.gas().floor_gas());
    if evm::ran_out(&first) {
        return Err(RpcError::input(format!("gas required exceeds allowance ({most})")));
    }
    evm::output(first)?;
    let enough = |gas: u64| trial(state, request, gas, now).is_ok_and(|result| result.is_success());
    // A call may need more than it spends: gas that it has to hold back, and what is refunded at the end.
    let (mut short, mut plenty) = (spent.saturating_sub(1), most);
    if enough(spent) {
        return Ok(spent);
    }
    let guess = spent.saturating_add(2_300).saturating_mul(64) / 63;
    if guess < plenty && enough(guess) {
        plenty = guess;
    }
    while plenty - short > 1 {
        let middle = short + (plenty - short) / 2;
        if enough(middle) {
            plenty = middle;
        } else {
            short = middle;
        }
    }
    Ok(plenty)
}

/// The most gas that the sender of a call can pay for.
fn affordable(state: &State, request: &TransactionRequest) -> Result<u64, RpcError> {
    let most = request.gas.unwrap_or(u64::MAX).min(state.genesis.gas_limit);
    let price = request.max_fee_per_gas.or(request.gas_price).unwrap_or_default();
    if price == 0 {
        return Ok(most);
    }
    let balance = state.account(request.from.unwrap_or_default()).balance;
    let value = request.value.unwrap_or_default();
    let Some(left) = balance.checked_sub(value) else {
        return Err(RpcError::insufficient_funds(balance, value));
    };
    let gas = left / U256::from(price);
    Ok(u64::try_from(gas).unwrap_or(u64::MAX).min(most))
}

fn fee_history(state: &State, params: &Params) -> Result<Value, RpcError> {
    let (most_blocks, most_percentiles) = FEE_HISTORY;
    let count = params.quantity(0)?.min(most_blocks);
    let newest: BlockNumberOrTag = params.required(1)?;
    let percentiles: Vec<f64> = params.optional(2)?.unwrap_or_default();
    let ascend = percentiles.windows(2).all(|pair| pair[0] <= pair[1]);
    let in_range = percentiles.iter().all(|percentile| (0.0..=100.0).contains(percentile));
    if percentiles.len() > most_percentiles || !ascend || !in_range {
        return Err(RpcError::params("percentiles are at most 100 ascending numbers from 0 to 100"));
    }
    let Some(newest) = state.number_at(BlockId::Number(newest)) else {
        return Err(RpcError::input("request beyond head block"));
    };
    let oldest = (newest + 1).saturating_sub(count);
    let range = usize::try_from(oldest).unwrap_or(usize::MAX)..=usize::try_from(newest).unwrap_or(usize::MAX);
    let blocks = if count == 0 { &[] } else { state.blocks.get(range).unwrap_or_default() };
    let next = state.block(newest + 1).map_or_else(|| state.next_base_fee(), |block| block.base_fee());
    show(&views::fee_history(blocks, next, &percentiles))
}

fn logs(state: &State, filter: &Filter) -> Result<Value, RpcError> {
    let head = state.head().header.number;
    let number = |block: Option<BlockNumberOrTag>| match block {
        Some(BlockNumberOrTag::Number(number)) => number,
        Some(BlockNumberOrTag::Earliest) => 0,
        _ => head,
    };
    let (from, to) = match filter.block_option {
        FilterBlockOption::Range { from_block, to_block } => (number(from_block), number(to_block).min(head)),
        FilterBlockOption::AtBlockHash(hash) => match state.number_of(&hash) {
            Some(number) => (number, number),
            None => return Err(RpcError::input("unknown block")),
        },
    };
    if from > to && from <= head {
        return Err(RpcError::params("invalid block range params"));
    }
    let (mut found, mut bytes): (Vec<Log>, usize) = (Vec::new(), 0);
    for block in (from..=to).map_while(|number| state.block(number)) {
        if !filter.matches_bloom(block.header.logs_bloom) {
            continue;
        }
        for (index, included) in block.transactions.iter().enumerate() {
            for log in views::logs(block, index, included).filter(|log| filter.matches(&log.inner)) {
                bytes += log.inner.data.data.len();
                found.push(log);
            }
        }
        if found.len() > LOGS.0 || bytes > LOGS.1 {
            let (most, most_bytes) = LOGS;
            let message =
                format!("more than {most} logs, or {most_bytes} bytes of them: ask for fewer blocks");
            return Err(RpcError::new(RpcError::LIMIT, message));
        }
    }
    show(&found)
}

fn show<T: Serialize>(answer: &T) -> Result<Value, RpcError> {
    serde_json::to_value(answer).map_err(|error| RpcError::internal(error.to_string()))
}

/// Parameters by position.
struct Params<'a>(&'a [Value]);

impl<'a> Params<'a> {
    fn new(params: &'a Value) -> Result<Self, RpcError> {
        match params {
            Value::Array(values) => Ok(Self(values)),
            Value::Null => Ok(Self(&[])),
            _ => Err(RpcError::params("parameters are given by position, in an array")),
        }
    }

    fn required<T: Deserialize<'a>>(&self, index: usize) -> Result<T, RpcError> {
        let missing = || RpcError::params(format!("missing value for required argument {index}"));
        self.optional(index)?.ok_or_else(missing)
    }

    /// `None` where the parameter is left out or null.
    fn optional<T: Deserialize<'a>>(&self, index: usize) -> Result<Option<T>, RpcError> {
        match self.0.get(index) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => T::deserialize(value)
                .map(Some)
                .map_err(|error| RpcError::params(format!("invalid argument {index}: {error}"))),
        }
    }

    /// A number, as JSON has it or as a hexadecimal string.
    fn quantity(&self, index: usize) -> Result<u64, RpcError> {
        match self.0.get(index).and_then(Value::as_u64) {
            Some(number) => Ok(number),
            None => self.required::<U64>(index).map(|number| number.to()),
        }
    }
}
