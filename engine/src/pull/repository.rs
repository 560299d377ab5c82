//! Ranges of a repository's files, for those who know which bytes they want.

use std::{collections::HashMap, fmt, io, ops::Range};

use bytes::Bytes;
use futures::{StreamExt, stream::BoxStream};
use tokio::sync::Mutex;

use super::{
    Event, Pull, PullError,
    hub::{Hub, Patience, Remote},
};

/// A repository at a commit.
pub struct Repository {
    hub: Hub,
    name: String,
    /// Those that were looked at.
    files: Mutex<HashMap<String, Remote>>,
}

impl fmt::Debug for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Repository").field(&self.name).finish()
    }
}

fn log(event: Event<'_>) {
    if let Event::Waiting { file, delay, error } = event {
        tracing::info!(file, ?delay, %error, "waiting for the hub");
    }
}

impl Repository {
    /// Finds the repository that `request` names.
    ///
    /// # Errors
    /// [`PullError`].
    pub async fn open(request: &Pull) -> Result<Self, PullError> {
        let (hub, _) = Hub::connect(request, &mut log).await?;
        Ok(Self { hub, name: request.reference.to_string(), files: Mutex::default() })
    }

    async fn remote(&self, file: &str) -> Result<Remote, PullError> {
        let mut files = self.files.lock().await;
        if let Some(remote) = files.get(file) {
            return Ok(remote.clone());
        }
        let remote = self.hub.examine(file, &mut log).await?;
        files.insert(file.to_owned(), remote.clone());
        Ok(remote)
    }

    /// Reads the bytes of a `range` of a file that has `bytes`.
    ///
    /// # Errors
    /// If the file is another, or the hub fails for good.
    pub(crate) async fn read(
        &self,
        (file, bytes): (&str, u64),
        range: Range<u64>,
    ) -> Result<Reading<'_>, PullError> {
        let remote = self.remote(file).await?;
        if remote.bytes != bytes || range.end > bytes {
            return Err(PullError::protocol(file, "the hub has another file of this name"));
        }
        Ok(Reading { hub: &self.hub, remote, range, body: None, patience: self.hub.patience() })
    }
}

/// Bytes on their way, which go on where they were when the network fails.
pub(crate) struct Reading<'a> {
    hub: &'a Hub,
    remote: Remote,
    /// What is to come.
    range: Range<u64>,
    body: Option<BoxStream<'static, reqwest::Result<Bytes>>>,
    patience: Patience,
}

impl Reading<'_> {
    /// The next bytes, if there are any.
    ///
    /// # Errors
    /// If the hub fails for good.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, PullError> {
        while !self.range.is_empty() {
            match self.try_next().await {
                Ok(piece) => {
                    self.range.start += piece.len() as u64;
                    self.patience.renew(self.hub);
                    return Ok(Some(piece));
                }
                Err(error) => {
                    self.body = None;
                    self.patience.wait(&self.remote.name, error, &mut log).await?;
                }
            }
        }
        Ok(None)
    }

    async fn try_next(&mut self) -> Result<Bytes, PullError> {
        let (name, Range { start, end }) = (&self.remote.name, self.range.clone());
        let body = match &mut self.body {
            Some(body) => body,
            None => {
                let (response, at) = self.hub.open(&self.remote, start, end).await?;
                if at != start {
                    return Err(PullError::protocol(name, "the hub does not send ranges"));
                }
                self.body.insert(response.bytes_stream().boxed())
            }
        };
        match body.next().await {
            Some(Ok(piece)) if piece.len() as u64 > end - start => {
                Err(PullError::protocol(name, "the hub sent more than was asked for"))
            }
            Some(Ok(piece)) => Ok(piece),
            Some(Err(error)) => Err(PullError::network(name, &error)),
            None => Err(PullError::network(name, &io::Error::other("the answer ended early"))),
        }
    }
}
