//! Safetensors headers: the `safetensors` crate parses them, over bytes whose number is bounded, and
//! every tensor is placed inside its file before anything is read or allocated.

use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    io::Read,
    path::Path,
};

use safetensors::tensor::{Metadata, TensorInfo as Header};
use serde::Deserialize;
use serde_json::Value;

use super::{
    error::{ModelError, TensorFault},
    table::{Absent, Dtype, Storage, TensorInfo, TensorTable},
};

/// Largest header that is read.
pub const HEADER_BYTES: u64 = 100 << 20;
/// Largest index of a checkpoint in several files.
const INDEX_BYTES: u64 = 64 << 20;
/// Most files of one checkpoint.
const FILES: usize = 4096;
/// Most dimensions of a tensor.
const DIMENSIONS: usize = 8;

/// Length of the header that the first eight bytes of a file of `size` bytes announce.
///
/// # Errors
/// [`ModelError::Malformed`] if it is longer than the file or than [`HEADER_BYTES`].
pub fn header_length(file: &str, prefix: [u8; 8], size: u64) -> Result<u64, ModelError> {
    let length = u64::from_le_bytes(prefix);
    if length > HEADER_BYTES {
        let reason = format!("the header claims {length} bytes, more than the {HEADER_BYTES} allowed");
        return Err(ModelError::malformed(file, reason));
    }
    if size < 8 || length > size - 8 {
        let reason = format!("the header claims {length} bytes, but the file has {size}");
        return Err(ModelError::malformed(file, reason));
    }
    Ok(length)
}

/// Parses a header (without its length prefix) of a file of `size` bytes: its tensors by name, with
/// offsets counted from the start of the file. `index` becomes their [`TensorInfo::file`].
///
/// # Errors
/// [`ModelError::Malformed`] for a header that is none, [`ModelError::Tensor`] for a tensor that
/// overlaps another, has a size that does not follow from its shape or lies outside the file.
pub fn parse_header(
    file: &str,
    header: &[u8],
    size: u64,
    index: usize,
) -> Result<BTreeMap<String, TensorInfo>, ModelError> {
    let metadata: Metadata =
        serde_json::from_slice(header).map_err(|error| diagnose(file, header, &error))?;
    let start = 8 + header.len() as u64;
    let mut tensors = BTreeMap::new();
    for (name, info) in metadata.tensors() {
        let placed =
            place(info, start, size, index).map_err(|fault| ModelError::tensor(file, &name, fault))?;
        tensors.insert(name, placed);
    }
    Ok(tensors)
}

fn place(info: &Header, start: u64, size: u64, file: usize) -> Result<TensorInfo, TensorFault> {
    let (first, last) = info.data_offsets;
    let bytes = (last as u64).saturating_sub(first as u64);
    let fault = |reason: &str| TensorFault::Range {
        start: first as u64,
        end: last as u64,
        reason: reason.to_owned(),
    };
    let Some(end) = start.checked_add(last as u64).filter(|_| first <= last) else {
        return Err(fault("which is no range"));
    };
    if end > size {
        return Err(fault("past the end of the file"));
    }
    if info.shape.len() > DIMENSIONS {
        return Err(TensorFault::Size { bytes });
    }
    let elements = info.shape.iter().try_fold(1_usize, |product, &n| product.checked_mul(n));
    if elements.and_then(|n| n.checked_mul(info.dtype.bitsize())).map(|bits| bits / 8) != Some(last - first) {
        return Err(TensorFault::Size { bytes });
    }
    Ok(TensorInfo { file, dtype: dtype(info.dtype), shape: info.shape.clone(), offset: end - bytes, bytes })
}

fn dtype(dtype: safetensors::Dtype) -> Dtype {
    use safetensors::Dtype as Stored;
    match dtype {
        Stored::F32 => Dtype::F32,
        Stored::F16 => Dtype::F16,
        Stored::BF16 => Dtype::Bf16,
        Stored::F64 => Dtype::Other("F64"),
        Stored::F8_E4M3 => Dtype::Other("F8_E4M3"),
        Stored::F8_E5M2 => Dtype::Other("F8_E5M2"),
        Stored::I8 => Dtype::Other("I8"),
        Stored::U8 => Dtype::Other("U8"),
        Stored::I32 => Dtype::Other("I32"),
        Stored::I64 => Dtype::Other("I64"),
        _ => Dtype::Other("another element type"),
    }
}

/// Finds the tensor behind a header that the crate refuses without naming one.
fn diagnose(file: &str, header: &[u8], error: &serde_json::Error) -> ModelError {
    let unexplained = || ModelError::malformed(file, format!("the header is not valid: {error}"));
    let Ok(Value::Object(map)) = serde_json::from_slice(header) else { return unexplained() };
    let mut placed = Vec::new();
    for (name, value) in map.iter().filter(|(name, _)| *name != "__metadata__") {
        match Header::deserialize(value) {
            Err(error) => return ModelError::malformed(file, format!("tensor `{name:.200}`: {error}")),
            Ok(info) => match place(&info, 0, u64::MAX, 0) {
                Err(fault) => return ModelError::tensor(file, name, fault),
                Ok(_) => placed.push((info.data_offsets, name)),
            },
        }
    }
    placed.sort_unstable();
    let mut expected = 0;
    for ((start, end), name) in placed {
        if start != expected {
            let reason = format!("but the tensor before it ends at {expected}");
            let fault = TensorFault::Range { start: start as u64, end: end as u64, reason };
            return ModelError::tensor(file, name, fault);
        }
        expected = end;
    }
    unexplained()
}

/// The tensors of `directory`: `model.safetensors`, or the files its index names.
pub(crate) fn open(directory: &Path) -> Result<TensorTable, ModelError> {
    let index = directory.join("model.safetensors.index.json");
    let single = directory.join("model.safetensors");
    if single.exists() || !index.exists() {
        let mut table = TensorTable::default();
        add_file(&mut table, &single)?;
        return Ok(table);
    }
    let bytes = super::read::whole(&index, INDEX_BYTES)?;
    let weight_map = parse_index(&bytes)?;
    let mut table = TensorTable::default();
    let mut files: Vec<&String> = weight_map.values().collect();
    files.sort_unstable();
    files.dedup();
    for file in &files {
        let path = directory.join(file.as_str());
        // A node that holds some layers need not have the files of the others.
        if path.exists() {
            add_file(&mut table, &path)?;
        }
    }
    table.absent = check_index(&table, &weight_map)?;
    Ok(table)
}

/// A header that is part of the program.
pub(crate) fn embedded(bytes: &'static [u8]) -> Result<TensorTable, ModelError> {
    let name = "embedded model";
    let size = bytes.len() as u64;
    let prefix = bytes.first_chunk().ok_or_else(|| ModelError::malformed(name, "is empty"))?;
    let length = header_length(name, *prefix, size)?;
    let header = &bytes[8..8 + length as usize];
    let tensors = parse_header(name, header, size, 0)?;
    Ok(TensorTable { files: vec![Storage::Embedded(bytes)], tensors, absent: BTreeMap::new() })
}

fn add_file(table: &mut TensorTable, path: &Path) -> Result<(), ModelError> {
    let storage = |error| ModelError::io(path, error);
    let mut file = File::open(path).map_err(storage)?;
    let size = file.metadata().map_err(storage)?.len();
    let entry = Storage::File(path.to_owned());
    let name = entry.name();
    let mut prefix = [0; 8];
    if size < 8 {
        return Err(ModelError::malformed(&name, format!("has {size} bytes, too few for a header")));
    }
    file.read_exact(&mut prefix).map_err(storage)?;
    let length = header_length(&name, prefix, size)?;
    let mut header = vec![0; length as usize];
    file.read_exact(&mut header).map_err(storage)?;
    for (tensor, info) in parse_header(&name, &header, size, table.files.len())? {
        if table.tensors.insert(tensor.clone(), info).is_some() {
            return Err(ModelError::malformed(&name, format!("tensor `{tensor}` is in another file too")));
        }
    }
    table.files.push(entry);
    Ok(())
}

/// Parses `model.safetensors.index.json`: the file of each tensor.
///
/// # Errors
/// [`ModelError::Malformed`] if it is not such an index, names too many files, or a name is not that
/// of a safetensors file right beside it.
pub fn parse_index(bytes: &[u8]) -> Result<HashMap<String, String>, ModelError> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: HashMap<String, String>,
    }
    let name = "model.safetensors.index.json";
    let index: Index = serde_json::from_slice(bytes)
        .map_err(|error| ModelError::malformed(name, format!("is not an index: {error}")))?;
    let mut files = std::collections::HashSet::new();
    for file in index.weight_map.values() {
        if !super::plain_name(file) || !file.ends_with(".safetensors") {
            let reason = format!("`{file:.200}` is not the name of a safetensors file in this directory");
            return Err(ModelError::malformed(name, reason));
        }
        files.insert(file);
    }
    if files.len() > FILES {
        return Err(ModelError::malformed(name, format!("names more than {FILES} files")));
    }
    Ok(index.weight_map)
}

/// Compares the index with the files that are here; what lies in other files is returned.
fn check_index(
    table: &TensorTable,
    weight_map: &HashMap<String, String>,
) -> Result<BTreeMap<String, Absent>, ModelError> {
    let names: Vec<String> = table.files.iter().map(Storage::name).collect();
    let mut absent = BTreeMap::new();
    for (tensor, file) in weight_map {
        match table.tensors.get(tensor) {
            Some(info) if names[info.file] == *file => {}
            None if !names.contains(file) => {
                absent.insert(tensor.clone(), Absent { file: file.clone(), stored: None });
            }
            _ => return Err(ModelError::tensor(file, tensor, TensorFault::Missing)),
        }
    }
    Ok(absent)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::{Model, tests::golden};

    /// A file of this header and `data` bytes.
    fn file(header: &str, data: usize) -> Vec<u8> {
        [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &vec![0; data]].concat()
    }

    fn refused(header: &str, data: usize) -> String {
        let size = 8 + header.len() + data;
        parse_header("test", header.as_bytes(), size as u64, 0).expect_err("refused").to_string()
    }

    /// The golden model in a directory of its own, with its weights changed.
    fn with_weights(change: impl FnOnce(&mut Vec<u8>)) -> Result<Model, ModelError> {
        let directory = tempfile::tempdir().expect("temporary directory");
        std::fs::copy(golden("llama").join("config.json"), directory.path().join("config.json"))
            .expect("a copy");
        let mut bytes = std::fs::read(golden("llama").join("model.safetensors")).expect("golden file");
        change(&mut bytes);
        std::fs::write(directory.path().join("model.safetensors"), bytes).expect("a copy");
        let model = Model::open(directory.path())?;
        let config = model.config();
        let all = crate::model::tests::everything(config);
        model.load(&all, crate::model::Quantisation::Q8, &|_| ())?;
        Ok(model)
    }

    fn replace(bytes: &mut [u8], from: &str, to: &str) {
        assert_eq!(from.len(), to.len(), "the header keeps its length");
        let at =
            bytes.windows(from.len()).position(|window| window == from.as_bytes()).expect("in the header");
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
    }

    #[test]
    fn headers_that_lie_are_refused_by_name() {
        let entry = |dtype: &str, shape: &str, offsets: &str| {
            format!(r#"{{"w":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#)
        };
        assert!(refused(&entry("F32", "[2]", "[0,8]"), 4).contains("`w`"), "past the end");
        assert!(refused(&entry("F32", "[3]", "[0,8]"), 8).contains("`w`"), "wrong size");
        assert!(refused(&entry("F32", "[2]", "[8,0]"), 8).contains("`w`"), "backwards");
        assert!(refused(&entry("F32", "[2]", "[4,12]"), 12).contains("`w`"), "a gap");
        assert!(refused(&entry("F32", "[4294967296,4294967296,4294967296]", "[0,8]"), 8).contains("`w`"));
        assert!(refused(&entry("F99", "[2]", "[0,8]"), 8).contains("`w`"), "unknown format");
        assert!(refused(&entry("F32", "[-1]", "[0,8]"), 8).contains("`w`"));
        assert!(refused(&entry("F32", "[2]", "[0,18446744073709551615]"), 8).contains("`w`"));
        let two = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#;
        assert!(refused(two, 12).contains("`b`"), "overlap");
        for broken in ["", "{", "[]", "null", "\u{0}", "{\"w\":1}"] {
            assert!(refused(broken, 0).starts_with("test: "), "{broken}");
        }
    }

    #[test]
    fn header_lengths_are_bounded() {
        for (claimed, size) in [(u64::MAX, 1 << 40), (HEADER_BYTES + 1, 1 << 40), (100, 107), (1, 8), (0, 7)]
        {
            assert!(header_length("test", u64::to_le_bytes(claimed), size).is_err(), "{claimed} of {size}");
        }
        assert_eq!(header_length("test", u64::to_le_bytes(100), 108).expect("fits"), 100);
    }

    #[test]
    fn files_cut_short_are_refused() {
        let whole = std::fs::read(golden("llama").join("model.safetensors")).expect("golden file").len();
        for length in [0, 1, 7, 8, 9, 1000, whole - 1] {
            assert!(with_weights(|bytes| bytes.truncate(length)).is_err(), "{length} bytes");
        }
        assert!(with_weights(|_| ()).is_ok());
    }

    #[test]
    fn tensors_that_do_not_fit_the_model_are_named() {
        let error =
            |from: &str, to: &str| with_weights(|bytes| replace(bytes, from, to)).expect_err(to).to_string();
        let missing = error("model.layers.2.mlp.up_proj.weight", "model.layers.2.mlp.xx_proj.weight");
        assert!(
            missing.contains("model.layers.2.mlp.up_proj.weight") && missing.contains("missing"),
            "{missing}"
        );
        let shape = error("\"shape\":[192,96]", "\"shape\":[96,192]");
        assert!(shape.contains("[96, 192]") && shape.contains("[192, 96]"), "{shape}");
        let dtype = with_weights(|bytes| {
            while bytes.windows(5).any(|window| window == b"\"F32\"") {
                replace(bytes, "\"F32\"", "\"I32\"");
            }
        });
        let dtype = dtype.expect_err("integers").to_string();
        assert!(dtype.contains("I32") && dtype.contains("convert"), "{dtype}");
    }

    #[test]
    fn values_that_are_not_finite_are_found() {
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let error = with_weights(|bytes| {
                let end = bytes.len() - 12;
                bytes[end..end + 4].copy_from_slice(&value.to_le_bytes());
            });
            let error = error.expect_err("not finite").to_string();
            assert!(error.contains("not finite at row") && error.contains("model."), "{error}");
        }
    }

    #[test]
    fn an_index_names_files_beside_it_only() {
        let index =
            |file: &str| parse_index(serde_json::json!({"weight_map": {"w": file}}).to_string().as_bytes());
        assert!(index("model-1.safetensors").is_ok());
        for file in [
            "../m.safetensors",
            "/m.safetensors",
            "a/m.safetensors",
            "a\\m.safetensors",
            "m.bin",
            "",
            "C:m.safetensors",
        ] {
            assert!(index(file).is_err(), "{file}");
        }
        assert!(parse_index(b"{}").is_err() && parse_index(b"").is_err());
    }

    proptest! {
        #[test]
        fn random_headers_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), size in any::<u64>()) {
            let _ = parse_header("test", &bytes, size, 0);
            let _ = parse_index(&bytes);
        }

        #[test]
        fn flipped_bits_never_panic(at in 0_usize..200, bit in 0_u8..8) {
            let header = r#"{"a":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]},"b":{"dtype":"BF16","shape":[4],"data_offsets":[8,16]}}"#;
            let mut bytes = file(header, 16);
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            let size = bytes.len() as u64;
            let prefix = *bytes.first_chunk().expect("longer");
            if let Ok(length) = header_length("test", prefix, size) {
                let _ = parse_header("test", &bytes[8..8 + length as usize], size, 0);
            }
        }
    }
}
