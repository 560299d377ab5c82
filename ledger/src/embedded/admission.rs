//! What a transaction must be before the chain looks at its own state.

use alloy_consensus::{
    Transaction, TxEnvelope, Typed2718,
    transaction::{Recovered, SignerRecoverable},
};
use alloy_eips::eip2718::{Decodable2718, Encodable2718};
use alloy_primitives::U256;

use super::{block::Signed, error::RpcError};

/// Longest transaction, encoded; what public networks pass on.
pub(super) const TRANSACTION_BYTES: usize = 128 << 10;

/// Decodes a transaction and finds who signed it.
pub(super) fn decode(raw: &[u8], chain_id: u64) -> Result<Signed, RpcError> {
    if raw.len() > TRANSACTION_BYTES {
        let message = format!("oversized data: transaction size {}, limit {TRANSACTION_BYTES}", raw.len());
        return Err(RpcError::rejected(message));
    }
    let transaction = TxEnvelope::decode_2718(&mut &*raw)
        .map_err(|error| RpcError::params(format!("cannot decode transaction: {error}")))?;
    // It is kept and hashed as it is encoded anew.
    if transaction.encoded_2718() != raw {
        return Err(RpcError::params("cannot decode transaction: other bytes would say the same"));
    }
    if !matches!(transaction, TxEnvelope::Legacy(_) | TxEnvelope::Eip2930(_) | TxEnvelope::Eip1559(_)) {
        return Err(RpcError::rejected(format!("transaction type not supported: {}", transaction.ty())));
    }
    match transaction.chain_id() {
        None => {
            let message = "only replay-protected (EIP-155) transactions allowed over RPC";
            return Err(RpcError::rejected(message));
        }
        Some(id) if id != chain_id => {
            let message = format!("invalid chain id for signer: have {id} want {chain_id}");
            return Err(RpcError::rejected(message));
        }
        Some(_) => {}
    }
    let sender = transaction
        .recover_signer()
        .map_err(|_| RpcError::rejected("invalid sender: the signature is not valid"))?;
    Ok(Recovered::new_unchecked(transaction, sender))
}

/// The most that a transaction can cost its sender, in wei; `None` where no balance could be enough.
pub(super) fn highest_cost(transaction: &Signed) -> Option<U256> {
    let fees = U256::from(transaction.gas_limit()).checked_mul(U256::from(transaction.max_fee_per_gas()))?;
    fees.checked_add(transaction.value())
}
