//! Money for a swarm in one process: a chain of its own with the contracts, and accounts that have some.

use std::{
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use ledger::{
    EXAMPLE_PARAMETERS,
    beacon::{Clock, Secret},
    client::{
        Action, BadKey, BeaconParameters, Client, Config, Deployment, Error, Key, Ledger, Parameters, Pod,
    },
    eip712::{Address, keccak},
    embedded::{Chain, Genesis, LocalBeacon, OpenError, Sealing, Server, serve_with_beacon},
    model::Model,
};
use thiserror::Error;

use super::{
    chain::OnChain,
    purse::{Payer, PayerRules},
    settle::SettleRules,
    store::{Store, StoreError},
    till::Payee,
};

/// What every account has for gas, in the chain's wei.
const GAS_MONEY: u128 = 1_000_000_000_000_000_000_000;
/// From round to round of its beacon.
const BEACON_PERIOD_S: u64 = 3;
/// What the payer has in the escrow.
const PAYER_MONEY: Pod = Pod(1000 * super::ONE_POD);

/// Why there is no chain.
#[derive(Debug, Error)]
pub enum EmbeddedError {
    /// The directory cannot be used.
    #[error("{path}: {error}", path = path.display())]
    File {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// What is in it is not what was left there.
    #[error("{path}: {reason}", path = path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The chain in the directory cannot be opened.
    #[error("the chain: {0}")]
    Open(#[from] OpenError),
    /// It cannot be served.
    #[error("the chain cannot be served: {0}")]
    Serve(io::Error),
    /// It does not do what it is asked.
    #[error("the chain: {0}")]
    Chain(#[from] Error),
    /// The system gives no random numbers.
    #[error("no random numbers: {0}")]
    Random(getrandom::Error),
    /// A key cannot be made.
    #[error(transparent)]
    Key(#[from] BadKey),
    /// Vouchers cannot be kept.
    #[error("the vouchers: {0}")]
    Store(#[from] StoreError),
}

/// A chain of one's own, served on loopback, with the contracts and an account that holds all POD.
#[derive(Debug)]
pub struct Embedded {
    server: Server,
    chain: Wire,
    deployment: Deployment,
    holder: Client,
    seed: [u8; 32],
    directory: Option<PathBuf>,
}

struct Wire(Chain);

impl std::fmt::Debug for Wire {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Chain")
    }
}

impl Embedded {
    /// Starts a chain that answers at `listen`, on loopback: in memory, or in a directory in which it goes on where
    /// it was.
    pub async fn start(directory: Option<&Path>, listen: SocketAddr) -> Result<Self, EmbeddedError> {
        let seed = seed(directory)?;
        let key = key(&seed, "holder")?;
        let began = genesis_time(directory)?;
        let genesis = Genesis {
            timestamp: began,
            ..Genesis::default().with_account(key.address(), GAS_MONEY * 1_000_000)
        };
        let chain = match directory {
            Some(directory) => Chain::open(&directory.join("chain"), genesis, Sealing::Instant)?,
            None => Chain::in_memory(genesis, Sealing::Instant),
        };
        let beacon = beacon(&seed, began);
        let rounds = beacon.parameters();
        let server = serve_with_beacon(chain.clone(), listen, false, beacon).await;
        let server = server.map_err(EmbeddedError::Serve)?;
        let known = directory.map(|directory| directory.join("deployment.json"));
        let deployment = match known.as_deref().filter(|path| path.exists()) {
            Some(path) => read_deployment(path)?,
            None => {
                let parameters = parameters(key.address(), rounds);
                let deployment = Client::deploy(config(&chain), key.clone(), &parameters).await?;
                if let Some(path) = &known {
                    write(path, &serde_json::to_vec_pretty(&deployment).unwrap_or_default())?;
                }
                deployment
            }
        };
        let holder = Client::connect(config(&chain), deployment.clone(), Some(key)).await?;
        let directory = directory.map(Path::to_owned);
        Ok(Self { server, chain: Wire(chain), deployment, holder, seed, directory })
    }

    /// Where wallets and other programs on this machine reach it.
    pub fn url(&self) -> String {
        self.server.url()
    }

    /// Where the contracts are.
    pub fn deployment(&self) -> &Deployment {
        &self.deployment
    }

    /// Reads the chain.
    pub fn ledger(&self) -> &dyn Ledger {
        &self.holder
    }

    /// Sees to it that an account has enough for gas, and holds at least so much POD.
    pub async fn fund(&self, account: Address, pod: Pod) -> Result<(), EmbeddedError> {
        let has = self.holder.balances(account).await?;
        if has.native_wei < GAS_MONEY / 2 {
            let wei = GAS_MONEY - has.native_wei;
            self.holder.submit(Action::SendNative { to: account, wei }).await?;
        }
        let missing = pod.saturating_sub(has.pod);
        if missing > Pod::ZERO {
            self.holder.submit(Action::Transfer { to: account, amount: missing }).await?;
        }
        Ok(())
    }

    /// Sees to it that a model is known, and so that nodes commit to what they compute of it.
    pub async fn register(&self, model: &Model, name: &str) -> Result<(), EmbeddedError> {
        let hash = model.hash().ok_or(Error::Invalid("a model without weights"))?;
        if !self.holder.is_active_model(hash).await? {
            let (model, name) = (model.clone(), name.to_owned());
            self.holder.submit(Action::RegisterModel { model, name }).await?;
        }
        Ok(())
    }

    /// The account of a gateway, with money in the escrow.
    pub async fn payer(&self, rules: PayerRules) -> Result<Payer, EmbeddedError> {
        let key = key(&self.seed, "payer")?;
        let chain = self.account(&key).await?;
        let missing = PAYER_MONEY.saturating_sub(self.holder.balances(key.address()).await?.escrow);
        if missing > Pod::ZERO {
            self.holder.submit(Action::Deposit { to: key.address(), amount: missing }).await?;
        }
        Ok(Payer {
            key,
            collector: self.deployment.collector_domain(),
            registry: self.deployment.nodes_domain(),
            chain: Arc::new(chain),
            store: self.store("payer")?,
            rules,
        })
    }

    /// The account of node number `index`. Who the node is, is said by its binding, which is still to be made.
    pub async fn payee(&self, index: usize, price: u64, credit: u64) -> Result<Payee, EmbeddedError> {
        let name = format!("node{index}");
        let key = key(&self.seed, &name)?;
        let chain = self.account(&key).await?;
        Ok(Payee {
            account: key.address(),
            price,
            credit,
            collector: self.deployment.collector_domain(),
            registry: self.deployment.nodes_domain(),
            binding: [0; 64],
            chain: Arc::new(chain),
            store: self.store(&name)?,
            // What gas costs here is worth nothing to anybody, so whatever is earned is worth collecting.
            rules: SettleRules { coin: 0, ..SettleRules::default() },
        })
    }

    async fn account(&self, key: &Key) -> Result<OnChain, EmbeddedError> {
        self.fund(key.address(), Pod::ZERO).await?;
        let client =
            Client::connect(config(&self.chain.0), self.deployment.clone(), Some(key.clone())).await?;
        Ok(OnChain::new(Arc::new(client)).ok_or(Error::NoKey)?)
    }

    fn store(&self, name: &str) -> Result<Arc<Store>, EmbeddedError> {
        let open = |directory: &PathBuf| Store::open(&directory.join(name));
        Ok(Arc::new(self.directory.as_ref().map_or_else(|| Ok(Store::in_memory()), open)?))
    }
}

/// A block is made of every transaction at once, so nothing is waited for.
fn config(chain: &Chain) -> Config {
    let mut config = Config::over(Arc::new(chain.clone()));
    config.poll = Duration::from_millis(20);
    config
}

fn parameters(holder: Address, beacon: BeaconParameters) -> Parameters {
    let parameters: Parameters =
        serde_json::from_str(EXAMPLE_PARAMETERS).expect("a test of ledger reads the example");
    Parameters { holder, guardian: holder, poster: holder, curator: holder, beacon, ..parameters }
}

/// What draws here: whoever has the directory knows all rounds beforehand.
fn beacon(seed: &[u8; 32], began: u64) -> LocalBeacon {
    let secret = Secret::from_seed(&keccak(&[seed.as_slice(), b"beacon"].concat()));
    LocalBeacon { secret, clock: Clock { genesis: began, period: BEACON_PERIOD_S } }
}

fn key(seed: &[u8; 32], name: &str) -> Result<Key, BadKey> {
    Key::from_bytes(&keccak(&[seed.as_slice(), name.as_bytes()].concat()))
}

/// The secret that all keys of the chain are made of.
fn seed(directory: Option<&Path>) -> Result<[u8; 32], EmbeddedError> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(EmbeddedError::Random)?;
    let Some(directory) = directory else { return Ok(seed) };
    let failed = |path: &Path, error| EmbeddedError::File { path: path.to_owned(), error };
    fs::create_dir_all(directory).map_err(|error| failed(directory, error))?;
    let path = directory.join("seed");
    match fs::read_to_string(&path) {
        Ok(text) => match hex::decode_to_slice(text.trim(), &mut seed) {
            Ok(()) => Ok(seed),
            Err(error) => Err(EmbeddedError::Damaged { path, reason: error.to_string() }),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            write(&path, hex::encode(seed).as_bytes())?;
            Ok(seed)
        }
        Err(error) => Err(failed(&path, error)),
    }
}

/// When the chain began: its directory's first start, so that its genesis stays the same.
fn genesis_time(directory: Option<&Path>) -> Result<u64, EmbeddedError> {
    let Some(directory) = directory else { return Ok(super::now()) };
    let path = directory.join("began");
    match fs::read_to_string(&path) {
        Ok(text) => {
            let reason = |error: std::num::ParseIntError| error.to_string();
            text.trim().parse().map_err(|error| EmbeddedError::Damaged { path, reason: reason(error) })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            write(&path, super::now().to_string().as_bytes())?;
            genesis_time(Some(directory))
        }
        Err(error) => Err(EmbeddedError::File { path, error }),
    }
}

fn read_deployment(path: &Path) -> Result<Deployment, EmbeddedError> {
    let text = fs::read(path).map_err(|error| EmbeddedError::File { path: path.to_owned(), error })?;
    serde_json::from_slice(&text)
        .map_err(|error| EmbeddedError::Damaged { path: path.to_owned(), reason: error.to_string() })
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), EmbeddedError> {
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let write = || {
        let mut file = options.open(path)?;
        io::Write::write_all(&mut file, bytes)?;
        file.sync_all()
    };
    write().map_err(|error| EmbeddedError::File { path: path.to_owned(), error })
}
