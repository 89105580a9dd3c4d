//! Tests against real servers and real CI programs: `tests/run` installs them and runs this.

mod aws;
mod backends;
mod clients;
mod crash;
mod fixed;
mod full_disk;
mod github;
mod github_app;
mod gitlab;
mod mysql;
mod openbao;
mod postgres;
mod redis;
mod vault;
mod world;
