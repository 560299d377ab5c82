//! A QUIC link on loopback beside TCP: round trips of decode-sized messages, and the rate of
//! prefill-sized ones.

use std::time::Instant;

use anyhow::{Context, ensure};
use bytes::Bytes;
use clap::Args;
use engine::local::loopback;
use indicatif::ProgressBar;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use transport::{Identity, Limits, LinkReceiver, LinkSender, PeerAddress, Transport, quic};

use crate::{
    machine::processor_s,
    report::{Figure, Report},
    stats::{Summary, median, percentile, ratio},
};

/// Size of a bulk message.
const BULK_BYTES: usize = 4 << 20;

/// What to send.
#[derive(Args, Clone, Debug)]
pub struct TransportArgs {
    /// Sizes of the messages that go to and fro, in KiB
    #[arg(long, value_delimiter = ',', default_value = "2,8,16,32,64")]
    pub kib: Vec<usize>,
    /// Round trips of each size in a repetition
    #[arg(long, default_value_t = 500)]
    pub rounds: usize,
    /// Messages of 4 MiB that go one way in a repetition
    #[arg(long, default_value_t = 50)]
    pub bulk: usize,
    /// Repetitions; QUIC and TCP take turns
    #[arg(long, default_value_t = 5)]
    pub repetitions: usize,
}

impl TransportArgs {
    /// Runs everything.
    ///
    /// # Errors
    /// If a link cannot be made or breaks.
    pub async fn run(&self) -> anyhow::Result<Report> {
        let counts = [self.rounds, self.bulk, self.repetitions];
        ensure!(!counts.contains(&0) && !self.kib.contains(&0), "every count must be at least 1");
        let bar = ProgressBar::new(((self.kib.len() + 1) * self.repetitions) as u64);
        let (mut quic, mut tcp) = (QuicPair::new().await?, TcpPair::new().await?);
        let mut figures = Vec::new();
        for &kib in &self.kib {
            figures.extend(self.round_trips(kib, &mut quic, &mut tcp, &bar).await?);
        }
        let (mut over_quic, mut over_tcp) = (Vec::new(), Vec::new());
        for _ in 0..self.repetitions {
            over_quic.push(Bulk::of(self.bulk, quic.bulk(self.bulk)).await?);
            over_tcp.push(Bulk::of(self.bulk, tcp.bulk(self.bulk)).await?);
            bar.inc(1);
        }
        figures.extend(Bulk::figures(&over_quic, &over_tcp));
        bar.finish_and_clear();
        quic.close().await;
        let parameters = json!({
            "kib": self.kib, "rounds": self.rounds, "bulk": self.bulk, "repetitions": self.repetitions,
        });
        Ok(Report::new("transport", parameters, figures, json!({})))
    }

    async fn round_trips(
        &self,
        kib: usize,
        quic: &mut QuicPair,
        tcp: &mut TcpPair,
        bar: &ProgressBar,
    ) -> anyhow::Result<[Figure; 4]> {
        let bytes = kib << 10;
        let (mut over_quic, mut over_tcp) = (Vec::new(), Vec::new());
        quic.round_trips(bytes, self.rounds / 10).await?;
        tcp.round_trips(bytes, self.rounds / 10).await?;
        for _ in 0..self.repetitions {
            over_quic.push(quic.round_trips(bytes, self.rounds).await?);
            over_tcp.push(tcp.round_trips(bytes, self.rounds).await?);
            bar.inc(1);
        }
        let figure = |name: &str, share: f64, times: &[Vec<f64>]| {
            let of_each: Vec<f64> = times.iter().filter_map(|times| percentile(times, share)).collect();
            let name = format!("round trip of {kib} KiB, {name} p{}", share * 100.0);
            (Figure::summary(name, Summary::of(&of_each), "us"), median(&of_each))
        };
        let (quic_middle, q50) = figure("QUIC", 0.5, &over_quic);
        let (quic_tail, q99) = figure("QUIC", 0.99, &over_quic);
        let (tcp_middle, t50) = figure("TCP", 0.5, &over_tcp);
        let (tcp_tail, t99) = figure("TCP", 0.99, &over_tcp);
        let ratio = |quic: Option<f64>, tcp: Option<f64>| quic.zip(tcp).map(|(quic, tcp)| quic / tcp);
        Ok([
            quic_middle.against("TCP", ratio(q50, t50)),
            quic_tail.against("TCP", ratio(q99, t99)),
            tcp_middle,
            tcp_tail,
        ])
    }
}

/// Megabytes per second of messages that go one way, and per second of processor time of both ends.
struct Bulk {
    rate: f64,
    per_core: f64,
}

impl Bulk {
    async fn of(messages: usize, sending: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<Self> {
        let (start, before) = (Instant::now(), processor_s());
        sending.await?;
        // Processor time is told in hundredths of a second.
        let spent = (processor_s() - before).max(0.01);
        let megabytes = (messages * BULK_BYTES) as f64 / 1e6;
        Ok(Self { rate: megabytes / start.elapsed().as_secs_f64(), per_core: megabytes / spent })
    }

    fn figures(quic: &[Self], tcp: &[Self]) -> [Figure; 4] {
        let figure = |what: &str, unit: &'static str, get: fn(&Self) -> f64| {
            let [quic, tcp] = [quic, tcp].map(|all| all.iter().map(get).collect::<Vec<f64>>());
            [
                Figure::summary(format!("{what}, QUIC"), Summary::of(&quic), unit)
                    .against("TCP", ratio(&quic, &tcp)),
                Figure::summary(format!("{what}, TCP"), Summary::of(&tcp), unit),
            ]
        };
        let [quic_rate, tcp_rate] = figure("messages of 4 MiB", "MB/s", |bulk| bulk.rate);
        let name = "the same by processor time of both ends";
        let [quic_per_core, tcp_per_core] = figure(name, "MB/CPU s", |bulk| bulk.per_core);
        [quic_rate, tcp_rate, quic_per_core, tcp_per_core]
    }
}

/// What the far end answers: the message itself, or one byte for a bulk message.
fn echo(message: Bytes) -> Bytes {
    if message.len() == BULK_BYTES { message.slice(..1) } else { message }
}

/// A link whose far end echoes.
struct QuicPair {
    endpoint: quic::Endpoint,
    sender: LinkSender,
    receiver: LinkReceiver,
}

impl QuicPair {
    async fn new() -> anyhow::Result<Self> {
        let bind =
            || anyhow::Ok(quic::Endpoint::bind(&Identity::generate()?, loopback(), Limits::default())?);
        let (near, far) = (bind()?, bind()?);
        let address = PeerAddress { id: far.id(), address: far.local_address() };
        let (dialled, accepted) = tokio::join!(near.connect(&address), far.accept());
        let mut other = accepted.context("the endpoint is closed")??;
        tokio::spawn(async move {
            // The endpoint has to live as long as its link.
            let _far = far;
            while let Ok(message) = other.recv().await {
                if other.send(echo(message)).await.is_err() {
                    return;
                }
            }
        });
        let (sender, receiver) = dialled?.split();
        Ok(Self { endpoint: near, sender, receiver })
    }

    /// Microseconds of each round trip.
    async fn round_trips(&mut self, bytes: usize, rounds: usize) -> anyhow::Result<Vec<f64>> {
        let message = Bytes::from(vec![7; bytes]);
        let mut times = Vec::with_capacity(rounds);
        for _ in 0..rounds {
            let start = Instant::now();
            self.sender.send(message.clone()).await?;
            self.receiver.recv().await?;
            times.push(start.elapsed().as_secs_f64() * 1e6);
        }
        Ok(times)
    }

    async fn bulk(&mut self, count: usize) -> anyhow::Result<()> {
        let message = Bytes::from(vec![7; BULK_BYTES]);
        let (sender, receiver) = (&self.sender, &mut self.receiver);
        let sending = async {
            for _ in 0..count {
                sender.send(message.clone()).await?;
            }
            anyhow::Ok(())
        };
        let receiving = async {
            for _ in 0..count {
                receiver.recv().await?;
            }
            anyhow::Ok(())
        };
        tokio::try_join!(sending, receiving)?;
        Ok(())
    }

    async fn close(self) {
        drop((self.sender, self.receiver));
        self.endpoint.close().await;
    }
}

/// A connection whose far end echoes, with the same framing: a length before each message.
struct TcpPair {
    stream: TcpStream,
}

impl TcpPair {
    async fn new() -> anyhow::Result<Self> {
        let listener = TcpListener::bind(loopback()).await?;
        let stream = TcpStream::connect(listener.local_addr()?).await?;
        let (mut other, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        other.set_nodelay(true)?;
        tokio::spawn(async move {
            let mut buffer = Vec::new();
            while receive(&mut other, &mut buffer).await.is_ok() {
                let answer = if buffer.len() == BULK_BYTES { &buffer[..1] } else { &buffer[..] };
                if send(&mut other, answer).await.is_err() {
                    return;
                }
            }
        });
        Ok(Self { stream })
    }

    async fn round_trips(&mut self, bytes: usize, rounds: usize) -> anyhow::Result<Vec<f64>> {
        let (message, mut buffer) = (vec![7; bytes], Vec::new());
        let mut times = Vec::with_capacity(rounds);
        for _ in 0..rounds {
            let start = Instant::now();
            send(&mut self.stream, &message).await?;
            receive(&mut self.stream, &mut buffer).await?;
            times.push(start.elapsed().as_secs_f64() * 1e6);
        }
        Ok(times)
    }

    async fn bulk(&mut self, count: usize) -> anyhow::Result<()> {
        let message = vec![7; BULK_BYTES];
        let (mut reader, mut writer) = self.stream.split();
        let sending = async {
            for _ in 0..count {
                send(&mut writer, &message).await?;
            }
            std::io::Result::Ok(())
        };
        let receiving = async {
            let mut buffer = Vec::new();
            for _ in 0..count {
                receive(&mut reader, &mut buffer).await?;
            }
            Ok(())
        };
        tokio::try_join!(sending, receiving)?;
        Ok(())
    }
}

async fn send(stream: &mut (impl AsyncWriteExt + Unpin), message: &[u8]) -> std::io::Result<()> {
    let length = (message.len() as u32).to_le_bytes();
    if message.len() <= BULK_BYTES / 2 {
        // One write for a small message, as one segment costs less than two.
        return stream.write_all(&[&length[..], message].concat()).await;
    }
    stream.write_all(&length).await?;
    stream.write_all(message).await
}

async fn receive(stream: &mut (impl AsyncReadExt + Unpin), buffer: &mut Vec<u8>) -> std::io::Result<()> {
    let length = stream.read_u32_le().await? as usize;
    buffer.resize(length, 0);
    stream.read_exact(buffer).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn both_transports_are_measured() {
        let args = TransportArgs { kib: vec![1, 3], rounds: 20, bulk: 5, repetitions: 2 };
        let report = args.run().await.expect("loopback works");
        assert_eq!(report.figures.len(), 2 * 4 + 4);
        assert!(report.figures.iter().all(|figure| figure.samples == 2 && figure.value.is_some()));
        let beside = report.figures.iter().filter(|figure| figure.against.is_some()).count();
        assert_eq!(beside, 2 * 2 + 2);
    }
}
