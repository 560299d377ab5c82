//! Some layers of a checkpoint: headers first, then the bytes of the tensors that are needed, as one
//! valid safetensors file with a note about the rest.

use std::{collections::BTreeMap, fs, ops::Range};

use serde_json::{Map, json};

use super::{
    PullError, SINGLE, Session,
    fetch::{self, Job, Piece},
    hub::Remote,
    write_json,
};
use crate::model::{
    ModelError, TensorFault, TensorInfo,
    partial::{self, NOTE, Note, Stored},
    safetensors,
};

impl Session<'_, '_> {
    /// Fetches `layers` out of the safetensors files `names`.
    pub(super) async fn part(&mut self, names: &[String], layers: Range<usize>) -> Result<(), PullError> {
        let path = self.directory().join("config.json");
        let config = fs::read(&path).map_err(|error| PullError::disk(&path, error))?;
        let needed = partial::needed(&config, &layers)?;
        let (mut remotes, mut tensors) = (Vec::new(), BTreeMap::new());
        for name in names {
            let remote = self.hub.examine(name, self.report).await?;
            tensors.extend(self.header(&remote, remotes.len()).await?);
            remotes.push(remote);
        }
        let mut wanted = Vec::new();
        for (name, shape) in &needed {
            let fail = |fault| ModelError::tensor(&names.join(", "), name, fault);
            let info = tensors.get(name).ok_or_else(|| fail(TensorFault::Missing))?;
            if info.shape != *shape {
                let (expected, actual) = (shape.clone(), info.shape.clone());
                return Err(fail(TensorFault::Shape { expected, actual }).into());
            }
            wanted.push((name.as_str(), info));
        }
        wanted.sort_by_key(|(_, info)| (info.file, info.offset));
        let note = Note {
            repository: self.request.reference.repository.clone(),
            revision: self.hub.commit().to_owned(),
            layers,
            tensors: tensors.iter().map(|(name, info)| (name.clone(), stored(info))).collect(),
        };
        // The note comes first: weights without it would look like a broken checkpoint.
        write_json(self.directory(), NOTE, &note)?;
        self.assemble(&remotes, &wanted).await
    }

    async fn header(
        &mut self,
        remote: &Remote,
        index: usize,
    ) -> Result<BTreeMap<String, TensorInfo>, PullError> {
        let prefix = self.hub.read(remote, 0, 8, self.report).await?;
        let prefix = prefix.first_chunk().copied().unwrap_or_default();
        let length = safetensors::header_length(&remote.name, prefix, remote.bytes)?;
        let header = self.hub.read(remote, 8, length as usize, self.report).await?;
        Ok(safetensors::parse_header(&remote.name, &header, remote.bytes, index)?)
    }

    async fn assemble(
        &mut self,
        remotes: &[Remote],
        wanted: &[(&str, &TensorInfo)],
    ) -> Result<(), PullError> {
        let prefix = header_bytes(wanted);
        let pieces = pieces(wanted);
        let tags: Vec<&str> = remotes.iter().map(|remote| remote.tag.as_str()).collect();
        let tag = blake3::hash(format!("{tags:?} {pieces:?}").as_bytes()).to_hex().to_string();
        let bytes = prefix.len() as u64 + wanted.iter().map(|(_, info)| info.bytes).sum::<u64>();
        if !self.is_complete(SINGLE, bytes, &tag) {
            let remotes: Vec<&Remote> = remotes.iter().collect();
            let (prefix, pieces, remotes) = (&prefix[..], &pieces[..], &remotes[..]);
            let job = Job { name: SINGLE, prefix, pieces, remotes, sha256: None, tag: &tag };
            fetch::run(&self.hub, self.request, &job, self.report).await?;
        }
        self.record(SINGLE, bytes, &tag)
    }
}

fn stored(info: &TensorInfo) -> Stored {
    Stored { dtype: info.dtype.to_string(), shape: info.shape.clone() }
}

/// Length prefix and header of a file that holds the tensors one after the other.
fn header_bytes(wanted: &[(&str, &TensorInfo)]) -> Vec<u8> {
    let mut header = Map::new();
    let mut end = 0;
    for (name, info) in wanted {
        let start = end;
        end += info.bytes;
        let entry =
            json!({"dtype": info.dtype.to_string(), "shape": info.shape, "data_offsets": [start, end]});
        header.insert((*name).to_owned(), entry);
    }
    let mut text = serde_json::Value::Object(header).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    [&(text.len() as u64).to_le_bytes()[..], &text].concat()
}

/// The tensors' bytes, neighbours together.
fn pieces(wanted: &[(&str, &TensorInfo)]) -> Vec<Piece> {
    let mut pieces: Vec<Piece> = Vec::new();
    for (_, info) in wanted {
        let range = info.offset..info.offset + info.bytes;
        match pieces.last_mut().filter(|last| last.remote == info.file && last.range.end == range.start) {
            Some(last) => last.range.end = range.end,
            None => pieces.push(Piece { remote: info.file, range }),
        }
    }
    pieces
}
