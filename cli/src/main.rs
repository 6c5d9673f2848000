//! The `trackbed` command.
fn main() {}
