//! A program that is measured: started, timed until it answers, ended.

use crate::{load::Connection, machine};
use anyhow::{Context as _, Result, bail};
use std::{
    fs::{self, File},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// How long a program may take until it answers.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often it is asked.
const INTERVAL: Duration = Duration::from_micros(200);

/// A running program; dropping it kills it.
pub(crate) struct Server {
    child: Child,
    address: SocketAddr,
}

impl Server {
    /// Starts a program and waits until `ready` says so; returns how long that took.
    pub(crate) fn start(
        mut command: Command,
        address: SocketAddr,
        log: &Path,
        ready: &dyn Fn(&mut Connection) -> Result<bool>,
    ) -> Result<(Self, Duration)> {
        let output = File::create(log)?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let began = Instant::now();
        let child = command.spawn().with_context(|| format!("cannot start {}", command.get_program().display()))?;
        let mut server = Self { child, address };
        loop {
            if let Ok(mut connection) = Connection::to(address)
                && ready(&mut connection).unwrap_or(false)
            {
                return Ok((server, began.elapsed()));
            }
            if server.child.try_wait()?.is_some() || began.elapsed() > PATIENCE {
                let log = fs::read_to_string(log).unwrap_or_default();
                bail!("{} does not answer at {address}:\n{log}", command.get_program().display());
            }
            thread::sleep(INTERVAL);
        }
    }

    /// Where it listens.
    pub(crate) const fn address(&self) -> SocketAddr {
        self.address
    }

    /// CPU time that it used so far.
    pub(crate) fn cpu(&self) -> Result<Duration> {
        machine::cpu(self.child.id())
    }

    /// Bytes of memory that it holds.
    pub(crate) fn rss(&self) -> Result<u64> {
        machine::rss(self.child.id())
    }

    /// Asks it to end, and waits until it has.
    pub(crate) fn stop(&mut self) -> Result<()> {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.child), rustix::process::Signal::TERM)?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A loopback address that is free now.
pub(crate) fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}
