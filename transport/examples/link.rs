//! What links carry, beside raw TCP in the same run, between two addresses of a machine that has nothing but this
//! program. `bench transport` does so on loopback.
//!
//! ```text
//! link path FROM TO SECONDS   rate and round trip between two addresses of this machine, by QUIC and by TCP
//! link rdma FROM TO           round trips and rate between the RDMA devices with these addresses
//! ```

use std::error::Error;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use transport::limits::Congestion;
use transport::{Identity, Limits, LinkReceiver, LinkSender, PeerAddress, Transport, quic::Endpoint};

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// Of messages that go one way. Their first byte says so; one byte answers.
const BULK_BYTES: usize = 64 << 10;
const ONE_WAY: u8 = 1;
const SIZES: [usize; 4] = [8 << 10, 16 << 10, 32 << 10, 64 << 10];

#[tokio::main]
async fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["path", from, to, seconds] => {
            path(from.parse()?, to.parse()?, Duration::from_secs(seconds.parse()?)).await
        }
        ["rdma", from, to] => rdma(from.parse()?, to.parse()?).await,
        _ => Err("usage: link path FROM TO SECONDS | rdma FROM TO".into()),
    }
}

async fn path(from: IpAddr, to: IpAddr, duration: Duration) -> Outcome<()> {
    let tcp = TcpPair::new(from, to).await?.rate(duration).await?;
    let mut rates = Vec::new();
    for congestion in [Congestion::Cubic, Congestion::Bbr] {
        let dead_peer_timeout = Duration::from_secs(5);
        let limits = Limits { congestion, dead_peer_timeout, ..Limits::default() };
        let mut pair = LinkPair::new(from, to, limits).await?;
        let [middle, _] = percentiles(&mut pair.round_trips(16 << 10, 15).await?);
        rates.push((pair.rate(duration).await?, middle / 1000.0));
    }
    let [(cubic, trip), (bbr, _)] = rates[..] else { return Err("two rates were taken".into()) };
    println!(
        "TCP {tcp:.2} MB/s, QUIC cubic {cubic:.2} MB/s, QUIC BBR {bbr:.2} MB/s, 16 KiB and back {trip:.1} ms"
    );
    Ok(())
}

async fn rdma(from: IpAddr, to: IpAddr) -> Outcome<()> {
    let mut over_link = LinkPair::new(from, to, Limits::default()).await?;
    let mut over_tcp = TcpPair::new(from, to).await?;
    println!("carrier: {}", over_link.sender.carrier());
    for bytes in SIZES {
        let [l50, l99] = percentiles(&mut over_link.round_trips(bytes, 200).await?);
        let [t50, t99] = percentiles(&mut over_tcp.round_trips(bytes, 200).await?);
        println!("{:4} KiB   link p50 {l50:.0} p99 {l99:.0}   TCP p50 {t50:.0} p99 {t99:.0} us", bytes >> 10);
    }
    let duration = Duration::from_secs(3);
    let (link, tcp) = (over_link.rate(duration).await?, over_tcp.rate(duration).await?);
    println!("bulk: link {link:.0} MB/s, TCP {tcp:.0} MB/s");
    Ok(())
}

/// The middle, and what 99 of 100 stay below.
fn percentiles(times: &mut [f64]) -> [f64; 2] {
    times.sort_by(f64::total_cmp);
    [times[times.len() / 2], times[times.len() * 99 / 100]]
}

/// A link whose far end echoes.
struct LinkPair {
    _near: Endpoint,
    sender: LinkSender,
    receiver: LinkReceiver,
}

impl LinkPair {
    async fn new(from: IpAddr, to: IpAddr, limits: Limits) -> Outcome<Self> {
        let bind = |address: IpAddr| -> Outcome<Endpoint> {
            Ok(Endpoint::bind_with_rdma(&Identity::generate()?, (address, 0).into(), limits.clone())?)
        };
        let (near, far) = (bind(from)?, bind(to)?);
        let address = PeerAddress { id: far.id(), address: far.local_address() };
        let (dialled, accepted) = tokio::join!(near.connect(&address), far.accept());
        let mut other = accepted.ok_or("the endpoint is closed")??;
        tokio::spawn(async move {
            let _far = far;
            while let Ok(message) = other.recv().await {
                let answer = if message[0] == ONE_WAY { message.slice(..1) } else { message };
                if other.send(answer).await.is_err() {
                    return;
                }
            }
        });
        let (sender, receiver) = dialled?.split();
        Ok(Self { _near: near, sender, receiver })
    }

    /// Microseconds of each round trip.
    async fn round_trips(&mut self, bytes: usize, rounds: usize) -> Outcome<Vec<f64>> {
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

    /// Megabytes per second that are answered, once the first quarter of the time has warmed it up.
    async fn rate(&mut self, duration: Duration) -> Outcome<f64> {
        let message = Bytes::from(vec![ONE_WAY; BULK_BYTES]);
        let (sender, receiver) = (&self.sender, &mut self.receiver);
        let sending = async {
            loop {
                sender.send(message.clone()).await?;
            }
        };
        let mut answers = Answers::new(duration);
        let receiving = async {
            loop {
                receiver.recv().await?;
                if let Some(rate) = answers.count() {
                    return Outcome::Ok(rate);
                }
            }
        };
        tokio::select! {
            failed = sending => failed,
            rate = receiving => rate,
        }
    }
}

/// Counts answers of one-way messages.
struct Answers {
    start: Instant,
    duration: Duration,
    counted: Option<(Instant, usize)>,
}

impl Answers {
    fn new(duration: Duration) -> Self {
        Self { start: Instant::now(), duration, counted: None }
    }

    /// One more; the rate in megabytes per second once the time is over.
    fn count(&mut self) -> Option<f64> {
        let passed = self.start.elapsed();
        match &mut self.counted {
            Some((since, count)) => {
                *count += 1;
                let bytes = (*count * BULK_BYTES) as f64;
                (passed >= self.duration).then(|| bytes / 1e6 / since.elapsed().as_secs_f64())
            }
            None => {
                if passed >= self.duration / 4 {
                    self.counted = Some((Instant::now(), 0));
                }
                None
            }
        }
    }
}

/// A connection whose far end echoes, with a length before each message.
struct TcpPair(TcpStream);

impl TcpPair {
    async fn new(from: IpAddr, to: IpAddr) -> Outcome<Self> {
        let listener = TcpListener::bind((to, 0)).await?;
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::new(from, 0))?;
        let stream = socket.connect(listener.local_addr()?).await?;
        let (mut other, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        other.set_nodelay(true)?;
        tokio::spawn(async move {
            let mut buffer = Vec::new();
            while receive(&mut other, &mut buffer).await.is_ok() {
                let answer = if buffer[0] == ONE_WAY { &buffer[..1] } else { &buffer[..] };
                if send(&mut other, answer).await.is_err() {
                    return;
                }
            }
        });
        Ok(Self(stream))
    }

    async fn round_trips(&mut self, bytes: usize, rounds: usize) -> Outcome<Vec<f64>> {
        let (message, mut buffer) = (vec![7; bytes], Vec::new());
        let mut times = Vec::with_capacity(rounds);
        for _ in 0..rounds {
            let start = Instant::now();
            send(&mut self.0, &message).await?;
            receive(&mut self.0, &mut buffer).await?;
            times.push(start.elapsed().as_secs_f64() * 1e6);
        }
        Ok(times)
    }

    async fn rate(&mut self, duration: Duration) -> Outcome<f64> {
        let message = vec![ONE_WAY; BULK_BYTES];
        let (mut reader, mut writer) = self.0.split();
        let sending = async {
            loop {
                send(&mut writer, &message).await?;
            }
        };
        let mut answers = Answers::new(duration);
        let receiving = async {
            let mut buffer = Vec::new();
            loop {
                receive(&mut reader, &mut buffer).await?;
                if let Some(rate) = answers.count() {
                    return Outcome::Ok(rate);
                }
            }
        };
        tokio::select! {
            failed = sending => failed,
            rate = receiving => rate,
        }
    }
}

async fn send(stream: &mut (impl AsyncWriteExt + Unpin), message: &[u8]) -> io::Result<()> {
    let length = (message.len() as u32).to_le_bytes();
    // One write, as one segment costs less than two.
    stream.write_all(&[&length[..], message].concat()).await
}

async fn receive(stream: &mut (impl AsyncReadExt + Unpin), buffer: &mut Vec<u8>) -> io::Result<()> {
    let length = stream.read_u32_le().await? as usize;
    buffer.resize(length, 0);
    stream.read_exact(buffer).await.map(drop)
}
