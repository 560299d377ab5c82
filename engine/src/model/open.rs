//! A model on disk: opened without reading its weights, loaded by layer range.

use std::{
    path::{Path, PathBuf},
    sync::OnceLock,
};

use super::{
    ModelConfig, Quantisation, Shard, ShardWeights,
    cache::{self, ShardCache},
    config::{self, CONFIG_BYTES},
    defaults::{GenerationDefaults, chat_template, parse_generation},
    demo::{self, Demo},
    error::{ModelError, TensorFault},
    family, gguf, partial,
    places::FETCHED,
    plan::{Layout, Unit},
    read, safetensors,
    table::{Dtype, TensorTable},
    weights::{self, Loaded, Tensors},
};
use crate::tokenizer::{Tokenizer, TokenizerError};

/// Version of the arithmetic that the weights are for; part of every fingerprint.
pub const NUMERICS: &str = "exact/1";

const TOKENIZER_BYTES: u64 = 256 << 20;

/// How far a load is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Stored bytes dealt with.
    pub done: u64,
    /// Stored bytes of the shard.
    pub total: u64,
}

/// Where the tokenizer comes from.
#[derive(Debug)]
enum TokenizerSource {
    File(PathBuf),
    Gguf(PathBuf),
    Embedded(&'static [u8]),
}

/// What a checkpoint consists of.
struct Parts {
    name: String,
    path: Option<PathBuf>,
    config: Vec<u8>,
    generation: Option<Vec<u8>>,
    chat_template: Option<String>,
    table: TensorTable,
    tokenizer: TokenizerSource,
}

/// An opened model. Only headers and settings are in memory.
#[derive(Debug)]
pub struct Model {
    name: String,
    path: Option<PathBuf>,
    pub(super) layout: Layout,
    pub(super) table: TensorTable,
    /// `config.json`; nothing of a GGUF file, whose header has the settings.
    pub(super) settings: Option<Vec<u8>>,
    generation: GenerationDefaults,
    chat_template: Option<String>,
    tokenizer: TokenizerSource,
    cache: Option<ShardCache>,
    /// Of [`Model::rope_leaves`], once they are known.
    pub(super) rope_leaves: OnceLock<Vec<[u8; 32]>>,
}

impl Model {
    /// Opens a GGUF file, a directory with `config.json` and safetensors, or a directory with exactly
    /// one GGUF file.
    ///
    /// # Errors
    /// [`ModelError`] naming the file, field or tensor that is at fault.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let directory = if path.is_dir() { Some(path) } else { path.parent() };
        if directory.is_some_and(|directory| directory.join(FETCHED).exists()) {
            let reason =
                "a node fetches its layers into it, and others are not there (`--fetch` uses it)".into();
            return Err(ModelError::NotAModel { path: path.to_owned(), reason });
        }
        Self::open_fetched(path)
    }

    /// The same, where a node may have fetched only some of the tensors: others read as zeros.
    pub(crate) fn open_fetched(path: &Path) -> Result<Self, ModelError> {
        if path.is_file() {
            return Self::open_gguf(path);
        }
        if path.join("config.json").is_file() {
            return Self::open_checkpoint(path);
        }
        let mut files = gguf_files(path)?;
        match (files.pop(), files.len()) {
            (Some(file), 0) => Self::open_gguf(&file),
            (last, more) => {
                let count = more + usize::from(last.is_some());
                let reason = format!("there is no config.json, and {count} GGUF files instead of one");
                Err(ModelError::NotAModel { path: path.to_owned(), reason })
            }
        }
    }

    fn open_gguf(path: &Path) -> Result<Self, ModelError> {
        let (header, table) = gguf::open(path)?;
        let file = table.files[0].name();
        let layout = gguf::layout(&file, &header, &table)?;
        let text = |key: &str| match header.metadata.get(key) {
            Some(gguf::Value::Text(text)) => Some(text.clone()),
            _ => None,
        };
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        let mut model = Self {
            name: text("general.name").unwrap_or_else(|| stem.into_owned()),
            path: Some(path.to_owned()),
            layout,
            table,
            settings: None,
            generation: GenerationDefaults::default(),
            chat_template: text("tokenizer.chat_template"),
            tokenizer: TokenizerSource::Gguf(path.to_owned()),
            cache: None,
            rope_leaves: OnceLock::new(),
        };
        model.settle()?;
        Ok(model)
    }

    /// The model that is part of the program.
    ///
    /// # Errors
    /// [`ModelError`] if its files do not fit together, which a test rules out.
    pub fn demo() -> Result<Self, ModelError> {
        Self::embedded(&demo::CHAT)
    }

    /// The draft model of [`Model::demo`], with the same tokenizer.
    ///
    /// # Errors
    /// As there.
    pub fn demo_draft() -> Result<Self, ModelError> {
        Self::embedded(&demo::DRAFT)
    }

    fn embedded(model: &Demo) -> Result<Self, ModelError> {
        Self::from_parts(Parts {
            name: model.name.to_owned(),
            path: None,
            config: model.config.to_vec(),
            generation: Some(demo::GENERATION.to_vec()),
            chat_template: chat_template(demo::TOKENIZER_CONFIG),
            table: safetensors::embedded(model.weights)?,
            tokenizer: TokenizerSource::Embedded(demo::TOKENIZER),
        })
    }

    fn open_checkpoint(directory: &Path) -> Result<Self, ModelError> {
        let optional = |name: &str, limit| {
            let path = directory.join(name);
            path.is_file().then(|| read::whole(&path, limit)).transpose()
        };
        let template = match optional("chat_template.jinja", CONFIG_BYTES)? {
            Some(bytes) => String::from_utf8(bytes).ok(),
            None => optional("tokenizer_config.json", TOKENIZER_BYTES)?.as_deref().and_then(chat_template),
        };
        Self::from_parts(Parts {
            name: checkpoint_name(directory),
            path: Some(directory.to_owned()),
            config: read::whole(&directory.join("config.json"), CONFIG_BYTES)?,
            generation: optional("generation_config.json", CONFIG_BYTES)?,
            chat_template: template,
            table: partial::complete(safetensors::open(directory)?, directory)?,
            tokenizer: TokenizerSource::File(directory.join("tokenizer.json")),
        })
    }

    fn from_parts(parts: Parts) -> Result<Self, ModelError> {
        let description = config::describe(&parts.config)?;
        let generation = parts.generation.as_deref().map(parse_generation).transpose()?;
        let mut model = Self {
            name: parts.name,
            path: parts.path,
            layout: Layout { description, naming: &family::CHECKPOINT, interleaved: false },
            table: parts.table,
            settings: Some(parts.config),
            generation: generation.unwrap_or_default(),
            chat_template: parts.chat_template,
            tokenizer: parts.tokenizer,
            cache: None,
            rope_leaves: OnceLock::new(),
        };
        model.settle()?;
        Ok(model)
    }

    /// Checks every tensor against the configuration and takes over the ends of replies.
    fn settle(&mut self) -> Result<(), ModelError> {
        let config = &mut self.layout.description.config;
        for &token in &self.generation.eos {
            if !config.eos.contains(&token) {
                config.eos.push(token);
            }
        }
        config::validate("generation_config.json", config)?;
        for unit in self.layout.units() {
            for item in self.layout.uniform(unit, Quantisation::default()) {
                match self.table.checked(&item.name, &item.shape) {
                    Err(ModelError::Tensor { fault: TensorFault::Missing, .. })
                        if self.table.absent.contains_key(&item.name) => {}
                    checked => drop(checked?),
                }
            }
        }
        Ok(())
    }

    /// Keeps quantised weights in `cache` (see [`ShardCache::of_user`]); the default is to keep none.
    pub fn with_cache(mut self, cache: Option<ShardCache>) -> Self {
        self.cache = cache;
        self
    }

    /// What the forward pass needs to know.
    pub fn config(&self) -> &ModelConfig {
        &self.layout.description.config
    }

    /// Name for people: the directory's, or the one in a GGUF file.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it was opened; `None` for the embedded model.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// Settings the authors suggest.
    pub fn generation(&self) -> &GenerationDefaults {
        &self.generation
    }

    /// The chat template, if the model has one.
    pub fn chat_template(&self) -> Option<&str> {
        self.chat_template.as_deref()
    }

    /// Reads the tokenizer.
    ///
    /// # Errors
    /// [`ModelError::Tokenizer`] if it is missing, broken or has ids beyond the vocabulary.
    pub fn tokenizer(&self) -> Result<Tokenizer, ModelError> {
        let tokenizer = match &self.tokenizer {
            TokenizerSource::File(path) if !path.is_file() => return Err(TokenizerError::Missing.into()),
            TokenizerSource::Embedded(bytes) => Tokenizer::from_json(bytes)?,
            TokenizerSource::File(path) => Tokenizer::from_json(&read::whole(path, TOKENIZER_BYTES)?)?,
            // A node never asks, so the vocabulary is not kept in memory for it.
            TokenizerSource::Gguf(path) => {
                gguf::tokenizer(&self.table.files[0].name(), &gguf::open(path)?.0)?
            }
        };
        Ok(tokenizer.for_model(self.config())?)
    }

    /// What a gateway and a node compare before they work together: a hash over the version of the
    /// numerics, the quantisation, every configuration value that enters the arithmetic, and name,
    /// format (stored and in use) and shape of every tensor. The tokens that begin and end a reply are left out: they
    /// are the gateway's business alone.
    pub fn fingerprint(&self, quantisation: Quantisation) -> [u8; 32] {
        super::fingerprint::of(&self.layout, &self.table, quantisation)
    }

    /// Bytes of each layer's weights in memory.
    pub fn layer_bytes(&self, quantisation: Quantisation) -> Vec<u64> {
        (0..self.config().layers)
            .map(|layer| self.layout.unit_bytes(Unit::Layer(layer), quantisation, &self.table))
            .collect()
    }

    /// Bytes of the embedding in memory.
    pub fn embedding_bytes(&self, quantisation: Quantisation) -> u64 {
        self.layout.unit_bytes(Unit::Embedding, quantisation, &self.table)
    }

    /// Bytes of the final norm and the head in memory (of a tied one: where it stands without the
    /// embedding).
    pub fn head_bytes(&self, quantisation: Quantisation) -> u64 {
        let head = if self.config().tied { Unit::Embedding } else { Unit::Head };
        self.layout.unit_bytes(Unit::FinalNorm, quantisation, &self.table)
            + self.layout.unit_bytes(head, quantisation, &self.table)
    }

    /// Number of weights. A tied head is counted once.
    pub fn parameters(&self) -> u64 {
        let items =
            self.layout.units().into_iter().flat_map(|unit| self.layout.uniform(unit, Quantisation::F32));
        items.map(|item| item.shape.iter().map(|&n| n as u64).product::<u64>()).sum()
    }

    /// Bytes in the files: of the embedding, of each layer, of the final norm and the head together.
    /// Tensors that are not here count as nothing.
    pub fn stored_bytes(&self) -> (u64, Vec<u64>, u64) {
        let of = |unit: Unit| -> u64 {
            let items = self.layout.uniform(unit, Quantisation::F32);
            items.iter().filter_map(|item| self.table.tensors.get(&item.name)).map(|info| info.bytes).sum()
        };
        let head = if self.config().tied { 0 } else { of(Unit::Head) };
        let layers = (0..self.config().layers).map(|layer| of(Unit::Layer(layer))).collect();
        (of(Unit::Embedding), layers, of(Unit::FinalNorm) + head)
    }

    /// Formats of the stored matrices, each once.
    pub fn stored_formats(&self) -> Vec<Dtype> {
        let mut formats = Vec::new();
        for info in self.table.tensors.values().filter(|info| info.shape.len() == 2) {
            if !formats.contains(&info.dtype) {
                formats.push(info.dtype);
            }
        }
        formats
    }

    /// Reads and quantises the weights of `shard`. Only its bytes are read.
    ///
    /// # Errors
    /// [`ModelError::Layers`] for a range the model does not have, [`ModelError::Tensor`] for a tensor
    /// that is missing or has a value that is not finite, [`ModelError::Io`].
    pub fn load(
        &self,
        shard: &Shard,
        quantisation: Quantisation,
        progress: &dyn Fn(Progress),
    ) -> Result<ShardWeights, ModelError> {
        let (config, parts) = (self.config(), self.layout.description.parts);
        let (start, end) = (shard.layers.start, shard.layers.end);
        if start > end || end > config.layers {
            return Err(ModelError::Layers { start, end, layers: config.layers });
        }
        let apart = shard.head && !(config.tied && shard.embedding);
        let head = if config.tied { Unit::Embedding } else { Unit::Head };
        let units = self.layout.units_of(shard);
        let mut loading = Loading { model: self, quantisation, progress, done: 0, total: 0 };
        for &unit in &units {
            loading.total += loading.stored_bytes(unit)?;
        }
        Ok(ShardWeights {
            embedding: shard
                .embedding
                .then(|| loading.unit(Unit::Embedding))
                .transpose()?
                .map(|mut t| t.matrix()),
            layers: shard
                .layers
                .clone()
                .map(|layer| Ok(loading.unit(Unit::Layer(layer))?.layer(config, parts)))
                .collect::<Result<_, ModelError>>()?,
            final_norm: shard
                .head
                .then(|| loading.unit(Unit::FinalNorm))
                .transpose()?
                .map(|mut t| t.norm(config)),
            head: apart.then(|| loading.unit(head)).transpose()?.map(|mut t| t.linear(false)),
        })
    }

    pub(super) fn load_unit(
        &self,
        unit: Unit,
        quantisation: Quantisation,
        seen: &mut dyn FnMut(&[u8]),
    ) -> Result<Vec<Loaded>, ModelError> {
        let items = self.layout.placed(unit, quantisation, &self.table)?;
        match &self.cache {
            Some(cache) if cache::worthwhile(&self.table, &items) => cache.load(&self.table, &items, seen),
            _ => weights::load(&self.table, &items, seen),
        }
    }
}

/// A load under way.
struct Loading<'a> {
    model: &'a Model,
    quantisation: Quantisation,
    progress: &'a dyn Fn(Progress),
    done: u64,
    total: u64,
}

impl Loading<'_> {
    fn stored_bytes(&self, unit: Unit) -> Result<u64, ModelError> {
        let items = self.model.layout.placed(unit, self.quantisation, &self.model.table)?;
        Ok(items.iter().map(|(_, info)| info.bytes).sum())
    }

    fn unit(&mut self, unit: Unit) -> Result<Tensors, ModelError> {
        let (total, progress) = (self.total, self.progress);
        let end = self.done + self.stored_bytes(unit)?;
        let loaded = self.model.load_unit(unit, self.quantisation, &mut |bytes| {
            self.done += bytes.len() as u64;
            progress(Progress { done: self.done, total });
        })?;
        if self.done < end {
            self.done = end;
            progress(Progress { done: end, total });
        }
        Ok(Tensors::new(loaded))
    }
}

/// The GGUF files of a directory.
fn gguf_files(directory: &Path) -> Result<Vec<PathBuf>, ModelError> {
    let fail = |error| ModelError::io(directory, error);
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(fail)? {
        let path = entry.map_err(fail)?.path();
        if path.extension().is_some_and(|extension| extension == "gguf") && path.is_file() {
            files.push(path);
        }
    }
    Ok(files)
}

/// A hub cache names its directories `models--owner--name/snapshots/<revision>`.
fn checkpoint_name(directory: &Path) -> String {
    let full = directory.canonicalize().unwrap_or_else(|_| directory.to_owned());
    let component = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
    let hub = full
        .parent()
        .filter(|parent| parent.file_name().is_some_and(|name| name == "snapshots"))
        .and_then(|snapshots| {
            component(snapshots.parent()?)?.strip_prefix("models--").map(|name| name.replace("--", "/"))
        });
    hub.or_else(|| component(&full)).unwrap_or_else(|| "model".to_owned())
}
