//! Trust policies: claims in, decision out.
//!
//! This crate has no clock, disk or network: the server, its renewals and every offline tool call
//! the same pure functions and so come to the same decision. Cargo keeps it that way.

pub mod cases;
pub mod claims;
pub mod compile;
pub mod condition;
pub mod decide;
pub mod diff;
pub mod document;
pub mod draft;
pub mod explain;
pub mod fixtures;
pub mod grant;
pub mod guards;
pub mod issuer;
mod language;
pub mod lint;
mod mutant;
pub mod pattern;
mod problem;
pub mod reach;
mod record;
mod region;
pub mod replay;
pub mod report;
mod sample;
pub mod schema;
pub mod source;
pub mod template;
pub mod usage;
mod values;
pub mod yaml;

pub use claims::{Claims, ClaimsError, Recorded, Registered, Value};
pub use compile::{AnyCredential, Compiled, CredentialSource, SpecCompiler, compile};
pub use decide::{Decision, Denial, DenialKind, Freezes, Permit, Request, Trace, decide};
pub use document::{Disclose, Mode};
pub use grant::{Grant, GrantContext, PolicySet, Rule};
pub use issuer::{Issuer, Profile};
pub use record::{Record, RecordError};
pub use source::{Diagnostic, Severity, Source, did_you_mean};
pub use template::{FieldRules, RenderError, Template, TemplateError};
