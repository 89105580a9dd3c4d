//! `jobpass-exchanger`: trades a CI job's OIDC token for one credential that dies with the job.

pub mod audit;
pub mod backends;
pub mod clock;
pub mod config;
pub mod demo;
pub mod leases;
pub mod outbound;
pub mod policy_cli;
pub mod signing;
pub mod store;
pub mod token;
