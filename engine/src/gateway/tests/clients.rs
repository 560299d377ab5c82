//! OpenAI's own clients against a gateway over an invented model. Needs Python, Node and their
//! package registries, hence ignored: `cargo test -p engine --lib clients -- --ignored`.

use std::process::Command;

use tokio::sync::mpsc;

use super::support::*;
use crate::gateway::GatewayConfig;
use crate::request::{Event, Finish, Generation, Logprobs, Request, Submission};

/// Logits of the 258 tokens: some preference among the letters, little for all else.
fn logits(request: &Request, reply: &[u32]) -> Vec<f32> {
    let mut hasher = blake3::Hasher::new();
    for token in request.prompt.iter().chain(reply) {
        hasher.update(&token.to_le_bytes());
    }
    let mut noise = [0; 27];
    hasher.finalize_xof().fill(&mut noise);
    let mut logits = vec![-40.0; 258];
    for (letter, noise) in b"abcdefghijklmnopqrstuvwxyz ".iter().zip(noise) {
        logits[usize::from(*letter)] = f32::from(noise) / 32.0;
    }
    logits
}

fn gumbel(request: &Request, position: usize, token: usize) -> f32 {
    let sampling = &request.sampling;
    let key = format!("{} {} {position} {token}", sampling.seed, sampling.choice);
    let bytes = *blake3::hash(key.as_bytes()).as_bytes();
    let uniform = (f32::from(u16::from_le_bytes([bytes[0], bytes[1]])) + 0.5) / 65536.0;
    -(-uniform.ln()).ln()
}

fn draw(request: &Request, reply: &[u32]) -> Event {
    let sampling = &request.sampling;
    let plain = logits(request, reply);
    let mut scores = plain.clone();
    for (token, bias) in &sampling.logit_bias {
        scores[*token as usize] += bias;
    }
    if sampling.temperature > 0.0 {
        for (token, score) in scores.iter_mut().enumerate() {
            *score = *score / sampling.temperature + gumbel(request, reply.len(), token);
        }
    }
    let heaviest = |a: &usize, b: &usize| scores[*a].total_cmp(&scores[*b]).then(b.cmp(a));
    let token = (0..scores.len()).max_by(heaviest).unwrap();
    let logprobs = sampling.logprobs.map(|count| {
        let total: f32 = plain.iter().map(|logit| logit.exp()).sum();
        let mut order: Vec<u32> = (0..258).collect();
        order.sort_by(|a, b| plain[*b as usize].total_cmp(&plain[*a as usize]).then(a.cmp(b)));
        let logprob = |token: u32| (plain[token as usize].exp() / total).ln();
        let top = order.into_iter().take(count.into()).map(|token| (token, logprob(token))).collect();
        Logprobs { chosen: logprob(token as u32), top }
    });
    Event::Token { token: token as u32, logprobs }
}

async fn run(request: Request, events: mpsc::Sender<Event>) {
    let mut reply = Vec::new();
    while reply.len() < request.max_tokens as usize {
        let event = draw(&request, &reply);
        let Event::Token { token, .. } = event else { return };
        reply.push(token);
        if events.send(event).await.is_err() {
            return;
        }
        if request.stop_tokens.contains(&token) {
            let _ = events.send(Event::Finished(Finish::Stop)).await;
            return;
        }
    }
    let _ = events.send(Event::Finished(Finish::Length)).await;
}

async fn invented(mut submissions: mpsc::Receiver<Submission>) {
    while let Some(Submission { request, reply }) = submissions.recv().await {
        let (sender, events) = mpsc::channel(4);
        if reply.send(Ok(Generation { events, receipt: None, price: 0 })).is_ok() {
            tokio::spawn(run(request, sender));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Python, Node and their package registries"]
async fn openai_s_clients_pass() {
    let key = "sk-client-tests";
    let (fixture, submissions) = start(GatewayConfig { api_keys: vec![key.to_owned()], ..config() }).await;
    tokio::spawn(invented(submissions));
    let url = fixture.url("");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/run.sh");
    let status = tokio::task::spawn_blocking(move || Command::new(script).args([&url, key]).status());
    assert!(status.await.unwrap().unwrap().success());
}
