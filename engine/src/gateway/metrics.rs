//! What the gateway counts, as Prometheus text.

use std::sync::Arc;
use std::time::{Duration, Instant};

use metrics::{
    Counter, Gauge, Histogram, Key, KeyName, Label, Level, Metadata, Recorder, SharedString, Unit,
};
use metrics_exporter_prometheus::{BuildError, PrometheusBuilder, PrometheusRecorder};
use transport::quic::nat::RelayStatus;

const SECONDS: [f64; 16] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];
const METADATA: Metadata<'static> = Metadata::new(module_path!(), Level::INFO, None);

const REQUESTS: &str = "dolphin_gateway_requests_total";
const ERRORS: &str = "dolphin_gateway_errors_total";
const REPLY_FAILURES: &str = "dolphin_gateway_reply_failures_total";
const IN_FLIGHT: &str = "dolphin_gateway_requests_in_flight";
const PROMPT_TOKENS: &str = "dolphin_gateway_prompt_tokens_total";
const COMPLETION_TOKENS: &str = "dolphin_gateway_completion_tokens_total";
const FIRST_TOKEN: &str = "dolphin_gateway_time_to_first_token_seconds";
const BETWEEN_TOKENS: &str = "dolphin_gateway_inter_token_seconds";
const REPLANS: &str = "dolphin_gateway_replans_total";
const RESUMED: &str = "dolphin_gateway_resumed_total";
const SPENT: &str = "dolphin_gateway_spent_pod";
const EARNED: &str = "dolphin_node_earned_pod";
const COLLECTED: &str = "dolphin_node_collected_pod";
const MOVES: &str = "dolphin_gateway_moves_total";
const RELAYED: &str = "dolphin_gateway_relayed_bytes_total";
const RELAY_DROPPED: &str = "dolphin_gateway_relay_dropped_bytes_total";
const RELAYED_PAIRS: &str = "dolphin_gateway_relayed_pairs";
const DURATION: &str = "dolphin_gateway_response_start_seconds";

/// The gateway's measurements; clones share them.
#[derive(Clone)]
pub struct Metrics {
    recorder: Arc<PrometheusRecorder>,
    in_flight: Gauge,
    prompt_tokens: Counter,
    completion_tokens: Counter,
    replans: Counter,
    resumed: Counter,
    spent: Gauge,
    first_token: Histogram,
    between_tokens: Histogram,
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Metrics {
    /// Measurements of their own; nothing is registered globally.
    pub fn new() -> Result<Self, BuildError> {
        let recorder = Arc::new(PrometheusBuilder::new().set_buckets(&SECONDS)?.build_recorder());
        describe(&recorder);
        Ok(Self {
            in_flight: recorder.register_gauge(&Key::from_static_name(IN_FLIGHT), &METADATA),
            prompt_tokens: recorder.register_counter(&Key::from_static_name(PROMPT_TOKENS), &METADATA),
            completion_tokens: recorder
                .register_counter(&Key::from_static_name(COMPLETION_TOKENS), &METADATA),
            replans: recorder.register_counter(&Key::from_static_name(REPLANS), &METADATA),
            resumed: recorder.register_counter(&Key::from_static_name(RESUMED), &METADATA),
            spent: recorder.register_gauge(&Key::from_static_name(SPENT), &METADATA),
            first_token: recorder.register_histogram(&Key::from_static_name(FIRST_TOKEN), &METADATA),
            between_tokens: recorder.register_histogram(&Key::from_static_name(BETWEEN_TOKENS), &METADATA),
            recorder,
        })
    }

    /// The recorder behind `/metrics`. A binary may install it globally, so that measurements of
    /// other parts, made with the macros of `metrics`, appear there too.
    pub fn recorder(&self) -> Arc<PrometheusRecorder> {
        self.recorder.clone()
    }

    /// All measurements as Prometheus text.
    pub fn render(&self) -> String {
        self.recorder.handle().render()
    }

    /// Folds what was recorded since the last call into the histograms; to be called every few
    /// seconds, or recordings pile up until someone asks for `/metrics`.
    pub(super) fn upkeep(&self) {
        self.recorder.handle().run_upkeep();
    }

    pub(super) fn request(&self, route: &'static str, status: u16, took: Duration) {
        let labels = vec![label("route", route), Label::new("status", status.to_string())];
        self.recorder.register_counter(&Key::from_parts(REQUESTS, labels), &METADATA).increment(1);
        let key = Key::from_parts(DURATION, vec![label("route", route)]);
        self.recorder.register_histogram(&key, &METADATA).record(took.as_secs_f64());
    }

    pub(super) fn error(&self, code: &'static str) {
        self.count(ERRORS, code);
    }

    pub(super) fn reply_failed(&self, code: &'static str) {
        self.count(REPLY_FAILURES, code);
    }

    fn count(&self, name: &'static str, code: &'static str) {
        let key = Key::from_parts(name, vec![label("code", code)]);
        self.recorder.register_counter(&key, &METADATA).increment(1);
    }

    /// The pipeline had to change so many times more.
    pub(crate) fn replanned(&self, times: u64) {
        self.replans.increment(times);
    }

    /// Replies went on over another route so many times more.
    pub(crate) fn resumed(&self, times: u64) {
        self.resumed.increment(times);
    }

    /// Vouchers were signed for so many wei of POD in all.
    pub(crate) fn spent(&self, wei: u128) {
        self.spent.set(wei as f64 / crate::payment::ONE_POD as f64);
    }

    /// A node of this process has earned so many wei of POD, of which so many were paid on the chain.
    pub(crate) fn earned(&self, node: &str, vouched: u128, collected: u128) {
        for (name, wei) in [(EARNED, vouched), (COLLECTED, collected)] {
            let key = Key::from_parts(name, vec![Label::new("node", node.to_owned())]);
            let pod = wei as f64 / crate::payment::ONE_POD as f64;
            self.recorder.register_gauge(&key, &METADATA).set(pod);
        }
    }

    /// So many nodes more have come to hold other layers, and so many more have not.
    pub(crate) fn moved(&self, done: u64, failed: u64) {
        for (outcome, times) in [("done", done), ("failed", failed)] {
            let key = Key::from_parts(MOVES, vec![label("outcome", outcome)]);
            self.recorder.register_counter(&key, &METADATA).increment(times);
        }
    }

    /// The relay stands so.
    pub(super) fn relay(&self, status: &RelayStatus) {
        for (name, bytes) in [(RELAYED, status.relayed_bytes), (RELAY_DROPPED, status.dropped_bytes)] {
            self.recorder.register_counter(&Key::from_static_name(name), &METADATA).absolute(bytes);
        }
        let pairs = self.recorder.register_gauge(&Key::from_static_name(RELAYED_PAIRS), &METADATA);
        pairs.set(status.pairs.len() as f64);
    }

    pub(super) fn prompt(&self, tokens: u64) {
        self.prompt_tokens.increment(tokens);
    }

    /// A token of a request that came at `started`; `last` is when its reply's previous one came.
    pub(super) fn token(&self, started: Instant, last: Option<Instant>) {
        self.completion_tokens.increment(1);
        match last {
            None => self.first_token.record(started.elapsed().as_secs_f64()),
            Some(last) => self.between_tokens.record(last.elapsed().as_secs_f64()),
        }
    }

    pub(super) fn in_flight(&self) -> InFlight {
        self.in_flight.increment(1.0);
        InFlight(self.in_flight.clone())
    }
}

/// Counts a request as running for as long as it lives.
pub(super) struct InFlight(Gauge);

impl std::fmt::Debug for InFlight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("InFlight")
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

fn label(name: &'static str, value: &'static str) -> Label {
    Label::from_static_parts(name, value)
}

fn describe(recorder: &PrometheusRecorder) {
    let counter = |name: &'static str, text: &'static str| {
        recorder.describe_counter(KeyName::from(name), None, SharedString::from(text));
    };
    let seconds = |name: &'static str, text: &'static str| {
        recorder.describe_histogram(KeyName::from(name), Some(Unit::Seconds), SharedString::from(text));
    };
    counter(REQUESTS, "HTTP requests by route and status.");
    counter(ERRORS, "Requests answered with an error, by its code.");
    counter(REPLY_FAILURES, "Accepted requests whose reply broke off, by the error's code.");
    counter(PROMPT_TOKENS, "Tokens of accepted prompts.");
    counter(COMPLETION_TOKENS, "Tokens received from the pipeline.");
    counter(MOVES, "Nodes told to hold other layers, by whether they came to.");
    counter(REPLANS, "Changes of the pipeline that serves, because nodes came, left or slowed.");
    counter(RESUMED, "Replies that went on over another route, because a node was lost.");
    counter(RELAYED, "Bytes that the gateway sent on between nodes; it received them as well.");
    counter(RELAY_DROPPED, "Bytes between nodes that were over the relay's limit.");
    seconds(FIRST_TOKEN, "From the arrival of a request to the first token of a reply.");
    seconds(BETWEEN_TOKENS, "Between two tokens of a reply.");
    seconds(DURATION, "From the arrival of a request to the head of its response.");
    let gauge = |name: &'static str, text: &'static str| {
        recorder.describe_gauge(KeyName::from(name), None, SharedString::from(text));
    };
    gauge(IN_FLIGHT, "Requests with a running reply.");
    gauge(SPENT, "POD that vouchers were signed for, of the plans that are remembered.");
    gauge(EARNED, "POD that a node of this process holds vouchers for, of the plans that it remembers.");
    gauge(COLLECTED, "POD of them that were paid on the chain.");
    gauge(RELAYED_PAIRS, "Pairs of nodes whose link goes through the gateway.");
}
