//! The controller, through an API server, with a scheduler and kubelets that do their part or do not.

mod gangs;
mod leaders;
mod metrics;
mod support;
mod trouble;
