//! What policies cost: loading 10 to 10,000 grants, deciding among them, and conditions of somebody who
//! means harm. `tests/bench/run policy` builds what is shipped and starts it. It prints numbers beside
//! goals and never fails: a busy machine proves nothing about a program. Times are the thread's own on a
//! processor; only what a condition takes is by the clock.

use jobpass_policy::{
    AnyCredential, Claims, Decision, Freezes, Issuer, PolicySet, Profile, Request, Source, compile, decide,
    fixtures::fixture, lint,
};
use jobpass_protocol::IssuerName;
use std::{
    error::Error,
    hint::black_box,
    io::Write as _,
    sync::Arc,
    time::{Duration, Instant},
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type Outcome<T> = Result<T, Box<dyn Error>>;

const SIZES: [usize; 3] = [10, 1_000, 10_000];
const RULES: usize = 5;
/// Every so manieth grant has a rule with a condition in four: one rule in twenty.
const WITH_CONDITION: usize = 4;
/// Each number is the median of so many batches of so many decisions: long enough for the scheduler's clock.
const BATCHES: usize = 7;
const DECISIONS: usize = 200_000;
const LOADS: usize = 5;
const EVALUATIONS: usize = 41;

fn main() -> Outcome<()> {
    let mut out = std::io::stdout().lock();
    let issuers: Vec<Issuer> =
        ["github", "gitlab"].iter().filter_map(|name| Issuer::assumed(&IssuerName::parse(name).ok()?)).collect();
    let claims = claims(&[])?;
    writeln!(
        out,
        "The same grants are asked for in every set, then all of the set in turn (whose memory no cache holds).\n"
    )?;
    writeln!(
        out,
        "| grants | rules | load ms | permit µs | denial µs | by condition µs | in turn: permit | denial | by condition |"
    )?;
    writeln!(out, "| --- | --- | --- | --- | --- | --- | --- | --- | --- |")?;
    let mut rows = Vec::new();
    for size in SIZES {
        let sources: Vec<Source> = (0..size).map(grant).collect();
        let mut loads = Vec::new();
        let mut set = None;
        for _ in 0..LOADS {
            let started = on_cpu()?;
            let compiled = compile(&sources, &issuers, &AnyCredential);
            let refused = lint::errors(&compiled);
            loads.push(on_cpu()? - started);
            if let Some(diagnostic) = compiled.diagnostics.iter().chain(&refused).next() {
                return Err(diagnostic.to_string().into());
            }
            set = Some(compiled.set);
        }
        let set = set.ok_or("nothing was loaded")?;
        let issuer = IssuerName::parse("github")?;
        let of = |kind: usize, most: usize| {
            (0..most).filter(move |n| (n % WITH_CONDITION == 0) == (kind == 0)).collect::<Vec<_>>()
        };
        let stranger = vec![crate::claims(&[("ref", "refs/heads/other")])?];
        let mine = vec![claims.clone()];
        let mut row = [median(&mut loads); 7];
        for (times, most) in row[1..].chunks_mut(3).zip([SIZES[0], size]) {
            for (time, (kind, claims, permits)) in
                times.iter_mut().zip([(1, &mine, true), (1, &stranger, false), (0, &mine, true)])
            {
                *time = per_decision(&set, &issuer, &of(kind, most), claims, permits)?;
            }
        }
        let decisions = row[1..].iter().map(|time| format!("{:.2}", micros(*time))).collect::<Vec<_>>();
        writeln!(out, "| {size} | {} | {:.1} | {} |", size * RULES, millis(row[0]), decisions.join(" | "))?;
        rows.push(row);
    }
    if let (Some(few), Some(many)) = (rows.first(), rows.last()) {
        let ratios = |columns: std::ops::Range<usize>| {
            let ratio = |column: usize| format!("{:.2}", many[column].as_secs_f64() / few[column].as_secs_f64());
            columns.map(ratio).collect::<Vec<_>>().join(", ")
        };
        writeln!(out, "\n10,000 grants to 10, the same grants: {} times", ratios(1..4))?;
        writeln!(out, "10,000 grants to 10, all in turn: {} times", ratios(4..7))?;
        let slowest = |columns: &[usize]| columns.iter().map(|column| many[*column]).max().unwrap_or_default();
        writeln!(
            out,
            "goals: load {:.2} of 2 s, plain {:.2} of 5 µs, by condition {:.2} of 25 µs",
            many[0].as_secs_f64(),
            micros(slowest(&[1, 2, 4, 5])),
            micros(slowest(&[3, 6]))
        )?;
    }
    let (name, worst) = hostile(&issuers)?;
    writeln!(out, "the worst condition of the hostile ones ({name}): {:.3} of 1 ms", millis(worst))?;
    Ok(())
}

/// One grant with five rules; the last one matches the fixture's job, in one grant of four by its condition.
fn grant(n: usize) -> Source {
    let mut text = format!(
        "grant: grant-{n}\nowner: team-{}@acme.example\nreview_by: 2027-06-30\ndescription: Number {n}.\n\
         backend: aws-prod\nttl: 15m\nrules:\n",
        n % 97
    );
    for rule in 0..RULES {
        let is_last = rule + 1 == RULES;
        let repository = if is_last { 772_002 } else { 900_000 + n * RULES + rule };
        text += &format!(
            "  - name: rule-{rule}\n    issuer: github\n    match:\n      repository_owner_id: \"1001\"\n      \
             repository_id: \"{repository}\"\n      ref: refs/heads/main\n      event_name: [push, workflow_dispatch]\n      \
             workflow_ref: {{ glob: \"acme/api/.github/workflows/*.yml@refs/heads/main\" }}\n"
        );
        if is_last && n.is_multiple_of(WITH_CONDITION) {
            text += "    when: claims.run_attempt == \"1\" || claims.actor_id in [\"583231\", \"583232\"]\n";
        }
    }
    Source { path: format!("grants/team-{}/grant-{n}.yaml", n % 97), text }
}

fn claims(changes: &[(&str, &str)]) -> Outcome<Arc<Claims>> {
    let mut payload: serde_json::Map<String, serde_json::Value> =
        serde_json::from_str(fixture("github/push").ok_or("no fixture")?)?;
    for (claim, value) in changes {
        payload.insert((*claim).to_owned(), (*value).into());
    }
    let profile = Profile::named("github").ok_or("no profile")?;
    Ok(Arc::new(Claims::parse(&profile, serde_json::Value::Object(payload).to_string().as_bytes())?))
}

fn per_decision(
    set: &PolicySet,
    issuer: &IssuerName,
    grants: &[usize],
    claims: &[Arc<Claims>],
    permits: bool,
) -> Outcome<Duration> {
    let names: Vec<String> = grants.iter().map(|n| format!("grant-{n}")).collect();
    let mut batches = Vec::with_capacity(BATCHES);
    let mut place = 0;
    for _ in 0..BATCHES {
        let started = on_cpu()?;
        for _ in 0..DECISIONS {
            // Strides over all of them, so that the grant that is asked for is not the one in the cache.
            place = (place + 7_919) % names.len();
            let claims = &claims[place % claims.len()];
            let request = Request {
                grant: &names[place],
                issuer,
                claims,
                scope: None,
                ttl: None,
                at: 1_795_300_000,
                freezes: &Freezes::NONE,
            };
            let decision = black_box(decide(set, &request));
            if matches!(decision, Decision::Permit(_)) != permits {
                return Err(format!("{}: not decided as expected", names[place]).into());
            }
        }
        batches.push((on_cpu()? - started) / u32::try_from(DECISIONS)?);
    }
    Ok(median(&mut batches))
}

/// The longest that a condition takes of those that were made to take long, for a token that is as large
/// as a token can be.
fn hostile(issuers: &[Issuer]) -> Outcome<(&'static str, Duration)> {
    let join = |part: &dyn Fn(usize) -> String, most: usize, by: &str| {
        let mut text = String::new();
        for n in 0..most {
            let more = part(n);
            if text.len() + more.len() + by.len() > 4_000 {
                break;
            }
            text = if text.is_empty() { more } else { format!("{text}{by}{more}") };
        }
        text
    };
    let long = "a".repeat(11_000);
    let conditions = [
        ("contains", join(&|n| format!("claims.workflow.contains(\"{}b{n}\")", "a".repeat(20)), 120, " || ")),
        ("one-letter contains", join(&|_| "claims.workflow.contains(\"b\")".to_owned(), 160, " || ")),
        ("starts", join(&|n| format!("claims.workflow.startsWith(\"{n}\")"), 160, " || ")),
        ("size", join(&|n| format!("size(claims.workflow) == {n}"), 100, " || ")),
        ("itself", join(&|_| "claims.workflow != claims.workflow".to_owned(), 100, " || ")),
        ("in", format!("claims.workflow in [{}]", join(&|n| format!("\"{n}\""), 480, ", "))),
        ("in many", join(&|n| format!("claims.ref in [{}]", join(&|m| format!("\"{n}{m}\""), 20, ",")), 20, " || ")),
        ("in numbers", join(&|n| format!("size(claims.ref) in [{n}, {n}, {n}, {n}]"), 45, " || ")),
        ("deep", format!("{}claims.ref == \"x\"{}", "(".repeat(60), " || false)".repeat(60))),
        ("not", format!("{}(claims.ref == \"x\")", "!".repeat(60))),
        ("choices", join(&|n| format!("claims.ref == \"{n}\" ? true : "), 55, "") + "claims.ref == \"x\""),
        ("absent", join(&|_| "claims.environment == \"x\"".to_owned(), 120, " || ")),
        ("order", join(&|n| format!("size(claims.ref) < {n}"), 90, " && ")),
    ];
    let claims = claims(&[("workflow", &long)])?;
    let issuer = IssuerName::parse("github")?;
    let mut worst = ("none", Duration::ZERO);
    for (name, condition) in conditions {
        let text = format!(
            "grant: hostile\nowner: o@acme.example\nbackend: b\nttl: 1m\nrules:\n  - name: r\n    issuer: github\n    \
             match: {{ repository_owner_id: \"1001\" }}\n    when: |\n      {condition}\n"
        );
        let compiled = compile(&[Source { path: "hostile.yaml".to_owned(), text }], issuers, &AnyCredential);
        if let Some(diagnostic) = compiled.diagnostics.first() {
            return Err(format!("{name}: {diagnostic}").into());
        }
        let freezes = &Freezes::NONE;
        let request =
            Request { grant: "hostile", issuer: &issuer, claims: &claims, scope: None, ttl: None, at: 0, freezes };
        let mut times: Vec<_> = (0..EVALUATIONS)
            .map(|_| {
                let started = Instant::now();
                black_box(decide(&compiled.set, &request));
                started.elapsed()
            })
            .collect();
        let took = median(&mut times);
        if took > worst.1 {
            worst = (name, took);
        }
    }
    Ok(worst)
}

/// How long this thread was on a processor: what else the machine does then counts for less.
fn on_cpu() -> Outcome<Duration> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    Ok(Duration::from_nanos(text.split(' ').next().ok_or("no time")?.parse()?))
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}
