//! What the gateway and every stage of a session agree on before it begins.

use std::{fmt, str::FromStr};

use ledger::eip712::keccak;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use crate::{
    message::{MAX_LAYERS, MAX_LIST, MAX_STAGES, Open, check_sampling},
    model::{Quantisation, Shard},
    request::Sampling,
};

const PLAN_DOMAIN: &[u8] = b"dolphin/plan/1";
const PROMPT_DOMAIN: &[u8] = b"dolphin/prompt/1";

/// 32 bytes: a hash, a key, a salt. In texts, 64 hexadecimal digits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(pub [u8; 32]);

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl FromStr for Digest {
    type Err = hex::FromHexError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes)?;
        Ok(Self(bytes))
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match serializer.is_human_readable() {
            true => serializer.collect_str(self),
            false => self.0.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match deserializer.is_human_readable() {
            true => String::deserialize(deserializer)?.parse().map_err(D::Error::custom),
            false => <[u8; 32]>::deserialize(deserializer).map(Self),
        }
    }
}

/// What a gateway asks of the stages of a session whose computation is to be proved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// The model hash.
    pub model: Digest,
    /// How the weights are held; the model hash is of weights held so.
    pub quantisation: Quantisation,
    /// Known to the gateway, the stages and whoever gets the receipt: without it nobody can try prompts
    /// against the hashes.
    pub salt: Digest,
    /// Of salt and prompt.
    pub prompt_hash: Digest,
}

/// The hash of a prompt under a salt.
pub fn prompt_hash(salt: &Digest, prompt: &[u32]) -> Digest {
    let mut bytes = [PROMPT_DOMAIN, &salt.0].concat();
    bytes.extend(prompt.iter().flat_map(|token| token.to_be_bytes()));
    Digest(keccak(&bytes))
}

/// A place in the pipeline, as a receipt names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedStage {
    /// The node's ed25519 key, which signs.
    pub node: Digest,
    /// First layer.
    pub from: u32,
    /// One past the last layer.
    pub to: u32,
    /// Whether tokens go in.
    pub embedding: bool,
    /// Whether tokens come out.
    pub head: bool,
}

impl PlannedStage {
    /// What its node holds of the model.
    pub fn shard(&self) -> Shard {
        let layers = self.from as usize..self.to as usize;
        Shard { layers, embedding: self.embedding, head: self.head }
    }
}

/// Everything that decides a reply, and who computes which part of it. Its hash is in every signature.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Names the session; hexadecimal.
    pub session: String,
    /// The gateway's ed25519 key.
    pub gateway: Digest,
    /// Model, salt and prompt.
    #[serde(flatten)]
    pub terms: Terms,
    /// Tokens of the prompt.
    pub prompt_length: u32,
    /// Most tokens of the reply.
    pub max_tokens: u32,
    /// Tokens that end the reply.
    pub stop_tokens: Vec<u32>,
    /// How tokens are drawn.
    pub sampling: Sampling,
    /// The stages in order.
    pub stages: Vec<PlannedStage>,
}

impl Plan {
    /// The plan of an opening; `None` if nothing of it is to be proved.
    pub fn of(open: &Open) -> Option<Self> {
        let size = |layer: usize| u32::try_from(layer).unwrap_or(u32::MAX);
        let stages = open.hops.iter().map(|hop| PlannedStage {
            node: Digest(hop.node),
            from: size(hop.shard.layers.start),
            to: size(hop.shard.layers.end),
            embedding: hop.shard.embedding,
            head: hop.shard.head,
        });
        Some(Self {
            session: format!("{:032x}", open.session.0),
            gateway: Digest(open.gateway),
            terms: open.terms.clone()?,
            prompt_length: open.prompt_length,
            max_tokens: open.max_tokens,
            stop_tokens: open.stop_tokens.clone(),
            sampling: open.sampling.clone(),
            stages: stages.collect(),
        })
    }

    /// Whether it is within the bounds of a plan, whoever says it.
    ///
    /// # Errors
    /// What it has that no plan may have.
    pub fn check(&self) -> Result<(), &'static str> {
        let ensure = |holds: bool, otherwise| if holds { Ok(()) } else { Err(otherwise) };
        ensure(self.stop_tokens.len() <= MAX_LIST, "too many stop tokens")?;
        ensure(self.sampling.logit_bias.len() <= MAX_LIST, "too many logit biases")?;
        let hexadecimal = self.session.bytes().all(|byte| byte.is_ascii_hexdigit());
        ensure(self.session.len() == 32 && hexadecimal, "a session that is no session")?;
        let stages = &self.stages;
        ensure(!stages.is_empty() && stages.len() <= MAX_STAGES, "no stages or too many")?;
        ensure(stages.iter().all(|stage| stage.from <= stage.to), "layers that run backwards")?;
        let chained = stages.windows(2).all(|pair| pair[0].to == pair[1].from);
        ensure(chained && stages[0].from == 0, "stages that do not follow one another")?;
        ensure(stages[stages.len() - 1].to as usize <= MAX_LAYERS, "more layers than a model may have")?;
        let last = stages.len() - 1;
        let ends = |(index, stage): (usize, &PlannedStage)| {
            stage.embedding == (index == 0) && stage.head == (index == last)
        };
        ensure(stages.iter().enumerate().all(ends), "an embedding or a head within the pipeline")?;
        check_sampling(&self.sampling).map_err(|_| "sampling parameters out of their ranges")
    }

    /// The plan's hash.
    pub fn hash(&self) -> Digest {
        Digest(keccak(&self.bytes()))
    }

    /// What the hash is taken over. Every field has a length that is fixed or told, so no two plans have the same
    /// bytes.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = PLAN_DOMAIN.to_vec();
        let mut put = |part: &[u8]| bytes.extend_from_slice(part);
        put(&(self.session.len() as u32).to_be_bytes());
        put(self.session.as_bytes());
        put(&self.gateway.0);
        let Terms { model, quantisation, salt, prompt_hash } = &self.terms;
        put(&model.0);
        put(&[match quantisation {
            Quantisation::Q8 => 0,
            Quantisation::Q4 => 1,
            Quantisation::F32 => 2,
        }]);
        put(&salt.0);
        put(&prompt_hash.0);
        put(&self.prompt_length.to_be_bytes());
        put(&self.max_tokens.to_be_bytes());
        put(&(self.stop_tokens.len() as u32).to_be_bytes());
        self.stop_tokens.iter().for_each(|token| put(&token.to_be_bytes()));
        put_sampling(&self.sampling, &mut put);
        put(&(self.stages.len() as u32).to_be_bytes());
        for stage in &self.stages {
            put(&stage.node.0);
            put(&stage.from.to_be_bytes());
            put(&stage.to.to_be_bytes());
            put(&[stage.embedding.into(), stage.head.into()]);
        }
        bytes
    }
}

/// Numbers by their bits. Log-probabilities are only told, so they are no part of what is proved.
fn put_sampling(sampling: &Sampling, put: &mut impl FnMut(&[u8])) {
    let s = sampling;
    let reals =
        [s.temperature, s.top_p, s.min_p, s.repetition_penalty, s.frequency_penalty, s.presence_penalty];
    reals.iter().for_each(|real| put(&real.to_bits().to_be_bytes()));
    put(&s.top_k.to_be_bytes());
    put(&s.seed.to_be_bytes());
    put(&s.choice.to_be_bytes());
    put(&(s.logit_bias.len() as u32).to_be_bytes());
    for (token, bias) in &s.logit_bias {
        put(&token.to_be_bytes());
        put(&bias.to_bits().to_be_bytes());
    }
}
