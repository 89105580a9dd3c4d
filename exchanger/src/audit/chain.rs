//! The chain: each entry gets a number and a hash that covers the entry before it.
//!
//! `hash = SHA-256(domain || prev || seq || entry)`, with `seq` as 8 bytes big-endian and `entry` as the
//! exact JSON text. A line of the log is those four in a fixed spelling, so that any changed byte shows.

use aws_lc_rs::digest;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::{fmt::Write as _, sync::Arc};

const DOMAIN: &[u8] = b"jobpass audit chain, version 1\0";

/// The end of the chain so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Number of the last entry; 0 before the first.
    pub seq: u64,
    /// Its hash.
    pub hash: [u8; 32],
}

impl Link {
    /// Before the first entry.
    pub const START: Self = Self { seq: 0, hash: [0; 32] };

    /// The link that `entry` (JSON text) makes after this one.
    #[must_use]
    pub fn next(&self, entry: &str) -> Self {
        let seq = self.seq + 1;
        let mut context = digest::Context::new(&digest::SHA256);
        context.update(DOMAIN);
        context.update(&self.hash);
        context.update(&seq.to_be_bytes());
        context.update(entry.as_bytes());
        let mut hash = [0; 32];
        hash.copy_from_slice(context.finish().as_ref());
        Self { seq, hash }
    }
}

/// One line of the audit log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Its place in the chain.
    pub link: Link,
    /// The hash of the entry before it.
    pub prev: [u8; 32],
    /// The entry, as JSON text.
    pub entry: Arc<str>,
}

impl Line {
    /// The line as it is streamed, without the line feed.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut out = String::with_capacity(self.entry.len() + 176);
        let _ = write!(out, "{{\"seq\":{},\"prev\":\"", self.link.seq);
        out.push_str(hex_of_hash(&self.prev, &mut [0; 64]));
        out.push_str("\",\"hash\":\"");
        out.push_str(hex_of_hash(&self.link.hash, &mut [0; 64]));
        out.push_str("\",\"entry\":");
        out.push_str(&self.entry);
        out.push('}');
        out
    }

    /// Reads a line in exactly the spelling of [`Line::to_text`].
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Wire<'a> {
            seq: u64,
            prev: &'a str,
            hash: &'a str,
            #[serde(borrow)]
            entry: &'a RawValue,
        }
        let wire: Wire<'_> = serde_json::from_str(text).ok()?;
        let line = Self {
            link: Link { seq: wire.seq, hash: parse_hash(wire.hash)? },
            prev: parse_hash(wire.prev)?,
            entry: wire.entry.get().into(),
        };
        (line.to_text() == text).then_some(line)
    }
}

/// A SHA-256 in lower-case hex, written to `buffer`.
pub(crate) fn hex_of_hash<'b>(hash: &[u8; 32], buffer: &'b mut [u8; 64]) -> &'b str {
    for (pair, byte) in buffer.as_chunks_mut().0.iter_mut().zip(hash) {
        *pair = hex_of_byte(*byte);
    }
    str::from_utf8(buffer).unwrap_or_default()
}

/// A byte as two lower-case digits.
pub(crate) fn hex_of_byte(byte: u8) -> [u8; 2] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]
}

/// Reads a SHA-256 in lower-case hex.
pub(crate) fn parse_hash(hex: &str) -> Option<[u8; 32]> {
    let mut hash = [0; 32];
    if hex.len() != 64 {
        return None;
    }
    for (byte, pair) in hash.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
        let digit = |c: u8| char::from(c).to_digit(16).filter(|_| !c.is_ascii_uppercase());
        *byte = u8::try_from(digit(pair[0])? << 4 | digit(pair[1])?).ok()?;
    }
    Some(hash)
}
