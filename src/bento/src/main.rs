//! The `bento` program.
fn main() {}
