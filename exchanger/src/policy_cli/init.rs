//! `policy init`: a first grant, from a token, from flags, or by asking.

use super::{
    Answer,
    load::{World, claims_of, text, token_payload},
    print::print,
};
use crate::clock::{Clock as _, SystemClock};
use anyhow::{Context as _, bail};
use clap::Args;
use jobpass_policy::{
    Claims, Issuer,
    draft::{Draft, answer},
};
use jobpass_protocol::{GrantName, IssuerName};
use serde_json::{Map, Value};
use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufRead as _, IsTerminal as _, Write as _},
    path::{Path, PathBuf},
};

/// See [`super::PolicyCommand::Init`].
#[derive(Args, Debug)]
pub struct InitFlags {
    /// What jobs ask for, such as deploy-prod.
    grant: Option<GrantName>,
    /// Whose jobs it is for: github, gitlab, … or a name from the config.
    #[arg(long, value_name = "NAME")]
    issuer: Option<IssuerName>,
    /// Who answers for it: a team's address.
    #[arg(long, value_name = "ADDRESS")]
    owner: Option<String>,
    /// What makes the credential: a backend's name from the config.
    #[arg(long, value_name = "NAME")]
    backend: Option<String>,
    /// What it is for, in a sentence.
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    /// How long a credential lives.
    #[arg(long, value_name = "TIME", default_value = "15m")]
    ttl: String,
    /// The day of its review. Default: in a year.
    #[arg(long, value_name = "YYYY-MM-DD")]
    review_by: Option<String>,
    /// What a claim has to be (repeatable): `policy claims github` lists them.
    #[arg(long = "claim", value_name = "NAME=VALUE", value_parser = crate::cli::claim)]
    claims: Vec<(String, String)>,
    /// Takes what is not said otherwise from a job's token. It is not verified.
    #[arg(long, value_name = "FILE", conflicts_with = "from_claims")]
    from_token: Option<PathBuf>,
    /// Takes what is not said otherwise from a token's claims, as JSON; `-` is standard input.
    #[arg(long, value_name = "FILE")]
    from_claims: Option<PathBuf>,
    /// Where to write the grant; a file that is there is left alone. `-` is standard output.
    #[arg(long, value_name = "FILE", default_value = "-")]
    output: PathBuf,
    #[command(flatten)]
    world: World,
}

pub(super) fn init(flags: &InitFlags) -> Answer {
    let now = SystemClock.now();
    let mut desk = Desk { asks: io::stdin().is_terminal() && io::stderr().is_terminal(), missing: Vec::new() };
    let payload = payload(flags)?;
    let issuers = flags.world.known_issuers()?;
    let issuer = issuer(flags, &issuers, payload.as_ref(), &mut desk)?;
    let claims = payload.map(|payload| claims_of(issuer, payload, now.secs())).transpose()?;

    let asked = |flag: &Option<String>| flag.clone();
    let grant = flags.grant.as_ref().map(ToString::to_string);
    let grant = desk.settle("GRANT", "what jobs ask for, such as deploy-prod", grant, None)?;
    let owner = desk.settle("--owner", "a team's address", asked(&flags.owner), None)?;
    let backend = desk.settle("--backend", "a backend of the config", asked(&flags.backend), None)?;
    let usual = format!("What {} jobs get as {grant}.", issuer.profile.title());
    let description = desk.settle("--description", "what it is for", asked(&flags.description), Some(usual))?;
    let review_by = match &flags.review_by {
        Some(day) => day.clone(),
        None => in_a_year(now.secs())?,
    };
    let answers = answers(flags, issuer, claims.as_ref(), &mut desk)?;
    if !desk.missing.is_empty() {
        bail!("say {} (on a terminal you are asked)", desk.missing.join(", "));
    }

    let (ttl, review_by) = (&*flags.ttl, &*review_by);
    let (grant, owner, backend, description) = (&*grant, &*owner, &*backend, &*description);
    let draft = Draft { grant, owner, review_by, description, backend, ttl, issuer, answers: &answers };
    match draft.write(now.secs()) {
        Ok(text) => write(&flags.output, &text).map(|()| true),
        Err(found) => {
            let mut stderr = io::stderr().lock();
            for diagnostic in found {
                writeln!(stderr, "{}", diagnostic.render(false))?;
            }
            writeln!(stderr, "nothing is written: say otherwise with --claim NAME=VALUE")?;
            Ok(false)
        }
    }
}

fn payload(flags: &InitFlags) -> anyhow::Result<Option<Map<String, Value>>> {
    let json = match (&flags.from_token, &flags.from_claims) {
        (Some(path), _) => token_payload(path)?,
        (_, Some(path)) => text(path)?,
        (None, None) => return Ok(None),
    };
    serde_json::from_str(&json).map(Some).context("the claims are not a JSON object")
}

/// The issuer that is named, else the only one whose URL is the token's `iss`.
fn issuer<'a>(
    flags: &InitFlags,
    issuers: &'a [Issuer],
    payload: Option<&Map<String, Value>>,
    desk: &mut Desk,
) -> anyhow::Result<&'a Issuer> {
    let iss = payload.and_then(|payload| payload.get("iss")).and_then(Value::as_str);
    let known = issuers.iter().find(|issuer| Some(&*issuer.url) == iss).map(|issuer| issuer.name.to_string());
    let named = flags.issuer.as_ref().map(ToString::to_string).or(known);
    let all: Vec<_> = issuers.iter().map(|issuer| issuer.name.as_str()).collect();
    let all = all.join(", ");
    let named = desk.settle("--issuer", &format!("whose jobs: {all}"), named, None)?;
    if named.is_empty() {
        bail!("say whose jobs with --issuer NAME: {all}");
    }
    let found = issuers.iter().find(|issuer| issuer.name.as_str() == named);
    found.with_context(|| format!("there is no issuer {named}; there are {all}"))
}

fn answers(
    flags: &InitFlags,
    issuer: &Issuer,
    claims: Option<&Claims>,
    desk: &mut Desk,
) -> anyhow::Result<BTreeMap<String, String>> {
    let asks = issuer.profile.first();
    let mut answers = BTreeMap::new();
    for (claim, value) in &flags.claims {
        if asks.iter().all(|ask| ask.claim != *claim) {
            let known: Vec<_> = asks.iter().map(|ask| &*ask.claim).collect();
            bail!("a first grant does not ask for `{claim}`, but for {}; add more by hand", known.join(", "));
        }
        answers.insert(claim.clone(), value.clone());
    }
    for ask in asks.iter().filter(|ask| !ask.absent) {
        if answers.contains_key(&ask.claim) {
            continue;
        }
        let said = claims.and_then(|claims| answer(ask, claims));
        let value = match (&ask.only, claims) {
            (Some(_), _) => said.unwrap_or_default(),
            // What the token does not have, a job like it will not have either.
            (None, Some(_)) if said.is_none() && ask.optional => continue,
            (None, _) => {
                let usual = said.or_else(|| ask.default.clone()).or_else(|| ask.optional.then(String::new));
                desk.settle(&format!("--claim {}=…", ask.claim), &ask.hint, None, usual)?
            }
        };
        answers.insert(ask.claim.clone(), value);
    }
    Ok(answers)
}

/// Where questions are asked, if there is anybody to answer them.
struct Desk {
    asks: bool,
    /// What nobody said.
    missing: Vec<String>,
}

impl Desk {
    /// What was said; else what is answered; else what is usual; else it is missing.
    fn settle(&mut self, what: &str, hint: &str, said: Option<String>, usual: Option<String>) -> io::Result<String> {
        if let Some(said) = said {
            return Ok(said);
        }
        if self.asks {
            loop {
                let offered = usual.as_ref().filter(|usual| !usual.is_empty());
                let offered = offered.map(|usual| format!(" [{usual}]")).unwrap_or_default();
                write!(io::stderr().lock(), "{what} ({hint}){offered}: ")?;
                let mut line = String::new();
                if io::stdin().lock().read_line(&mut line)? == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                match (line.trim(), &usual) {
                    ("", Some(usual)) => return Ok(usual.clone()),
                    ("", None) => {}
                    (answer, _) => return Ok(answer.to_owned()),
                }
            }
        }
        Ok(usual.unwrap_or_else(|| {
            self.missing.push(what.to_owned());
            String::new()
        }))
    }
}

fn in_a_year(now: i64) -> anyhow::Result<String> {
    let today = jiff::Timestamp::from_second(now)?.to_zoned(jiff::tz::TimeZone::UTC).date();
    Ok(today.checked_add(jiff::Span::new().years(1))?.to_string())
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    if path.as_os_str() == "-" {
        return Ok(print(text)?);
    }
    let mut file = File::create_new(path).with_context(|| format!("{} is left alone", path.display()))?;
    file.write_all(text.as_bytes()).with_context(|| path.display().to_string())
}
