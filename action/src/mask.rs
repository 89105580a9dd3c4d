//! Every spelling under which a secret could show up in a log, and how a CI is told to hide them.
//! Short texts are left alone: hiding `ok` would garble the log and hide nothing.

use crate::talk::{escape_command_data, write_line};
use base64::{Engine as _, engine::general_purpose};
use std::{collections::BTreeSet, fmt::Write as _};
use zeroize::Zeroize as _;

/// Shorter spellings are not searched for, in bytes. Six letters are rare enough in a log to be the secret.
pub(crate) const MIN_LENGTH: usize = 6;

/// What the CI's log can be told while a job runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Masking {
    /// GitHub's `add-mask` command, read from either output of a step.
    GitHub,
    /// Nothing: only what this program filters itself is hidden.
    None,
}

/// A secret that is too short to be hidden.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TooShort;

/// The spellings of all secrets of one run.
#[derive(Default)]
pub(crate) struct Needles {
    exact: BTreeSet<Vec<u8>>,
    wrapped: BTreeSet<Vec<u8>>,
}

impl Needles {
    /// Spellings that stand in one piece.
    pub(crate) fn exact(&self) -> impl Iterator<Item = &[u8]> {
        self.exact.iter().map(Vec::as_slice)
    }

    /// Spellings that programs break into lines: base64, hex, and the text itself.
    pub(crate) fn wrapped(&self) -> impl Iterator<Item = &[u8]> {
        self.wrapped.iter().map(Vec::as_slice)
    }

    /// Adds all spellings of a secret, and of each line of it.
    ///
    /// # Errors
    /// When no spelling of it is long enough to be searched for.
    pub(crate) fn add(&mut self, secret: &str) -> Result<(), TooShort> {
        if secret.trim().len() < MIN_LENGTH {
            return Err(TooShort);
        }
        for text in [secret, secret.trim()].into_iter().chain(secret.lines().map(str::trim)) {
            self.exact.extend(spellings(text).map(String::into_bytes).filter(|s| s.len() >= MIN_LENGTH));
        }
        if secret.contains('\n') {
            self.exact.insert(secret.replace('\n', "\r\n").into_bytes());
        }
        for text in BTreeSet::from([secret, secret.trim()]) {
            let spellings = encodings(text.as_bytes()).chain([text.as_bytes().to_vec()]);
            self.wrapped.extend(spellings.filter(|s| s.len() >= MIN_LENGTH));
        }
        Ok(())
    }

    /// Adds a secret in its plain spelling only: enough for what no program but ours handles.
    pub(crate) fn add_plain(&mut self, secret: &str) {
        if secret.len() >= MIN_LENGTH {
            self.exact.insert(secret.as_bytes().to_vec());
        }
    }

    /// Takes in the spellings of others.
    pub(crate) fn absorb(&mut self, mut other: Self) {
        self.exact.append(&mut other.exact);
        self.wrapped.append(&mut other.wrapped);
    }

    /// Tells the CI's log to hide every spelling, from now on. On standard error, which GitHub's runner reads too:
    /// standard output may be captured as data.
    pub(crate) fn register(&self, masking: Masking) {
        match masking {
            Masking::None => {}
            Masking::GitHub => self.exact.union(&self.wrapped).for_each(|needle| {
                if let Ok(text) = str::from_utf8(needle) {
                    write_line(&format!("::add-mask::{}", escape_command_data(text)));
                }
            }),
        }
    }
}

impl Drop for Needles {
    fn drop(&mut self) {
        for set in [&mut self.exact, &mut self.wrapped] {
            std::mem::take(set).into_iter().for_each(|mut needle| needle.zeroize());
        }
    }
}

/// A text as itself and as programs quote it.
fn spellings(text: &str) -> impl Iterator<Item = String> {
    let json = quoted(text, |_| false);
    let html_safe = ["<", ">", "&"].iter().zip(["\\u003c", "\\u003e", "\\u0026"]);
    let xml = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    // RFC 3986 unreserved characters, and what encoders leave alone beyond them.
    let unreserved = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b);
    let percent = |keep: &str| percent_encoded(text, |b| unreserved(b) || keep.as_bytes().contains(&b));
    let uris = ["", "/", "!*'()", ";,/?:@&=+$!*'()#"].map(percent);
    let spaced = uris.each_ref().map(|uri| uri.replace("%20", "+"));
    let whole = percent_encoded(text, |_| false);
    let upper: Vec<String> = uris.into_iter().chain(spaced).chain([whole]).collect();
    let lower: Vec<String> = upper.iter().map(|uri| lower_escapes(uri)).collect();
    [
        text.to_owned(),
        json.replace('/', "\\/"),
        // Go's encoding/json, then what escapes all that is not ASCII.
        html_safe.fold(json.clone(), |out, (from, to)| out.replace(from, to)),
        quoted(text, |c| !c.is_ascii()),
        text.encode_utf16().map(|unit| format!("\\u{unit:04x}")).collect(),
        json,
        xml.replace('"', "&quot;").replace('\'', "&apos;"),
        xml.replace('"', "&quot;").replace('\'', "&#39;"),
        xml.replace('"', "&#34;").replace('\'', "&#39;"),
        xml.replace('"', "&quot;").replace('\'', "&#x27;"),
        xml,
        // Shells: inside '…' (sh and Python's shlex), inside "…", `printf %q`, and $'…'.
        text.replace('\'', "'\\''"),
        text.replace('\'', "'\"'\"'"),
        backslashed(text, |c| "$`\"\\".contains(c)),
        backslashed(text, |c| c.is_ascii() && !c.is_ascii_alphanumeric() && !"_-./%+@:=,".contains(c)),
        backslashed(text, |c| c.is_ascii() && !c.is_ascii_alphanumeric() && !"_-./%+@:=".contains(c)),
        backslashed(text, |c| "'\\".contains(c)).replace('\n', "\\n").replace('\t', "\\t").replace('\r', "\\r"),
        // Go's %q and Rust's {:?}.
        go_quoted(text),
        text.escape_debug().to_string(),
    ]
    .into_iter()
    .chain(upper)
    .chain(lower)
}

/// JSON string contents (RFC 8259 §7), with further characters as `\uXXXX`.
fn quoted(text: &str, escape: impl Fn(char) -> bool) -> String {
    let json = serde_json::to_string(text).unwrap_or_default();
    let mut out = String::with_capacity(json.len());
    for c in json[1.min(json.len())..json.len().saturating_sub(1)].chars() {
        if escape(c) {
            c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| {
                let _ = write!(out, "\\u{unit:04x}");
            });
        } else {
            out.push(c);
        }
    }
    out
}

fn go_quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' | '"' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c.is_ascii_control() => {
                let _ = write!(out, "\\x{:02x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out
}

fn backslashed(text: &str, escape: impl Fn(char) -> bool) -> String {
    text.chars().flat_map(|c| escape(c).then_some('\\').into_iter().chain([c])).collect()
}

fn percent_encoded(text: &str, keep: impl Fn(u8) -> bool) -> String {
    let mut out = String::with_capacity(text.len());
    for b in text.bytes() {
        if keep(b) {
            out.push(char::from(b));
        } else {
            let _ = write!(out, "%{b:02X}");
        }
    }
    out
}

/// `%2F` as `%2f`; everything else as it is.
fn lower_escapes(uri: &str) -> String {
    let mut left = 0;
    uri.chars()
        .map(|c| {
            left = if c == '%' { 3 } else { usize::saturating_sub(left, 1) };
            if left > 0 { c.to_ascii_lowercase() } else { c }
        })
        .collect()
}

/// Base64 (both alphabets) and hex (both cases) of bytes, wherever they begin in what is encoded.
fn encodings(bytes: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    let mut found = vec![hex(bytes), hex(bytes).to_ascii_uppercase()];
    for engine in [&general_purpose::STANDARD, &general_purpose::URL_SAFE] {
        found.push(engine.encode(bytes).into_bytes());
        for before in 0..3 {
            // The characters that depend on these bytes alone: each holds 6 bits, the neighbours spoil the ends.
            let padded = [&[0; 2][..before], bytes].concat();
            let first = (before * 8).div_ceil(6);
            let end = padded.len() * 8 / 6;
            found.push(engine.encode(&padded).into_bytes()[first.min(end)..end].to_vec());
        }
    }
    found.into_iter()
}

fn hex(bytes: &[u8]) -> Vec<u8> {
    bytes
        .iter()
        .fold(String::new(), |mut out, b| {
            let _ = write!(out, "{b:02x}");
            out
        })
        .into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};

    #[test]
    fn spellings_that_programs_print() {
        let secret = "p\"s's/w <&>d\\?~é";
        let mut needles = Needles::default();
        needles.add(secret).expect("long enough");
        for printed in [
            secret,
            r#"p\"s's/w <&>d\\?~é"#,
            r#"p\"s's\/w <&>d\\?~é"#,
            r#"p\"s's/w \u003c\u0026\u003ed\\?~é"#,
            r#"p\"s's/w <&>d\\?~\u00e9"#,
            "p%22s%27s%2Fw%20%3C%26%3Ed%5C%3F~%C3%A9",
            "p%22s%27s%2fw%20%3c%26%3ed%5c%3f~%c3%a9",
            "p%22s%27s%2Fw+%3C%26%3Ed%5C%3F~%C3%A9",
            "p%22s's%2Fw%20%3C%26%3Ed%5C%3F~%C3%A9",
            "p%22s%27s/w%20%3C%26%3Ed%5C%3F~%C3%A9",
            "p&quot;s&apos;s/w &lt;&amp;&gt;d\\?~é",
            "p&#34;s&#39;s/w &lt;&amp;&gt;d\\?~é",
            r#"p"s'\''s/w <&>d\?~é"#,
            r#"p"s'"'"'s/w <&>d\?~é"#,
            r#"p\"s\'s/w\ \<\&\>d\\\?\~é"#,
            "%70%22%73%27%73%2F%77%20%3C%26%3E%64%5C%3F%7E%C3%A9",
            r"\u0070\u0022\u0073\u0027\u0073\u002f\u0077\u0020\u003c\u0026\u003e\u0064\u005c\u003f\u007e\u00e9",
        ] {
            assert!(needles.exact.contains(printed.as_bytes()), "{printed}");
        }
    }

    #[test]
    fn each_line_counts_and_short_ones_do_not() {
        let mut needles = Needles::default();
        needles.add("-----BEGIN KEY-----\n  abcdef\n}\n").expect("long enough");
        for (text, hidden) in [
            ("-----BEGIN KEY-----", true),
            ("abcdef", true),
            ("}", false),
            ("-----BEGIN KEY-----\r\n  abcdef\r\n}\r\n", true),
            ("-----BEGIN KEY-----\\n  abcdef\\n}\\n", true),
        ] {
            assert_eq!(needles.exact.contains(text.as_bytes()), hidden, "{text:?}");
        }
        for short in ["", "12345", "  1234 \n"] {
            assert_eq!(Needles::default().add(short), Err(TooShort), "{short:?}");
        }
    }

    #[test]
    fn encodings_wherever_the_secret_begins() {
        let secret = "s3cr3t-\u{ff}-v4lue?>";
        let mut needles = Needles::default();
        needles.add(secret).expect("long enough");
        for before in ["", "a", "ab", "abc", "user:"] {
            for after in ["", "\n", "xy", "xyz"] {
                let whole = format!("{before}{secret}{after}");
                for encoded in [
                    STANDARD.encode(&whole),
                    URL_SAFE_NO_PAD.encode(&whole),
                    String::from_utf8(hex(whole.as_bytes())).expect("hex"),
                ] {
                    let longest = needles
                        .wrapped()
                        .filter(|needle| encoded.as_bytes().windows(needle.len()).any(|window| window == *needle))
                        .map(<[u8]>::len)
                        .max()
                        .unwrap_or_default();
                    // At most one character at either end hangs together with its neighbour.
                    let least = secret.len() * 8 / 6 - 2;
                    assert!(longest >= least, "{before:?} {after:?} {encoded}: {longest} of {least}");
                }
            }
        }
    }
}
