//! The files of a checkpoint: safetensors headers and the JSON beside them. Every input is read as each
//! of them.

#![no_main]

use engine::model::{
    chat_template, config, parse_generation,
    safetensors::{header_length, parse_header, parse_index},
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    safetensors(input);
    headers(input, 8 + input.len() as u64 + (1 << 20));
    if let Ok(index) = parse_index(input) {
        let inside = |file: &String| !file.contains(['/', '\\']) && file != "..";
        assert!(index.values().all(inside), "an index leads out of its directory");
    }
    if let Ok(config) = config::parse(input) {
        assert_eq!(config.windows.len(), config.layers, "layers without a window, or the reverse");
        assert_eq!(config.heads % config.kv_heads, 0, "query heads that share no key head");
        assert!(config.attention_scale.is_finite() && config.norm_eps.is_finite());
    }
    drop(parse_generation(input));
    drop(chat_template(input));
});

fn safetensors(input: &[u8]) {
    let Some((prefix, rest)) = input.split_first_chunk::<8>() else { return };
    let size = input.len() as u64;
    let Ok(length) = header_length("fuzz", *prefix, size) else { return };
    assert!(length <= rest.len() as u64, "a header longer than its file");
    headers(&rest[..length as usize], size);
}

fn headers(header: &[u8], size: u64) {
    let Ok(tensors) = parse_header("fuzz", header, size, 0) else { return };
    let mut ranges: Vec<(u64, u64)> = tensors.values().map(|t| (t.offset, t.offset + t.bytes)).collect();
    ranges.sort_unstable();
    assert!(ranges.iter().all(|range| range.0 >= 8 + header.len() as u64), "a tensor in the header");
    assert!(ranges.iter().all(|range| range.1 <= size), "a tensor past the end of its file");
    assert!(ranges.windows(2).all(|pair| pair[0].1 <= pair[1].0), "tensors that overlap");
}
