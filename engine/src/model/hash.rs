//! The model hash: what the chain's registry, commitments and receipts mean by a model.
//!
//! It is taken over canonical weights, so it does not depend on how files are laid out: safetensors in any
//! number of shards and GGUF give the same hash where their canonical tensors are equal. The tree, from below:
//!
//! - a segment of 256 values of one row, with row and segment number, is a leaf: what a dispute opens;
//! - leaves form a row, rows a tensor, the description and the tensors a unit;
//! - the units (embedding, each layer, final norm with head) are the model's layers, which
//!   [`ledger::model::Model`] joins with the numerics version, the tokenizer and the position encoding.

use std::{num::NonZero, thread};

use kernels::{
    backend::Profile,
    rope::RopeTable,
    tensor::{Format, GROUP, SEGMENT, WeightMatrix},
};
use ledger::{
    eip712::{keccak, keccak_each},
    merkle,
    model::Model as Contents,
};
use serde::Serialize;

use super::{
    Model, ModelError, Progress, Quantisation,
    places::Place,
    plan::{Item, Unit},
    weights::{self, Loaded},
};
use crate::tokenizer::TokenizerError;

/// [`super::NUMERICS`] as the chain numbers it.
const NUMERICS_VERSION: u32 = 1;
/// Positions whose rotations stand for the position encoding.
const ROPE_POSITIONS: usize = 1 << 17;

/// The hash of a model at a quantisation, and what it is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelHash {
    /// The model hash.
    pub hash: [u8; 32],
    /// What it stands for.
    pub contents: Contents,
}

/// The model hash and the leaves below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HashTree {
    /// The model hash.
    pub(crate) root: ModelHash,
    /// Leaves of the tensors: of the embedding, of each layer, of final norm with head.
    pub(crate) tensors: Vec<Vec<[u8; 32]>>,
}

/// [`ModelHash`] in hexadecimal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HashReport {
    /// How the weights are held.
    pub quantisation: Quantisation,
    /// The model hash.
    pub hash: String,
    /// Version of the arithmetic.
    pub numerics: u32,
    /// Of the bytes that each token id stands for; zeros without a tokenizer.
    pub tokenizer: String,
    /// Of the position encoding.
    pub rope: String,
    /// Of the embedding, each layer, and final norm with head.
    pub layers: Vec<String>,
}

impl ModelHash {
    /// The hash as people and programs read it.
    pub fn report(&self, quantisation: Quantisation) -> HashReport {
        HashReport {
            quantisation,
            hash: hex::encode(self.hash),
            numerics: self.contents.numerics,
            tokenizer: hex::encode(self.contents.tokenizer),
            rope: hex::encode(self.contents.rope),
            layers: self.contents.layers.iter().map(hex::encode).collect(),
        }
    }
}

impl Model {
    /// Hashes every weight as `quantisation` holds it. One unit (the embedding, a layer, the head) is in
    /// memory at a time. It blocks; `progress` is called from this thread.
    ///
    /// # Errors
    /// As [`Model::load`]; [`ModelError::Tokenizer`] for a tokenizer that is there and broken.
    pub fn hash(
        &self,
        quantisation: Quantisation,
        progress: &dyn Fn(Progress),
    ) -> Result<ModelHash, ModelError> {
        Ok(self.hash_tree(quantisation, progress)?.root)
    }

    /// The hash with the leaves of the tensors under it.
    pub(crate) fn hash_tree(
        &self,
        quantisation: Quantisation,
        progress: &dyn Fn(Progress),
    ) -> Result<HashTree, ModelError> {
        let config = self.config();
        let stored = self.stored_bytes();
        let total = stored.0 + stored.1.iter().sum::<u64>() + stored.2;
        let mut hashing = Hashing { model: self, quantisation, progress, done: 0, total };
        let embedding = hashing.unit(Unit::Embedding)?;
        let mut tensors = vec![embedding.clone()];
        for layer in 0..config.layers {
            tensors.push(hashing.unit(Unit::Layer(layer))?);
        }
        let mut head = hashing.unit(Unit::FinalNorm)?;
        head.extend(if config.tied { embedding } else { hashing.unit(Unit::Head)? });
        tensors.push(head);
        let contents = Contents {
            numerics: NUMERICS_VERSION,
            tokenizer: self.tokenizer_hash()?,
            rope: root(self.rope_leaves()?),
            layers: self.roots(quantisation, &tensors),
        };
        let hash = contents.hash().expect("a model has an embedding and a head at least");
        Ok(HashTree { root: ModelHash { hash, contents }, tensors })
    }

    /// The roots over the leaves of each part's tensors, of which none is empty.
    fn roots(&self, quantisation: Quantisation, tensors: &[Vec<[u8; 32]>]) -> Vec<[u8; 32]> {
        let part = |index| match index {
            0 => Part::Embedding,
            _ if index > self.config().layers => Part::Head,
            _ => Part::Layer(index - 1),
        };
        let root =
            |(index, leaves): (usize, &Vec<_>)| unit_root(&self.describe(part(index), quantisation), leaves);
        tensors.iter().enumerate().map(root).collect()
    }

    /// Whether `tree`, which somebody else made, is that of a model with this one's settings: every leaf is
    /// under the root. That the tensors have these leaves, [`Model::leaf`] shows.
    pub(crate) fn vouches(&self, quantisation: Quantisation, tree: &HashTree) -> Result<bool, ModelError> {
        let contents = &tree.root.contents;
        let (layers, last) = (self.config().layers, self.config().layers + 1);
        let units = self.layout.units();
        let count = |unit: Unit| self.layout.items(unit, quantisation, &self.table).len();
        let counts: Vec<usize> = units[..=layers].iter().map(|&unit| count(unit)).chain([2]).collect();
        let ends_agree = || !self.config().tied || tree.tensors[0].first() == tree.tensors[last].get(1);
        Ok(tree.tensors.iter().map(Vec::len).eq(counts)
            && ends_agree()
            && contents.numerics == NUMERICS_VERSION
            && contents.rope == root(self.rope_leaves()?)
            && contents.layers == self.roots(quantisation, &tree.tensors)
            && contents.hash() == Some(tree.root.hash))
    }

    /// The leaf of one tensor, which is read and quantised.
    pub(crate) fn leaf(&self, place: &Place) -> Result<[u8; 32], ModelError> {
        let items = [(place.item.clone(), &place.info)];
        let loaded = weights::load(&self.table, &items, &mut |_| ())?;
        let tensor = loaded.first().expect("one tensor is loaded for one item");
        Ok(tensor_leaf(&place.item, tensor))
    }

    /// Everything in the configuration that enters the arithmetic of a part.
    pub(super) fn describe(&self, part: Part, quantisation: Quantisation) -> Vec<u8> {
        let config = self.config();
        let mut fields = Fields(b"dolphin/unit/1".to_vec());
        fields.number(match quantisation.profile() {
            Profile::Quantised => 0,
            Profile::F32 => 1,
        });
        fields.size(config.hidden);
        match part {
            Part::Embedding => {
                fields.number(0);
                fields.size(config.vocabulary);
                fields.optional(config.embedding_scale.map(f32::to_bits));
            }
            Part::Layer(layer) => {
                fields.number(1);
                [config.intermediate, config.heads, config.kv_heads, config.head_dim]
                    .into_iter()
                    .for_each(|size| fields.size(size));
                fields.number(config.norm_eps.to_bits().into());
                fields.number(config.attention_scale.to_bits().into());
                fields.optional(config.windows[layer]);
                let parts = self.layout.description.parts;
                [parts.qkv_bias, parts.output_bias, parts.mlp_bias, parts.qk_norm]
                    .into_iter()
                    .for_each(|present| fields.number(present.into()));
            }
            Part::Head => {
                fields.number(2);
                fields.size(config.vocabulary);
                fields.number(config.norm_eps.to_bits().into());
            }
        }
        fields.0
    }

    /// Over the bytes of every token, in the order of the ids: what the ids mean, whatever file says so.
    fn tokenizer_hash(&self) -> Result<[u8; 32], ModelError> {
        let tokenizer = match self.tokenizer() {
            Ok(tokenizer) => tokenizer,
            Err(ModelError::Tokenizer(TokenizerError::Missing)) => return Ok([0; 32]),
            Err(error) => return Err(error),
        };
        let ids = u32::try_from(tokenizer.size()).unwrap_or(u32::MAX);
        let mut bytes = Fields(b"dolphin/tokenizer/1".to_vec());
        for id in 0..ids {
            let token = tokenizer.token_bytes(id);
            bytes.size(token.len());
            bytes.0.extend_from_slice(&token);
        }
        Ok(keccak(&bytes.0))
    }

    /// What the position encoding's hash is the root over: what is rotated, and the rotations themselves,
    /// since a scaling may be written in more than one way. Computed once.
    pub(super) fn rope_leaves(&self) -> Result<&[[u8; 32]], ModelError> {
        if let Some(leaves) = self.rope_leaves.get() {
            return Ok(leaves);
        }
        let config = self.config();
        let positions = ROPE_POSITIONS.min(config.max_positions as usize).max(1);
        let table = RopeTable::new(&config.rope, positions)
            .map_err(|error| ModelError::malformed("the position encoding", error.to_string()))?;
        let reach = config.max_positions as usize;
        let mut leaves = vec![merkle::leaf(&[number(config.rope.dimensions), number(reach)])];
        leaves.extend(keccak_each(positions, |position, leaf| leaf.extend(rotations(&table, position))));
        Ok(self.rope_leaves.get_or_init(|| leaves))
    }
}

/// The leaf of a position: its number, cosines, sines.
pub(super) fn rotations(table: &RopeTable, position: usize) -> Vec<u8> {
    let (cos, sin) = table.at(position);
    let mut leaf = vec![0];
    leaf.extend_from_slice(&(position as u32).to_be_bytes());
    leaf.extend(cos.iter().chain(sin).flat_map(|value| value.to_le_bytes()));
    leaf
}

/// What is described and hashed as one.
#[derive(Clone, Copy)]
pub(super) enum Part {
    Embedding,
    Layer(usize),
    Head,
}

/// Bytes of numbers in order, each of a fixed length.
struct Fields(Vec<u8>);

impl Fields {
    fn number(&mut self, number: u64) {
        self.0.extend_from_slice(&number.to_be_bytes());
    }

    fn size(&mut self, size: usize) {
        self.number(size as u64);
    }

    fn optional(&mut self, value: Option<u32>) {
        self.number(value.is_some().into());
        self.number(value.unwrap_or(0).into());
    }
}

/// A hash under way.
struct Hashing<'a> {
    model: &'a Model,
    quantisation: Quantisation,
    progress: &'a dyn Fn(Progress),
    done: u64,
    total: u64,
}

impl Hashing<'_> {
    /// Leaves of the unit's tensors.
    fn unit(&mut self, unit: Unit) -> Result<Vec<[u8; 32]>, ModelError> {
        let (model, quantisation, total) = (self.model, self.quantisation, self.total);
        let (before, mut seen) = (self.done, 0);
        let loaded = model.load_unit(unit, quantisation, &mut |bytes| {
            seen += bytes.len() as u64;
            (self.progress)(Progress { done: (before + seen).min(total), total });
        })?;
        let items = model.layout.items(unit, quantisation, &model.table);
        let stored = items.iter().filter_map(|item| model.table.tensors.get(&item.name));
        self.done = before + stored.map(|info| info.bytes).sum::<u64>();
        (self.progress)(Progress { done: self.done, total });
        Ok(items.iter().zip(&loaded).map(|(item, tensor)| tensor_leaf(item, tensor)).collect())
    }
}

fn unit_root(description: &[u8], tensors: &[[u8; 32]]) -> [u8; 32] {
    root(&unit_leaves(description, tensors))
}

/// What the root of a unit is taken over: its description and its tensors in the order of the plan.
pub(super) fn unit_leaves(description: &[u8], tensors: &[[u8; 32]]) -> Vec<[u8; 32]> {
    let numbered = tensors.iter().enumerate();
    let mut leaves = vec![merkle::leaf(&[[0; 32], keccak(description)])];
    leaves.extend(numbered.map(|(index, tensor)| merkle::leaf(&[number(index + 1), *tensor])));
    leaves
}

pub(super) fn tensor_leaf(item: &Item, tensor: &Loaded) -> [u8; 32] {
    let (format, root) = match tensor {
        Loaded::Matrix(matrix) => (matrix.format(), root(&matrix_rows(matrix))),
        Loaded::Vector(values) => {
            (Format::F32, root(&segment_leaves(0, &[&vector_bytes(values)], VECTOR_SEGMENT)))
        }
    };
    merkle::leaf(&[keccak(format.name().as_bytes()), number(item.rows()), number(item.columns()), root])
}

/// Bytes of a segment of a vector.
pub(super) const VECTOR_SEGMENT: usize = Format::F32.row_bytes(SEGMENT);

pub(super) fn vector_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// Roots of a matrix's rows, which are hashed on all cores.
pub(super) fn matrix_rows(matrix: &WeightMatrix) -> Vec<[u8; 32]> {
    let segment = matrix.format().row_bytes(SEGMENT.max(GROUP));
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    let share = matrix.rows().div_ceil(cores).max(1);
    let mut rows = vec![[0; 32]; matrix.rows()];
    thread::scope(|scope| {
        for (index, roots) in rows.chunks_mut(share).enumerate() {
            scope.spawn(move || {
                for (block, roots) in roots.chunks_mut(BLOCK_ROWS).enumerate() {
                    let first = index * share + block * BLOCK_ROWS;
                    let rows: Vec<&[u8]> = (first..first + roots.len()).map(|row| matrix.row(row)).collect();
                    let leaves = segment_leaves(first, &rows, segment);
                    roots.copy_from_slice(&merkle::roots(&leaves, leaves.len() / rows.len()));
                }
            });
        }
    });
    rows
}

/// Rows of a matrix that are hashed at once.
const BLOCK_ROWS: usize = 64;

/// The segments of rows of equal length, row after row, of which the first is number `first`. A leaf is never
/// as long as an inner node: its number makes it odd.
pub(super) fn segment_leaves(first: usize, rows: &[&[u8]], segment_bytes: usize) -> Vec<[u8; 32]> {
    let (count, segments) = (rows.len(), rows[0].len().div_ceil(segment_bytes));
    // The last segment may be shorter, so equal ones are hashed next to each other.
    let hashed = keccak_each(count * segments, |index, leaf| {
        let (segment, row) = (index / count, index % count);
        let bytes = &rows[row][segment * segment_bytes..];
        leaf.push(0);
        leaf.extend_from_slice(&((first + row) as u32).to_be_bytes());
        leaf.extend_from_slice(&(segment as u32).to_be_bytes());
        leaf.extend_from_slice(&bytes[..bytes.len().min(segment_bytes)]);
    });
    (0..count * segments).map(|index| hashed[index % segments * count + index / segments]).collect()
}

fn root(leaves: &[[u8; 32]]) -> [u8; 32] {
    merkle::root(leaves).expect("tensors and their rows are not empty")
}

/// A number as an ABI word.
fn number(value: usize) -> [u8; 32] {
    let mut word = [0; 32];
    word[24..].copy_from_slice(&(value as u64).to_be_bytes());
    word
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, fs};

    use super::*;
    use crate::model::tests::golden;

    fn hash(model: &Model, quantisation: Quantisation) -> ModelHash {
        model.hash(quantisation, &|_| ()).expect("hashes")
    }

    #[test]
    fn models_and_quantisations_have_hashes_of_their_own() {
        let mut seen = HashSet::new();
        for name in ["llama", "llama_tied", "llama_yarn", "llama_linear", "mistral", "qwen2", "qwen3"] {
            let model = Model::open(&golden(name)).expect(name);
            for quantisation in [Quantisation::Q8, Quantisation::Q4, Quantisation::F32] {
                let found = hash(&model, quantisation);
                assert_eq!(found.contents.layers.len(), model.config().layers + 2);
                assert!(seen.insert(found.hash), "{name} {quantisation}");
            }
        }
    }

    /// One weight of one layer moves the root of that layer and no other.
    #[test]
    fn a_changed_weight_changes_its_layer_alone() {
        let folder = tempfile::tempdir().expect("a directory");
        for file in ["config.json", "model.safetensors"] {
            fs::copy(golden("llama").join(file), folder.path().join(file)).expect("copied");
        }
        let path = folder.path().join("model.safetensors");
        let mut bytes = fs::read(&path).expect("read");
        let before = hash(&Model::open(folder.path()).expect("opens"), Quantisation::F32);
        let info =
            Model::open(folder.path()).expect("opens").table.tensors["model.layers.3.mlp.down_proj.weight"]
                .clone();
        bytes[info.offset as usize + 400] ^= 1;
        fs::write(&path, bytes).expect("written");
        let after = hash(&Model::open(folder.path()).expect("opens"), Quantisation::F32);
        let differing: Vec<usize> =
            (0..7).filter(|&n| before.contents.layers[n] != after.contents.layers[n]).collect();
        assert_eq!(differing, [4]);
        assert_ne!(before.hash, after.hash);
    }

    /// The same tensors in two files with an index.
    #[test]
    fn the_layout_of_files_does_not_matter() {
        let folder = tempfile::tempdir().expect("a directory");
        fs::copy(golden("qwen3").join("config.json"), folder.path().join("config.json")).expect("copied");
        let bytes = fs::read(golden("qwen3").join("model.safetensors")).expect("read");
        let tensors = ::safetensors::SafeTensors::deserialize(&bytes).expect("golden");
        let mut map = serde_json::Map::new();
        for (part, file) in ["a.safetensors", "b.safetensors"].into_iter().enumerate() {
            let mine = tensors.iter().enumerate().filter(|(index, _)| index % 2 == part);
            let mine: Vec<_> = mine.map(|(_, tensor)| tensor).collect();
            map.extend(mine.iter().map(|(name, _)| ((*name).to_owned(), file.into())));
            let packed = ::safetensors::serialize(mine, None).expect("packs");
            fs::write(folder.path().join(file), packed).expect("written");
        }
        let index = serde_json::json!({ "weight_map": map });
        fs::write(folder.path().join("model.safetensors.index.json"), index.to_string()).expect("written");
        let whole = Model::open(&golden("qwen3")).expect("opens");
        let parts = Model::open(folder.path()).expect("opens");
        assert_eq!(hash(&parts, Quantisation::Q8), hash(&whole, Quantisation::Q8));
    }

    #[test]
    fn gguf_and_safetensors_have_the_same_hash() {
        let checkpoint = Model::open(&golden("stories260K")).expect("opens");
        let gguf = Model::open(&golden("stories260K").join("stories260K-f32.gguf")).expect("opens");
        for quantisation in [Quantisation::Q8, Quantisation::F32] {
            assert_eq!(hash(&gguf, quantisation), hash(&checkpoint, quantisation));
        }
    }

    /// Written down, so that nobody changes what registries hold without noticing.
    #[test]
    fn the_hash_of_the_embedded_model_stays() {
        let model = Model::demo().expect("opens");
        let progress = std::cell::Cell::new(Progress { done: 0, total: 1 });
        let found = model.hash(Quantisation::Q8, &|now| progress.set(now)).expect("hashes");
        assert_eq!(progress.get().done, progress.get().total);
        let expected = "ac476aa7a61662b12c3f131bb3aa8a69c334a30b06239b587b42009a72f7f9f3";
        assert_eq!(hex::encode(found.hash), expected);
    }
}
