//! Proof that the suite sees: providers that are broken on purpose, each of which must fail exactly the checks that name
//! its defect, and the honest mock, which must fail none. A new check wants a new line in the table.
#![expect(clippy::unwrap_used, reason = "tests, and what only they call")]

mod guest;
mod provider;

use provider::Broken;
use stacyvm_conformance::{Options, Report};
use stacyvm_provider::{Provider, mock::MockProvider};
use std::{collections::BTreeSet, sync::Arc};

/// A way to be wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Defect {
    LeaksProcessOnDestroy,
    UnknownDestroyFails,
    CreateStartsOver,
    SubstitutesImage,
    UnknownConnectUnavailable,
    ListOmitsUnconnected,
    EndedReturnsEarly,
    EndedNeverReturns,
    StatsAreMadeUp,
    ClaimsMemoryLimit,
    ClaimsPidsLimit,
    HighExitCodesAreSignals,
    LosesOutputByte,
    RepeatsByteOnReattach,
    HidesGap,
    MixesStderrIn,
    InventsExitOnLoss,
    DropsEmptyArguments,
    LeaksServerEnvironment,
    StartsTwice,
    StdinIgnoresPosition,
    KillsLeaderOnly,
    DeadlineLeavesGrandchild,
    DeadlineIsNotReported,
    ControlWaitsForUploads,
    HangsWhenGone,
    WritesInPlace,
    CutsLargeUploads,
    IgnoresMode,
    IgnoresRangeEnd,
    FollowsLinkOutOnRead,
    RemovesLinkTarget,
    HidesDotFiles,
}

/// Which checks name which defect.
const TABLE: &[(Defect, &[&str])] = &[
    (Defect::LeaksProcessOnDestroy, &["destroy.processes"]),
    (Defect::UnknownDestroyFails, &["destroy.unknown"]),
    (Defect::CreateStartsOver, &["lifecycle.create_idempotent"]),
    (Defect::SubstitutesImage, &["lifecycle.missing_image"]),
    (Defect::UnknownConnectUnavailable, &["lifecycle.connect_unknown"]),
    (Defect::ListOmitsUnconnected, &["lifecycle.list"]),
    (Defect::EndedReturnsEarly, &["lifecycle.ended_waits"]),
    (Defect::EndedNeverReturns, &["lifecycle.agent_killed", "lifecycle.ended_waits"]),
    (Defect::StatsAreMadeUp, &["lifecycle.stats"]),
    (Defect::ClaimsMemoryLimit, &["limits.memory", "limits.memory_together"]),
    (Defect::ClaimsPidsLimit, &["limits.pids", "limits.pids_start"]),
    (Defect::HighExitCodesAreSignals, &["exec.exit_code"]),
    (Defect::LosesOutputByte, &["output.large"]),
    (Defect::RepeatsByteOnReattach, &["output.every_offset", "output.resume"]),
    (Defect::HidesGap, &["output.gap"]),
    (Defect::MixesStderrIn, &["output.bytes_256", "output.separate"]),
    (Defect::InventsExitOnLoss, &["destroy.streams"]),
    (Defect::DropsEmptyArguments, &["exec.argv"]),
    (Defect::LeaksServerEnvironment, &["exec.environment"]),
    (Defect::StartsTwice, &["exec.start_concurrent", "exec.start_idempotent"]),
    (Defect::StdinIgnoresPosition, &["stdin.ahead", "stdin.retry"]),
    (Defect::KillsLeaderOnly, &["signal.kill_background", "signal.kill_tree", "signal.tree"]),
    (Defect::DeadlineLeavesGrandchild, &["deadline.background", "deadline.descendants"]),
    (Defect::DeadlineIsNotReported, &["deadline.kills"]),
    (Defect::ControlWaitsForUploads, &["control.prompt"]),
    (Defect::HangsWhenGone, &["destroy.old_guest"]),
    (Defect::WritesInPlace, &["files.cancelled_upload", "files.failed_upload", "files.replaced_in_one_step"]),
    (Defect::CutsLargeUploads, &["files.sizes"]),
    (Defect::IgnoresMode, &["files.mode"]),
    (Defect::IgnoresRangeEnd, &["files.ranges"]),
    (Defect::FollowsLinkOutOnRead, &["links.read_outside"]),
    (Defect::RemovesLinkTarget, &["links.remove"]),
    (Defect::HidesDotFiles, &["files.list", "files.names"]),
];

fn mock() -> MockProvider {
    MockProvider::new("conformance", 1, stacyvm_guest_binaries::AGENT).unwrap()
}

async fn check(provider: impl Provider) -> Report {
    let options = Options { concurrency: 24, ..Options::default() };
    stacyvm_conformance::run(Arc::new(provider), options).await
}

#[tokio::test]
async fn the_honest_mock_fails_nothing() {
    let report = check(mock()).await;
    println!("{report}");
    assert!(report.is_success(), "{report}");
}

/// Runs a part of the table; split so that the test harness can run the parts side by side.
async fn run_part(part: usize, parts: usize) {
    let mut wrong = Vec::new();
    for (defect, expected) in TABLE.iter().skip(part).step_by(parts) {
        let broken = Broken::new(mock(), *defect);
        let report = check(broken).await;
        let seen: BTreeSet<&str> = report.failures().into_iter().collect();
        if seen != expected.iter().copied().collect() {
            let reasons = report.checks.iter().filter(|check| seen.contains(check.id.as_str()));
            let reasons: Vec<_> =
                reasons.map(|check| format!("\n  {}: {:?}", check.id, check.outcome)).collect();
            wrong
                .push(format!("{defect:?} should fail {expected:?}, and what fails is:{}", reasons.concat()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn each_defect_fails_the_checks_that_name_it_part_1() {
    run_part(0, 3).await;
}

#[tokio::test]
async fn each_defect_fails_the_checks_that_name_it_part_2() {
    run_part(1, 3).await;
}

#[tokio::test]
async fn each_defect_fails_the_checks_that_name_it_part_3() {
    run_part(2, 3).await;
}

#[test]
fn the_table_names_checks_that_exist() {
    let ids = stacyvm_conformance::ids();
    for (defect, checks) in TABLE {
        for check in *checks {
            assert!(ids.contains(check), "{defect:?} names {check}");
        }
    }
}
