//! Chat templates and conversations: a template, a zero byte, and the body of a chat request.

#![no_main]

use engine::gateway::{ChatTemplate, fuzzing::render};
use libfuzzer_sys::fuzz_target;

const GREETING: &[u8] = br#"{"model":"m","messages":[{"role":"user","content":"Hello, world"}]}"#;

fuzz_target!(|input: &[u8]| {
    let (source, body) = match input.iter().position(|&byte| byte == 0) {
        Some(end) => (&input[..end], &input[end + 1..]),
        None => (input, GREETING),
    };
    let Ok(source) = std::str::from_utf8(source) else { return };
    let Ok(template) = ChatTemplate::new(source, [("bos_token", "<s>"), ("eos_token", "</s>")]) else {
        return;
    };
    drop(render(&template, body));
});
