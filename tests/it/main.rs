//! Tests that need no other program: `cargo test`.

mod demo;
mod exchange;
mod renewal;
mod structure;
