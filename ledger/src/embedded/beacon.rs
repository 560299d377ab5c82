//! Rounds of a network of one key, asked for as drand's are: `/info`, `/public/{round}`, `/public/latest`. A round is
//! told when its time has come, by the chain's clock, and not before.

use axum::{
    Json, Router,
    extract::{Path, State},
    http::{HeaderMap, StatusCode, header},
    routing::get,
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::task::spawn_blocking;

use super::{Chain, server::is_here};
use crate::{
    beacon::{Clock, Secret},
    client::BeaconParameters,
};

/// drand's name for how rounds are signed here.
const SCHEME: &str = "bls-bn254-unchained-on-g1";

/// A network of one key. Who holds it knows all rounds beforehand, and can change none.
#[derive(Clone, Debug)]
pub struct LocalBeacon {
    /// The key.
    pub secret: Secret,
    /// When rounds are made.
    pub clock: Clock,
}

#[derive(Clone)]
struct Rounds {
    beacon: LocalBeacon,
    chain: Chain,
}

type Answer = Result<Json<Value>, StatusCode>;

impl LocalBeacon {
    /// What a deployment says of it.
    pub fn parameters(&self) -> BeaconParameters {
        let Clock { genesis, period } = self.clock;
        BeaconParameters { key: self.secret.public_key(), genesis, period }
    }

    pub(super) fn routes(self, chain: Chain) -> Router {
        Router::new()
            .route("/info", get(info))
            .route("/public/{round}", get(round))
            .with_state(Rounds { beacon: self, chain })
    }
}

async fn info(State(rounds): State<Rounds>, headers: HeaderMap) -> Answer {
    check(&headers)?;
    let BeaconParameters { key, genesis, period } = rounds.beacon.parameters();
    let metadata = json!({"beaconID": "local"});
    Ok(Json(json!({
        "public_key": hex::encode(key), "period": period, "genesis_time": genesis,
        "schemeID": SCHEME, "metadata": metadata,
    })))
}

async fn round(State(rounds): State<Rounds>, Path(round): Path<String>, headers: HeaderMap) -> Answer {
    check(&headers)?;
    let Rounds { beacon: LocalBeacon { secret, clock }, chain } = rounds;
    let now = chain.time().map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?;
    // The next one after now is not made yet; neither is any without a chain that has begun.
    let latest = clock.round_after(now) - 1;
    let number = match round.as_str() {
        "latest" => latest,
        text => text.parse().map_err(|_| StatusCode::BAD_REQUEST)?,
    };
    if number == 0 || number > latest {
        return Err(StatusCode::NOT_FOUND);
    }
    let signature = spawn_blocking(move || secret.sign(number)).await;
    let signature = signature.map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?;
    let randomness = hex::encode(Sha256::digest(signature));
    Ok(Json(json!({"round": number, "randomness": randomness, "signature": hex::encode(signature)})))
}

/// Rounds are nobody's secret, but this is a service for this machine.
fn check(headers: &HeaderMap) -> Result<(), StatusCode> {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    if host.is_some_and(is_here) { Ok(()) } else { Err(StatusCode::FORBIDDEN) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        beacon::is_round,
        embedded::{Genesis, Sealing, serve_with_beacon},
    };

    #[tokio::test]
    async fn rounds_are_told_once_their_time_has_come() {
        let chain = Chain::in_memory(Genesis::default(), Sealing::Instant);
        let genesis = chain.time().unwrap() - 100;
        let beacon =
            LocalBeacon { secret: Secret::from_seed(&[7; 32]), clock: Clock { genesis, period: 30 } };
        let key = beacon.parameters().key;
        let address = ([127, 0, 0, 1], 0).into();
        let server = serve_with_beacon(chain.clone(), address, true, beacon).await.unwrap();
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let ask = async |path: &str| {
            let response = http.get(format!("{}/{path}", server.url())).send().await.unwrap();
            let status = response.status().as_u16();
            (status, response.json::<Value>().await.unwrap_or_default())
        };
        let (_, info) = ask("info").await;
        assert_eq!((&info["period"], &info["genesis_time"]), (&json!(30), &json!(genesis)));
        assert_eq!(info["public_key"], json!(hex::encode(key)));
        let (_, latest) = ask("public/latest").await;
        assert_eq!(latest["round"], json!(4));
        let (_, fourth) = ask("public/4").await;
        assert_eq!(fourth, latest);
        let signature: [u8; 64] =
            hex::decode(fourth["signature"].as_str().unwrap()).unwrap().try_into().unwrap();
        assert!(is_round(&key, 4, &signature));
        assert_eq!(
            [ask("public/5").await.0, ask("public/0").await.0, ask("public/x").await.0],
            [404, 404, 400]
        );
        chain.advance_time(30).unwrap();
        assert_eq!(ask("public/5").await.0, 200);
    }
}
