//! Small static program that conformance checks run inside a sandbox.

fn main() {}
