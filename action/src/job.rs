//! One job at work with one server: asks, hides, remembers, gives back. What the commands have in common.

use crate::{
    certified::Key,
    client::{Ask, Client, ClientError, Pause, ServerUrl},
    deliver::Given,
    env::{Env, now},
    exec::INSIDE,
    mask::{MIN_LENGTH, Masking, Needles},
    outbound::Outbound,
    redact::Redactor,
    session::{Held, Session, SessionError},
    sources::{self, JobToken, Source, SourceError},
    talk::Talk,
};
use anyhow::{anyhow, ensure};
use jobpass_protocol::{LeaseState, RevokeResponse, Secret};
use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

/// How long revoking is tried for: the job's end waits for it, and the server's reaper covers what it misses.
const REVOKE_DEADLINE: Duration = Duration::from_secs(20);

/// What every command knows.
pub(crate) struct Job {
    pub(crate) env: Env,
    pub(crate) talk: Talk,
    pub(crate) url: ServerUrl,
    pub(crate) source: Box<dyn Source>,
    pub(crate) session: Session,
    pub(crate) deadline: Duration,
    pub(crate) outbound: Outbound,
    /// What the CI's log is told of what is handed over.
    masking: Masking,
    /// Whether there is, or may be, something to give back.
    pub(crate) holding: Arc<AtomicBool>,
    hidden: Mutex<Hidden>,
}

#[derive(Default)]
struct Hidden {
    needles: Needles,
    tokens: Vec<Secret>,
}

/// A credential and how to give it back.
pub(crate) struct Lease {
    pub(crate) given: Given,
    pub(crate) held: Held,
    pub(crate) ttl: Option<u32>,
    pub(crate) expires_in: u64,
    pub(crate) revocable: bool,
}

impl Job {
    /// Finds the CI and the job's session.
    ///
    /// # Errors
    /// When there is no CI, or no place for the session.
    pub(crate) fn new(env: Env, talk: Talk, url: ServerUrl, deadline: Duration) -> anyhow::Result<Self> {
        let source = sources::find(&env).ok_or(SourceError::NoCi)?;
        let session = Session::open(&env, &source.job_key(), url.as_str())?;
        let (outbound, masking) = (Outbound::new(&env), source.masking());
        let (holding, hidden) = (Arc::default(), Mutex::default());
        Ok(Self { env, talk, url, source, session, deadline, outbound, masking, holding, hidden })
    }

    /// Without a word to the CI's log: for a command that filters what its child prints by itself, and whose own
    /// outputs may be on their way into a file.
    pub(crate) fn without_masks(self) -> Self {
        Self { masking: Masking::None, ..self }
    }

    /// Asks for credentials, one after the other. Each is hidden before anyone can see it and remembered before it is
    /// handed on. When one is not given, those before it are given back.
    ///
    /// # Errors
    /// The first failure.
    pub(crate) fn obtain(&self, asks: &[Ask], pause: Pause<'_>) -> anyhow::Result<Vec<Lease>> {
        ensure!(self.env.text(INSIDE).is_none(), SourceError::InsideExec);
        let mut leases = Vec::new();
        let hide = |token: &Secret| {
            self.hide_own(token);
            self.mask(token);
        };
        let mut token = JobToken::new(self.source.as_ref(), &hide);
        for ask in asks {
            match self.obtain_one(ask, &mut token, pause) {
                Ok(lease) => leases.push(lease),
                Err(error) => {
                    self.give_back(leases.iter().map(|lease| lease.held.clone()));
                    return Err(error);
                }
            }
        }
        Ok(leases)
    }

    fn obtain_one(&self, ask: &Ask, token: &mut JobToken<'_>, pause: Pause<'_>) -> anyhow::Result<Lease> {
        let session = self.session.secret()?;
        self.hide_own(&Secret::from(session.expose()));
        let key = Key::generate().map_err(|_| anyhow!("no key can be made"))?;
        let ask = &Ask { csr: Some(key.request), ..ask.clone() };
        let mut answer = self.client(self.deadline, pause).exchange(token, &session, ask)?;
        self.holding.store(true, Ordering::Release);
        if answer.credential.kind() == "x509_certificate" {
            answer.credential = answer.credential.with_private_key(key.private);
        }
        self.hide_own(&Secret::from(answer.handle.expose()));
        for field in answer.credential.fields().iter().filter(|field| field.is_secret()) {
            self.hide(&field.value, &format!("`{}` of grant `{}`", field.name, ask.grant));
        }
        let held = Held::new(ask.grant.clone(), &answer.handle);
        if let Err(error) = self.session.remember(held.clone()) {
            // A lease that nobody remembers is given back at once.
            self.give_back([held]);
            return Err(error.into());
        }
        let given = Given { grant: ask.grant.clone(), credential: answer.credential };
        Ok(Lease { given, held, ttl: ask.ttl, expires_in: answer.expires_in, revocable: answer.revocable })
    }

    /// Gives leases back and forgets those that the server has taken. Failures are told, not returned: the credential
    /// then ends by its expiry, or by a later `jobpass revoke`. No signal that is watched for stops it.
    pub(crate) fn give_back(&self, leases: impl IntoIterator<Item = Held>) -> Vec<Returned> {
        let pause = |time| {
            thread::sleep(time);
            None
        };
        let client = self.client(REVOKE_DEADLINE.min(self.deadline), &pause);
        leases
            .into_iter()
            .map(|held| {
                let result = match held.handle() {
                    Some(handle) => client.revoke(&handle).map_err(|error| error.to_string()),
                    None => Err("the session file does not hold its handle".to_owned()),
                };
                match &result {
                    Ok(answer) => self.settle(&held, answer),
                    Err(error) => self.talk.warn(&format!(
                        "the credential of grant `{}` was not given back and lives until it expires (lease {}): {error}",
                        held.grant, held.lease
                    )),
                }
                Returned { held, result }
            })
            .collect()
    }

    fn settle(&self, held: &Held, answer: &RevokeResponse) {
        if answer.state == Some(LeaseState::Outliving) {
            let left =
                answer.until.map(|until| format!(" for another {}s", (until - now()).max(0))).unwrap_or_default();
            self.talk.say(&format!(
                "{}: the credential cannot be taken back: it stays valid{left} (lease {})",
                held.grant, held.lease
            ));
        }
        if let Some(file) = &held.file {
            file.remove();
        }
        if let Err(error) = self.session.forget(held.lease) {
            self.talk.warn(&error.to_string());
        }
    }

    /// A client that tries for so long.
    pub(crate) fn client<'a>(&'a self, deadline: Duration, pause: Pause<'a>) -> Client<'a> {
        Client { outbound: &self.outbound, url: &self.url, deadline, pause }
    }

    /// Everything that was hidden so far, as a filter.
    ///
    /// # Errors
    /// When there is too much of it.
    pub(crate) fn redactor(&self) -> anyhow::Result<Redactor> {
        Ok(Redactor::new(&self.hidden().needles)?)
    }

    /// The tokens of this job that this program has seen.
    pub(crate) fn tokens(&self) -> Vec<Secret> {
        self.hidden().tokens.clone()
    }

    /// Whether a later call of this job can do without the session.
    ///
    /// # Errors
    /// When the session cannot be removed.
    pub(crate) fn end_session(&self) -> Result<(), SessionError> {
        // Where tokens cannot be had anew, the one that there is stays bound to this session's secret.
        if self.source.gives_fresh_tokens() { self.session.end() } else { Ok(()) }
    }

    /// Hides the handle of a lease that was renewed.
    pub(crate) fn hide_handle(&self, held: &Held) {
        if let Some(handle) = held.handle() {
            self.hide_own(&Secret::from(handle.expose()));
        }
    }

    /// Hides a secret in the CI's log, in its plain spelling.
    pub(crate) fn mask(&self, secret: &Secret) {
        let mut needles = Needles::default();
        needles.add_plain(secret.expose());
        needles.register(self.masking);
    }

    /// Hides a secret that jobpass keeps to itself, and of which the CI's log is therefore not told either: there it
    /// would be in plain for whoever keeps the raw output.
    fn hide_own(&self, secret: &Secret) {
        if self.tokens().iter().any(|token| token.expose() == secret.expose()) {
            return;
        }
        let mut needles = Needles::default();
        needles.add_plain(secret.expose());
        let mut hidden = self.hidden();
        hidden.needles.absorb(needles);
        hidden.tokens.push(secret.clone());
    }

    fn hide(&self, secret: &Secret, what: &str) {
        let mut needles = Needles::default();
        if needles.add(secret.expose()).is_err() {
            self.talk.warn(&format!("{what} is shorter than {MIN_LENGTH} characters and cannot be hidden in logs"));
        }
        needles.register(self.masking);
        self.hidden().needles.absorb(needles);
    }

    fn hidden(&self) -> MutexGuard<'_, Hidden> {
        self.hidden.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What became of a lease that was given back.
pub(crate) struct Returned {
    pub(crate) held: Held,
    pub(crate) result: Result<RevokeResponse, String>,
}

/// The exit code for a failure, where a signal was the reason.
pub(crate) fn signal_of(error: &anyhow::Error) -> Option<i32> {
    match error.downcast_ref() {
        Some(ClientError::Interrupted(signal)) => Some(*signal),
        _ => None,
    }
}
