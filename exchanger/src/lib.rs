//! The server of jobpass.

pub mod demo;
