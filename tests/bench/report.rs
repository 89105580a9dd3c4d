//! What was measured, and how it stands to what is wanted.

use crate::load::{Cell, quantile};
use anyhow::Result;
use serde::Serialize;
use std::{collections::BTreeMap, io::Write as _, time::Duration};

/// The rate and the ratios are taken at this many connections.
const LOADED: usize = 64;
/// The latency is taken at this many.
const QUIET: usize = 16;

/// All cells of a run.
#[derive(Default)]
pub(crate) struct Report {
    /// The floor's.
    pub(crate) floor: Vec<Cell>,
    /// jobpass's.
    pub(crate) jobpass: Vec<Cell>,
    /// OpenBao's, by mode.
    pub(crate) openbao: BTreeMap<&'static str, Vec<Cell>>,
    /// What one durable write of a page took between the cells.
    pub(crate) fsyncs: Vec<Duration>,
    /// Time, memory and disk.
    pub(crate) footprint: Footprint,
}

/// What jobpass takes besides CPU.
#[derive(Default)]
pub(crate) struct Footprint {
    /// From exec to the first credential; the first start of all makes the store and the keys.
    pub(crate) starts: Vec<Duration>,
    /// The same with all leases of the run in the store.
    pub(crate) restart: Duration,
    /// Memory after a start.
    pub(crate) rss_idle: u64,
    /// Memory with all leases of the run live.
    pub(crate) rss_leases: u64,
    /// How many that are.
    pub(crate) leases: usize,
    /// Bytes on disk for them.
    pub(crate) disk: u64,
}

#[derive(Serialize)]
struct Row {
    target: &'static str,
    #[serde(flatten)]
    cell: Cell,
}

#[derive(Serialize)]
struct Goal {
    what: &'static str,
    measured: f64,
    goal: f64,
    unit: &'static str,
    met: bool,
}

#[derive(Serialize)]
struct Summary {
    cells: Vec<Row>,
    goals: Vec<Goal>,
    fsync_p50_ms: f64,
    fsync_p99_ms: f64,
    first_start_ms: f64,
    restart_with_leases_ms: f64,
    leases: usize,
}

impl Report {
    /// Prints it.
    pub(crate) fn print(&self, json: bool) -> Result<()> {
        let summary = self.summary();
        let mut out = std::io::stdout().lock();
        if json {
            serde_json::to_writer_pretty(&mut out, &summary)?;
            writeln!(out)?;
            return Ok(());
        }
        writeln!(
            out,
            "{:24}{:>6}{:>10}{:>10}{:>10}{:>10}{:>8}",
            "", "conn.", "per s", "CPU ms", "p50 ms", "p99 ms", "others"
        )?;
        for Row { target, cell } in &summary.cells {
            let Cell { connections, rate, cpu_ms, p50_ms, p99_ms, others, .. } = cell;
            writeln!(out, "{target:24}{connections:6}{rate:10.0}{cpu_ms:10.3}{p50_ms:10.2}{p99_ms:10.2}{others:8.2}")?;
        }
        let Summary { fsync_p50_ms, fsync_p99_ms, first_start_ms, restart_with_leases_ms, leases, .. } = &summary;
        writeln!(out, "\nCPU: of the server, per exchange. others: cores that other programs kept busy.")?;
        writeln!(
            out,
            "This disk appended 4 KiB durably in {fsync_p50_ms:.2} ms (median), {fsync_p99_ms:.2} ms (p99), between the cells."
        )?;
        writeln!(
            out,
            "The very first start took {first_start_ms:.0} ms, a start with {leases} leases {restart_with_leases_ms:.0} ms.\n"
        )?;
        for Goal { what, measured, goal, unit, met } in &summary.goals {
            let verdict = if *met { "met" } else { "MISSED" };
            writeln!(out, "{what:54}{measured:10.2} {unit:6} goal {goal:8.2}   {verdict}")?;
        }
        Ok(())
    }

    fn summary(&self) -> Summary {
        let mut cells = rows("floor", &self.floor);
        cells.extend(rows("jobpass", &self.jobpass));
        cells.extend(self.openbao.iter().flat_map(|(mode, cells)| rows(mode, cells)));
        let mut fsyncs = self.fsyncs.clone();
        fsyncs.sort_unstable();
        let took = &self.footprint;
        Summary {
            goals: self.goals(),
            cells,
            fsync_p50_ms: quantile(&fsyncs, 0.5),
            fsync_p99_ms: quantile(&fsyncs, 0.99),
            first_start_ms: took.starts.first().map_or(0.0, |start| start.as_secs_f64() * 1000.0),
            restart_with_leases_ms: took.restart.as_secs_f64() * 1000.0,
            leases: took.leases,
        }
    }

    fn goals(&self) -> Vec<Goal> {
        let loaded = median(&self.jobpass, LOADED);
        let floor = median(&self.floor, LOADED);
        let took = &self.footprint;
        let mut starts = took.starts.clone();
        starts.sort_unstable();
        let leases = took.leases.max(1) as f64;
        let at_most = |what, measured, goal, unit| Goal { what, measured, goal, unit, met: measured <= goal };
        let at_least = |what, measured, goal, unit| Goal { what, measured, goal, unit, met: measured >= goal };
        let mut goals = vec![
            at_most("CPU of an exchange, to the floor's", loaded.cpu_ms / floor.cpu_ms, 2.0, "times"),
            at_most("CPU of an exchange", loaded.cpu_ms, 0.2, "ms"),
            at_least("exchanges at 64 connections", loaded.rate, 5000.0, "per s"),
            at_most("p99 at 16 connections (on a quiet disk)", median(&self.jobpass, QUIET).p99_ms, 10.0, "ms"),
            at_most("from start to the first credential", quantile(&starts, 0.5), 100.0, "ms"),
            at_most("memory when idle", took.rss_idle as f64 / 1_048_576.0, 25.0, "MiB"),
            at_most(
                "memory per live lease",
                took.rss_leases.saturating_sub(took.rss_idle) as f64 / 1024.0 / leases,
                0.5,
                "KiB",
            ),
            at_most("disk per exchange", took.disk as f64 / 1024.0 / leases, 4.0, "KiB"),
        ];
        let cpu = |cells: &Vec<Cell>| median(cells, LOADED).cpu_ms / loaded.cpu_ms;
        let multiples: Vec<(&str, f64)> = self.openbao.iter().map(|(mode, cells)| (*mode, cpu(cells))).collect();
        if let Some(best) = multiples.iter().map(|(_, times)| *times).min_by(f64::total_cmp) {
            goals.push(at_least("CPU of OpenBao's best mode, to ours", best, 12.0, "times"));
        }
        if let Some((_, default)) = multiples.iter().find(|(mode, _)| *mode == crate::openbao::Mode::Service.name()) {
            goals.push(at_least("CPU of OpenBao's default, to ours", *default, 20.0, "times"));
        }
        goals
    }
}

/// The median of each number, for every count of connections.
fn rows(target: &'static str, cells: &[Cell]) -> Vec<Row> {
    let mut connections: Vec<usize> = cells.iter().map(|cell| cell.connections).collect();
    connections.sort_unstable();
    connections.dedup();
    connections.into_iter().map(|connections| Row { target, cell: median(cells, connections) }).collect()
}

fn median(cells: &[Cell], connections: usize) -> Cell {
    let of = |number: fn(&Cell) -> f64| {
        let mut numbers: Vec<f64> = cells.iter().filter(|cell| cell.connections == connections).map(number).collect();
        numbers.sort_unstable_by(f64::total_cmp);
        numbers.get(numbers.len() / 2).copied().unwrap_or(f64::NAN)
    };
    Cell {
        connections,
        rate: of(|cell| cell.rate),
        cpu_ms: of(|cell| cell.cpu_ms),
        p50_ms: of(|cell| cell.p50_ms),
        p99_ms: of(|cell| cell.p99_ms),
        others: of(|cell| cell.others),
        asked: 0,
    }
}
