//! Texts that look alike, kept as what differs from a sample.
//!
//! The claims of one issuer's jobs share their names and most of their values, and so do the audit
//! entries about them. A packed text is the byte 0 and the text, or the byte 1, a sample's id and an LZ4
//! block whose dictionary is the sample. Statements read a packed column as `unpack(column)`.

use super::{Fault, rows::corrupt, writer::lock};
use crate::{audit::Entry, clock::Timestamp};
use aws_lc_rs::digest::{SHA256, digest};
use jobpass_protocol::IssuerName;
use lz4_flex::block::decompress_size_prepended_with_dict;
use rusqlite::{Connection, functions::FunctionFlags};
use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

const PLAIN: u8 = 0;
const DIFFERENCE: u8 = 1;
/// Shorter texts are kept as they are.
const SHORTEST: usize = 256;
/// Samples of one kind; a text that looks like none of them becomes the next one once it is written.
const MOST: usize = 8;

/// What a text is, and of whose jobs: such texts look alike.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Kind(pub(super) Sort, pub(super) IssuerName);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Sort {
    /// A lease's claims.
    Claims,
    /// An audit entry about a lease.
    Entry,
    /// One about none. Apart from the others: jobs that are denied have a say in what these look like.
    EntryAlone,
}

impl Sort {
    const ALL: [Self; 3] = [Self::Claims, Self::Entry, Self::EntryAlone];

    /// What comes before the issuer's name in the column `samples.kind`.
    const fn words(self) -> &'static str {
        match self {
            Self::Claims => "claims of ",
            Self::Entry => "entries about ",
            Self::EntryAlone => "entries without a lease, of ",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.0.words(), self.1)
    }
}

impl Kind {
    fn parse(text: &str) -> Option<Self> {
        Sort::ALL
            .into_iter()
            .find_map(|sort| Some(Self(sort, IssuerName::parse(text.strip_prefix(sort.words())?).ok()?)))
    }
}

struct Sample {
    /// The first eight bytes of the text's SHA-256.
    id: i64,
    /// None where it is no kind that we know: such a sample can still be read.
    kind: Option<Kind>,
    text: String,
    durable: AtomicBool,
}

#[derive(Default)]
struct Known {
    by_id: HashMap<i64, Arc<Sample>>,
    /// The samples of a kind; new texts are compared with the first one first.
    of_kind: HashMap<Kind, Vec<Arc<Sample>>>,
}

impl Known {
    fn add(&mut self, sample: Arc<Sample>) {
        if let Some(kind) = &sample.kind {
            self.of_kind.entry(kind.clone()).or_default().push(Arc::clone(&sample));
        }
        self.by_id.insert(sample.id, sample);
    }
}

/// All samples. They are few, and stay in memory.
#[derive(Default)]
pub(super) struct Samples(Mutex<Known>);

/// A text as it is written.
pub(super) struct Packed {
    bytes: Vec<u8>,
    /// What it needs to be read again and may not be on disk yet.
    sample: Option<Arc<Sample>>,
    /// What it is a sample of, because it is like no other.
    novel: Option<Arc<Sample>>,
}

impl Samples {
    /// Reads those on disk.
    pub(super) fn load(conn: &Connection) -> Result<Arc<Self>, Fault> {
        let mut known = Known::default();
        let mut statement = conn.prepare("SELECT id, kind, text FROM samples ORDER BY rowid")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let (id, kind, text) = (row.get(0)?, Kind::parse(&row.get::<_, String>(1)?), row.get(2)?);
            known.add(Arc::new(Sample { id, kind, text, durable: true.into() }));
        }
        Ok(Arc::new(Self(Mutex::new(known))))
    }

    /// Lets the statements of a connection call `unpack`.
    pub(super) fn attach(self: &Arc<Self>, conn: &Connection) -> Result<(), Fault> {
        let samples = Arc::clone(self);
        let flags = FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_DETERMINISTIC;
        conn.create_scalar_function("unpack", 1, flags, move |context| {
            let bytes = context.get_raw(0).as_blob().map_err(rusqlite::Error::from)?;
            let broken = || rusqlite::Error::UserFunctionError("a packed text cannot be read".into());
            samples.unpack(bytes).ok_or_else(broken)
        })?;
        Ok(())
    }

    /// Packs a text of a kind.
    pub(super) fn pack(&self, kind: &Kind, text: &str) -> Packed {
        if text.len() < SHORTEST {
            return Packed::plain(text);
        }
        let first = lock(&self.0).of_kind.get(kind).and_then(|samples| samples.first().cloned());
        if let Some(packed) = first.map(|sample| Packed::difference(sample, text))
            && packed.pays(text)
        {
            return packed;
        }
        // Texts of another sort came last, or this one is odd.
        let samples = lock(&self.0).of_kind.get(kind).cloned().unwrap_or_default();
        let packed = samples.iter().map(|sample| Packed::difference(Arc::clone(sample), text)).enumerate();
        match packed.min_by_key(|(_, packed)| packed.bytes.len()) {
            Some((best, packed)) if packed.pays(text) => {
                self.prefer(kind, &samples[best]);
                packed
            }
            Some((_, packed)) if samples.len() >= MOST && packed.bytes.len() < text.len() => packed,
            _ if samples.len() >= MOST => Packed::plain(text),
            _ => {
                let id =
                    digest(&SHA256, text.as_bytes()).as_ref().first_chunk().map_or(0, |id| i64::from_be_bytes(*id));
                let novel = Sample { id, kind: Some(kind.clone()), text: text.to_owned(), durable: false.into() };
                Packed { novel: Some(Arc::new(novel)), ..Packed::plain(text) }
            }
        }
    }

    /// An entry that belongs to no lease: its time, and it as JSON and packed.
    pub(super) fn pack_entry(&self, entry: &Entry) -> Result<(Timestamp, Arc<str>, Packed), Fault> {
        let body = entry.to_json().map_err(corrupt)?;
        let packed = match &entry.issuer {
            Some(issuer) => self.pack(&Kind(Sort::EntryAlone, issuer.clone()), &body),
            None => Packed::plain(&body),
        };
        Ok((entry.at, body.into(), packed))
    }

    fn prefer(&self, kind: &Kind, sample: &Arc<Sample>) {
        if let Some(samples) = lock(&self.0).of_kind.get_mut(kind)
            && let Some(at) = samples.iter().position(|known| known.id == sample.id)
        {
            samples[..=at].rotate_right(1);
        }
    }

    /// Says that a packed text's transaction is on disk: only such a text becomes a sample.
    pub(super) fn written(&self, packed: &Packed) {
        if let Some(sample) = &packed.sample {
            sample.durable.store(true, Ordering::Relaxed);
        }
        if let Some(novel) = &packed.novel
            && let Some(kind) = &novel.kind
        {
            let mut known = lock(&self.0);
            let samples = known.of_kind.get(kind).map_or(&[][..], |samples| samples);
            // Several of the same sort may have been written at once.
            let alike = |sample: &Arc<Sample>| Packed::difference(Arc::clone(sample), &novel.text).pays(&novel.text);
            if samples.len() < MOST && !samples.iter().any(alike) {
                known.add(Arc::clone(novel));
            }
        }
    }

    fn unpack(&self, bytes: &[u8]) -> Option<String> {
        match bytes.split_first()? {
            (&PLAIN, text) => String::from_utf8(text.to_vec()).ok(),
            (&DIFFERENCE, rest) => {
                let (id, block) = rest.split_first_chunk()?;
                let sample = lock(&self.0).by_id.get(&i64::from_be_bytes(*id)).cloned()?;
                let text = decompress_size_prepended_with_dict(block, sample.text.as_bytes()).ok()?;
                String::from_utf8(text).ok()
            }
            _ => None,
        }
    }
}

impl Packed {
    /// A text as it is.
    pub(super) fn plain(text: &str) -> Self {
        Self { bytes: [&[PLAIN], text.as_bytes()].concat(), sample: None, novel: None }
    }

    fn difference(sample: Arc<Sample>, text: &str) -> Self {
        let mut bytes = Vec::with_capacity(64 + text.len() / 2);
        bytes.push(DIFFERENCE);
        bytes.extend_from_slice(&sample.id.to_be_bytes());
        write_difference(&mut bytes, text.as_bytes(), sample.text.as_bytes());
        let durable = sample.durable.load(Ordering::Relaxed);
        Self { bytes, sample: (!durable).then_some(sample), novel: None }
    }

    /// Whether it is much shorter than the text.
    fn pays(&self, text: &str) -> bool {
        self.bytes.len() * 2 < text.len()
    }

    /// What goes into the column.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Writes, in the transaction of the text, what it needs to be read again.
    pub(super) fn write_sample(&self, conn: &Connection) -> Result<(), Fault> {
        if let Some(sample) = &self.sample
            && let Some(kind) = &sample.kind
        {
            let sql = "INSERT OR IGNORE INTO samples (id, kind, text) VALUES (?1, ?2, ?3)";
            conn.prepare_cached(sql)?.execute((sample.id, kind.to_string(), &sample.text))?;
        }
        Ok(())
    }
}

/// Where two texts differ, what follows this is compared again.
const END_OF_PART: u8 = b'"';
/// What is as in the sample and shorter is not worth a reference.
const SHORTEST_MATCH: usize = 8;
/// A block ends with so many bytes of its own (LZ4 block format, end of block conditions).
const LAST_LITERALS: usize = 5;
/// Beyond it a sample cannot be referred to.
const FARTHEST: usize = 0xffff;

/// Appends `text` as an LZ4 block with its length before it, whose dictionary is `sample`. Texts of one sort say the
/// same things in the same order, so that walking along both finds what a search would, in a tenth of the time.
fn write_difference(out: &mut Vec<u8>, text: &[u8], sample: &[u8]) {
    let length = u32::try_from(text.len()).unwrap_or(u32::MAX);
    out.extend_from_slice(&length.to_le_bytes());
    // Up to where the text is written, and how far both were walked along.
    let (mut written, mut at, mut there) = (0, 0, 0);
    while at < text.len() && there < sample.len() {
        let alike = common_prefix(&text[at..], &sample[there..]);
        let matched = alike.min(text.len().saturating_sub(at + LAST_LITERALS));
        let distance = sample.len() - there + at;
        if matched >= SHORTEST_MATCH && distance <= FARTHEST {
            write_sequence(out, &text[written..at], Some((distance, matched)));
            written = at + matched;
        }
        let (rest, other) = (part(&text[at + alike..]), part(&sample[there + alike..]));
        let ends_alike = rest.iter().rev().zip(other.iter().rev()).take_while(|(a, b)| a == b).count();
        at += alike + rest.len() - ends_alike;
        there += alike + other.len() - ends_alike;
    }
    write_sequence(out, &text[written..], None);
}

/// What comes before the next [`END_OF_PART`].
fn part(text: &[u8]) -> &[u8] {
    &text[..memchr::memchr(END_OF_PART, text).unwrap_or(text.len())]
}

/// How many bytes two texts begin with alike.
fn common_prefix(one: &[u8], other: &[u8]) -> usize {
    let mut alike = 0;
    for (a, b) in one.as_chunks::<16>().0.iter().zip(other.as_chunks::<16>().0) {
        if a != b {
            break;
        }
        alike += 16;
    }
    alike + one[alike..].iter().zip(&other[alike..]).take_while(|(a, b)| a == b).count()
}

/// Appends a sequence: bytes as they are, and a match (its distance and length) unless the block ends with them.
fn write_sequence(out: &mut Vec<u8>, literals: &[u8], matched: Option<(usize, usize)>) {
    let length = matched.map_or(0, |(_, length)| length - 4);
    let low = |length: usize| if length < 15 { length as u8 } else { 15 };
    out.push(low(literals.len()) << 4 | low(length));
    write_rest(out, literals.len());
    out.extend_from_slice(literals);
    if let Some((distance, _)) = matched {
        out.extend_from_slice(&[distance as u8, (distance >> 8) as u8]);
        write_rest(out, length);
    }
}

/// Appends what four bits do not hold of a length.
fn write_rest(out: &mut Vec<u8>, length: usize) {
    let Some(rest) = length.checked_sub(15) else { return };
    out.resize(out.len() + rest / 255, 255);
    out.push((rest % 255) as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind() -> Kind {
        Kind(Sort::Claims, IssuerName::parse("github").expect("a name"))
    }

    fn claims(repository: &str, run: u32) -> String {
        let names = ["actor", "environment", "event_name", "job_workflow_ref", "ref", "repository_owner", "workflow"];
        let body: Vec<String> =
            names.iter().map(|name| format!("\"{name}\":\"{repository} of an organisation, as {name}\"")).collect();
        format!("{{{},\"run_id\":\"{run}\"}}", body.join(","))
    }

    /// Packs a text, and says that it was written.
    fn write(samples: &Samples, text: &str) -> Packed {
        let packed = samples.pack(&kind(), text);
        samples.written(&packed);
        assert_eq!(samples.unpack(packed.bytes()).as_deref(), Some(text));
        packed
    }

    #[test]
    fn texts_come_back_and_take_less() {
        let samples = Samples::default();
        let texts =
            [claims("app", 1), claims("app", 2), claims("web", 3), "é".repeat(300), String::new(), "{}".to_owned()];
        let sizes = texts.map(|text| write(&samples, &text).bytes().len());
        assert!(sizes[1] < 60 && sizes[2] < 180, "{sizes:?}");
    }

    #[test]
    fn any_text_comes_back_from_any_sample() {
        let long = |n: usize| (0..n).map(|i| (b'a' + (i * i % 23) as u8) as char).collect::<String>();
        let parts =
            ["", "\"", "a", "seven\"7", "eight\"88", "é\"ü", "\"\"\"", &long(4), &long(19), &long(300), &long(70_000)];
        let mut texts: Vec<String> = parts.iter().map(|part| (*part).to_owned()).collect();
        for first in parts {
            texts.extend(parts.iter().map(|second| format!("{{\"x\":\"{first}\",\"y\":\"{second}\"}}")));
        }
        for sample in &texts {
            for text in texts.iter().filter(|text| text.len() + sample.len() < 80_000) {
                let mut block = Vec::new();
                write_difference(&mut block, text.as_bytes(), sample.as_bytes());
                let again = decompress_size_prepended_with_dict(&block, sample.as_bytes()).expect("a block");
                assert!(again == text.as_bytes(), "{} from {}", text.len(), sample.len());
            }
        }
    }

    #[test]
    fn odd_texts_spoil_nothing() {
        let samples = Samples::default();
        write(&samples, &claims("app", 1));
        let odd =
            |n: u32| (0..90).map(|i| format!("{:08x}", (n * 1000 + i).wrapping_mul(2_654_435_761))).collect::<String>();
        for turn in 0..20 {
            write(&samples, &odd(turn));
            let usual = write(&samples, &claims("app", turn));
            assert!(usual.bytes().len() < 60, "{turn}: {}", usual.bytes().len());
        }
        assert_eq!(lock(&samples.0).by_id.len(), MOST);
        let text = odd(99);
        assert_eq!(samples.pack(&kind(), &text).bytes().len(), 1 + text.len(), "kept as it is where no sample helps");
        // Nor do texts that were packed and never written, or the same sort written at once.
        let samples = Samples::default();
        for turn in 0..20 {
            samples.pack(&kind(), &odd(turn));
        }
        let at_once = [1, 2, 3].map(|run| samples.pack(&kind(), &claims("app", run)));
        at_once.iter().for_each(|packed| samples.written(packed));
        assert_eq!(lock(&samples.0).by_id.len(), 1);
    }

    #[test]
    fn samples_are_on_disk_before_what_needs_them() {
        let conn = Connection::open_in_memory().expect("a database");
        conn.execute_batch("CREATE TABLE samples (id INTEGER UNIQUE, kind TEXT, text TEXT)").expect("a table");
        let samples = Samples::default();
        write(&samples, &claims("app", 1)).write_sample(&conn).expect("room");
        let text = claims("app", 2);
        let (second, lost) = (samples.pack(&kind(), &text), samples.pack(&kind(), &claims("app", 3)));
        lost.write_sample(&conn).expect("room");
        second.write_sample(&conn).expect("room");
        samples.written(&second);
        assert!(samples.pack(&kind(), &text).sample.is_none(), "it is written once");
        let again = Samples::load(&conn).expect("the samples are readable");
        assert_eq!(again.unpack(second.bytes()).as_deref(), Some(&*text));
    }

    #[test]
    fn broken_bytes_are_refused() {
        let samples = Samples::default();
        write(&samples, &claims("app", 1));
        let good = write(&samples, &claims("app", 2));
        for bytes in [&[][..], &[7], &[PLAIN, 0xff], &[DIFFERENCE, 1], &good.bytes()[..12], &[DIFFERENCE; 40]] {
            assert_eq!(samples.unpack(bytes), None);
        }
    }
}
