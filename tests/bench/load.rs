//! The load: a closed loop of keep-alive connections, each with a thread of its own, so that every
//! answer is waited for before the next request goes out.

use crate::{machine, server::Server};
use anyhow::{Context as _, Result, bail, ensure};
use serde::Serialize;
use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often the end of a cell is looked for.
const INTERVAL: Duration = Duration::from_millis(2);

/// One whole exchange, the `n`-th of its cell.
pub(crate) type Ask<'a> = dyn Fn(&mut Connection, usize) -> Result<()> + Sync + 'a;

/// How a cell is measured.
#[derive(Clone, Copy)]
pub(crate) struct Plan {
    /// How many connections ask at once.
    pub(crate) connections: usize,
    /// Time before it is measured.
    pub(crate) warm_up: Duration,
    /// Time that is measured.
    pub(crate) time: Duration,
    /// The most exchanges there can be; after them the cell ends early.
    pub(crate) most: usize,
}

/// What one cell measured.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Cell {
    /// Connections.
    pub(crate) connections: usize,
    /// Exchanges per second.
    pub(crate) rate: f64,
    /// CPU of the server per exchange, in milliseconds.
    pub(crate) cpu_ms: f64,
    /// The median of an exchange's time, in milliseconds.
    pub(crate) p50_ms: f64,
    /// What 99 of 100 exchanges stay below, in milliseconds.
    pub(crate) p99_ms: f64,
    /// Cores that neither the server nor this program kept busy: noise.
    pub(crate) others: f64,
    /// Exchanges in all, the unmeasured ones too.
    #[serde(skip)]
    pub(crate) asked: usize,
}

/// A keep-alive connection (HTTP/1.1).
pub(crate) struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

/// What came back.
pub(crate) struct Answer<'c> {
    /// The status code.
    pub(crate) status: u16,
    /// The body; of a chunked one the chunks' sizes are left in it.
    pub(crate) body: &'c [u8],
}

impl Connection {
    /// Connects.
    pub(crate) fn to(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { stream, buffer: Vec::with_capacity(16 * 1024) })
    }

    /// Sends a whole request and waits for the whole answer.
    pub(crate) fn ask(&mut self, request: &[u8]) -> Result<Answer<'_>> {
        self.stream.write_all(request)?;
        self.buffer.clear();
        let head = loop {
            if let Some(end) = find(&self.buffer, b"\r\n\r\n") {
                break end + 4;
            }
            self.read_more()?;
        };
        let text = std::str::from_utf8(&self.buffer[..head])?;
        let status = text.get(9..12).context("no status line")?.parse()?;
        let field = |name: &str| {
            let mut fields = text.lines().filter_map(|line| line.split_once(':'));
            fields.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
        };
        if field("transfer-encoding").is_some() {
            while !self.buffer.ends_with(b"0\r\n\r\n") {
                self.read_more()?;
            }
        } else {
            let end = head + field("content-length").map_or(Ok(0), str::parse::<usize>)?;
            while self.buffer.len() < end {
                self.read_more()?;
            }
        }
        Ok(Answer { status, body: &self.buffer[head..] })
    }

    fn read_more(&mut self) -> Result<()> {
        let filled = self.buffer.len();
        self.buffer.resize(filled + 8 * 1024, 0);
        let read = self.stream.read(&mut self.buffer[filled..])?;
        self.buffer.truncate(filled + read);
        ensure!(read > 0, "the connection was closed");
        Ok(())
    }
}

/// Where `what` begins.
pub(crate) fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    text.windows(what.len()).position(|window| window == what)
}

/// When an exchange began and how long it took.
type Sample = (Instant, Duration);

/// Measures one cell. A refusal is an error: nothing is counted that did not work.
pub(crate) fn run(server: &Server, plan: &Plan, ask: &Ask<'_>) -> Result<Cell> {
    let (next, over) = (AtomicUsize::new(0), AtomicBool::new(false));
    let connect = |_| Connection::to(server.address());
    let connections: Vec<_> = (0..plan.connections).map(connect).collect::<Result<_>>()?;
    let work = |mut connection: Connection| -> Result<Vec<Sample>> {
        let mut samples = Vec::new();
        while !over.load(Relaxed) {
            let index = next.fetch_add(1, Relaxed);
            if index >= plan.most {
                over.store(true, Relaxed);
                break;
            }
            let began = Instant::now();
            ask(&mut connection, index).inspect_err(|_| over.store(true, Relaxed))?;
            samples.push((began, began.elapsed()));
        }
        Ok(samples)
    };
    thread::scope(|scope| {
        let workers: Vec<_> = connections.into_iter().map(|connection| scope.spawn(|| work(connection))).collect();
        wait(plan.warm_up, &over);
        let before = Usage::now(server)?;
        wait(plan.time, &over);
        let after = Usage::now(server)?;
        over.store(true, Relaxed);
        let mut samples = Vec::new();
        for worker in workers {
            let Ok(worked) = worker.join() else { bail!("a connection's thread died") };
            samples.extend(worked?);
        }
        Ok(Usage::cell(&before, &after, plan.connections, &samples))
    })
}

fn wait(time: Duration, over: &AtomicBool) {
    let began = Instant::now();
    while began.elapsed() < time && !over.load(Relaxed) {
        thread::sleep(INTERVAL);
    }
}

struct Usage {
    at: Instant,
    server: Duration,
    own: Duration,
    machine: Duration,
}

impl Usage {
    fn now(server: &Server) -> Result<Self> {
        let own = machine::cpu(std::process::id())?;
        Ok(Self { at: Instant::now(), server: server.cpu()?, own, machine: machine::busy()? })
    }

    fn cell(before: &Self, after: &Self, connections: usize, samples: &[Sample]) -> Cell {
        let wall = after.at.duration_since(before.at).as_secs_f64();
        let within = |at: Instant| (before.at..after.at).contains(&at);
        let done = samples.iter().filter(|(began, took)| within(*began + *took)).count();
        // Begun within the time, whenever it ended: so that a stall at its end counts.
        let mut took: Vec<_> = samples.iter().filter(|(began, _)| within(*began)).map(|(_, took)| *took).collect();
        took.sort_unstable();
        let cpu = (after.server - before.server).as_secs_f64();
        let own = (after.own - before.own).as_secs_f64();
        let machine = after.machine.saturating_sub(before.machine).as_secs_f64();
        Cell {
            connections,
            rate: done as f64 / wall,
            cpu_ms: cpu * 1000.0 / done.max(1) as f64,
            p50_ms: quantile(&took, 0.5),
            p99_ms: quantile(&took, 0.99),
            others: ((machine - cpu - own) / wall).max(0.0),
            asked: samples.len(),
        }
    }
}

/// A quantile of sorted times, in milliseconds.
pub(crate) fn quantile(sorted: &[Duration], quantile: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    sorted.get((last as f64 * quantile) as usize).map_or(0.0, |time| time.as_secs_f64() * 1000.0)
}
