//! Texts that look alike, kept as what differs from a sample.
//!
//! The claims of one issuer's jobs share their names and most of their values, and so do the audit
//! entries about them. A packed text is the byte 0 and the text, or the byte 1, a sample's id and an LZ4
//! block whose dictionary is the sample. Statements read a packed column as `unpack(column)`.

use super::{Fault, writer::lock};
use aws_lc_rs::digest::{SHA256, digest};
use lz4_flex::block::{compress_prepend_size_with_dict, decompress_size_prepended_with_dict};
use rusqlite::{Connection, functions::FunctionFlags};
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

const PLAIN: u8 = 0;
const DIFFERENCE: u8 = 1;
/// Shorter texts are kept as they are.
const SHORTEST: usize = 256;
/// Samples of one kind; a text that looks like none of the kind's last one becomes the next one.
const MOST: usize = 8;

struct Sample {
    /// The first eight bytes of the text's SHA-256.
    id: i64,
    kind: String,
    text: String,
    durable: AtomicBool,
}

#[derive(Default)]
struct Known {
    by_id: HashMap<i64, Arc<Sample>>,
    /// The sample that new texts of a kind are compared with, and how many the kind has.
    current: HashMap<String, (Arc<Sample>, usize)>,
}

impl Known {
    fn add(&mut self, sample: Sample) -> Arc<Sample> {
        let sample = Arc::new(sample);
        let count = self.current.get(&sample.kind).map_or(0, |(_, count)| *count);
        self.current.insert(sample.kind.clone(), (Arc::clone(&sample), count + 1));
        self.by_id.insert(sample.id, Arc::clone(&sample));
        sample
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
}

impl Samples {
    /// Reads those on disk.
    pub(super) fn load(conn: &Connection) -> Result<Arc<Self>, Fault> {
        let mut known = Known::default();
        let mut statement = conn.prepare("SELECT id, kind, text FROM samples ORDER BY rowid")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let (id, kind, text) = (row.get(0)?, row.get(1)?, row.get(2)?);
            known.add(Sample { id, kind, text, durable: true.into() });
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
    pub(super) fn pack(&self, kind: &str, text: &str) -> Packed {
        if text.len() < SHORTEST {
            return Packed::plain(text);
        }
        let known = lock(&self.0).current.get(kind).cloned();
        if let Some((sample, count)) = known {
            let packed = Packed::difference(sample, text);
            if packed.bytes.len() * 2 < text.len() || count >= MOST {
                return packed;
            }
        }
        let id = digest(&SHA256, text.as_bytes()).as_ref().first_chunk().map_or(0, |bytes| i64::from_be_bytes(*bytes));
        let sample = Sample { id, kind: kind.to_owned(), text: text.to_owned(), durable: false.into() };
        Packed::difference(lock(&self.0).add(sample), text)
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
        Self { bytes: [&[PLAIN], text.as_bytes()].concat(), sample: None }
    }

    fn difference(sample: Arc<Sample>, text: &str) -> Self {
        let block = compress_prepend_size_with_dict(text.as_bytes(), sample.text.as_bytes());
        let bytes = [&[DIFFERENCE], &sample.id.to_be_bytes()[..], &block].concat();
        let durable = sample.durable.load(Ordering::Relaxed);
        Self { bytes, sample: (!durable).then_some(sample) }
    }

    /// What goes into the column.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Writes, in the transaction of the text, what it needs to be read again.
    pub(super) fn write_sample(&self, conn: &Connection) -> Result<(), Fault> {
        if let Some(sample) = &self.sample {
            let sql = "INSERT OR IGNORE INTO samples (id, kind, text) VALUES (?1, ?2, ?3)";
            conn.prepare_cached(sql)?.execute((sample.id, &sample.kind, &sample.text))?;
        }
        Ok(())
    }

    /// Says that the text's transaction is on disk.
    pub(super) fn written(&self) {
        if let Some(sample) = &self.sample {
            sample.durable.store(true, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims(repository: &str, run: u32) -> String {
        let names = ["actor", "environment", "event_name", "job_workflow_ref", "ref", "repository_owner", "workflow"];
        let body: Vec<String> =
            names.iter().map(|name| format!("\"{name}\":\"{repository} of an organisation, as {name}\"")).collect();
        format!("{{{},\"run_id\":\"{run}\"}}", body.join(","))
    }

    #[test]
    fn texts_come_back_and_take_less() {
        let (samples, mut sizes) = (Samples::default(), Vec::new());
        for text in [claims("app", 1), claims("app", 2), claims("web", 3), "é".repeat(300), String::new(), "{}".into()]
        {
            let packed = samples.pack("claims", &text);
            assert_eq!(samples.unpack(packed.bytes()).as_deref(), Some(&*text));
            sizes.push(packed.bytes().len());
        }
        assert!(sizes[1] < 60 && sizes[2] < 180, "{sizes:?}");
    }

    #[test]
    fn samples_are_on_disk_before_what_needs_them() {
        let conn = Connection::open_in_memory().expect("a database");
        conn.execute_batch("CREATE TABLE samples (id INTEGER UNIQUE, kind TEXT, text TEXT)").expect("a table");
        let (samples, text) = (Samples::default(), claims("app", 1));
        let (first, lost) = (samples.pack("claims", &text), samples.pack("claims", &claims("app", 2)));
        lost.write_sample(&conn).expect("room");
        first.write_sample(&conn).expect("room");
        first.written();
        assert!(samples.pack("claims", &text).sample.is_none(), "it is written once");
        let again = Samples::load(&conn).expect("the samples are readable");
        assert_eq!(again.unpack(first.bytes()).as_deref(), Some(&*text));
    }

    #[test]
    fn broken_bytes_are_refused() {
        let samples = Samples::default();
        let good = samples.pack("claims", &claims("app", 1));
        for bytes in [&[][..], &[7], &[PLAIN, 0xff], &[DIFFERENCE, 1], &good.bytes()[..12], &[DIFFERENCE; 40]] {
            assert_eq!(samples.unpack(bytes), None);
        }
    }
}
