//! The audit log: who got what, when, under which rule, chained so that a change to the past shows.

pub mod chain;
mod entry;
pub mod find;
pub mod head;
pub mod sink;
pub mod verify;

pub use chain::{Line, Link};
pub use entry::{Entry, Event, RecordedClaims};
pub use head::{Head, Sign};
pub use sink::{StreamSettings, stream};
