//! The fuzz targets, with their seeds and some thousand mutations of them, the same in each run:
//! so that they stay true, and a reader that breaks is noticed at once. `hack/fuzz` searches on.

#[path = "../../fuzz/src/bounded.rs"]
mod bounded;

use std::collections::BTreeSet;

use mutatis::Session;
use trackbed_rdma::fuzzing::Target;

/// Mutated inputs of each target.
const INPUTS: usize = 2000;
/// The most mutations of one input.
const MUTATIONS: usize = 8;

/// Shows the input at which a check panicked.
struct Shown<'a>(&'a Target, &'a [u8]);

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let Shown(target, input) = self;
            eprintln!("the input of {}: {}", target.name, input.escape_ascii());
        }
    }
}

fn check(target: &Target, input: &[u8]) {
    let _shown = Shown(target, input);
    bounded::check(target, input);
}

fn hold(targets: &[Target]) {
    for target in targets {
        let seeds = (target.seeds)();
        assert!(!seeds.is_empty(), "{} has no seeds", target.name);
        check(target, b"");
        seeds.iter().for_each(|seed| check(target, seed));
        let mut session = Session::new().seed(1);
        for number in 0..INPUTS {
            let mut input = seeds[number % seeds.len()].clone();
            for _ in 0..=number % MUTATIONS {
                session.mutate(&mut input).expect("bytes can be mutated");
            }
            check(target, &input);
        }
    }
}

#[test]
fn the_fabric_and_the_benchmark_take_any_bytes_of_a_peer() {
    hold(trackbed_rdma::fuzzing::TARGETS);
}

#[test]
fn the_cache_takes_any_bytes_of_a_peer_an_origin_and_its_disk() {
    hold(trackbed_cache::fuzzing::TARGETS);
}

#[test]
fn the_driver_takes_any_bytes_of_kubelet_the_keeper_and_its_files() {
    hold(trackbed_csi::fuzzing::TARGETS);
}

#[test]
fn each_target_has_a_program() {
    let all = [
        trackbed_rdma::fuzzing::TARGETS,
        trackbed_cache::fuzzing::TARGETS,
        trackbed_csi::fuzzing::TARGETS,
    ];
    let targets: BTreeSet<String> = all
        .into_iter()
        .flatten()
        .map(|target| format!("trackbed_fuzz::fuzz!(\"{}\");", target.name))
        .collect();
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/fuzz_targets");
    let programs: BTreeSet<String> = std::fs::read_dir(folder)
        .expect("a folder")
        .map(|file| {
            let text = std::fs::read_to_string(file.expect("a file").path()).expect("a program");
            text.lines().last().expect("a line").to_owned()
        })
        .collect();
    assert_eq!(programs, targets);
}
