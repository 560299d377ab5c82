//! Rounds of a beacon, from servers with drand's HTTP interface. What they say is checked against the deployment's
//! key, so it does not matter who they are: the first right answer counts, and one that lies or hangs costs a wait.

use std::time::Duration;

use futures::{StreamExt, stream::FuturesUnordered};
use ledger::{
    beacon::{Clock, is_round},
    client::BeaconParameters,
};
use reqwest::{Client, Url, redirect::Policy};
use serde::{Deserialize, de::DeserializeOwned};
use thiserror::Error;

/// Servers of drand's network `evmnet`.
pub const EVMNET: [&str; 3] = [
    "https://api.drand.sh/04f1e9062b8a81f848fded9c12306733282b2727ecced50032187751166ec8c3",
    "https://api2.drand.sh/04f1e9062b8a81f848fded9c12306733282b2727ecced50032187751166ec8c3",
    "https://api3.drand.sh/04f1e9062b8a81f848fded9c12306733282b2727ecced50032187751166ec8c3",
];
/// How long one server is waited for.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Longest answer that is read.
const LONGEST: usize = 64 << 10;
/// Most servers.
const MOST_SERVERS: usize = 16;

/// Why there is no round.
#[derive(Debug, Error)]
pub enum DrandError {
    /// The configuration names a server that is none.
    #[error("a beacon's URL must begin with http:// or https://, and there are 1 to {MOST_SERVERS}")]
    Url,
    /// The system gives no connections.
    #[error("no connections: {0}")]
    Client(reqwest::Error),
    /// A server does not answer, or not as drand does.
    #[error("{host}: {reason}")]
    Server {
        /// Which.
        host: String,
        /// What is wrong.
        reason: String,
    },
    /// A server is of another network than the deployment's.
    #[error("{0} serves another network than the one that draws here")]
    OtherNetwork(String),
    /// A server's signature is none of the network.
    #[error("{0} gives a round that the network did not sign")]
    Forged(String),
}

/// See the module.
#[derive(Debug)]
pub struct Drand {
    http: Client,
    servers: Vec<Url>,
    network: BeaconParameters,
}

#[derive(Deserialize)]
struct Info {
    public_key: String,
    period: u64,
    genesis_time: u64,
}

#[derive(Deserialize)]
struct Round {
    round: u64,
    signature: String,
}

impl Drand {
    /// Asks servers, with the network's path where they have several, for rounds of a deployment's network.
    ///
    /// # Errors
    /// [`DrandError::Url`], [`DrandError::Client`].
    pub fn new(servers: &[String], network: BeaconParameters) -> Result<Self, DrandError> {
        let read = |text: &String| {
            let url = Url::parse(text.trim_end_matches('/')).ok();
            url.filter(|url| matches!(url.scheme(), "http" | "https")).ok_or(DrandError::Url)
        };
        let servers = servers.iter().map(read).collect::<Result<Vec<_>, _>>()?;
        if servers.is_empty() || servers.len() > MOST_SERVERS {
            return Err(DrandError::Url);
        }
        let client = Client::builder().timeout(TIMEOUT).redirect(Policy::none());
        let all_here =
            servers.iter().all(|url| matches!(url.host_str(), Some("localhost" | "127.0.0.1" | "[::1]")));
        let client = if all_here { client.no_proxy() } else { client };
        Ok(Self { http: client.build().map_err(DrandError::Client)?, servers, network })
    }

    /// When rounds are made.
    pub fn clock(&self) -> Clock {
        Clock { genesis: self.network.genesis, period: self.network.period }
    }

    /// What is wrong with each server: nothing where it serves the deployment's network.
    pub async fn check(&self) -> Vec<Result<(), DrandError>> {
        futures::future::join_all(self.servers.iter().map(|server| self.check_one(server))).await
    }

    async fn check_one(&self, server: &Url) -> Result<(), DrandError> {
        let Info { public_key, period, genesis_time } = self.ask(server, "info").await?;
        let same = hex::decode(public_key).is_ok_and(|key| key == self.network.key)
            && (period, genesis_time) == (self.network.period, self.network.genesis);
        if same { Ok(()) } else { Err(DrandError::OtherNetwork(host(server))) }
    }

    /// The signature of a round, of which [`is_round`] holds, from the first server that has it.
    ///
    /// # Errors
    /// What the last of them said, if none has it.
    pub async fn round(&self, round: u64) -> Result<[u8; 64], DrandError> {
        let mut asked: FuturesUnordered<_> =
            self.servers.iter().map(|server| self.round_of(server, round)).collect();
        let mut last = DrandError::Url;
        while let Some(answer) = asked.next().await {
            match answer {
                Ok(signature) => return Ok(signature),
                Err(error) => {
                    tracing::debug!(%error, round, "a beacon does not help");
                    last = error;
                }
            }
        }
        Err(last)
    }

    async fn round_of(&self, server: &Url, round: u64) -> Result<[u8; 64], DrandError> {
        let answer: Round = self.ask(server, &format!("public/{round}")).await?;
        let mut signature = [0; 64];
        let forged = || DrandError::Forged(host(server));
        if answer.round != round || hex::decode_to_slice(&answer.signature, &mut signature).is_err() {
            return Err(forged());
        }
        let key = self.network.key;
        let right = tokio::task::spawn_blocking(move || is_round(&key, round, &signature)).await;
        if right.unwrap_or(false) { Ok(signature) } else { Err(forged()) }
    }

    async fn ask<T: DeserializeOwned>(&self, server: &Url, path: &str) -> Result<T, DrandError> {
        let failed = |reason: String| DrandError::Server { host: host(server), reason };
        let lost = |error: reqwest::Error| failed(error.without_url().to_string());
        // A path may follow the host already, which joining would replace.
        let url = format!("{}/{path}", server.as_str().trim_end_matches('/'));
        let mut response = self.http.get(url).send().await.map_err(lost)?;
        if !response.status().is_success() {
            return Err(failed(format!("status {}", response.status().as_u16())));
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(lost)? {
            if body.len() + chunk.len() > LONGEST {
                return Err(failed(format!("more than {LONGEST} bytes")));
            }
            body.extend_from_slice(&chunk);
        }
        serde_json::from_slice(&body).map_err(|_| failed("no answer of drand's kind".into()))
    }
}

/// As much of a URL as may be shown: some hold a key.
fn host(url: &Url) -> String {
    url.host_str().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use axum::{Router, extract::Path, routing::get};
    use ledger::{
        beacon::Secret,
        client::{Action, AuditAction},
    };
    use serde_json::json;
    use tokio::{net::TcpListener, task::JoinSet};

    use super::*;
    use crate::payment::embedded::Embedded;

    const ROUND: u64 = 9;

    fn network() -> BeaconParameters {
        BeaconParameters { key: Secret::from_seed(&[7; 32]).public_key(), genesis: 1000, period: 3 }
    }

    /// Serves `body` for everything below `/net`.
    async fn server(
        tasks: &mut JoinSet<()>,
        body: impl Fn(&str) -> String + Clone + Send + Sync + 'static,
    ) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/net/", listener.local_addr().unwrap());
        let answer = move |Path(path): Path<String>| std::future::ready(body(&path));
        let router = Router::new().route("/net/{*path}", get(answer));
        tasks.spawn(async move { axum::serve(listener, router).await.unwrap() });
        url
    }

    fn signed(seed: u8, round: u64) -> String {
        let signature = hex::encode(Secret::from_seed(&[seed; 32]).sign(round));
        json!({"round": round, "randomness": "00", "signature": signature}).to_string()
    }

    fn honest(path: &str) -> String {
        match path {
            "info" => {
                let BeaconParameters { key, genesis, period } = network();
                let key = hex::encode(key);
                json!({"public_key": key, "genesis_time": genesis, "period": period}).to_string()
            }
            _ => signed(7, ROUND),
        }
    }

    /// One that takes connections and says nothing.
    async fn silent() -> (TcpListener, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        (listener, url)
    }

    #[tokio::test]
    async fn the_first_right_answer_counts_whatever_others_say() {
        let mut tasks = JoinSet::new();
        let (_open, hangs) = silent().await;
        let mut urls = vec![hangs];
        urls.push(server(&mut tasks, |_| signed(8, ROUND)).await);
        urls.push(server(&mut tasks, |_| signed(7, ROUND + 1)).await);
        urls.push(server(&mut tasks, |_| "x".repeat(LONGEST + 1)).await);
        urls.push(server(&mut tasks, |_| "{\"round\":9,\"signature\":\"zz\"}".into()).await);
        let liars = Drand::new(&urls[1..], network()).unwrap();
        assert!(liars.round(ROUND).await.is_err());
        urls.push(server(&mut tasks, honest).await);
        let drand = Drand::new(&urls, network()).unwrap();
        assert_eq!(drand.round(ROUND).await.unwrap(), Secret::from_seed(&[7; 32]).sign(ROUND));
    }

    #[tokio::test]
    async fn servers_of_another_network_are_told() {
        let mut tasks = JoinSet::new();
        let urls = [server(&mut tasks, honest).await, server(&mut tasks, |_| "[]".into()).await];
        let checked = Drand::new(&urls, network()).unwrap().check().await;
        assert!(matches!(checked[..], [Ok(()), Err(DrandError::Server { .. })]), "{checked:?}");
        let other = BeaconParameters { period: 4, ..network() };
        let checked = Drand::new(&urls[..1], other).unwrap().check().await;
        assert!(matches!(checked[..], [Err(DrandError::OtherNetwork(_))]), "{checked:?}");
    }

    /// The chain of `dolphin chain` and `dolphin up` draws by itself.
    #[tokio::test(flavor = "multi_thread")]
    async fn an_embedded_chain_serves_the_rounds_that_its_contracts_take() {
        let chain = Embedded::start(None, ([127, 0, 0, 1], 0).into()).await.unwrap();
        let network = chain.ledger().beacon().await.unwrap();
        let drand = Drand::new(&[chain.url()], network.clone()).unwrap();
        assert!(matches!(drand.check().await[..], [Ok(())]));
        let signature = drand.round(1).await.unwrap();
        assert!(is_round(&network.key, 1, &signature));
        let action = AuditAction::SubmitRound { round: 1, signature };
        chain.ledger().submit(Action::Audit(Box::new(action))).await.unwrap();
        assert!(drand.round(1 << 40).await.is_err());
    }

    #[test]
    fn servers_are_urls() {
        for wrong in ["drand", "ftp://127.0.0.1"] {
            assert!(Drand::new(&[wrong.to_owned()], network()).is_err());
        }
        assert!(Drand::new(&[], network()).is_err());
        assert!(Drand::new(&EVMNET.map(str::to_owned), network()).is_ok());
    }
}
