//! Bodies of requests to the two endpoints that generate.

#![no_main]

use engine::gateway::fuzzing::{parse_chat, parse_completion};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    for outcome in [parse_chat(input), parse_completion(input)] {
        if let Err(error) = outcome {
            assert!(error.status().is_client_error(), "a body is blamed on the server: {error}");
        }
    }
});
