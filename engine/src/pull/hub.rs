//! Questions to the hub. The `hf-hub` crate knows its addresses and its listing; requests for bytes are
//! made here, because ranges, resumption and checks by hash are more than it does.

use std::time::Duration;

use futures::StreamExt;
use hf_hub::{
    Repo, RepoType,
    api::tokio::{Api, ApiBuilder, ApiRepo},
};
use reqwest::{Client, Response, StatusCode, Url, header, redirect};
use serde::Deserialize;

use super::{Event, Pull, PullError, Report};

/// Largest listing of a repository.
const LISTING_BYTES: usize = 64 << 20;
const REDIRECTS: u32 = 10;
const LONGEST_WAIT: Duration = Duration::from_secs(30);
const CONNECT: Duration = Duration::from_secs(20);
const SILENCE: Duration = Duration::from_secs(60);

/// A repository at a commit.
pub(super) struct Hub {
    repo: ApiRepo,
    commit: String,
    token: Option<String>,
    /// Stops at redirects, so that the hub's own headers are seen.
    examiner: Client,
    /// Follows them, without the token where they lead to another host.
    fetcher: Client,
    attempts: u32,
    first_delay: Duration,
}

/// A file of the repository.
#[derive(Clone, Debug)]
pub(super) struct Remote {
    pub(super) name: String,
    pub(super) bytes: u64,
    /// What the hub calls this version of it.
    pub(super) tag: String,
    /// Hash of its contents, if that is what the hub calls it.
    pub(super) sha256: Option<[u8; 32]>,
}

#[derive(Deserialize)]
struct Listing {
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
}

/// Counts failures in a row.
pub(super) struct Patience {
    left: u32,
    delay: Duration,
}

impl Hub {
    /// Finds the commit that the revision stands for and the names of its files.
    pub(super) async fn connect(
        request: &Pull,
        report: &mut Report<'_>,
    ) -> Result<(Self, Vec<String>), PullError> {
        let what = request.reference.to_string();
        let fail = |error: &dyn std::error::Error| PullError::protocol(&what, error.to_string());
        let endpoint = request.endpoint.trim_end_matches('/').to_owned();
        Url::parse(&endpoint).map_err(|error| fail(&error))?;
        let builder = ApiBuilder::new().with_endpoint(endpoint).with_token(request.token.clone());
        let api = builder.build().map_err(|error| fail(&error))?;
        let client = |policy| {
            let builder = Client::builder().connect_timeout(CONNECT).read_timeout(SILENCE).redirect(policy);
            builder.user_agent(concat!("dolphin/", env!("CARGO_PKG_VERSION"))).build()
        };
        let mut hub = Self {
            repo: at(&api, request, &request.reference.revision),
            commit: String::new(),
            token: request.token.clone(),
            examiner: client(redirect::Policy::none()).map_err(|error| fail(&error))?,
            fetcher: client(redirect::Policy::limited(REDIRECTS as usize)).map_err(|error| fail(&error))?,
            attempts: request.attempts,
            first_delay: request.first_delay,
        };
        let mut patience = hub.patience();
        let listing = loop {
            match hub.listing(&what).await {
                Ok(listing) => break listing,
                Err(error) => patience.wait(&what, error, report).await?,
            }
        };
        // From here on a commit: a branch may move under a long download.
        if listing.sha.is_empty() || !listing.sha.chars().all(|c| c.is_ascii_alphanumeric()) {
            return Err(PullError::protocol(&what, "the hub names no commit"));
        }
        hub.repo = at(&api, request, &listing.sha);
        hub.commit = listing.sha;
        Ok((hub, listing.siblings.into_iter().map(|sibling| sibling.rfilename).collect()))
    }

    pub(super) fn commit(&self) -> &str {
        &self.commit
    }

    pub(super) fn patience(&self) -> Patience {
        Patience { left: self.attempts, delay: self.first_delay }
    }

    async fn listing(&self, what: &str) -> Result<Listing, PullError> {
        let response = self.repo.info_request().timeout(SILENCE).send().await;
        let response = response.map_err(|error| PullError::network(what, &error))?;
        let body = body(checked(what, response)?, what, LISTING_BYTES).await?;
        serde_json::from_slice(&body)
            .map_err(|error| PullError::protocol(what, format!("the listing: {error}")))
    }

    /// Size and version of a file.
    pub(super) async fn examine(&self, name: &str, report: &mut Report<'_>) -> Result<Remote, PullError> {
        let mut patience = self.patience();
        loop {
            match self.examine_once(name).await {
                Ok(remote) => return Ok(remote),
                Err(error) => patience.wait(name, error, report).await?,
            }
        }
    }

    async fn examine_once(&self, name: &str) -> Result<Remote, PullError> {
        let bad = |reason: &str| PullError::protocol(name, reason);
        let origin = Url::parse(&self.repo.url(name)).map_err(|_| bad("its name makes no address"))?;
        let (mut url, mut tag, mut bytes) = (origin.clone(), None, None);
        for _ in 0..REDIRECTS {
            let mut request = self.examiner.head(url.clone()).header(header::ACCEPT_ENCODING, "identity");
            if let Some(token) = self.token.as_ref().filter(|_| url.origin() == origin.origin()) {
                request = request.bearer_auth(token);
            }
            let response = request.send().await.map_err(|error| PullError::network(name, &error))?;
            let redirected = response.status().is_redirection();
            let response = if redirected { response } else { checked(name, response)? };
            let text = |key: &str| response.headers().get(key).and_then(|value| value.to_str().ok());
            tag = tag.or_else(|| {
                text("x-linked-etag").or_else(|| text("etag").filter(|_| !redirected)).map(str::to_owned)
            });
            let size = text("x-linked-size").or_else(|| text("content-length").filter(|_| !redirected));
            bytes = bytes.or_else(|| size.and_then(|size| size.parse::<u64>().ok()));
            if let (Some(tag), Some(bytes)) = (&tag, bytes) {
                let tag = tag.trim_start_matches("W/").trim_matches('"').to_owned();
                let sha256 = hex::decode(&tag).ok().and_then(|hash| hash.try_into().ok());
                return Ok(Remote { name: name.to_owned(), bytes, tag, sha256 });
            }
            let next = text("location").filter(|_| redirected).and_then(|to| url.join(to).ok());
            url = next.ok_or_else(|| bad("the hub states no size or no version"))?;
        }
        Err(bad("too many redirects"))
    }

    /// Asks for bytes from `start` to `end` of a file; the answer is checked to begin there, or at
    /// the beginning if the server does not do ranges.
    pub(super) async fn open(
        &self,
        remote: &Remote,
        start: u64,
        end: u64,
    ) -> Result<(Response, u64), PullError> {
        let name = &remote.name;
        let mut request = self
            .fetcher
            .get(self.repo.url(name))
            .header(header::ACCEPT_ENCODING, "identity")
            .header(header::RANGE, format!("bytes={start}-{}", end - 1));
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        let response = request.send().await.map_err(|error| PullError::network(name, &error))?;
        let response = checked(name, response)?;
        if response.status() != StatusCode::PARTIAL_CONTENT {
            return Ok((response, 0));
        }
        let range = response.headers().get(header::CONTENT_RANGE).and_then(|value| value.to_str().ok());
        let fits = range.is_some_and(|range| {
            range.starts_with(&format!("bytes {start}-")) && range.ends_with(&format!("/{}", remote.bytes))
        });
        if fits {
            Ok((response, start))
        } else {
            Err(PullError::protocol(name, "the hub sent another range"))
        }
    }

    /// A short range, in memory.
    pub(super) async fn read(
        &self,
        remote: &Remote,
        start: u64,
        length: usize,
        report: &mut Report<'_>,
    ) -> Result<Vec<u8>, PullError> {
        let end = start.saturating_add(length as u64);
        if length == 0 || end > remote.bytes {
            return Err(PullError::protocol(&remote.name, "the file is too short for its header"));
        }
        let mut patience = self.patience();
        loop {
            let read = async {
                let (response, at) = self.open(remote, start, end).await?;
                if at != start {
                    return Err(PullError::protocol(&remote.name, "the hub does not send ranges"));
                }
                let bytes = body(response, &remote.name, length).await?;
                let short = || PullError::network(&remote.name, &std::io::Error::other("cut short"));
                if bytes.len() == length { Ok(bytes) } else { Err(short()) }
            };
            match read.await {
                Ok(bytes) => return Ok(bytes),
                Err(error) => patience.wait(&remote.name, error, report).await?,
            }
        }
    }
}

fn at(api: &Api, request: &Pull, revision: &str) -> ApiRepo {
    let name = request.reference.repository.clone();
    api.repo(Repo::with_revision(name, RepoType::Model, revision.to_owned()))
}

/// The body, if it has at most `limit` bytes.
async fn body(response: Response, what: &str, limit: usize) -> Result<Vec<u8>, PullError> {
    let mut bytes = Vec::new();
    let mut stream = response.bytes_stream();
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.map_err(|error| PullError::network(what, &error))?;
        if bytes.len() + chunk.len() > limit {
            return Err(PullError::protocol(what, format!("the answer is longer than {limit} bytes")));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

fn checked(what: &str, response: Response) -> Result<Response, PullError> {
    let (what, status) = (what.to_owned(), response.status());
    match status {
        _ if status.is_success() => Ok(response),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(PullError::Denied { what, status }),
        StatusCode::NOT_FOUND => Err(PullError::NotFound { what }),
        StatusCode::TOO_MANY_REQUESTS => {
            let seconds = response.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok());
            let retry_after = seconds.and_then(|seconds| seconds.parse().ok()).map(Duration::from_secs);
            Err(PullError::RateLimited { retry_after })
        }
        _ => Err(PullError::Status { what, status }),
    }
}

impl Patience {
    /// Starts counting anew.
    pub(super) fn renew(&mut self, hub: &Hub) {
        *self = hub.patience();
    }

    /// Waits before another attempt, or gives `error` back if there is to be none.
    pub(super) async fn wait(
        &mut self,
        file: &str,
        error: PullError,
        report: &mut Report<'_>,
    ) -> Result<(), PullError> {
        self.left = self.left.saturating_sub(1);
        if self.left == 0 || !error.is_passing() {
            return Err(error);
        }
        let asked = match &error {
            PullError::RateLimited { retry_after } => retry_after.unwrap_or_default(),
            _ => Duration::ZERO,
        };
        let delay = self.delay.max(asked).min(LONGEST_WAIT);
        self.delay = (self.delay * 2).min(LONGEST_WAIT);
        report(Event::Waiting { file, delay, error: &error });
        tokio::time::sleep(delay).await;
        Ok(())
    }
}
