//! Runs a target with a bound on the memory it takes. The ordinary tests include this file too.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use trackbed_rdma::fuzzing::Target;

/// What a reader may take, in bytes, however little it reads.
const ANYWAY: u64 = 2 << 20;
/// What it may take more for each byte that it reads.
const PER_BYTE: u64 = 100;

/// Checks the target with these bytes. Panics if something does not hold that must, or if reading
/// takes memory out of proportion: a length that a peer only claims must cost nothing.
pub(crate) fn check(target: &Target, bytes: &[u8]) {
    let mut outcome = Ok(());
    let used = allocation_counter::measure(|| {
        outcome = catch_unwind(AssertUnwindSafe(|| (target.check)(bytes)));
    });
    if let Err(panic) = outcome {
        resume_unwind(panic);
    }
    let allowed = ANYWAY + PER_BYTE * bytes.len() as u64;
    assert!(
        used.bytes_max <= allowed,
        "{} bytes of input took {} bytes of memory, and not at most {allowed}",
        bytes.len(),
        used.bytes_max
    );
}
