//! Tests that need no other program: `cargo test`.

mod admin;
mod authority;
mod aws;
mod azure;
mod bad_input;
mod config;
mod connections;
mod demo;
mod examples;
mod exchange;
mod fixed;
mod gcp;
mod github_app;
mod gitlab;
mod invariants;
mod job;
mod kubernetes;
mod limits;
mod misbehaving;
mod oauth2;
mod policies;
mod renewal;
mod sealing;
mod structure;
mod tls;
mod vault;
