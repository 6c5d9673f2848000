//! The locks of what runs under the model checker, which puts its own in their place (`cache/model`).

pub(crate) use parking_lot::Mutex;
