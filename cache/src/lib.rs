//! The dataset cache engine: manifests, origins, store, placement and fill.
