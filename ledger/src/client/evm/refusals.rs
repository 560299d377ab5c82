//! Contracts' errors, by name.

use std::{collections::HashMap, sync::LazyLock};

use ethers_core::abi::{Abi, ParamType, Token, decode, ethabi::AbiError};
use serde_json::Value;

use super::{bindings as b, rpc::RpcFault};
use crate::client::{Error, Refusal, show_address};

/// Longest error that is decoded, in bytes.
const LONGEST: usize = 4096;

static ERRORS: LazyLock<HashMap<[u8; 4], AbiError>> = LazyLock::new(|| {
    let contracts: [&Abi; 16] = [
        &b::ACCESSMANAGER_ABI,
        &b::AUDITMANAGER_ABI,
        &b::AUDITORSET_ABI,
        &b::BEACON_ABI,
        &b::DISPUTEGAME_ABI,
        &b::INT8REFEREE_ABI,
        &b::MODELREGISTRY_ABI,
        &b::NODEREGISTRY_ABI,
        &b::PODTOKEN_ABI,
        &b::PODGOVERNOR_ABI,
        &b::REWARDDISTRIBUTOR_ABI,
        &b::SESSIONESCROW_ABI,
        &b::STAKEMANAGER_ABI,
        &b::TIMELOCKCONTROLLER_ABI,
        &b::TRACEJUDGE_ABI,
        &b::VOUCHERCOLLECTOR_ABI,
    ];
    let errors = contracts.iter().flat_map(|abi| abi.errors.values().flatten());
    errors.filter_map(|error| Some((*error.signature().as_bytes().first_chunk()?, error.clone()))).collect()
});

/// What a contract says by the data it reverts with.
pub(super) fn refusal(data: &[u8]) -> Refusal {
    let unknown = |text: String| Refusal { name: String::new(), text };
    let Some((selector, arguments)) = data.split_first_chunk::<4>().filter(|_| data.len() <= LONGEST) else {
        return unknown("it does not say why".to_owned());
    };
    // Error(string) and Panic(uint256), which the language has.
    if *selector == [0x08, 0xc3, 0x79, 0xa0] {
        let text = decode(&[ParamType::String], arguments).ok();
        let text = text.and_then(|tokens| tokens.into_iter().next()?.into_string());
        return unknown(text.unwrap_or_else(|| "it does not say why".to_owned()));
    }
    if *selector == [0x4e, 0x48, 0x7b, 0x71] {
        let code = arguments.last().copied().unwrap_or_default();
        return Refusal { name: "Panic".to_owned(), text: format!("Panic(0x{code:02x})") };
    }
    let Some(error) = ERRORS.get(selector) else {
        return unknown(format!("error 0x{} that is not known", hex::encode(selector)));
    };
    let arguments = error.decode(arguments).unwrap_or_default();
    let arguments: Vec<String> = arguments.iter().map(show).collect();
    Refusal { name: error.name.clone(), text: format!("{}({})", error.name, arguments.join(", ")) }
}

/// A fault of a call: a contract's refusal where it is one.
pub(super) fn call_fault(fault: RpcFault) -> Error {
    let RpcFault::Refused { code, message, data } = fault else {
        return fault.into();
    };
    // Some nodes put the data into an object; others leave it out and say so in words alone.
    if let Some(data) = data.as_ref().and_then(revert_data) {
        return Error::Refused(refusal(&data));
    }
    if message.contains("revert") {
        return Error::Refused(Refusal { name: String::new(), text: message });
    }
    RpcFault::Refused { code, message, data }.into()
}

/// The first hexadecimal text in what a node adds to an error.
fn revert_data(value: &Value) -> Option<Vec<u8>> {
    match value {
        Value::String(text) => hex::decode(text.trim_start_matches("Reverted ").strip_prefix("0x")?).ok(),
        Value::Object(object) => object.values().find_map(revert_data),
        _ => None,
    }
}

fn show(token: &Token) -> String {
    match token {
        Token::Address(address) => show_address(&address.0),
        Token::Uint(number) | Token::Int(number) => number.to_string(),
        Token::String(text) => format!("{text:?}"),
        Token::Bool(value) => value.to_string(),
        Token::FixedBytes(bytes) | Token::Bytes(bytes) => format!("0x{}", hex::encode(bytes)),
        Token::Array(list) | Token::FixedArray(list) | Token::Tuple(list) => {
            format!("[{}]", list.iter().map(show).collect::<Vec<_>>().join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use ethers_contract::EthError;
    use serde_json::json;

    use super::*;

    #[test]
    fn errors_are_named() {
        let data =
            ethers_core::abi::AbiEncode::encode(b::session_escrow::NothingDue { total: 5, collected: 7 });
        let data = [&b::session_escrow::NothingDue::selector()[..], &data[4..]].concat();
        assert_eq!(
            refusal(&data),
            Refusal { name: "NothingDue".to_owned(), text: "NothingDue(5, 7)".to_owned() }
        );
        let text =
            [&[0x08, 0xc3, 0x79, 0xa0][..], &ethers_core::abi::encode(&[Token::String("no".to_owned())])];
        assert_eq!(refusal(&text.concat()).text, "no");
        assert_eq!(refusal(&[0x4e, 0x48, 0x7b, 0x71, 0x11]).text, "Panic(0x11)");
        for odd in [&[][..], &[1, 2, 3], &[1, 2, 3, 4, 5], &data[..9], &[0x08, 0xc3, 0x79, 0xa0, 9]] {
            assert!(!refusal(odd).text.is_empty());
        }
    }

    #[test]
    fn nodes_say_it_in_different_ways() {
        let data = format!("0x{}", hex::encode(b::session_escrow::NothingLocked::selector()));
        for data in [json!(data), json!({ "data": data })] {
            let fault =
                RpcFault::Refused { code: 3, message: "execution reverted".to_owned(), data: Some(data) };
            assert!(call_fault(fault).is("NothingLocked"));
        }
        let silent = RpcFault::Refused { code: 3, message: "execution reverted".to_owned(), data: None };
        assert!(matches!(call_fault(silent), Error::Refused(_)));
        let other = RpcFault::Refused { code: -32000, message: "header not found".to_owned(), data: None };
        assert!(matches!(call_fault(other), Error::Node { code: -32000, .. }));
    }
}
