//! What this program says to people: standard error only, one line start at a time, never a secret.
//! Standard output belongs to data.

use crate::env::Env;
use std::{
    io::{IsTerminal as _, Write as _, stderr},
    sync::atomic::{AtomicBool, Ordering},
};

/// How messages look where this program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Talk {
    /// Plain lines.
    Plain,
    /// GitHub's workflow commands, which become annotations of the run.
    GitHub,
}

impl Talk {
    /// GitHub's way where its runner listens. On a terminal nobody takes commands out of the output, so what they
    /// say would only be seen; but act, which runs workflows without GitHub, listens on a terminal of its own making.
    pub(crate) fn of(env: &Env) -> Self {
        let listened_to = env.is_true("ACT") || !stderr().is_terminal();
        if env.is_true("GITHUB_ACTIONS") && listened_to { Self::GitHub } else { Self::Plain }
    }

    /// Says what was done.
    pub(crate) fn say(self, message: &str) {
        write_line(&format!("jobpass: {}", printable(message)));
    }

    /// Says what went wrong without ending the work.
    pub(crate) fn warn(self, message: &str) {
        self.annotate("warning", message);
    }

    /// Says why the work ends.
    pub(crate) fn fail(self, message: &str) {
        HUSHED.store(false, Ordering::Relaxed);
        self.annotate("error", message);
    }

    fn annotate(self, level: &str, message: &str) {
        let message = printable(message);
        write_line(&match self {
            Self::Plain => format!("jobpass: {level}: {message}"),
            Self::GitHub => format!("::{level} title=jobpass::{}", escape_command_data(&message)),
        });
    }
}

static HUSHED: AtomicBool = AtomicBool::new(false);

/// From now on says nothing but why the work ends: for callers that take both outputs for the answer.
pub(crate) fn hush() {
    HUSHED.store(true, Ordering::Relaxed);
}

/// Writes whole lines to standard error. A reader that went away is no reason to fail.
pub(crate) fn write_line(text: &str) {
    if HUSHED.load(Ordering::Relaxed) {
        return;
    }
    let _ = stderr().lock().write_all(format!("{text}\n").as_bytes());
}

/// The data of a GitHub workflow command: `%`, CR and LF are escaped (actions/toolkit `escapeData`).
pub(crate) fn escape_command_data(text: &str) -> String {
    text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A")
}

/// Messages may carry a server's words: no terminal codes, and no line that a CI could take for a command.
fn printable(message: &str) -> String {
    let mut out: String =
        message.chars().map(|c| if c.is_control() && c != '\n' { '\u{fffd}' } else { c }).collect::<String>();
    while out.contains("\n::") {
        out = out.replace("\n::", "\n ::");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_servers_words_are_not_commands() {
        for (message, expected) in
            [("a\n::error::b", "a\n ::error::b"), ("a\u{1b}[2Jb", "a\u{fffd}[2Jb"), ("a\r::b", "a\u{fffd}::b")]
        {
            assert_eq!(printable(message), expected);
        }
        assert_eq!(escape_command_data("50%\r\nb"), "50%25%0D%0Ab");
    }
}
