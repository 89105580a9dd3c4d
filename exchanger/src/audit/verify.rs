//! Checks a streamed audit log: offline, with nothing but the file and, if there are any, heads that
//! were kept elsewhere.

use super::{Line, Link, head::Head};
use jsonwebtoken::{Algorithm, DecodingKey, jwk::JwkSet};
use std::{
    collections::HashMap,
    fmt::Write as _,
    fs::File,
    io::{self, BufRead, BufReader},
    path::{Path, PathBuf},
};

/// More problems than this are not listed.
const MAX_PROBLEMS: usize = 100;

/// What is wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The line of the file, from 1; `None`: of the file as a whole.
    pub line: Option<usize>,
    /// What is wrong.
    pub what: Wrong,
}

/// What can be wrong with a log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Wrong {
    /// The line is neither an entry nor a head, in exactly the form in which they are streamed.
    #[error("this is not a line of an audit log as it was streamed")]
    NotALine,
    /// The entry or a field beside it was changed.
    #[error("entry {seq} was changed: its hash does not fit")]
    Changed {
        /// Its number.
        seq: u64,
    },
    /// Entries are missing before this one.
    #[error("entries {first} to {last} are missing before this line")]
    Missing {
        /// The first that is missing.
        first: u64,
        /// The last that is missing.
        last: u64,
    },
    /// An entry comes after a later one, or twice.
    #[error("entry {seq} is out of order: it comes after entry {after}")]
    OutOfOrder {
        /// Its number.
        seq: u64,
        /// The number before it.
        after: u64,
    },
    /// The entry does not continue the one before it: one of them was replaced.
    #[error("entry {seq} does not follow from entry {after} as it is here: one of them was replaced")]
    Replaced {
        /// Its number.
        seq: u64,
        /// The number before it.
        after: u64,
    },
    /// A signed head knows entries that are not here.
    #[error("the head of {at} saw {seq} entries, and the log ends with {last}: its tail was cut")]
    Cut {
        /// The head's number.
        seq: u64,
        /// The head's time.
        at: String,
        /// The last entry that is here.
        last: u64,
    },
    /// A signed head saw another entry under this number.
    #[error("the head of {at} saw another entry {seq}: the log was written anew")]
    Rewritten {
        /// The head's number.
        seq: u64,
        /// The head's time.
        at: String,
    },
    /// The head's signature does not fit.
    #[error("the head of {at} is not signed by key `{kid}`")]
    Forged {
        /// The head's time.
        at: String,
        /// The key that it names.
        kid: String,
    },
    /// The head's key is not among the given ones.
    #[error("the head of {at} names key `{kid}`, which is not in the key set: give the one that was published then")]
    KeyUnknown {
        /// The head's time.
        at: String,
        /// The key that it names.
        kid: String,
    },
}

/// Why a log could not be checked, or what is wrong with it.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// A file cannot be read.
    #[error("{path}: {source}")]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file with heads has none.
    #[error("{0}: no head in this file; a head is a line like {{\"head\":{{…}}}} of the stream, or `audit.head_file`")]
    NoHead(PathBuf),
    /// The file with keys has none.
    #[error("{0}: not a JSON Web Key Set (RFC 7517 §5), such as the server publishes under /.well-known/jwks.json")]
    NoKeys(PathBuf),
    /// The log was tampered with.
    #[error("{0}")]
    Tampered(String),
}

/// What a log that passes holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Number of the first entry; 0 when there is none.
    pub first: u64,
    /// The end of the chain.
    pub last: Link,
    /// Heads that fit, in the log and beside it.
    pub heads: usize,
    /// Those of them that were kept beside it. Only they show that its tail is there: whoever cuts it can cut it
    /// right behind a head.
    pub kept: usize,
    /// Heads about entries before the first one here.
    pub before: usize,
}

/// `audit verify`: checks the log in `file` against itself, against the heads in `head`, and their
/// signatures against the keys in `jwks`.
///
/// # Errors
/// When something is wrong: every problem with its line, up to a hundred.
pub fn command(file: &Path, head: Option<&Path>, jwks: Option<&Path>) -> Result<String, VerifyError> {
    let heads = head.map(read_heads).transpose()?.unwrap_or_default();
    let keys = jwks.map(read_keys).transpose()?;
    let unreadable = |source| VerifyError::Unreadable { path: file.to_owned(), source };
    let log = BufReader::new(File::open(file).map_err(unreadable)?);
    let (report, problems) = verify(log, &heads, keys.as_ref()).map_err(unreadable)?;
    let path = file.display();
    if !problems.is_empty() {
        let mut text = format!("{path} was tampered with");
        for Problem { line, what } in &problems {
            let _ = match line {
                Some(line) => write!(text, "\n{path}:{line}: {what}"),
                None => write!(text, "\n{path}: {what}"),
            };
        }
        return Err(VerifyError::Tampered(text));
    }
    let Report { first, last, heads, kept, before } = report;
    let mut text = format!("{path}: entries {first} to {} are whole and in order\n", last.seq);
    let signed = if keys.is_some() { "signed by known keys" } else { "signatures not checked: give --jwks" };
    if heads > 0 {
        let _ = writeln!(text, "{heads} signed heads fit ({signed})");
    }
    if kept == 0 {
        text.push_str("without a head kept elsewhere, a cut tail or a log written anew does not show: give --head\n");
    }
    if before > 0 {
        let _ = writeln!(text, "{before} heads are about entries before the first one here");
    }
    Ok(text)
}

/// Checks a log line by line.
///
/// # Errors
/// When it cannot be read.
pub fn verify(log: impl BufRead, heads: &[Head], keys: Option<&JwkSet>) -> io::Result<(Report, Vec<Problem>)> {
    let mut problems = Vec::new();
    let mut report = Report { first: 0, last: Link::START, heads: 0, kept: 0, before: 0 };
    let mut wanted: HashMap<u64, Vec<&Head>> = HashMap::new();
    for head in heads {
        problems.extend(check_signature(head, keys).map(|what| Problem { line: None, what }));
        wanted.entry(head.seq).or_default().push(head);
    }
    for (number, text) in (1..).zip(log.lines()) {
        let text = text?;
        let mut found = |what| problems.push(Problem { line: Some(number), what });
        if let Some(head) = Head::parse(&text) {
            // A head in the log stands right behind the entry that it is about.
            match check_head(&head, report.last) {
                None => report.heads += 1,
                Some(what) => found(what),
            }
            check_signature(&head, keys).into_iter().for_each(found);
            continue;
        }
        let Some(line) = Line::parse(&text) else {
            found(Wrong::NotALine);
            continue;
        };
        let (seq, after) = (line.link.seq, report.last.seq);
        let first = report.first == 0;
        if Some(line.link) != seq.checked_sub(1).map(|seq| Link { seq, hash: line.prev }.next(&line.entry)) {
            found(Wrong::Changed { seq });
        } else if !first && seq <= after {
            found(Wrong::OutOfOrder { seq, after });
        } else if !first && seq > after + 1 {
            found(Wrong::Missing { first: after + 1, last: seq - 1 });
        } else if (!first || seq == 1) && line.prev != report.last.hash {
            found(Wrong::Replaced { seq, after });
        }
        if first {
            report.first = seq;
        }
        // Going on from what is here, so that one problem is told once.
        report.last = line.link;
        for head in wanted.remove(&seq).unwrap_or_default() {
            match check_head(head, line.link) {
                None => {
                    report.heads += 1;
                    report.kept += 1;
                }
                Some(what) => found(what),
            }
        }
        if problems.len() >= MAX_PROBLEMS {
            return Ok((report, problems));
        }
    }
    for head in wanted.into_values().flatten() {
        if head.seq > report.last.seq {
            problems.push(Problem { line: None, what: cut(head, report.last.seq) });
        } else if head.seq < report.first {
            report.before += 1;
        }
    }
    Ok((report, problems))
}

fn check_head(head: &Head, here: Link) -> Option<Wrong> {
    if head.seq > here.seq {
        return Some(cut(head, here.seq));
    }
    (head.link() != Some(here)).then(|| Wrong::Rewritten { seq: head.seq, at: head.at.clone() })
}

fn cut(head: &Head, last: u64) -> Wrong {
    Wrong::Cut { seq: head.seq, at: head.at.clone(), last }
}

fn check_signature(head: &Head, keys: Option<&JwkSet>) -> Option<Wrong> {
    let (at, kid) = (head.at.clone(), head.kid.clone());
    let Some(jwk) = keys?.find(&head.kid) else { return Some(Wrong::KeyUnknown { at, kid }) };
    let algorithm = jwk.common.key_algorithm.and_then(|name| name.to_string().parse::<Algorithm>().ok());
    let fits = algorithm.zip(DecodingKey::from_jwk(jwk).ok()).is_some_and(|(algorithm, key)| {
        jsonwebtoken::crypto::verify(&head.signature, head.message().as_bytes(), &key, algorithm).unwrap_or(false)
    });
    (!fits).then_some(Wrong::Forged { at, kid })
}

fn read_heads(path: &Path) -> Result<Vec<Head>, VerifyError> {
    let heads: Vec<Head> = read(path)?.lines().filter_map(Head::parse).collect();
    if heads.is_empty() { Err(VerifyError::NoHead(path.to_owned())) } else { Ok(heads) }
}

fn read_keys(path: &Path) -> Result<JwkSet, VerifyError> {
    serde_json::from_str(&read(path)?).map_err(|_| VerifyError::NoKeys(path.to_owned()))
}

fn read(path: &Path) -> Result<String, VerifyError> {
    std::fs::read_to_string(path).map_err(|source| VerifyError::Unreadable { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        audit::{Entry, Event, head::Sign},
        clock::Timestamp,
    };
    use aws_lc_rs::{
        rand::SystemRandom,
        signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _},
    };
    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

    struct Key(EcdsaKeyPair, &'static str);

    impl Key {
        fn new(kid: &'static str) -> Self {
            Self(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("a key"), kid)
        }

        fn set(&self) -> JwkSet {
            let point = self.0.public_key().as_ref();
            let (x, y) = (URL_SAFE_NO_PAD.encode(&point[1..33]), URL_SAFE_NO_PAD.encode(&point[33..]));
            let key = serde_json::json!({"kty": "EC", "crv": "P-256", "alg": "ES256", "kid": self.1, "x": x, "y": y});
            serde_json::from_value(serde_json::json!({ "keys": [key] })).expect("a key set")
        }
    }

    impl Sign for Key {
        fn sign(&self, message: &[u8]) -> Result<(String, Vec<u8>), String> {
            let signature = self.0.sign(&SystemRandom::new(), message).map_err(|error| error.to_string())?;
            Ok((self.1.to_owned(), signature.as_ref().to_vec()))
        }
    }

    fn at() -> Timestamp {
        Timestamp::from_secs(1_790_000_000)
    }

    /// A log of entries 1 to `count`, that differs by `mark`.
    fn log(count: u64, mark: &str) -> Vec<Line> {
        let mut link = Link::START;
        let entries = (0..count).map(|_| {
            let mut entry = Entry::new(at(), Event::Denied);
            entry.reason = Some(format!("{mark} \"{}\" ü", link.seq));
            let entry = serde_json::to_string(&entry).expect("an entry");
            let next = link.next(&entry);
            let prev = std::mem::replace(&mut link, next);
            Line { link, prev: prev.hash, entry: entry.into() }
        });
        entries.collect()
    }

    fn check(lines: &[String], heads: &[Head], keys: Option<&JwkSet>) -> Vec<(Option<usize>, Wrong)> {
        let text = lines.join("\n");
        let (_, problems) = verify(text.as_bytes(), heads, keys).expect("reads");
        problems.into_iter().map(|problem| (problem.line, problem.what)).collect()
    }

    /// An entry that was changed by somebody who computed its own hash anew.
    fn forge(line: &Line) -> String {
        let entry = line.entry.replace("denied", "issued");
        let link = Link { seq: line.link.seq - 1, hash: line.prev }.next(&entry);
        Line { link, entry: entry.into(), ..line.clone() }.to_text()
    }

    #[test]
    fn every_way_of_tampering_shows_where() {
        type Found = (Option<usize>, Wrong);
        type Tamper = fn(&mut Vec<String>, &[Line]);
        let cases: &[(&str, Tamper, &[Found])] = &[
            ("nothing", |_, _| {}, &[]),
            ("the start was rotated away", |log, _| drop(log.drain(..4)), &[]),
            (
                "an entry is changed",
                |log, _| log[4] = log[4].replace("denied", "issued"),
                &[(Some(5), Wrong::Changed { seq: 5 })],
            ),
            (
                "a number is changed",
                |log, _| log[4] = log[4].replace("\"seq\":5", "\"seq\":6"),
                &[(Some(5), Wrong::Changed { seq: 6 }), (Some(6), Wrong::OutOfOrder { seq: 6, after: 6 })],
            ),
            (
                "a hash is changed",
                |log, lines| {
                    let mut line = lines[4].clone();
                    line.link.hash[31] ^= 1;
                    log[4] = line.to_text();
                },
                &[(Some(5), Wrong::Changed { seq: 5 }), (Some(6), Wrong::Replaced { seq: 6, after: 5 })],
            ),
            (
                "a link is changed",
                |log, lines| {
                    let mut line = lines[4].clone();
                    line.prev[0] ^= 1;
                    log[4] = line.to_text();
                },
                &[(Some(5), Wrong::Changed { seq: 5 })],
            ),
            (
                "an entry is changed with its hash",
                |log, lines| log[4] = forge(&lines[4]),
                &[(Some(6), Wrong::Replaced { seq: 6, after: 5 })],
            ),
            ("a space", |log, _| log[4].insert(1, ' '), &[(Some(5), Wrong::NotALine), MISSING_5]),
            ("an upper-case digit", |log, _| log[4] = upper(&log[4]), &[(Some(5), Wrong::NotALine), MISSING_5]),
            ("a field more", |log, _| log[4].insert_str(1, "\"x\":1,"), &[(Some(5), Wrong::NotALine), MISSING_5]),
            ("an empty line", |log, _| log.insert(4, String::new()), &[(Some(5), Wrong::NotALine)]),
            ("a torn line", |log, _| log[9].truncate(40), &[(Some(10), Wrong::NotALine)]),
            ("an entry is deleted", |log, _| drop(log.remove(4)), &[(Some(5), Wrong::Missing { first: 5, last: 5 })]),
            (
                "three entries are deleted",
                |log, _| drop(log.drain(3..6)),
                &[(Some(4), Wrong::Missing { first: 4, last: 6 })],
            ),
            (
                "two entries are swapped",
                |log, _| log.swap(3, 4),
                &[
                    (Some(4), Wrong::Missing { first: 4, last: 4 }),
                    (Some(5), Wrong::OutOfOrder { seq: 4, after: 5 }),
                    (Some(6), Wrong::Missing { first: 5, last: 5 }),
                ],
            ),
            (
                "an entry comes twice",
                |log, _| log.insert(5, log[4].clone()),
                &[(Some(6), Wrong::OutOfOrder { seq: 5, after: 5 })],
            ),
            (
                "another chain's first entry",
                |log, lines| log[0] = forge(&lines[0]),
                &[(Some(2), Wrong::Replaced { seq: 2, after: 1 })],
            ),
        ];
        let lines = log(10, "a");
        for (what, tamper, expected) in cases {
            let mut texts: Vec<String> = lines.iter().map(Line::to_text).collect();
            tamper(&mut texts, &lines);
            assert_eq!(check(&texts, &[], None), *expected, "{what}");
        }
    }

    const MISSING_5: (Option<usize>, Wrong) = (Some(6), Wrong::Missing { first: 5, last: 5 });

    fn upper(text: &str) -> String {
        let (start, rest) = text.split_once("\"hash\":\"").expect("a hash");
        let (hash, rest) = rest.split_at(64);
        format!("{start}\"hash\":\"{}{rest}", hash.to_uppercase())
    }

    #[test]
    fn a_head_shows_what_the_log_cannot() {
        let (key, thief) = (Key::new("k1"), Key::new("k1"));
        let (lines, anew) = (log(10, "a"), log(10, "b"));
        let texts = |lines: &[Line]| lines.iter().map(Line::to_text).collect::<Vec<_>>();
        let head = |link, key: &Key| Head::sign(link, at(), key).expect("signs");
        let (five, ten) = (head(lines[4].link, &key), head(lines[9].link, &key));
        let keys = key.set();
        let time = at().to_string();
        let rewritten = |seq| Wrong::Rewritten { seq, at: time.clone() };
        let cut = |seq, last| Wrong::Cut { seq, at: time.clone(), last };
        let edited = Head { seq: 9, ..ten.clone() };

        for (what, log, heads, expected) in [
            ("it fits", texts(&lines), vec![five.clone(), ten.clone()], vec![]),
            ("the tail is cut", texts(&lines[..8]), vec![five.clone(), ten.clone()], vec![(None, cut(10, 8))]),
            ("everything is gone", vec![], vec![ten.clone()], vec![(None, cut(10, 0))]),
            ("the log was written anew", texts(&anew), vec![ten.clone()], vec![(Some(10), rewritten(10))]),
            ("the start was rotated away", texts(&lines[6..]), vec![five.clone(), ten.clone()], vec![]),
            (
                "the head is another key's",
                texts(&lines),
                vec![head(lines[9].link, &thief)],
                vec![(None, Wrong::Forged { at: time.clone(), kid: "k1".into() })],
            ),
            (
                "the head was edited to fit a cut log",
                texts(&lines[..9]),
                vec![Head { hash: head(lines[8].link, &thief).hash, ..edited }],
                vec![(None, Wrong::Forged { at: time.clone(), kid: "k1".into() })],
            ),
            (
                "the head's key is not known",
                texts(&lines),
                vec![head(lines[9].link, &Key::new("k2"))],
                vec![(None, Wrong::KeyUnknown { at: time.clone(), kid: "k2".into() })],
            ),
        ] {
            assert_eq!(check(&log, &heads, Some(&keys)), expected, "{what}");
        }

        // Heads in the stream itself.
        let with = |at: usize, head: &Head| {
            let mut texts = texts(&lines);
            texts.insert(at, head.to_text());
            texts
        };
        assert_eq!(check(&with(5, &five), &[], Some(&keys)), []);
        assert_eq!(check(&with(6, &five), &[], Some(&keys)), [(Some(7), rewritten(5))]);
        assert_eq!(check(&with(9, &ten), &[], Some(&keys)), [(Some(10), cut(10, 9))]);
    }

    #[test]
    fn only_a_head_kept_elsewhere_shows_the_tail() {
        let (key, lines) = (Key::new("k1"), log(10, "a"));
        let [five, ten] =
            [4, 9].map(|at: usize| Head::sign(lines[at].link, self::at(), &key).expect("signs").to_text());
        let texts = |lines: &[Line]| lines.iter().map(Line::to_text).collect::<Vec<_>>();
        let (all, cut) = (texts(&lines), [texts(&lines[..5]), vec![five.clone()]].concat());
        let marked = [cut.clone(), texts(&lines[5..]), vec![ten.clone()]].concat();
        let directory = tempfile::tempdir().expect("a directory");
        let file = |name: &str, lines: &[String]| {
            let path = directory.path().join(name);
            std::fs::write(&path, lines.join("\n") + "\n").expect("writes");
            path
        };
        for (what, log, head, fit, warned) in [
            ("no head", &all[..], None, None, true),
            ("heads in the log", &marked, None, Some(2), true),
            ("cut behind a head", &cut, None, Some(1), true),
            ("a head beside it", &all, Some(&ten), Some(1), false),
            ("both", &marked, Some(&ten), Some(3), false),
            ("a head of before", &all[6..], Some(&five), None, true),
        ] {
            let (log, head) = (file("log", log), head.map(|head| file("head", std::slice::from_ref(head))));
            let keys = directory.path().join("jwks.json");
            std::fs::write(&keys, serde_json::to_string(&key.set()).expect("JSON")).expect("writes");
            let told = command(&log, head.as_deref(), Some(&keys)).expect(what);
            assert_eq!(told.contains("a cut tail"), warned, "{what}: {told}");
            let fits = fit.map(|count| format!("{count} signed heads fit"));
            assert_eq!(told.contains("heads fit"), fits.is_some(), "{what}: {told}");
            assert!(told.contains(&fits.unwrap_or_default()), "{what}: {told}");
        }
        let told = command(&file("log", &cut), Some(&file("head", &[ten])), None).expect_err("it is cut").to_string();
        assert!(told.contains("its tail was cut"), "{told}");
    }
}
