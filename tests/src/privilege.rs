//! What the tests may do on this machine.

/// Says so and returns true when this user can't mount, which most of these tests are about.
pub fn missing(what: &str) -> bool {
    // /proc/self belongs to the effective user.
    use std::os::unix::fs::MetadataExt;
    let root = std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0);
    if !root {
        println!("skipped: {what} takes root (run the tests as root, as hack/test does in CI)");
    }
    !root
}
