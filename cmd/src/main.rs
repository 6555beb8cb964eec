//! The keelson binary: parses the first word and runs that part.

fn main() {}
