//! What a client hands to `dolphin verify`.

#![no_main]

use engine::audit::receipt::Receipt;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Ok(receipt) = Receipt::read(input) else { return };
    let text = serde_json::to_vec(&receipt).expect("a receipt can be written");
    let again = Receipt::read(&text[..]).expect("what was written can be read");
    assert_eq!((again.digest(), again.plan.hash()), (receipt.digest(), receipt.plan.hash()));
    assert!(receipt.rows() as usize + 1 == receipt.prompt.len() + receipt.reply.len());
});
