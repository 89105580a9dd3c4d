//! What the backends' tests share: a grant around a `credential:`, and a permit for a job.

use super::{
    Backend, Backends, Order,
    registry::{BuildContext, Configured, build_all},
};
use crate::{
    clock::{Clock, ManualClock, Timestamp},
    config::{Env, SecretRef},
    sealing::Sealing,
    signing::{KeyType, Keys, Settings},
};
use jobpass_policy::{
    Claims, Decision, Diagnostic, Freezes, Issuer, Permit, Request, Source, compile, decide, fixtures,
};
use jobpass_protocol::{BackendName, IssuerName, LeaseId};
use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};
use uuid::Uuid;

/// When all of it happens.
pub(super) const NOW: Timestamp = Timestamp::from_secs(1_795_300_010);

/// Values that somebody might put into a claim to break out of where it is written.
pub(super) const HOSTILE: &[&str] = &[
    "'",
    "\"",
    "`",
    "\\",
    "\\'",
    "a'; DROP ROLE x; --",
    "a\"; DROP ROLE x; --",
    "*",
    "a*",
    "a?b",
    "%",
    "a/b",
    "../../x",
    "a\0b",
    "a\nb",
    "a\r\nb",
    " ",
    "a b",
    "~* +@all",
    ">pw",
    "a,b",
    "a:b",
    "$(id)",
    "${x}",
    "{{ claims.actor }}",
    "окто/кот",
    "\u{202e}evil",
    "\u{1f419}",
    "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\
     xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\
     xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
];

/// Backends from config, and what they were built with.
pub(super) struct Bench {
    pub(super) backends: Result<Backends, String>,
    pub(super) context: BuildContext,
    _keys: tempfile::TempDir,
}

impl Bench {
    /// Builds the backends of a YAML mapping; the first one is the one that grants use.
    pub(super) fn new(config: &str) -> Self {
        Self::signing(config, Settings::default(), [])
    }

    /// The same with an RS256 key besides.
    pub(super) fn with_rsa(config: &str) -> Self {
        let types = vec![KeyType::Es256, KeyType::Rs256Bits2048];
        Self::signing(config, Settings { types, ..Settings::default() }, [])
    }

    /// The same with more variables in the server's environment.
    pub(super) fn with<'a>(config: &str, variables: impl IntoIterator<Item = (&'static str, &'a str)>) -> Self {
        Self::signing(config, Settings::default(), variables)
    }

    fn signing<'a>(
        config: &str,
        settings: Settings,
        variables: impl IntoIterator<Item = (&'static str, &'a str)>,
    ) -> Self {
        let variables = variables.into_iter().map(|(name, value)| (name, value.to_owned()));
        let directory = tempfile::tempdir().expect("a directory");
        let clock: Arc<dyn Clock> = Arc::new(ManualClock::at(NOW));
        let context = BuildContext {
            sealing: Arc::new(Sealing::new(SecretRef::try_from("env:SEALING".to_owned()).ok(), Env::default())),
            keys: Keys::open(directory.path(), Arc::clone(&clock), settings).expect("keys"),
            clock,
            public_url: "https://jobpass.acme.example".to_owned(),
            env: Env::of(variables.chain([("SECRET", "hunter2".to_owned())])),
            base: PathBuf::from("/nowhere"),
        };
        let files: BTreeMap<BackendName, Configured> = serde_saphyr::from_str(config).expect("a config");
        let backends = build_all(&files, &context).map_err(|error| error.to_string());
        Self { backends, context, _keys: directory }
    }

    /// The backend that grants use.
    pub(super) fn backend(&self) -> &Backend {
        self.backends.as_ref().expect("built").iter().next().expect("a backend").1
    }

    /// Asks as a job whose token has the fixture's claims, with some replaced, for a grant with this
    /// `credential:` (lines of YAML, not indented) and TTL. The grant's diagnostics are the error.
    pub(super) fn permit(&self, credential: &str, ttl: &str, replaced: &[(&str, &str)]) -> Result<Permit, String> {
        let backends = self.backends.as_ref().expect("built");
        let backend = backends.iter().next().expect("a backend").0;
        let credential: Vec<String> = credential.lines().map(|line| format!("  {line}\n")).collect();
        let text = format!(
            "grant: deploy-prod\nowner: a@acme.example\nbackend: {backend}\ncredential:\n{}ttl: {ttl}\n\
             rules:\n  - name: main\n    issuer: github\n    match: {{ repository_owner_id: \"1001\" }}\n",
            credential.concat()
        );
        let issuer = IssuerName::parse("github").expect("a name");
        let issuers = [Issuer::assumed(&issuer).expect("a profile")];
        let compiled = compile(&[Source { path: "deploy.yaml".to_owned(), text }], &issuers, backends);
        if compiled.has_errors() {
            let rendered: Vec<String> = compiled.diagnostics.iter().map(Diagnostic::to_string).collect();
            return Err(rendered.join("\n"));
        }
        let mut payload: serde_json::Value =
            serde_json::from_str(fixtures::fixture("github/push").expect("a fixture")).expect("JSON");
        for (name, value) in replaced {
            payload[*name] = (*value).into();
        }
        let claims = Claims::parse(&issuers[0].profile, payload.to_string().as_bytes()).expect("claims");
        let request = Request {
            grant: "deploy-prod",
            issuer: &issuer,
            claims: &Arc::new(claims),
            scope: None,
            ttl: None,
            at: NOW.secs(),
            freezes: &Freezes::NONE,
        };
        match decide(&compiled.set, &request) {
            Decision::Permit(permit) => Ok(permit),
            Decision::Denial(denial) => panic!("{denial:?}"),
        }
    }
}

/// An order for a permit.
pub(super) fn order(permit: &Permit) -> Order {
    Order {
        lease: LeaseId::from_uuid(Uuid::from_u128(0x0199_0000_0000_7000_8000_0000_0000_0001)),
        at: NOW,
        expires_at: NOW + Duration::from_secs(permit.ttl().into()),
        public_key: None,
        csr: None,
    }
}
