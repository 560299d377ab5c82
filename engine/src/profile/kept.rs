//! Profiles on disk: a machine is measured once for each model, format and device.

use std::{fs, path::PathBuf};

use kernels::backend::Backend;
use shard_planner::cluster::Profile;

use super::{Care, ProfileError, measure};
use crate::model::{Model, Quantisation, cache_root};

/// A thorough profile, and whether it was measured before. `fresh` measures again, whatever is kept.
pub fn thorough<B: Backend>(
    model: &Model,
    quantisation: Quantisation,
    backend: B,
    fresh: bool,
) -> Result<(Profile, bool), ProfileError> {
    let path = path(model, quantisation, &backend.describe(), "");
    if let Some(profile) = path.as_ref().filter(|_| !fresh).and_then(read) {
        return Ok((profile, true));
    }
    let profile = measure(model, quantisation, backend, Care::Thorough)?;
    keep(path, &profile);
    Ok((profile, false))
}

/// The profile that is had soonest: a kept one, the thorough first, else one that takes a moment to measure.
pub fn soonest<B: Backend>(
    model: &Model,
    quantisation: Quantisation,
    backend: B,
) -> Result<Profile, ProfileError> {
    let path = |kind| path(model, quantisation, &backend.describe(), kind);
    let glance = path("-glance");
    let kept = path("").as_ref().and_then(read).or_else(|| glance.as_ref().and_then(read));
    if let Some(profile) = kept {
        return Ok(profile);
    }
    let profile = measure(model, quantisation, backend, Care::Glance)?;
    keep(glance, &profile);
    Ok(profile)
}

fn read(path: &PathBuf) -> Option<Profile> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

fn keep(path: Option<PathBuf>, profile: &Profile) {
    let (Some(path), Ok(text)) = (path, serde_json::to_string(profile)) else { return };
    let kept = path.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| fs::write(&path, text));
    if let Err(error) = kept {
        tracing::warn!("{}: the profile is not kept: {error}", path.display());
    }
}

/// Where a profile is kept: by what was measured, on what.
fn path(model: &Model, quantisation: Quantisation, device: &str, kind: &str) -> Option<PathBuf> {
    let mut name = blake3::Hasher::new();
    name.update(&model.fingerprint(quantisation)).update(device.as_bytes());
    let name = &name.finalize().to_hex()[..32];
    cache_root().map(|root| root.join("profiles").join(format!("{name}{kind}.json")))
}
