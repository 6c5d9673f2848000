//! End-to-end tests through Trackbed's real interfaces.

pub mod s3_server;
