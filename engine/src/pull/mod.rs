//! `dolphin pull`: a model from a hub of the Hugging Face kind, whole or some layers of it.
//!
//! A file is written under a name of its own and renamed once its size and, where the hub states
//! one, its SHA-256 are right. What was fetched before an interruption is not fetched again. The
//! library reports [`Event`]s and prints nothing.

mod error;
mod fetch;
mod hub;
mod part;
mod repository;

use std::{
    collections::BTreeMap,
    env, fmt, fs,
    ops::Range,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use serde::{Deserialize, Serialize};

pub use self::{error::PullError, repository::Repository};
use self::{
    fetch::{Job, Piece},
    hub::{Hub, Remote},
};
use crate::model::{cache_root, plain_name, safetensors};

/// Files beside the weights that are fetched where the repository has them.
const SIDE_FILES: [&str; 6] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
];
const INDEX: &str = "model.safetensors.index.json";
const SINGLE: &str = "model.safetensors";
/// Says which remote file each local one is.
const MANIFEST: &str = "dolphin-pull.json";

/// A repository and revision, written `owner/name` or `owner/name@revision`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// `owner/name`.
    pub repository: String,
    /// Branch, tag or commit.
    pub revision: String,
}

impl FromStr for Reference {
    type Err = PullError;

    fn from_str(text: &str) -> Result<Self, PullError> {
        let (repository, revision) = text.split_once('@').unwrap_or((text, "main"));
        let parts: Vec<&str> = repository.split('/').collect();
        let allowed = |text: &str| {
            let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
            !text.is_empty() && text.len() <= 200 && text.chars().all(plain) && text.trim_matches('.') == text
        };
        if parts.len() > 2 || !parts.into_iter().all(allowed) || !revision.split('/').all(allowed) {
            return Err(PullError::Reference { given: text.chars().take(200).collect() });
        }
        Ok(Self { repository: repository.to_owned(), revision: revision.to_owned() })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}@{}", self.repository, self.revision)
    }
}

/// What is to be fetched, and how patiently.
#[derive(Clone, Debug)]
pub struct Pull {
    /// What.
    pub reference: Reference,
    /// Where to; made if it is not there.
    pub directory: PathBuf,
    /// Only these layers (the first brings the embedding, the last the head).
    pub layers: Option<Range<usize>>,
    /// Which GGUF file, if the repository has several.
    pub file: Option<String>,
    /// Base address of the hub.
    pub endpoint: String,
    /// Access token.
    pub token: Option<String>,
    /// Attempts in a row that may fail without a byte of progress.
    pub attempts: u32,
    /// Wait after the first failure; doubles up to half a minute.
    pub first_delay: Duration,
    /// Most bytes in a second.
    pub bandwidth: Option<u64>,
}

impl Pull {
    /// The usual settings: `HF_ENDPOINT` and `HF_TOKEN` (or the token that the hub's own tools have
    /// stored), and `models/` in Dolphin's cache as the place.
    ///
    /// # Errors
    /// [`PullError::NoDirectory`] if there is no cache directory and none is given.
    pub fn new(reference: Reference, directory: Option<PathBuf>) -> Result<Self, PullError> {
        let set = |name| env::var(name).ok().filter(|value: &String| !value.is_empty());
        let place = || {
            let models = cache_root().ok_or(PullError::NoDirectory)?.join("models");
            Ok::<_, PullError>(models.join(reference.repository.replace('/', "--")))
        };
        Ok(Self {
            directory: directory.map_or_else(place, Ok)?,
            reference,
            layers: None,
            file: None,
            endpoint: set("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned()),
            token: set("HF_TOKEN").or_else(|| hf_hub::Cache::from_env().token()),
            attempts: 6,
            first_delay: Duration::from_millis(500),
            bandwidth: None,
        })
    }
}

/// What happens during a pull.
#[derive(Debug)]
pub enum Event<'a> {
    /// A file is begun, or taken up where it was left.
    Started {
        /// File name.
        file: &'a str,
        /// Its size.
        bytes: u64,
        /// Bytes of it that are here already.
        present: u64,
    },
    /// Bytes have come.
    Advanced {
        /// File name.
        file: &'a str,
        /// Bytes of it that are here now.
        done: u64,
    },
    /// An attempt failed; another follows.
    Waiting {
        /// File name.
        file: &'a str,
        /// How long until then.
        delay: Duration,
        /// Why.
        error: &'a PullError,
    },
    /// A file is complete and checked (or was here already).
    Finished {
        /// File name.
        file: &'a str,
    },
}

/// A finished pull.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pulled {
    /// Where the model is: what to open.
    pub path: PathBuf,
    /// The commit that the revision stood for.
    pub commit: String,
    /// Files that make up the model.
    pub files: Vec<String>,
}

/// Receives the events of a pull.
pub type Report<'a> = dyn FnMut(Event<'_>) + Send + 'a;

/// Which remote files are here.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Manifest {
    repository: String,
    revision: String,
    files: BTreeMap<String, Recorded>,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Recorded {
    bytes: u64,
    tag: String,
}

/// Fetches a model.
///
/// # Errors
/// [`PullError`] saying whether the caller, the hub, the network or the disk is at fault. After an
/// error of the network or the disk the same call goes on where this one ended.
pub async fn pull(request: &Pull, report: &mut Report<'_>) -> Result<Pulled, PullError> {
    let (hub, names) = Hub::connect(request, report).await?;
    fs::create_dir_all(&request.directory).map_err(|error| PullError::disk(&request.directory, error))?;
    let mut session = Session { request, hub, manifest: Manifest::default(), files: Vec::new(), report };
    session.read_manifest();
    let path = match weights(request, &names)? {
        Weights::Gguf(_) if request.layers.is_some() => return Err(PullError::PartialGguf),
        Weights::Gguf(file) => {
            session.file(&file).await?;
            request.directory.join(file)
        }
        kind => {
            for name in SIDE_FILES.iter().filter(|name| names.iter().any(|other| other == *name)) {
                session.file(name).await?;
            }
            session.checkpoint(matches!(kind, Weights::Index)).await?;
            request.directory.clone()
        }
    };
    Ok(Pulled { path, commit: session.hub.commit().to_owned(), files: session.files })
}

enum Weights {
    Single,
    Index,
    Gguf(String),
}

/// What of the listed files are the weights.
fn weights(request: &Pull, names: &[String]) -> Result<Weights, PullError> {
    let has = |name: &str| names.iter().any(|other| other == name);
    if let Some(file) = &request.file {
        let fits = plain_name(file) && file.ends_with(".gguf") && has(file);
        return if fits {
            Ok(Weights::Gguf(file.clone()))
        } else {
            Err(PullError::NoFile { file: file.clone() })
        };
    }
    if has(SINGLE) {
        return Ok(Weights::Single);
    }
    if has(INDEX) {
        return Ok(Weights::Index);
    }
    let mut gguf = names.iter().filter(|name| name.ends_with(".gguf") && plain_name(name));
    match (gguf.next(), gguf.next()) {
        (Some(only), None) => Ok(Weights::Gguf(only.clone())),
        (None, _) => Err(PullError::NoWeights),
        (Some(first), Some(second)) => {
            let all = [first, second].into_iter().chain(gguf).take(50).cloned().collect();
            Err(PullError::SeveralFiles { files: all })
        }
    }
}

/// A pull under way.
struct Session<'a, 'r> {
    request: &'a Pull,
    hub: Hub,
    manifest: Manifest,
    files: Vec<String>,
    report: &'a mut Report<'r>,
}

impl Session<'_, '_> {
    fn directory(&self) -> &Path {
        &self.request.directory
    }

    /// A manifest that is broken or of another repository counts as none: files are then checked anew.
    fn read_manifest(&mut self) {
        let repository = &self.request.reference.repository;
        let read = fs::read(self.directory().join(MANIFEST)).ok();
        let old = read.and_then(|bytes| serde_json::from_slice::<Manifest>(&bytes).ok());
        self.manifest = old.filter(|old| old.repository == *repository).unwrap_or_default();
        self.manifest.repository.clone_from(repository);
        self.manifest.revision = self.hub.commit().to_owned();
    }

    /// Notes that `name` is complete.
    fn record(&mut self, name: &str, bytes: u64, tag: &str) -> Result<(), PullError> {
        self.manifest.files.insert(name.to_owned(), Recorded { bytes, tag: tag.to_owned() });
        write_json(self.directory(), MANIFEST, &self.manifest)?;
        self.files.push(name.to_owned());
        (self.report)(Event::Finished { file: name });
        Ok(())
    }

    fn is_complete(&self, name: &str, bytes: u64, tag: &str) -> bool {
        let here =
            fs::metadata(self.directory().join(name)).is_ok_and(|file| file.is_file() && file.len() == bytes);
        here && self.manifest.files.get(name).is_some_and(|file| file.bytes == bytes && file.tag == tag)
    }

    /// Fetches a whole file unless it is here.
    async fn file(&mut self, name: &str) -> Result<(), PullError> {
        let remote = self.hub.examine(name, self.report).await?;
        let Remote { bytes, ref tag, sha256, .. } = remote;
        if !self.is_complete(name, bytes, tag) {
            let piece = Piece { remote: 0, range: 0..bytes };
            let job = Job { name, prefix: &[], pieces: &[piece], remotes: &[&remote], sha256, tag };
            fetch::run(&self.hub, self.request, &job, self.report).await?;
        }
        self.record(name, bytes, tag)
    }

    /// Fetches safetensors, whole files or the layers asked for.
    async fn checkpoint(&mut self, indexed: bool) -> Result<(), PullError> {
        let mut names = vec![SINGLE.to_owned()];
        if indexed {
            self.file(INDEX).await?;
            let path = self.directory().join(INDEX);
            let bytes = fs::read(&path).map_err(|error| PullError::disk(&path, error))?;
            names = safetensors::parse_index(&bytes)?.into_values().collect();
            names.sort_unstable();
            names.dedup();
        }
        if let Some(layers) = self.request.layers.clone() {
            return self.part(&names, layers).await;
        }
        let note = self.directory().join(crate::model::partial::NOTE);
        if note.exists() {
            fs::remove_file(&note).map_err(|error| PullError::disk(&note, error))?;
        }
        for name in names {
            self.file(&name).await?;
        }
        Ok(())
    }
}

/// Writes a small file whole or not at all.
fn write_json(directory: &Path, name: &str, value: &impl Serialize) -> Result<(), PullError> {
    let path = directory.join(name);
    let temporary = directory.join(format!("{name}.tmp"));
    let written = serde_json::to_vec_pretty(value)
        .map_err(std::io::Error::other)
        .and_then(|bytes| fs::write(&temporary, bytes))
        .and_then(|()| fs::rename(&temporary, &path));
    written.map_err(|error| PullError::disk(&path, error))
}

#[cfg(test)]
pub(crate) mod tests;
