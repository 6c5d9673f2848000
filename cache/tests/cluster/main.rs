//! What a user gets from a cache of several nodes, through the public interface.

mod faults;
mod reading;
mod restart;
mod support;
