//! What all fuzz targets share: each is one of the `TARGETS` of a crate's module `fuzzing`.

mod bounded;

use std::path::Path;

use trackbed_rdma::fuzzing::Target;

/// The target of this name.
pub fn target(name: &str) -> Target {
    let all = [
        trackbed_rdma::fuzzing::TARGETS,
        trackbed_cache::fuzzing::TARGETS,
        trackbed_csi::fuzzing::TARGETS,
    ];
    let found = all.into_iter().flatten().find(|target| target.name == name);
    *found.unwrap_or_else(|| panic!("no crate has a fuzz target called {name:?}"))
}

/// Writes the target's seeds into the folder that `TRACKBED_FUZZ_SEEDS` names, if it names one.
pub fn write_seeds(target: Target) {
    let Some(folder) = std::env::var_os("TRACKBED_FUZZ_SEEDS") else {
        return;
    };
    for (number, seed) in (target.seeds)().into_iter().enumerate() {
        let path = Path::new(&folder).join(format!("seed-{number}"));
        std::fs::write(&path, seed)
            .unwrap_or_else(|error| panic!("cannot write {}: {error}", path.display()));
    }
}

/// Checks the target with these bytes, and the memory that it takes.
pub fn check(target: &Target, bytes: &[u8]) {
    bounded::check(target, bytes);
}

/// The program of one target.
#[macro_export]
macro_rules! fuzz {
    ($name:literal) => {
        static TARGET: std::sync::LazyLock<trackbed_rdma::fuzzing::Target> =
            std::sync::LazyLock::new(|| $crate::target($name));

        libfuzzer_sys::fuzz_target!(
            init: $crate::write_seeds(*TARGET),
            |bytes: &[u8]| $crate::check(&TARGET, bytes)
        );
    };
}
