//! Tests that need no other program: `cargo test`.

mod demo;
mod examples;
mod structure;
