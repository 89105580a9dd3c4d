//! What the tests stand on: real programs started on spare loopback ports, and upstreams that behave
//! like a CI's issuer or a cloud's API.
//!
//! Everything here ends what it started when it is dropped.

pub mod act;
pub mod authorization_server;
pub mod aws;
pub mod chaos;
pub mod corpus;
pub mod entra;
pub mod form;
pub mod github_api;
pub mod gitlab;
pub mod gitlab_api;
pub mod google;
pub mod http;
pub mod https;
pub mod kubernetes;
pub mod mariadb;
pub mod moto;
pub mod mtls;
pub mod openbao;
pub mod ports;
pub mod postgres;
pub mod program;
pub mod rabbitmq;
pub mod redis;
pub mod registry;
pub mod relying_party;
pub mod repository;
pub mod secrets;
pub mod server;
pub mod sshd;
pub mod sts;
pub mod tls;
pub mod world;
