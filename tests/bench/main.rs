//! The benchmark: a whole durable exchange, beside the least that it could cost on this machine, and
//! beside what OpenBao needs for the same. `tests/bench/run` builds it and starts it.
//!
//! Everything is measured in one run, target after target in short cells again and again, so that a
//! noisy moment of the machine hits all of them. It prints numbers and never fails a build: a shared
//! machine proves nothing about a program.

mod credentials;
mod floor;
mod job;
mod jobpass;
mod load;
mod machine;
mod openbao;
mod report;
mod server;
mod tokens;

use anyhow::{Context as _, Result, ensure};
use clap::{Args, Parser, Subcommand};
use jobpass::Jobpass;
use load::{Ask, Cell, Plan};
use machine::Disk;
use openbao::{Mode, OpenBao};
use report::{Footprint, Report};
use server::Server;
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};
use tokens::{Forge, Token};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Connections of the cells.
const CONNECTIONS: [usize; 3] = [1, 16, 64];
/// Exchanges per second beyond which a cell of so many connections may run out of tokens and end early.
const MOST_PER_SECOND: [usize; 3] = [8_000, 16_000, 16_000];
/// Tokens that OpenBao is given, again and again: it takes a token more than once.
const REUSED: usize = 2_000;
/// Before a cell is measured.
const WARM_UP: Duration = Duration::from_millis(500);
/// Live leases at which memory is measured.
const LEASES: usize = 100_000;
/// Starts that are timed.
const STARTS: usize = 9;
/// How long memory is left to settle before it is measured.
const SETTLE: Duration = Duration::from_secs(2);
/// How long the disk is measured at a time.
const DISK_PROBE: Duration = Duration::from_millis(500);

#[derive(Parser)]
#[command(about = "Measures jobpass beside its floor and beside OpenBao. Start it with tests/bench/run.")]
struct Cli {
    #[command(subcommand)]
    command: Option<Part>,
    #[command(flatten)]
    options: Options,
}

#[derive(Args)]
struct Options {
    /// The `jobpass-exchanger` to measure.
    #[arg(long, default_value = "jobpass-exchanger")]
    exchanger: PathBuf,
    /// The `bao` to measure; none: OpenBao is left out.
    #[arg(long)]
    openbao: Option<PathBuf>,
    /// A directory on a real disk, for everything that is written.
    #[arg(long, default_value = "target/bench")]
    directory: PathBuf,
    /// How often each cell is measured; the median counts.
    #[arg(long, default_value_t = 3)]
    repetitions: usize,
    /// Seconds that each cell is measured for.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Prints JSON instead of a table.
    #[arg(long)]
    json: bool,
}

#[derive(Subcommand)]
enum Part {
    /// Serves the floor: a bare axum route that checks one signature and makes one.
    Floor {
        /// Where to listen.
        #[arg(long)]
        listen: std::net::SocketAddr,
        /// The issuer's public key, DER.
        #[arg(long)]
        key: PathBuf,
    },
    /// PostgreSQL roles, SSH and X.509 certificates beside OpenBao's.
    Credentials,
    /// What the job's program adds to an exchange.
    Job {
        /// The `jobpass` to measure.
        #[arg(long)]
        jobpass: PathBuf,
    },
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    match cli.command {
        Some(Part::Floor { listen, key }) => floor::serve(listen, &fs::read(key)?),
        Some(Part::Credentials) => {
            let Options { exchanger, openbao, directory, seconds, .. } = &cli.options;
            fs::create_dir_all(directory)?;
            let bao = openbao.as_deref().context("name OpenBao's program: --openbao")?;
            credentials::measure(exchanger, bao, directory, Duration::from_secs_f64(*seconds))
        }
        Some(Part::Job { jobpass }) => {
            fs::create_dir_all(&cli.options.directory)?;
            job::measure(&cli.options.exchanger, &jobpass, &cli.options.directory)
        }
        None => measure(&cli.options),
    }
}

fn measure(options: &Options) -> Result<()> {
    fs::create_dir_all(&options.directory)?;
    let directory = fs::canonicalize(&options.directory)?;
    let directory = tempfile::tempdir_in(directory)?;
    let directory = directory.path();
    let disk = Disk::at(directory)?;
    let forge = Forge::new()?;
    let jobpass = Jobpass::prepare(&options.exchanger, &directory.join("jobpass"), &forge, &[])?;
    let (mut running, starts) = time_starts(&jobpass, &forge)?;
    std::thread::sleep(SETTLE);
    let mut footprint = Footprint { starts, rss_idle: running.rss()?, ..Footprint::default() };
    let disk_before = jobpass.disk()?;

    let floor = start_floor(&forge, directory)?;
    let openbao = options
        .openbao
        .as_deref()
        .map(|bao| OpenBao::start(bao, &directory.join("openbao"), &forge, &jobpass.url, &|_| Ok(())));
    let openbao = openbao.transpose().context("OpenBao")?;

    let mut report = Report::default();
    let mut opened = 0;
    for repetition in 0..options.repetitions {
        for (connections, most) in CONNECTIONS.into_iter().zip(MOST_PER_SECOND) {
            let time = Duration::from_secs_f64(options.seconds);
            eprintln!("{} of {}, {connections} connections", repetition + 1, options.repetitions);
            report.fsyncs.extend(disk.probe(DISK_PROBE)?);
            let wanted = most as f64 * (options.seconds + WARM_UP.as_secs_f64());
            let tokens = forge.mint(wanted as usize, &jobpass.url)?;
            let requests: Vec<_> = tokens.iter().map(|token| jobpass.request(token)).collect();
            let plan = Plan { connections, warm_up: WARM_UP, time, most: usize::MAX };
            report.floor.push(floor_cell(&floor, &requests, &plan)?);
            let once = Plan { most: requests.len(), ..plan };
            let cell = load::run(&running, &once, &|connection, i| granted(connection, &requests[i]))?;
            opened += cell.asked;
            report.jobpass.push(cell);
            if let Some(openbao) = &openbao {
                for mode in Mode::ALL {
                    let exchanges = mode.exchanges(&tokens[..tokens.len().min(REUSED)]);
                    let ask: &Ask<'_> = &|connection, i| exchanges[i % exchanges.len()].run(connection);
                    report.openbao.entry(mode.name()).or_default().push(load::run(openbao.server(), &plan, ask)?);
                }
            }
        }
    }
    if let Some(missing) = LEASES.checked_sub(opened).filter(|missing| *missing > 0) {
        opened += fill(&jobpass, &running, &forge, missing)?;
    }
    std::thread::sleep(SETTLE);
    footprint.leases = opened;
    footprint.rss_leases = running.rss()?;
    footprint.disk = jobpass.disk()?.saturating_sub(disk_before);
    running.stop()?;
    footprint.restart = jobpass.start(&forge)?.1;
    report.footprint = footprint;
    report.print(options.json)
}

/// Starts the server again and again; the last one stays. The first has no keys and no store yet.
fn time_starts(jobpass: &Jobpass, forge: &Forge) -> Result<(Server, Vec<Duration>)> {
    let mut starts = Vec::new();
    loop {
        let (mut server, took) = jobpass.start(forge)?;
        starts.push(took);
        if starts.len() == STARTS {
            return Ok((server, starts));
        }
        server.stop()?;
    }
}

fn start_floor(forge: &Forge, directory: &Path) -> Result<Server> {
    let key = directory.join("issuer.der");
    fs::write(&key, forge.public_key_pkcs1())?;
    let address = server::free_address()?;
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("floor").arg("--listen").arg(address.to_string()).arg("--key").arg(key);
    Server::start(command, address, &directory.join("floor.log"), &|connection| {
        connection.ask(b"GET / HTTP/1.1\r\nhost: floor\r\n\r\n").map(|_| true)
    })
    .map(|(server, _)| server)
}

fn floor_cell(floor: &Server, requests: &[Vec<u8>], plan: &Plan) -> Result<Cell> {
    load::run(floor, plan, &|connection, i| granted(connection, &requests[i % requests.len()]))
}

fn granted(connection: &mut load::Connection, request: &[u8]) -> Result<()> {
    let answer = connection.ask(request)?;
    ensure!(answer.status == 200, "{}: {}", answer.status, String::from_utf8_lossy(answer.body));
    Ok(())
}

/// Opens more leases, measuring nothing.
fn fill(jobpass: &Jobpass, server: &Server, forge: &Forge, count: usize) -> Result<usize> {
    eprintln!("{count} more leases");
    let tokens = forge.mint(count, &jobpass.url)?;
    let requests: Vec<_> = tokens.iter().map(|token: &Token| jobpass.request(token)).collect();
    let forever = Duration::from_secs(3600);
    let plan = Plan { connections: 64, warm_up: Duration::ZERO, time: forever, most: count };
    Ok(load::run(server, &plan, &|connection, i| granted(connection, &requests[i]))?.asked)
}
