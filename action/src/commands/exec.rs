//! `jobpass exec`: a command with credentials in its environment, and only there.

use super::{AskArgs, shown};
use crate::{
    agent::{self, Key},
    client::{Ask, ClientError},
    deliver::{
        Given, Rename, Variable, directory::PrivateDirectory, documents::PG_SERVICE, environment_names, files, push,
        variables,
    },
    exec::{self, Plan, SpawnError},
    job::{Job, Lease},
    session::Held,
    signals::Signals,
};
use anyhow::Context as _;
use jobpass_protocol::Secret;
use std::{
    ffi::OsString,
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    time::{Duration, Instant},
};

/// How long one renewal is tried for.
const RENEW_DEADLINE: Duration = Duration::from_secs(20);

#[derive(clap::Args)]
pub(super) struct ExecArgs {
    #[command(flatten)]
    ask: AskArgs,
    /// Write a field, or a document such as `pgpass`, to a private file that ends with the command, and set NAME to
    /// its path: NAME=field, or NAME=grant.field. Its credential then puts no secret into the environment
    #[arg(long = "file", value_name = "NAME=FIELD")]
    files: Vec<Rename>,
    /// Have the CI mask the credentials in the logs of the job's later steps too: prints them as `::add-mask::`
    /// commands on standard error, where GitHub's runner reads them; not for outputs that are kept in a file
    #[arg(long)]
    mask: bool,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

pub(super) fn run(args: ExecArgs, job: Job) -> anyhow::Result<u8> {
    let job = &if args.mask { job } else { job.without_masks() };
    if let Err(error) = exec::find(&args.command[0], &job.env) {
        return Ok(not_started(job, &error));
    }
    let signals = Signals::watch(Arc::clone(&job.holding)).context("signals cannot be watched")?;
    let pause = |time| signals.pause(time);
    let key = Key::generate().context("no key can be made")?;
    let ask = |ask| Ask { public_key: Some(key.public_line()), ..ask };
    let asks: Vec<Ask> = args.ask.asks().into_iter().map(ask).collect();
    let leases = job.obtain(&asks, &pause)?;
    let keeper = Keeper::new(job, &leases);
    let result = run_with(&args, job, leases, key, &keeper, &signals);
    // Where the command never ran.
    keeper.give_back();
    result
}

fn run_with(
    args: &ExecArgs,
    job: &Job,
    leases: Vec<Lease>,
    key: Key,
    keeper: &Keeper<'_>,
    signals: &Signals,
) -> anyhow::Result<u8> {
    for lease in &leases {
        let (given, life) = (&lease.given, shown(lease.expires_in));
        let how = if lease.revocable { "taken back when the command ends" } else { "it cannot be taken back earlier" };
        job.talk.say(&format!("{}: a credential of type {} for {life}, {how}", given.grant, given.credential.kind()));
    }
    let given: Vec<_> = leases.into_iter().map(|lease| lease.given).collect();
    let (variables, _files) = deliver(args, job, &given, key)?;
    drop(given);
    let (redactor, tokens) = (job.redactor()?, job.tokens());
    if let Some(signal) = signals.pending() {
        return Err(ClientError::Interrupted(signal).into());
    }
    let plan = Plan { command: &args.command, variables: &variables, tokens: &tokens };
    let beside = |until_end: &mpsc::Receiver<()>| {
        keeper.keep(until_end);
        keeper.give_back();
    };
    Ok(exec::run(&plan, &job.env, &redactor, signals, beside).unwrap_or_else(|error| not_started(job, &error)))
}

/// Says so, and with which code to end.
fn not_started(job: &Job, error: &SpawnError) -> u8 {
    job.talk.fail(&error.to_string());
    error.exit_code()
}

/// What the command finds in its environment, and the directory of what it finds there as files.
fn deliver(
    args: &ExecArgs,
    job: &Job,
    given: &[Given],
    key: Key,
) -> anyhow::Result<(Vec<Variable>, Option<PrivateDirectory>)> {
    let files = files(given, &args.files)?;
    let in_file = |grant: &Given| files.iter().any(|file| file.is_of(grant));
    let names = |grant: &Given, field: &str| match grant.credential.is_secret(field) && in_file(grant) {
        true => Vec::new(),
        false => environment_names(grant, field),
    };
    let mut all = variables(given, &args.ask.renames, &names)?;
    let certified: Vec<(&Given, &str)> = given.iter().filter_map(|given| Some((given, certificate(given)?))).collect();
    if files.is_empty() && certified.is_empty() {
        return Ok((all, None));
    }
    if !job.session.is_in_memory() {
        job.talk.warn(&format!(
            "the command's files are on a disk, in {}: set XDG_RUNTIME_DIR to a private directory in memory (tmpfs)",
            job.session.directory().display()
        ));
    }
    let directory = PrivateDirectory::make(job.session.directory())?;
    for (index, file) in files.iter().enumerate() {
        let (name, contents) = (index.to_string(), file.value.expose().as_bytes());
        let path = match args.files.iter().any(|wanted| wanted.is(&file.name, "docker_config")) {
            // docker is told of a directory, and looks for this file there.
            true => directory.write_in(&name, "config.json", contents)?,
            false => directory.write(&name, contents)?,
        };
        push(&mut all, file.at(&path), "")?;
    }
    if args.files.iter().any(|file| file.field() == "pgservice")
        && let Some(given) = given.iter().find(|g| in_file(g))
    {
        push(&mut all, Variable::of(given, "PGSERVICE", PG_SERVICE), "")?;
    }
    if let [(first, _), ..] = certified[..] {
        let socket = directory.join("agent");
        let certificates: Vec<&str> = certified.iter().map(|(_, certificate)| *certificate).collect();
        agent::serve(&socket, key, &certificates).context("the SSH agent cannot be started")?;
        push(&mut all, Variable::of(first, "SSH_AUTH_SOCK", &socket.to_string_lossy()), "certificate")?;
    }
    Ok((all, Some(directory)))
}

fn certificate(given: &Given) -> Option<&str> {
    let field = given.credential.field("certificate").filter(|_| given.credential.kind() == "ssh_certificate");
    field.map(Secret::expose)
}

/// Keeps leases alive while the child runs, where that changes nothing for the child, and gives them back.
struct Keeper<'a> {
    job: &'a Job,
    leases: Mutex<Vec<Kept>>,
}

struct Kept {
    held: Held,
    ttl: Option<u32>,
    /// When to renew; `None` where renewing is of no use, or no more.
    due: Option<Instant>,
}

impl<'a> Keeper<'a> {
    fn new(job: &'a Job, leases: &[Lease]) -> Self {
        let leases = leases.iter().map(|lease| {
            // The end of these is written into the credential itself: renewing would make another one.
            let fixed = matches!(
                lease.given.credential.kind(),
                "jwt" | "aws_session" | "gcp_token" | "azure_token" | "ssh_certificate" | "x509_certificate"
            );
            let due = (!fixed).then(|| Instant::now() + renewal_after(lease.expires_in));
            Kept { held: lease.held.clone(), ttl: lease.ttl, due }
        });
        Self { job, leases: Mutex::new(leases.collect()) }
    }

    /// Renews until the channel closes.
    fn keep(&self, until_end: &mpsc::Receiver<()>) {
        loop {
            let next = self.leases().iter().filter_map(|kept| kept.due).min();
            let wait = next.map_or(Duration::MAX, |due| due.saturating_duration_since(Instant::now()));
            if until_end.recv_timeout(wait) != Err(mpsc::RecvTimeoutError::Timeout) {
                return;
            }
            let count = self.leases().len();
            (0..count).for_each(|index| self.renew_if_due(index, until_end));
        }
    }

    fn renew_if_due(&self, index: usize, until_end: &mpsc::Receiver<()>) {
        let (held, ttl) = match &self.leases()[index] {
            Kept { held, ttl, due: Some(due) } if *due <= Instant::now() => (held.clone(), *ttl),
            _ => return,
        };
        let pause =
            |time| until_end.recv_timeout(time).err().filter(|e| *e == mpsc::RecvTimeoutError::Disconnected).map(|_| 0);
        let Some(handle) = held.handle() else { return };
        let (next, due) = match self.job.client(RENEW_DEADLINE, &pause).renew(&handle, ttl) {
            Ok(renewed) => {
                let extended = renewed.handle.lease() == held.lease;
                let due = extended.then(|| Instant::now() + renewal_after(renewed.expires_in));
                (Some(Held::new(held.grant.clone(), &renewed.handle)), due)
            }
            Err(ClientError::Interrupted(_)) => return,
            Err(error) => {
                self.job
                    .talk
                    .warn(&format!("grant `{}` is not renewed, its credential will expire: {error}", held.grant));
                (None, None)
            }
        };
        if let Some(next) = &next {
            self.job.hide_handle(next);
            if let Err(error) = self.job.session.remember(next.clone()) {
                self.job.talk.warn(&error.to_string());
            }
        }
        let mut leases = self.leases();
        leases[index].due = due;
        match next {
            Some(next) if next.lease == held.lease => leases[index].held = next,
            Some(next) => leases.push(Kept { held: next, ttl, due: None }),
            None => {}
        }
    }

    fn leases(&self) -> MutexGuard<'_, Vec<Kept>> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives back what was not yet given back.
    fn give_back(&self) {
        let leases = std::mem::take(&mut *self.leases());
        self.job.give_back(leases.into_iter().map(|kept| kept.held));
    }
}

/// Two thirds of a life: time enough to try again before its end.
fn renewal_after(expires_in: u64) -> Duration {
    Duration::from_secs(expires_in) * 2 / 3
}
