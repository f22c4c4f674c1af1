//! Developer tasks: leak check, OpenAPI file, benchmarks.

fn main() {}
