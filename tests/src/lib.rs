//! End-to-end tests through Trackbed's real interfaces.
