//! What Linux tells of processes, memory and the disk.

use anyhow::{Context as _, Result};
use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// `USER_HZ`: what /proc counts in, on every architecture.
const TICKS_PER_SECOND: u64 = 100;
/// What one write of the disk probe appends: a page, like a small transaction.
const PAGE: usize = 4096;

/// User and system time of a process with all its threads.
pub(crate) fn cpu(pid: u32) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name is in parentheses and may hold anything: what follows the last one is numbers.
    let fields = stat.rsplit_once(')').context("no name in /proc/PID/stat")?.1;
    let ticks: Vec<u64> = fields.split_whitespace().skip(11).take(2).map(str::parse).collect::<Result<_, _>>()?;
    Ok(Duration::from_millis(ticks.iter().sum::<u64>() * 1000 / TICKS_PER_SECOND))
}

/// Resident memory of a process in bytes.
pub(crate) fn rss(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let kilobytes = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
    Ok(kilobytes.context("no VmRSS in /proc/PID/status")?.parse::<u64>()? * 1024)
}

/// CPU time that the whole machine used so far.
pub(crate) fn busy() -> Result<Duration> {
    let stat = fs::read_to_string("/proc/stat")?;
    let line = stat.lines().next().context("/proc/stat is empty")?;
    let ticks: Vec<u64> = line.split_whitespace().skip(1).map(str::parse).collect::<Result<_, _>>()?;
    // user nice system idle iowait irq softirq steal
    let busy: u64 = [0, 1, 2, 5, 6, 7].iter().filter_map(|field| ticks.get(*field)).sum();
    Ok(Duration::from_millis(busy * 1000 / TICKS_PER_SECOND))
}

/// Bytes that files take on disk; what is not there takes none.
pub(crate) fn disk_usage(files: &[PathBuf]) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    files.iter().filter_map(|file| fs::metadata(file).ok()).map(|file| file.blocks() * 512).sum()
}

/// The disk under a directory.
pub(crate) struct Disk(File);

impl Disk {
    /// Makes the probe's file.
    pub(crate) fn at(directory: &Path) -> Result<Self> {
        Ok(Self(File::create(directory.join("fsync"))?))
    }

    /// How long it takes to append a page durably, again and again.
    pub(crate) fn probe(&self, time: Duration) -> Result<Vec<Duration>> {
        let began = Instant::now();
        let mut took = Vec::new();
        while began.elapsed() < time {
            let at = Instant::now();
            (&self.0).write_all(&[0x5a; PAGE])?;
            self.0.sync_data()?;
            took.push(at.elapsed());
        }
        Ok(took)
    }
}
