//! Serves an embedded chain until it is interrupted:
//!
//!     cargo run -p ledger --example chain -- DIRECTORY [ACCOUNT...]
//!
//! A new one gives every account 10,000 ether; to open it again, name the same ones.

use std::{
    env,
    error::Error,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
};

use ledger::embedded::{Chain, Genesis, Sealing, serve};

const ETHER: u128 = 1_000_000_000_000_000_000;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = env::args().skip(1);
    let directory: PathBuf = arguments.next().ok_or("usage: chain DIRECTORY [ACCOUNT...]")?.into();
    let mut genesis = Genesis::default();
    for account in arguments {
        let mut address = [0; 20];
        hex::decode_to_slice(account.trim_start_matches("0x"), &mut address)?;
        genesis = genesis.with_account(address, 10_000 * ETHER);
    }
    let chain = Chain::open(&directory, genesis, Sealing::Instant)?;
    let server = serve(chain, SocketAddr::from((Ipv4Addr::LOCALHOST, 8545)), false).await?;
    println!("{}", server.url());
    tokio::signal::ctrl_c().await?;
    Ok(())
}
