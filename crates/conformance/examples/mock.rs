//! Runs the suite, or the checks whose ids start with the words given, against the mock and prints the report:
//! `cargo run -p stacyvm-conformance --example mock -- exec. files.list`.

use stacyvm_conformance::{Options, run};
use stacyvm_provider::mock::MockProvider;
use std::{process::ExitCode, sync::Arc};

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::io::Result<ExitCode> {
    let provider = MockProvider::new("conformance", 1, stacyvm_guest_binaries::AGENT)?;
    let only = std::env::args().skip(1).collect();
    let report = run(Arc::new(provider), Options { only, ..Options::default() }).await;
    println!("{report}");
    Ok(if report.is_success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
