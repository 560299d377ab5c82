//! Measures a link over QUIC on loopback: round trips of decode-sized messages, then the rate
//! of prefill-sized ones, each beside TCP as the limit of the machine.
//!
//! `cargo run --release -p transport --example round_trip`

use std::error::Error;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use transport::{Identity, Limits, Link, PeerAddress, Transport, quic};

const ROUNDS: usize = 2000;
const BULK_BYTES: usize = 4 << 20;
const BULK_MESSAGES: usize = 200;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let bind = || -> Result<_, Box<dyn Error>> {
        Ok(quic::Endpoint::bind(&Identity::generate()?, "127.0.0.1:0".parse()?, Limits::default())?)
    };
    let (a, b) = (bind()?, bind()?);
    let address = PeerAddress { id: b.id(), address: b.local_address() };
    let start = Instant::now();
    let (dialled, accepted) = tokio::join!(a.connect(&address), b.accept());
    println!("connect {:.2} ms", start.elapsed().as_secs_f64() * 1e3);
    let mut link = dialled?;
    let mut echo = accepted.ok_or("the endpoint is closed")??;
    tokio::spawn(async move {
        while let Ok(message) = echo.recv().await {
            let reply = if message.len() == BULK_BYTES { message.slice(..1) } else { message };
            if echo.send(reply).await.is_err() {
                return;
            }
        }
    });
    for bytes in [2 << 10, 16 << 10, 64 << 10] {
        let quic = round_trips(&mut link, bytes).await?;
        let tcp = tcp_round_trips(bytes).await?;
        println!("{:>3} KiB round trip  quic {}  tcp {}", bytes >> 10, report(quic), report(tcp));
    }
    bulk(link).await?;
    a.close().await;
    Ok(())
}

fn report(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    let us = |index: usize| times[index].as_secs_f64() * 1e6;
    format!("p50 {:>4.0} us p99 {:>5.0} us", us(times.len() / 2), us(times.len() * 99 / 100))
}

async fn round_trips(link: &mut Link, bytes: usize) -> Result<Vec<Duration>, Box<dyn Error>> {
    let message = bytes::Bytes::from(vec![7; bytes]);
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let start = Instant::now();
        link.send(message.clone()).await?;
        link.recv().await?;
        times.push(start.elapsed());
    }
    Ok(times)
}

async fn tcp_round_trips(bytes: usize) -> Result<Vec<Duration>, Box<dyn Error>> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let mut here = TcpStream::connect(listener.local_addr()?).await?;
    let (mut there, _) = listener.accept().await?;
    here.set_nodelay(true)?;
    there.set_nodelay(true)?;
    tokio::spawn(async move {
        let mut buffer = vec![0; bytes];
        while there.read_exact(&mut buffer).await.is_ok() && there.write_all(&buffer).await.is_ok() {}
    });
    let mut buffer = vec![7; bytes];
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let start = Instant::now();
        here.write_all(&buffer).await?;
        here.read_exact(&mut buffer).await?;
        times.push(start.elapsed());
    }
    Ok(times)
}

async fn bulk(link: Link) -> Result<(), Box<dyn Error>> {
    let (sender, mut receiver) = link.split();
    let message = bytes::Bytes::from(vec![7; BULK_BYTES]);
    let start = Instant::now();
    let send = tokio::spawn(async move {
        for _ in 0..BULK_MESSAGES {
            sender.send(message.clone()).await?;
        }
        Ok::<_, transport::SendError>(sender)
    });
    for _ in 0..BULK_MESSAGES {
        receiver.recv().await?;
    }
    let seconds = start.elapsed().as_secs_f64();
    send.await??;
    println!("4 MiB messages  quic {:.0} MB/s", (BULK_BYTES * BULK_MESSAGES) as f64 / seconds / 1e6);
    Ok(())
}
