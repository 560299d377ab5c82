//! Tensors from a hub that has the files which the gateway describes: ranges of them, checked as whatever comes from
//! nodes is.

use std::{collections::HashSet, sync::PoisonError};

use bytes::BytesMut;
use futures::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tokio::time::{Instant, sleep_until};

use super::{
    fetch::FetchError,
    gather::{Gathering, Job},
};
use crate::{model::Place, pull::Repository};

/// Jobs at once: a new request takes a round trip or more.
const JOBS: usize = 4;
/// Bytes that are written at once.
const WRITTEN_BYTES: usize = 256 << 10;

/// Tensors that follow one another in a file.
struct Run {
    /// Number of the file.
    file: u32,
    places: Vec<Place>,
    /// The first byte that is asked for, and the first one after.
    start: u64,
    end: u64,
}

impl Gathering<'_> {
    /// Fetches `jobs` from `hub`, and gives those back of which it has not everything.
    ///
    /// # Errors
    /// What is ours.
    pub(super) async fn ask_hub(&self, hub: &Repository, jobs: Vec<Job>) -> Result<Vec<Job>, FetchError> {
        type Pulling<'a> = BoxFuture<'a, (Job, Result<(), FetchError>)>;
        let (mut open, mut left) = (jobs.into_iter(), Vec::new());
        let mut working: FuturesUnordered<Pulling<'_>> = FuturesUnordered::new();
        loop {
            while working.len() < JOBS
                && let Some(job) = open.next()
            {
                working.push(Box::pin(async move {
                    let result = self.pull(hub, &job).await;
                    (job, result)
                }));
            }
            let Some((mut job, result)) = working.next().await else { return Ok(left) };
            let Err(error) = result else { continue };
            if error.is_ours() {
                return Err(error);
            }
            tracing::warn!(%error, "the hub did not bring weights");
            let held = self.held();
            job.places.retain(|place| !held.is_verified(place));
            left.push(job);
            // Nodes and gateways are asked for the rest.
            left.extend(open.by_ref());
        }
    }

    async fn pull(&self, hub: &Repository, job: &Job) -> Result<(), FetchError> {
        let resumed = self.resumed(job);
        for run in self.runs(job) {
            self.pull_run(hub, run, &resumed).await?;
        }
        Ok(())
    }

    /// Tensors of which a part is here.
    pub(super) fn resumed(&self, job: &Job) -> HashSet<String> {
        let held = self.held();
        let begun = job.places.iter().filter(|place| held.begun(place) > 0);
        begun.map(|place| place.name().to_owned()).collect()
    }

    fn runs(&self, job: &Job) -> Vec<Run> {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let mut runs: Vec<Run> = Vec::new();
        for place in &job.places {
            let ((file, first), (_, _, bytes)) = (self.mirror.spot(place), place.range());
            // The last byte shows whether all are right, so it is asked for even if all are here.
            let start = first + held.begun(place).min(bytes.saturating_sub(1));
            match runs.last_mut().filter(|run| (run.file, run.end) == (file, start)) {
                Some(run) => {
                    run.places.push(place.clone());
                    run.end = first + bytes;
                }
                None => runs.push(Run { file, places: vec![place.clone()], start, end: first + bytes }),
            }
        }
        runs
    }

    async fn pull_run(
        &self,
        hub: &Repository,
        run: Run,
        resumed: &HashSet<String>,
    ) -> Result<(), FetchError> {
        let Run { file, places, start, end } = run;
        let (mut places, mut at, mut waiting) = (places.iter().peekable(), start, BytesMut::new());
        let mut reading = hub.read(self.mirror.file(file), start..end).await?;
        while let Some(piece) = reading.next().await? {
            let ready = {
                let mut pace = self.pace.lock().unwrap_or_else(PoisonError::into_inner);
                pace.take(piece.len() as u32, Instant::now())
            };
            sleep_until(ready).await;
            waiting.extend_from_slice(&piece);
            while let Some(place) = places.peek() {
                let (_, first, bytes) = place.range();
                let rest = first + bytes - at;
                let length = rest.min(waiting.len() as u64) as usize;
                let last = length as u64 == rest;
                if !last && length < WRITTEN_BYTES {
                    break;
                }
                let body = waiting.split_to(length).freeze();
                if !self.keep(place, (at - first, last), body).await? {
                    let tensor = place.name().to_owned();
                    return Err(match resumed.contains(&tensor) {
                        true => FetchError::Stale { tensor },
                        false => FetchError::Elsewhere { tensor },
                    });
                }
                at += length as u64;
                if last {
                    places.next();
                }
            }
        }
        Ok(())
    }
}
