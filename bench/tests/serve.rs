//! The serve suite against the embedded demo model: every request is answered and counted.

use bench::{
    cli::{Cli, Suite},
    suites::serve::ServeArgs,
};
use clap::Parser;

fn args(more: &[&str]) -> ServeArgs {
    let line = ["bench", "serve", "--clients", "4", "--requests", "2", "--max-tokens", "12"];
    let cli = Cli::try_parse_from(line.iter().chain(more)).expect("parses");
    let Suite::Serve(args) = cli.suite else { panic!("another suite") };
    args
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_request_of_a_swarm_in_this_process_is_answered() {
    let args = args(&["--nodes", "2", "--prompt-tokens", "20", "--context", "128"]);
    let outcome = args.run().await.expect("starts");
    assert_eq!(outcome.errors, Default::default());
    assert_eq!((outcome.replies.len(), outcome.tokens()), (8, 8 * 12));
    for reply in &outcome.replies {
        assert_eq!((reply.prompt_tokens, reply.tokens), (20, 12));
        assert!(reply.gaps_s.len() < 12, "at most one piece of text for each token");
    }
    let report = serde_json::to_value(outcome.report(&args)).expect("encodes");
    assert_eq!(report["details"]["answered"], 8);
    assert_eq!(report["details"]["failed"], 0);
    assert_eq!(report["details"]["output_tokens"], 96);
    assert_eq!(report["parameters"]["swarm"]["nodes"], 2);
    assert!(report["machine"]["cpu"].is_string());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_requests_are_counted() {
    let args = args(&["--prompt-tokens", "200", "--context", "128"]);
    let outcome = args.run().await.expect("starts");
    assert_eq!((outcome.replies.len(), outcome.failed()), (0, 8));
    assert_eq!(outcome.errors.keys().collect::<Vec<_>>(), ["http 400: context_length_exceeded"]);
    let report = serde_json::to_value(outcome.report(&args)).expect("encodes");
    assert_eq!(report["details"]["errors"]["http 400: context_length_exceeded"], 8);
}

#[tokio::test]
async fn an_endpoint_that_is_not_there_is_an_error() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("http://{}/v1", listener.local_addr().expect("bound"));
    drop(listener);
    assert!(args(&["--url", &url]).run().await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_longer_ring_takes_its_time() {
    let args = args(&["--stages", "3", "--rtt", "0,60", "--bandwidth", "100", "--repetitions", "1"]);
    let report = args.run_simulated().await.expect("starts");
    let figure = |name: &str| report.figures.iter().find(|figure| figure.name == name).expect("there");
    assert_eq!(report.details["errors"], serde_json::json!({}));
    let value = figure("100 Mbit/s, RTT 60 ms: inter-token time, p50").value.expect("measured");
    assert!(value >= 59.0, "{value}");
    let slower = figure("100 Mbit/s, RTT 60 ms: output rate").against.as_ref().expect("beside RTT 0");
    assert!(slower.ratio < 1.0);
}
