//! `jobpass-exchanger`: trades a CI job's OIDC token for one credential that dies with the job.
//!
//! Start reading at [`exchange`]: the pipeline of one request.

pub mod admin;
pub mod app;
pub mod audit;
pub mod backends;
pub mod cli;
pub mod clock;
pub mod config;
pub mod demo;
pub mod exchange;
pub mod http;
pub mod leases;
pub mod outbound;
pub mod policies;
pub mod policy_cli;
mod random;
mod scratch;
pub mod sealing;
pub mod signing;
pub mod store;
pub mod telemetry;
pub mod token;
