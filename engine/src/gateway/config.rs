//! What the gateway is told at start: its limits and the model it serves.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use transport::quic::nat::NatView;

use super::params::SamplingDefaults;
use super::templates::ChatTemplate;
use crate::audit::store::ReceiptStore;
use crate::tokenizer::Tokenizer;

/// Addresses, keys and limits. The defaults suit one machine with a handful of callers.
#[derive(Clone)]
pub struct GatewayConfig {
    /// Where to listen; port 0 lets the system choose.
    pub listen: SocketAddr,
    /// Accepted keys; empty admits everybody.
    pub api_keys: Vec<String>,
    /// Origins whose pages may call the gateway; `*` admits all.
    pub cors_origins: Vec<String>,
    /// Further names of the model.
    pub aliases: Vec<String>,
    /// Largest request body.
    pub max_body_bytes: usize,
    /// Longest prompt, below the model's context if less.
    pub max_prompt_tokens: u32,
    /// Longest chat reply when the caller does not say.
    pub default_max_tokens: u32,
    /// Most replies of one request, over all its prompts.
    pub max_choices: u32,
    /// Most requests at once, streams included; more are answered with 429.
    pub max_concurrent: usize,
    /// Most open connections; more wait in the system's queue.
    pub max_connections: usize,
    /// From the arrival of a request to its last token.
    pub request_deadline: Duration,
    /// Longest wait for the head of a request, also on an idle connection.
    pub header_timeout: Duration,
    /// Longest wait for the body of a request.
    pub body_timeout: Duration,
    /// Longest wait for a client to take what was written.
    pub write_timeout: Duration,
    /// Between two comments on a stream that has nothing to say.
    pub keep_alive: Duration,
    /// What running replies get to finish once the gateway is told to stop.
    pub drain_timeout: Duration,
    /// Receipts of replies, if there are any.
    pub receipts: Option<Arc<ReceiptStore>>,
    /// What the gateway relays between nodes, if it introduces them.
    pub nat: Option<NatView>,
}

impl Default for GatewayConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)),
            api_keys: Vec::new(),
            cors_origins: Vec::new(),
            aliases: Vec::new(),
            max_body_bytes: 4 << 20,
            max_prompt_tokens: u32::MAX,
            default_max_tokens: 4096,
            max_choices: 64,
            max_concurrent: 256,
            max_connections: 4096,
            request_deadline: Duration::from_secs(600),
            header_timeout: Duration::from_secs(30),
            body_timeout: Duration::from_secs(60),
            write_timeout: Duration::from_secs(30),
            keep_alive: Duration::from_secs(15),
            drain_timeout: Duration::from_secs(30),
            receipts: None,
            nat: None,
        }
    }
}

/// Keys never reach a log.
impl std::fmt::Debug for GatewayConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GatewayConfig")
            .field("listen", &self.listen)
            .field("api_keys", &self.api_keys.len())
            .finish_non_exhaustive()
    }
}

/// The model behind the endpoint.
#[derive(Clone, Debug)]
pub struct ServedModel {
    /// Its name in requests and responses.
    pub id: String,
    /// When it was made, in seconds since 1970.
    pub created: u64,
    /// What `system_fingerprint` says: equal fingerprints and seeds give equal replies.
    pub fingerprint: String,
    /// Positions a session may have, prompt and reply together.
    pub context: u32,
    /// Its tokenizer.
    pub tokenizer: Arc<Tokenizer>,
    /// Renders messages to a prompt.
    pub template: ChatTemplate,
    /// Tokens that end a reply.
    pub eos_ids: Vec<u32>,
    /// Sampling for requests that do not say.
    pub sampling_defaults: SamplingDefaults,
}
