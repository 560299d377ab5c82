//! Keys, transactions, and a client of JSON-RPC that both chains are asked with.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    time::Duration,
};

use alloy_consensus::{SignableTransaction, TxEip1559, TxEip2930, TxEnvelope, TxLegacy};
use alloy_eips::{
    eip2718::Encodable2718,
    eip2930::{AccessList, AccessListItem},
};
use alloy_primitives::{Address, B256, Bytes, Signature, TxKind, U256, hex};
use k256::ecdsa::SigningKey;
use ledger::embedded::{Chain, Genesis, Sealing, Server, serve};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

pub(crate) const GWEI: u128 = 1_000_000_000;
pub(crate) const ETHER: u128 = GWEI * GWEI;
/// When the chains of these tests begin.
pub(crate) const START: u64 = 1_900_000_000;

/// An account that tests sign for.
#[derive(Clone)]
pub(crate) struct Account {
    key: SigningKey,
    pub(crate) address: Address,
}

impl Account {
    pub(crate) fn new(seed: u8) -> Self {
        let key = SigningKey::from_slice(&[seed; 32]).expect("a small number is a key");
        let address = Address::from_public_key(key.verifying_key());
        Self { key, address }
    }

    pub(crate) fn sign(&self, digest: &B256) -> Signature {
        let (signature, recovery) =
            self.key.sign_prehash_recoverable(digest.as_slice()).expect("a digest can be signed");
        Signature::from_signature_and_parity(signature, recovery.is_y_odd())
    }

    /// A transaction of the newest kind, that pays 1 gwei above the base fee.
    pub(crate) fn transaction(&self, nonce: u64, to: TxKind, input: impl Into<Bytes>) -> TxEip1559 {
        TxEip1559 {
            chain_id: Genesis::default().chain_id,
            nonce,
            gas_limit: if matches!(to, TxKind::Create) { 5_000_000 } else { 500_000 },
            max_fee_per_gas: 10 * GWEI,
            max_priority_fee_per_gas: GWEI,
            to,
            value: U256::ZERO,
            access_list: AccessList::default(),
            input: input.into(),
        }
    }

    pub(crate) fn legacy(&self, nonce: u64, to: TxKind, input: impl Into<Bytes>) -> TxLegacy {
        let newest = self.transaction(nonce, to, input);
        TxLegacy {
            chain_id: Some(newest.chain_id),
            nonce,
            gas_price: 4 * GWEI,
            gas_limit: newest.gas_limit,
            to,
            value: U256::ZERO,
            input: newest.input,
        }
    }

    /// One with an access list that names the contract and one word of it.
    pub(crate) fn with_list(&self, nonce: u64, to: Address, input: impl Into<Bytes>) -> TxEip2930 {
        let newest = self.transaction(nonce, to.into(), input);
        let item = AccessListItem { address: to, storage_keys: vec![B256::ZERO] };
        TxEip2930 {
            chain_id: newest.chain_id,
            nonce,
            gas_price: 4 * GWEI,
            gas_limit: newest.gas_limit,
            to: newest.to,
            value: U256::ZERO,
            access_list: AccessList(vec![item]),
            input: newest.input,
        }
    }

    pub(crate) fn encode<T: SignableTransaction<Signature>>(&self, transaction: T) -> Vec<u8>
    where
        TxEnvelope: From<alloy_consensus::Signed<T>>,
    {
        let signature = self.sign(&transaction.signature_hash());
        TxEnvelope::from(transaction.into_signed(signature)).encoded_2718()
    }

    /// A payment of `wei`, encoded.
    pub(crate) fn pay(&self, nonce: u64, to: Address, wei: u128) -> Vec<u8> {
        let payment = self.transaction(nonce, to.into(), Bytes::new());
        self.encode(TxEip1559 { value: U256::from(wei), gas_limit: 21_000, ..payment })
    }
}

pub(crate) fn genesis(accounts: &[&Account]) -> Genesis {
    let genesis = Genesis { timestamp: START, ..Genesis::default() };
    accounts.iter().fold(genesis, |genesis, account| genesis.with_account(account.address.0.0, 100 * ETHER))
}

/// A chain that is served as long as this lives.
pub(crate) struct Served {
    pub(crate) client: Client,
    _server: Server,
    _runtime: Runtime,
}

pub(crate) fn served(accounts: &[&Account], controls: bool) -> Served {
    let chain = Chain::in_memory(genesis(accounts), Sealing::Instant);
    let runtime = Runtime::new().expect("threads can be started");
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let server = runtime.block_on(serve(chain, address, controls)).expect("a port is free");
    Served { client: Client { address: server.address() }, _server: server, _runtime: runtime }
}

/// Asks a chain over HTTP, one connection for each request.
#[derive(Clone, Copy)]
pub(crate) struct Client {
    pub(crate) address: SocketAddr,
}

impl Client {
    /// The result, or code, message and data of the error.
    pub(crate) fn ask(&self, method: &str, params: Value) -> Result<Value, Value> {
        let body = json!({"jsonrpc": "2.0", "id": 7, "method": method, "params": params}).to_string();
        let host = self.address.to_string();
        let (status, answer) = self.post(&[("host", &host), ("content-type", "application/json")], &body);
        assert_eq!(status, 200, "{answer}");
        let mut answer: Value = serde_json::from_str(&answer).expect("the answer is JSON");
        assert_eq!(answer["id"], 7);
        match answer.get_mut("error") {
            Some(error) => Err(error.take()),
            None => Ok(answer["result"].take()),
        }
    }

    pub(crate) fn get(&self, method: &str, params: Value) -> Value {
        let asked = format!("{method} {params:.200}");
        self.ask(method, params).unwrap_or_else(|error| panic!("{asked}: {error}"))
    }

    pub(crate) fn send(&self, raw: &[u8]) -> Result<Value, Value> {
        self.ask("eth_sendRawTransaction", json!([hex::encode_prefixed(raw)]))
    }

    /// Status and body of a POST.
    pub(crate) fn post(&self, headers: &[(&str, &str)], body: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.address).expect("the chain listens");
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a time is given");
        let mut request = "POST / HTTP/1.1\r\nconnection: close\r\n".to_owned();
        for (name, value) in headers {
            request += &format!("{name}: {value}\r\n");
        }
        request += &format!("content-length: {}\r\n\r\n{body}", body.len());
        stream.write_all(request.as_bytes()).expect("the chain reads");
        let mut response = String::new();
        stream.read_to_string(&mut response).expect("the chain answers");
        let (head, body) = response.split_once("\r\n\r\n").expect("a head ends with an empty line");
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        (status.expect("a head begins with a status"), body.to_owned())
    }
}
