//! Signals that ask this program to stop: passed on to the child while there is one, remembered otherwise. A second
//! one ends the program at once, unless it has something to give back.

use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use std::{
    io::{self, IsTerminal as _},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

/// Watches for signals from its making on.
#[derive(Clone)]
pub(crate) struct Signals(Arc<(Mutex<State>, Condvar)>);

#[derive(Default)]
struct State {
    child: Option<Pid>,
    pending: Option<i32>,
}

impl Signals {
    /// Begins to watch. While `holding`, no signal ends this program.
    ///
    /// # Errors
    /// When the system refuses a handler.
    pub(crate) fn watch(holding: Arc<AtomicBool>) -> io::Result<Self> {
        let signals = Self(Arc::default());
        let mut arriving = signal_hook::iterator::Signals::new([SIGINT, SIGTERM, SIGHUP, SIGQUIT])?;
        // A terminal sends Ctrl-C to the child as well as to us; twice would mean "at once" to many programs.
        let from_terminal = io::stdin().is_terminal();
        let watcher = signals.clone();
        thread::spawn(move || {
            for signal in arriving.forever() {
                let mut state = watcher.state();
                match (state.child, state.pending) {
                    (Some(_), _) if from_terminal && matches!(signal, SIGINT | SIGQUIT) => {}
                    (Some(child), _) => send(child, signal),
                    (None, None) => {
                        state.pending = Some(signal);
                        watcher.0.1.notify_all();
                    }
                    (None, Some(_)) if holding.load(Ordering::Acquire) => {}
                    (None, Some(_)) => std::process::exit(128 + signal),
                }
            }
        });
        Ok(signals)
    }

    /// The signal that arrived while there was no child.
    pub(crate) fn pending(&self) -> Option<i32> {
        self.state().pending
    }

    /// Sleeps, unless a signal arrives first (or did already): then it says which.
    pub(crate) fn pause(&self, time: Duration) -> Option<i32> {
        let waited = self.0.1.wait_timeout_while(self.state(), time, |state| state.pending.is_none());
        waited.unwrap_or_else(PoisonError::into_inner).0.pending
    }

    /// From now on signals go to this child; one that is pending at once.
    pub(crate) fn attach(&self, child: Pid) {
        let mut state = self.state();
        state.child = Some(child);
        if let Some(signal) = state.pending.take() {
            send(child, signal);
        }
    }

    /// The child has ended; must be called before its process id is free for another.
    pub(crate) fn detach(&self) {
        self.state().child = None;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn send(child: Pid, signal: i32) {
    if let Some(signal) = Signal::from_named_raw(signal) {
        // A child that has just ended needs no signal.
        let _ = kill_process(child, signal);
    }
}
