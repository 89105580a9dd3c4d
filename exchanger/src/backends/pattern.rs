//! Names, and beginnings of names, that a grant gives its job: `ci:{{ claims.repository_id }}:*`.
//!
//! Each system has pattern languages of its own, in which a claim could come to mean more than
//! itself. Here `*` stands at the end or nowhere, and all else means itself.

use super::{MintError, spec, spec::SpecReader};
use jobpass_policy::{FieldRules, Permit, Template};

/// What may stand before a `*`: a claim there could be the beginning of another one (`77` of `772`).
const DELIMITERS: &[char] = &['-', '.', '_', ':', '/', '|', '#', '}'];

/// A compiled pattern.
///
/// INVARIANT: the template holds no `*`, and before one at the end stands fixed text, unless all is meant.
pub(super) struct Pattern {
    template: Template,
    open: bool,
}

/// A pattern for one job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Names {
    /// The name, or its beginning.
    pub(super) text: String,
    /// Whether anything may follow.
    pub(super) open: bool,
}

impl Pattern {
    /// Reads a list of patterns. `rules` hold for the text without `*`.
    pub(super) fn read_all(
        reader: &mut SpecReader<'_>,
        field: &str,
        texts: &[String],
        rules: &FieldRules,
    ) -> Vec<Self> {
        let mut patterns = Vec::with_capacity(texts.len());
        for (index, text) in texts.iter().enumerate() {
            let at = index.to_string();
            let path = [field, at.as_str()];
            let (text, open) = text.strip_suffix('*').map_or((text.as_str(), false), |text| (text, true));
            if text.is_empty() && !open {
                reader.refuse(&path, "an empty name names nothing", "write a name, or its beginning and *");
            } else if open && !text.is_empty() && !text.ends_with(DELIMITERS) {
                reader.refuse(&path, "what stands before * could go on in another name", "end it with : or / before *");
            } else if open && text.ends_with("}}") {
                reader.refuse(
                    &path,
                    "a claim before * could be the beginning of another one",
                    "put : or / between them",
                );
            }
            let template = reader.template(&path, text, rules);
            patterns.extend(template.map(|template| Self { template, open }));
        }
        patterns
    }

    /// Renders a list of patterns.
    ///
    /// # Errors
    /// When the claims do not fit it.
    pub(super) fn render_all(field: &str, patterns: &[Self], permit: &Permit) -> Result<Vec<Names>, MintError> {
        let one = |(index, pattern): (usize, &Self)| {
            let text = spec::render(&format!("credential.{field}.{index}"), &pattern.template, permit)?;
            Ok(Names { text, open: pattern.open })
        };
        patterns.iter().enumerate().map(one).collect()
    }
}
