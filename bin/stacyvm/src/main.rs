//! Self-hosted, disposable computers for software agents.

fn main() {}
