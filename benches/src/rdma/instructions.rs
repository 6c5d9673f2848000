//! What posting and polling cost in instructions, beside the same loop in C: counted, not timed.
//!
//! Both loops post and poll on the null provider of `trackbed_rdma::mock::null` (see
//! `rdma/examples/instructions`), 64 writes in batches of 16, every one signalled. Valgrind's callgrind
//! counts the instructions inside either loop and all it calls, the provider's too, which are the same
//! for both. Two runs with different numbers of rounds are subtracted, so what is done once, as growing
//! a list or finding the region of the first payload, doesn't count. Equal programs give equal counts:
//! there is nothing to average.
//!
//! Allocations are calls of the allocator within the loops, in the same count. That there are no locks
//! is seen by the functions that callgrind lists within the loops: none has to do with a mutex, a spin
//! lock or a futex, else there is no row but an error. Atomic instructions written out would not show
//! there; there are none, since `QueuePair` and `CompletionQueue` are borrowed exclusively and payloads
//! move.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    BenchError,
    command::output,
    paired::{Better, Pair, Verdict},
    row::{Case, Row},
};

/// The names of the rows.
pub(super) const NAMES: [&str; 3] = [
    "instructions/post",
    "instructions/poll",
    "allocations/request",
];

/// Instructions of the loop in C to ours.
const GOAL: f64 = 1.0;
/// Rounds of the two runs that are subtracted.
const ROUNDS: [u32; 2] = [10, 110];
/// Requests of a round: as in the example.
const REQUESTS: u32 = 64;
const BATCH: &str = "16";
/// The loops, by the names of their functions.
const LOOPS: [&str; 4] = ["ours_post", "ours_poll", "c_post", "c_poll"];

/// Counts, and hands over a row for each of [`NAMES`].
pub(super) fn measure(print: &mut dyn FnMut(Row)) -> Result<(), BenchError> {
    let folder = tempfile::tempdir().map_err(BenchError::io("making a temporary folder"))?;
    let program = program()?;
    let library = compile(folder.path())?;
    let [few, many] = ROUNDS;
    let few = count(&program, &library, folder.path(), few)?;
    let many = count(&program, &library, folder.path(), many)?;
    let requests = f64::from((ROUNDS[1] - ROUNDS[0]) * REQUESTS);
    let per_request = |name: &str| (many.inside(name) as f64 - few.inside(name) as f64) / requests;
    for (name, ours, peer) in [
        (NAMES[0], "ours_post", "c_post"),
        (NAMES[1], "ours_poll", "c_poll"),
    ] {
        let case = Case {
            bench: "rdma",
            name: name.to_owned(),
            peer_name: "C",
            unit: "instructions",
            better: Better::Lower,
            goal: GOAL,
        };
        let pair = Pair {
            ours: per_request(ours),
            peer: per_request(peer),
        };
        print(case.row(&[pair, pair]));
    }
    let allocations = (many.allocations() - few.allocations()) as f64 / requests;
    let locks = many.locks();
    if let Some(name) = locks.first() {
        return Err(BenchError::Output {
            program: "our loop".to_owned(),
            output: format!("a call of {name}, which takes a lock"),
        });
    }
    print(Row {
        bench: "rdma".into(),
        case: NAMES[2].to_owned(),
        ours: Some(allocations),
        peer: None,
        peer_name: "none".into(),
        unit: "allocations".into(),
        ratio: None,
        interval: None,
        pairs: 1,
        goal: 0.0,
        verdict: if allocations == 0.0 {
            Verdict::Pass
        } else {
            Verdict::Fail
        },
    });
    Ok(())
}

/// The example, which `hack/bench` builds next to this program.
fn program() -> Result<PathBuf, BenchError> {
    let own = std::env::current_exe().map_err(BenchError::io("finding this program"))?;
    let program = own.with_file_name("examples").join("instructions");
    if program.is_file() {
        return Ok(program);
    }
    Err(BenchError::Unavailable(format!(
        "{} is missing: build it with `cargo build --release -p trackbed-rdma --features mock \
         --example instructions`",
        program.display()
    )))
}

/// Compiles the loop in C, against the header of libibverbs.
fn compile(folder: &Path) -> Result<PathBuf, BenchError> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../rdma/examples/instructions/loop.c");
    let library = folder.join("loop.so");
    let mut cc = Command::new("cc");
    cc.args(["-O2", "-shared", "-fPIC", "-o"])
        .arg(&library)
        .arg(source);
    output(&mut cc)?;
    Ok(library)
}

/// Runs so many rounds under callgrind, which collects only inside the loops.
fn count(program: &Path, library: &Path, folder: &Path, rounds: u32) -> Result<Counts, BenchError> {
    let written = folder.join(format!("callgrind.{rounds}"));
    let mut valgrind = Command::new("valgrind");
    valgrind
        .args(["--tool=callgrind", "--quiet"])
        .arg(format!("--callgrind-out-file={}", written.display()))
        .args(LOOPS.map(|name| format!("--toggle-collect={name}")))
        .arg(program)
        .arg(library)
        .args([&rounds.to_string(), BATCH]);
    output(&mut valgrind)?;
    let text = std::fs::read_to_string(&written)
        .map_err(BenchError::io(format!("reading {}", written.display())))?;
    let counts = Counts::read(&text);
    match LOOPS.iter().find(|name| counts.inside(name) == 0) {
        None => Ok(counts),
        Some(name) => Err(BenchError::Output {
            program: "callgrind".to_owned(),
            output: format!("no instructions in {name}"),
        }),
    }
}

/// What callgrind's output file says (its format is in Valgrind's manual, chapter 17).
#[derive(Debug, Default)]
struct Counts {
    /// Instructions of a function itself.
    own: HashMap<String, u64>,
    /// How often a function was called, and the instructions of its calls.
    calls: HashMap<(String, String), (u64, u64)>,
}

impl Counts {
    fn read(text: &str) -> Counts {
        let mut counts = Counts::default();
        // A name is written once as "(number) name", afterwards as "(number)".
        let mut names: HashMap<String, String> = HashMap::new();
        let mut name_of = |words: &str| match words.split_once(' ') {
            Some((number, name)) => {
                names.insert(number.to_owned(), name.to_owned());
                name.to_owned()
            }
            None => names.get(words).cloned().unwrap_or(words.to_owned()),
        };
        let (mut function, mut callee, mut called) = (String::new(), String::new(), None);
        for line in text.lines() {
            if let Some(word) = line.strip_prefix("fn=") {
                function = name_of(word);
            } else if let Some(word) = line.strip_prefix("cfn=") {
                callee = name_of(word);
            } else if let Some(words) = line.strip_prefix("calls=") {
                called = words
                    .split(' ')
                    .next()
                    .and_then(|count| count.parse::<u64>().ok());
            } else if line
                .starts_with(|first: char| first.is_ascii_digit() || "+-*".contains(first))
            {
                let cost = line.split(' ').nth(1).and_then(|cost| cost.parse().ok());
                let cost: u64 = cost.unwrap_or(0);
                match called.take() {
                    Some(count) => {
                        let entry = (function.clone(), callee.clone());
                        let sum: &mut (u64, u64) = counts.calls.entry(entry).or_default();
                        *sum = (sum.0 + count, sum.1 + cost);
                    }
                    None => *counts.own.entry(function.clone()).or_default() += cost,
                }
            }
        }
        counts
    }

    /// Instructions of a function and all that it called.
    fn inside(&self, name: &str) -> u64 {
        let own = self.own.get(name).copied().unwrap_or(0);
        let calls = self.calls.iter().filter(|((caller, _), _)| caller == name);
        own + calls.map(|(_, (_, cost))| cost).sum::<u64>()
    }

    /// Calls of the allocator.
    fn allocations(&self) -> u64 {
        let of_allocator = |name: &str| {
            [
                "malloc",
                "calloc",
                "realloc",
                "posix_memalign",
                "aligned_alloc",
            ]
            .contains(&name)
        };
        self.calls
            .iter()
            .filter(|((_, callee), _)| of_allocator(callee))
            .map(|(_, (count, _))| count)
            .sum()
    }

    /// Functions that were called and take a lock.
    fn locks(&self) -> Vec<&str> {
        let takes_lock = |name: &&str| {
            ["mutex", "rwlock", "spin", "futex", "semaphore"]
                .iter()
                .any(|word| name.contains(word))
        };
        let callees = self.calls.keys().map(|(_, callee)| callee.as_str());
        callees.filter(takes_lock).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WRITTEN: &str = "\
# callgrind format
events: Ir
fn=(1) ours_post
10 20
+2 5
cfn=(2) provider
calls=4 0
* 12
cfn=(3) malloc
calls=2 0
* 30

fn=(2)
3 12
fn=(4) ours_poll
7 9
cfn=(5) pthread_mutex_lock
calls=1 0
* 8

totals: 96
";

    #[test]
    fn what_a_loop_calls_counts_with_it() {
        let counts = Counts::read(WRITTEN);
        assert_eq!(counts.inside("ours_post"), 20 + 5 + 12 + 30);
        assert_eq!(counts.inside("ours_poll"), 9 + 8);
        assert_eq!(counts.inside("provider"), 12);
        assert_eq!(counts.inside("c_post"), 0);
    }

    #[test]
    fn allocations_and_locks_are_found_by_their_names() {
        let counts = Counts::read(WRITTEN);
        assert_eq!(counts.allocations(), 2);
        assert_eq!(counts.locks(), ["pthread_mutex_lock"]);
    }
}
