//! Trust policies: claims in, decision out.
//!
//! This crate has no clock, disk or network: the server, its renewals and every offline tool call
//! the same pure functions and so come to the same decision. Cargo keeps it that way.

pub mod claims;
pub mod issuer;

pub use claims::{Claims, ClaimsError, Registered, Value};
pub use issuer::{Issuer, Profile};
