//! PID 1 of every sandbox: processes, files, output logs.

fn main() {}
