//! What a giver says of a model before any weights: its hashes, its settings, and the heads of its files.

use serde::{Deserialize, Serialize};

use crate::{
    message::MAX_LAYERS,
    model::{HashTree, Model, ModelError, ModelHash, Quantisation, plain_name},
};

/// Longest encoding of a catalogue; the header of a GGUF file with its vocabulary is some MiB.
pub(super) const CATALOGUE_BYTES: u64 = 64 << 20;
/// Most files, and longest.
const FILES: usize = 4096;
const FILE_BYTES: u64 = 1 << 44;

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Catalogue {
    /// How the weights are held that the hashes are of.
    pub(super) quantisation: Quantisation,
    numerics: u32,
    tokenizer: [u8; 32],
    rope: [u8; 32],
    layers: Vec<[u8; 32]>,
    tensors: Vec<Vec<[u8; 32]>>,
    /// `config.json`, where there is one.
    pub(super) settings: Option<Vec<u8>>,
    pub(super) files: Vec<Entry>,
}

/// A file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) bytes: u64,
    /// Bytes of it at offsets: header, and tensors that are settings.
    pub(super) heads: Vec<(u64, Vec<u8>)>,
}

impl Catalogue {
    /// The encoded catalogue of `model`, whose hashes `tree` has.
    ///
    /// # Errors
    /// If the heads of the files cannot be read, or are too long.
    pub(super) fn of(
        model: &Model,
        quantisation: Quantisation,
        tree: HashTree,
    ) -> Result<Vec<u8>, ModelError> {
        let HashTree { root: ModelHash { contents, .. }, tensors } = tree;
        let entry =
            |head: crate::model::FileHead| Entry { name: head.name, bytes: head.bytes, heads: head.heads };
        let catalogue = Self {
            quantisation,
            numerics: contents.numerics,
            tokenizer: contents.tokenizer,
            rope: contents.rope,
            layers: contents.layers,
            tensors,
            settings: model.settings().map(<[u8]>::to_vec),
            files: model.file_heads()?.into_iter().map(entry).collect(),
        };
        let encoded = postcard::to_allocvec(&catalogue).expect("a catalogue holds numbers and bytes alone");
        if encoded.len() as u64 > CATALOGUE_BYTES {
            return Err(ModelError::malformed(model.name(), "has headers too long to be given"));
        }
        Ok(encoded)
    }

    /// Reads what a giver sent, and checks that it can be written down.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, &'static str> {
        let (catalogue, rest) =
            postcard::take_from_bytes::<Self>(bytes).map_err(|_| "a catalogue that is none")?;
        let known =
            |name: &str| plain_name(name) && (name.ends_with(".safetensors") || name.ends_with(".gguf"));
        let mut names: Vec<&str> = catalogue.files.iter().map(|file| file.name.as_str()).collect();
        names.sort_unstable();
        let within = |file: &Entry| {
            let end = |(offset, bytes): &(u64, Vec<u8>)| offset.checked_add(bytes.len() as u64);
            file.bytes <= FILE_BYTES
                && file.heads.iter().all(|head| end(head).is_some_and(|end| end <= file.bytes))
        };
        match () {
            () if !rest.is_empty() => Err("a catalogue with something after it"),
            () if names.is_empty() || names.len() > FILES => Err("a catalogue of no files, or of too many"),
            () if !names.iter().all(|name| known(name)) => {
                Err("a file with a name that is not one of weights")
            }
            () if names.windows(2).any(|pair| pair[0] == pair[1]) => Err("a file twice"),
            () if !catalogue.files.iter().all(within) => {
                Err("a file that is too long, or shorter than its head")
            }
            () if catalogue.layers.len() > MAX_LAYERS + 2 => Err("more layers than a model may have"),
            () => Ok(catalogue),
        }
    }

    /// The hashes; the root is what the others come to.
    pub(super) fn tree(&self) -> Option<HashTree> {
        let contents = ledger::model::Model {
            numerics: self.numerics,
            tokenizer: self.tokenizer,
            rope: self.rope,
            layers: self.layers.clone(),
        };
        let hash = contents.hash()?;
        Some(HashTree { root: ModelHash { hash, contents }, tensors: self.tensors.clone() })
    }

    /// The index that a checkpoint in several files is opened with.
    pub(super) fn index(&self) -> Option<Vec<u8>> {
        let single = matches!(&self.files[..], [only] if only.name == "model.safetensors" || only.name.ends_with(".gguf"));
        if single {
            return None;
        }
        // Which tensor is where, the files say; the index has to name each file once.
        let files = self.files.iter();
        let map: serde_json::Map<String, serde_json::Value> =
            files.filter_map(|file| Some((first_tensor(file)?, file.name.clone().into()))).collect();
        Some(serde_json::json!({ "weight_map": map }).to_string().into_bytes())
    }
}

/// Name of a tensor of a safetensors file.
fn first_tensor(file: &Entry) -> Option<String> {
    let header = file.heads.first()?.1.get(8..)?;
    let header: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(header).ok()?;
    header.keys().find(|name| *name != "__metadata__").cloned()
}
