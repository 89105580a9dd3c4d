//! Tests that need no other program: `cargo test`.

mod bad_input;
mod demo;
mod examples;
mod exchange;
mod invariants;
mod limits;
mod renewal;
mod structure;
