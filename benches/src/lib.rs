//! Benchmarks of Trackbed beside its peers.
