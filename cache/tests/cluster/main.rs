//! What a user gets from a cache of several nodes, through the public interface.

mod again;
mod disk;
mod disks;
mod evict;
mod faults;
mod forward;
mod image;
mod native;
mod reading;
mod restart;
mod support;
