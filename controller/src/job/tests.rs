//! What becomes of jobs, one thing after another.

mod attempts;
mod model;
mod pods;
mod world;
