//! What nodes and gateways tell one another.

#![no_main]

use bytes::Bytes;
use engine::message::Message;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Ok(message) = Message::decode(Bytes::copy_from_slice(input)) else { return };
    let first = encoded(&message);
    let again = match Message::decode(first.clone().into()) {
        Ok(again) => again,
        Err(error) => panic!("{message:?} does not survive its own encoding: {error}"),
    };
    // Bytes are compared, not messages: a NaN that a peer sends is never equal to itself.
    assert_eq!(encoded(&again), first, "{message:?} is another message once encoded");
});

/// A message as it travels: a step is followed by its body.
fn encoded(message: &Message) -> Vec<u8> {
    let mut bytes = message.encode();
    if let Message::Step(step) = message {
        assert!(step.rows() > 0 || step.segments.is_empty(), "segments without rows");
        bytes.extend_from_slice(&step.body);
    }
    bytes
}
