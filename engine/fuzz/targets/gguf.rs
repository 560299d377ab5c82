//! GGUF files: the header, then everything that is built from it without reading weights.

#![no_main]

use std::{fs, path::PathBuf, sync::LazyLock};

use engine::model::{Model, gguf};
use libfuzzer_sys::fuzz_target;

/// Room for tensors after the header: a hole in the file, since their values are not read.
const DATA_BYTES: u64 = 16 << 20;

static FILE: LazyLock<PathBuf> =
    LazyLock::new(|| std::env::temp_dir().join(format!("fuzz-{}.gguf", std::process::id())));

fuzz_target!(|input: &[u8]| {
    let size = input.len() as u64 + DATA_BYTES;
    let Ok(header) = gguf::parse("fuzz", input, size) else { return };
    let mut ranges: Vec<(u64, u64)> =
        header.tensors.values().map(|tensor| (tensor.offset, tensor.offset + tensor.bytes)).collect();
    ranges.sort_unstable();
    assert!(ranges.iter().all(|range| range.1 <= size), "a tensor past the end of its file");
    assert!(ranges.windows(2).all(|pair| pair[0].1 <= pair[1].0), "tensors that overlap");
    open(input, size);
});

/// Opens the input as a model, with its tokenizer.
fn open(input: &[u8], size: u64) {
    fs::write(&*FILE, input).expect("the temporary directory takes a file");
    let file = fs::OpenOptions::new().write(true).open(&*FILE).expect("the file was just written");
    file.set_len(size).expect("the file system has holes");
    if let Ok(model) = Model::open(&FILE) {
        drop(model.tokenizer());
    }
    fs::remove_file(&*FILE).expect("the file was just written");
}
