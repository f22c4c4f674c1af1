//! The spawner as a program of its own, for the tests of this crate. `stacyvm` carries the same as a hidden subcommand.

use std::process::ExitCode;

fn main() -> ExitCode {
    stacyvm_provider_native::spawner_main()
}
