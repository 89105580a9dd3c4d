//! What the server tells of itself: metrics by name, logs in one shape. Neither can hold a secret:
//! metrics are counts under fixed labels, and logs take only what has a voice.

use crate::{
    backends::{Backends, limits::Limits},
    token::TokenError,
};
use jobpass_policy::Claims;
use jobpass_protocol::{GrantName, IssuerName};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _, text::encode},
    metrics::{
        MetricType,
        counter::{ConstCounter, Counter},
        family::Family,
        gauge::{ConstGauge, Gauge},
        histogram::Histogram,
    },
    registry::Registry,
};
use std::{
    collections::HashSet,
    fmt,
    sync::{Mutex, PoisonError, atomic::Ordering},
};

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ByReason {
    reason: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ByGrant {
    grant: String,
    issued: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ByIssuer {
    issuer: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ByListener {
    listener: &'static str,
}

/// What is counted of one listener.
#[derive(Clone, Debug)]
pub struct Listener {
    /// Its open connections.
    pub open: Gauge,
    /// How often all its places were taken, so that others have to wait.
    pub full: Counter,
}

/// So many unknown claims are told apart: a token can hold any.
const MOST_UNKNOWN: usize = 1000;

/// Reads each backend's limits when metrics are asked for.
struct ByBackend(Backends);

impl fmt::Debug for ByBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(name, _)| name)).finish()
    }
}

type Gauges = [(&'static str, &'static str, fn(&Limits) -> i64); 2];
type Counters = [(&'static str, &'static str, fn(&Limits) -> u64); 2];

const GAUGES: Gauges = [
    ("backend_resting", "1 while a backend rests after failures", |limits| limits.resting().is_some().into()),
    ("backend_minting", "Credentials in the making", |limits| i64::try_from(limits.minting()).unwrap_or(i64::MAX)),
];
const COUNTERS: Counters = [
    ("backend_failures", "Calls that failed or were not answered in time", |limits| {
        limits.counters().failed.load(Ordering::Relaxed)
    }),
    ("backend_refusals", "Requests that were refused without asking the backend", |limits| {
        limits.counters().refused.load(Ordering::Relaxed)
    }),
];

impl Collector for ByBackend {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let limits =
            || self.0.iter().filter_map(|(name, _)| Some(([("backend", name.as_str())], self.0.limits(name)?)));
        for (name, help, read) in GAUGES {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for (labels, limits) in limits() {
                ConstGauge::new(read(limits)).encode(family.encode_family(&labels)?)?;
            }
        }
        let rotations =
            || self.0.iter().filter_map(|(name, b)| Some(([("backend", name.as_str())], b.describe().rotation()?)));
        if rotations().next().is_some() {
            let help = "When a static secret, or an authority's certificate, has to be rotated, in epoch seconds";
            let mut family = encoder.encode_descriptor("rotation_due_seconds", help, None, MetricType::Gauge)?;
            for (labels, rotation) in rotations() {
                ConstGauge::new(rotation.due.secs()).encode(family.encode_family(&labels)?)?;
            }
        }
        for (name, help, read) in COUNTERS {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (labels, limits) in limits() {
                ConstCounter::new(read(limits)).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

/// The server's counters. Labels are grant names and fixed words, never what a caller chose.
pub struct Metrics {
    registry: Registry,
    token_refused: Family<ByReason, Counter>,
    exchanged: Family<ByGrant, Counter>,
    denied: Counter,
    unknown_claims: Family<ByIssuer, Counter>,
    reported: Mutex<HashSet<(IssuerName, String)>>,
    seconds: Histogram,
    policy_good: Gauge,
    grants: Gauge,
    connections: Family<ByListener, Gauge>,
    full: Family<ByListener, Counter>,
}

impl Metrics {
    /// Counters at zero, and a view of the backends.
    #[must_use]
    pub fn new(backends: Backends) -> Self {
        let mut registry = Registry::with_prefix("jobpass");
        registry.register_collector(Box::new(ByBackend(backends)));
        let token_refused = Family::default();
        let exchanged = Family::default();
        let denied = Counter::default();
        let unknown_claims = Family::default();
        let seconds = Histogram::new([0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0]);
        let policy_good = Gauge::default();
        let grants = Gauge::default();
        registry.register(
            "tokens_refused",
            "Subject tokens that were refused, by reason",
            Family::clone(&token_refused),
        );
        registry.register(
            "exchanges",
            "Permitted exchanges, by grant and whether a credential came of it",
            Family::clone(&exchanged),
        );
        registry.register("denials", "Exchanges that policy, or a spent token, denied", Counter::clone(&denied));
        registry.register(
            "unknown_claims",
            "Claims in verified tokens that the issuer's profile does not know, each counted once",
            Family::clone(&unknown_claims),
        );
        registry.register("request_seconds", "How long POST /token took", Histogram::clone(&seconds));
        registry.register(
            "policies_current",
            "1 when every policy directory is loaded as it is on disk",
            Gauge::clone(&policy_good),
        );
        registry.register("grants", "Grants that are loaded", Gauge::clone(&grants));
        let (connections, full) = (Family::default(), Family::default());
        registry.register("connections", "Open connections, by listener", Family::clone(&connections));
        registry.register(
            "connections_full",
            "How often all connections of a listener were taken, so that others have to wait",
            Family::clone(&full),
        );
        let reported = Mutex::default();
        Self {
            registry,
            token_refused,
            exchanged,
            denied,
            unknown_claims,
            reported,
            seconds,
            policy_good,
            grants,
            connections,
            full,
        }
    }

    /// The counts of a listener.
    #[must_use]
    pub fn listener(&self, listener: &'static str) -> Listener {
        let by = ByListener { listener };
        Listener { open: self.connections.get_or_create_owned(&by), full: self.full.get_or_create_owned(&by) }
    }

    /// A subject token was refused before policy saw it.
    pub fn token_refused(&self, error: &TokenError) {
        self.token_refused.get_or_create(&ByReason { reason: error.code() }).inc();
    }

    /// An exchange was permitted.
    pub fn exchanged(&self, grant: &GrantName, issued: bool) {
        let issued = if issued { "true" } else { "false" };
        self.exchanged.get_or_create(&ByGrant { grant: grant.to_string(), issued }).inc();
    }

    /// An exchange was denied.
    pub fn denied(&self) {
        self.denied.inc();
    }

    /// A token was verified. Claims in it that its issuer's profile does not know count for nothing in
    /// policies, and each is reported once.
    pub fn verified(&self, issuer: &IssuerName, claims: &Claims) {
        let mut unknown = claims.unknown().peekable();
        if unknown.peek().is_none() {
            return;
        }
        let mut reported = self.reported.lock().unwrap_or_else(PoisonError::into_inner);
        for claim in unknown {
            if reported.len() < MOST_UNKNOWN && reported.insert((issuer.clone(), claim.to_owned())) {
                let profile = claims.profile().name();
                tracing::warn!(%issuer, ?claim, profile, "tokens have a claim that the profile does not know");
                self.unknown_claims.get_or_create(&ByIssuer { issuer: issuer.to_string() }).inc();
            }
        }
    }

    /// A request took this long.
    pub fn took(&self, seconds: f64) {
        self.seconds.observe(seconds);
    }

    /// Policies were looked at.
    pub fn policies(&self, current: bool, grants: usize) {
        self.policy_good.set(current.into());
        self.grants.set(i64::try_from(grants).unwrap_or(i64::MAX));
    }

    /// Everything in OpenMetrics text.
    #[must_use]
    pub fn render(&self) -> String {
        let mut out = String::new();
        // Writing to a String cannot fail.
        let _ = encode(&mut out, &self.registry);
        out
    }
}

/// Where logs go: standard error, as text on a terminal and as JSON lines elsewhere.
pub fn log_to_stderr(filter: Option<&str>) {
    use std::io::IsTerminal as _;
    use tracing_subscriber::{EnvFilter, fmt};
    let filter = EnvFilter::new(filter.unwrap_or("info"));
    let terminal = std::io::stderr().is_terminal();
    let builder = fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(terminal);
    // An error means that a subscriber is set already, as in tests.
    let _ = if terminal { builder.try_init() } else { builder.json().flatten_event(true).try_init() };
}
