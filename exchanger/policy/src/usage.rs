//! `usage`: what of the policies is used, and how much less would do.

use crate::{
    decide::{RuleTrace, Trace},
    diff::text,
    grant::{PolicySet, Rule},
    issuer::Class,
    record::{Record, permits},
};
use jobpass_protocol::{GrantName, RuleName};
use serde::{Deserialize as _, Serialize};
use serde_json::{Map, Value as Json};
use std::{
    collections::{BTreeMap, HashMap},
    fmt,
};

/// Fewer uses than this say nothing about what all uses have in common.
const MIN_USES: u64 = 3;
/// A TTL so many times as long as the longest use is worth a word.
const FAR_ABOVE: i64 = 2;

/// What of the policies is used.
#[derive(Debug, Serialize)]
pub struct Usage {
    /// So many days unused is worth a word.
    pub days: u32,
    /// Grants and rules that nobody used for so long.
    pub unused: Vec<Unused>,
    /// What could be pinned.
    pub common: Vec<Common>,
    /// TTLs far above what was used.
    pub ttls: Vec<Long>,
}

/// A grant or a rule that nobody used.
#[derive(Debug, Serialize)]
pub struct Unused {
    /// The grant.
    pub grant: GrantName,
    /// The rule; all of them, if none is named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<RuleName>,
    /// Its last use, if there is any in the log.
    pub last: Option<String>,
}

/// What all uses of a rule had in common, and the rule does not ask for.
#[derive(Debug, Serialize)]
pub struct Common {
    /// The grant.
    pub grant: GrantName,
    /// The rule.
    pub rule: RuleName,
    /// How many uses there were.
    pub uses: u64,
    /// Claims that could be pinned, to these values.
    pub claims: BTreeMap<String, Json>,
}

/// A TTL far above what was used.
#[derive(Debug, Serialize)]
pub struct Long {
    /// The grant.
    pub grant: GrantName,
    /// Its TTL, in seconds.
    pub ttl: u32,
    /// The longest that a job kept its credential, in seconds.
    pub longest: i64,
    /// How many leases that is the longest of.
    pub leases: u64,
}

/// The uses of one rule.
#[derive(Default)]
struct Uses<'a> {
    count: u64,
    last: Option<&'a Record>,
    common: Option<Map<String, Json>>,
}

/// Looks through an audit log. `now` is in epoch seconds.
#[must_use]
pub fn usage(policies: &PolicySet, records: &[Record], now: i64, days: u32) -> Usage {
    let mut uses: HashMap<(&str, &str), Uses<'_>> = HashMap::new();
    let shadowed: Vec<_> = records.iter().filter_map(|record| Some((record, shadowed(record)?))).collect();
    let permits = permits(records).filter_map(|record| Some((record, record.rule.as_deref()?)));
    for (record, rule) in permits.chain(shadowed.iter().map(|(record, rule)| (*record, rule.as_str()))) {
        let Some(grant) = &record.grant else { continue };
        let uses = uses.entry((grant, rule)).or_default();
        uses.count += record.count;
        uses.last = uses.last.into_iter().chain([record]).max_by_key(|record| record.at);
        match (&mut uses.common, &record.claims) {
            (Some(common), Some(claims)) => common.retain(|claim, value| claims.get(claim) == Some(value)),
            (none, claims) => *none = none.take().or_else(|| claims.clone()),
        }
    }
    let longest = longest(policies, records, now);
    let mut grants: Vec<_> = policies.grants().collect();
    grants.sort_by(|a, b| a.name.cmp(&b.name));
    let mut usage = Usage { days, unused: Vec::new(), common: Vec::new(), ttls: Vec::new() };
    let since = now - i64::from(days) * 24 * 3600;
    for grant in grants {
        let rules: Vec<_> =
            grant.rules.iter().map(|rule| (rule, uses.get(&(grant.name.as_str(), rule.name.as_str())))).collect();
        let stale = |last: Option<&Record>| last.is_none_or(|last| last.at() < since);
        let unused = |rule: Option<&Rule>, last: Option<&Record>| Unused {
            grant: grant.name.clone(),
            rule: rule.map(|rule| rule.name.clone()),
            last: last.map(|last| last.at.to_string()),
        };
        if rules.iter().all(|(_, uses)| stale(last(*uses))) {
            let last = rules.iter().filter_map(|(_, uses)| last(*uses)).max_by_key(|last| last.at);
            usage.unused.push(unused(None, last));
        } else {
            let rules = rules.iter().filter(|(_, uses)| stale(last(*uses)));
            usage.unused.extend(rules.map(|(rule, uses)| unused(Some(rule), last(*uses))));
        }
        for (rule, uses) in rules {
            let Some(uses) = uses.filter(|uses| uses.count >= MIN_USES) else { continue };
            let mut claims = uses.common.clone().unwrap_or_default();
            claims.retain(|claim, _| could_pin(rule, claim));
            if !claims.is_empty() {
                let (grant, rule) = (grant.name.clone(), rule.name.clone());
                usage.common.push(Common { grant, rule, uses: uses.count, claims: claims.into_iter().collect() });
            }
        }
        if let Some((longest, leases)) = longest.get(grant.name.as_str()).copied()
            && leases >= MIN_USES
            && longest.saturating_mul(FAR_ABOVE) < i64::from(grant.ttl)
        {
            usage.ttls.push(Long { grant: grant.name.clone(), ttl: grant.ttl, longest, leases });
        }
    }
    usage
}

fn last<'a>(uses: Option<&Uses<'a>>) -> Option<&'a Record> {
    uses.and_then(|uses| uses.last)
}

/// Whether it would tighten the rule to list the values of a claim: not where it does, and not by a
/// name that can change hands where there is an id.
fn could_pin(rule: &Rule, claim: &str) -> bool {
    let known = rule.profile.claim(claim);
    !rule.pins(claim) && known.is_some_and(|known| known.class != Class::Name || known.id.is_none())
}

/// The rule of a permit that was not given, because it is only tried out.
fn shadowed(record: &Record) -> Option<RuleName> {
    let trace = record.trace.as_ref().filter(|_| record.reason.as_deref() == Some("shadow"))?;
    Trace::deserialize(trace).ok()?.rules.into_iter().find(RuleTrace::matches).map(|rule| rule.rule)
}

/// By grant: the longest time between a permit and the end of its lease, and of how many. Of what ends by
/// itself the log holds no end: it counts as used until then.
fn longest<'a>(policies: &PolicySet, records: &'a [Record], now: i64) -> HashMap<&'a str, (i64, u64)> {
    let mut began: HashMap<&str, (&str, i64)> = HashMap::new();
    let mut longest: HashMap<&str, (i64, u64)> = HashMap::new();
    for record in records {
        let Some(lease) = record.lease_id.as_deref() else { continue };
        match (record.event.as_str(), record.grant.as_deref()) {
            ("permitted" | "issued" | "renewed", Some(grant)) if record.rule.is_some() => {
                began.entry(lease).or_insert((grant, record.at()));
            }
            ("failed", _) => drop(began.remove(lease)),
            ("revoking" | "ended", _) => {
                if let Some((grant, at)) = began.remove(lease) {
                    let (most, leases) = longest.entry(grant).or_default();
                    *most = (*most).max(record.at() - at);
                    *leases += 1;
                }
            }
            _ => {}
        }
    }
    for (name, at) in began.into_values() {
        if let Some(ttl) = policies.grant(name).map(|grant| i64::from(grant.ttl)).filter(|ttl| at + ttl <= now) {
            let (most, leases) = longest.entry(name).or_default();
            *most = (*most).max(ttl);
            *leases += 1;
        }
    }
    longest
}

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Unused { grant, rule, last } in &self.unused {
            let what = rule.as_ref().map_or_else(|| format!("grant {grant}"), |rule| format!("rule {rule} of {grant}"));
            match last {
                Some(last) => {
                    writeln!(f, "{what}: unused for more than {} days; its last use was at {last}", self.days)?
                }
                None => writeln!(f, "{what}: never used in this log")?,
            }
        }
        for Common { grant, rule, uses, claims } in &self.common {
            let claims: Vec<_> = claims.iter().map(|(claim, value)| format!("{claim}: {}", text(value))).collect();
            writeln!(f, "rule {rule} of {grant}: all {uses} uses had {}; it could ask for that", claims.join(", "))?;
        }
        for Long { grant, ttl, longest, leases } in &self.ttls {
            writeln!(
                f,
                "grant {grant}: its TTL is {ttl} s, and the longest of {leases} leases was used for {longest} s"
            )?;
        }
        if self.unused.is_empty() && self.common.is_empty() && self.ttls.is_empty() {
            writeln!(f, "everything is used as it is")?;
        }
        Ok(())
    }
}
