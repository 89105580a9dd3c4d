//! The audit log: who got what, when, under which rule, chained so that a change to the past shows.

mod entry;

pub use entry::{Entry, Event};
