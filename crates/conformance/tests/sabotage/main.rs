//! Proof that the suite sees: providers that are broken on purpose, each of which must fail exactly the checks that name
//! its defect, and the honest mock, which must fail none. A new check wants a new line in the table.
#![expect(clippy::unwrap_used, reason = "tests, and what only they call")]

mod guest;
mod provider;
mod trees;

use futures::StreamExt;
use provider::Broken;
use stacyvm_conformance::{Options, Report};
use stacyvm_provider::{Provider, mock::MockProvider};
use std::{collections::BTreeSet, sync::Arc};

/// A way to be wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
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
    ClaimsDiskLimit,
    HidesOom,
    HidesPidsHit,
    HidesDiskFull,
    HighExitCodesAreSignals,
    LosesOutputByte,
    RepeatsByteOnReattach,
    HidesGap,
    MixesStderrIn,
    InventsExitOnLoss,
    DropsEmptyArguments,
    LeaksServerEnvironment,
    StartsTwice,
    RunAttachesLate,
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
    ChecksThenReads,
    ChecksThenWrites,
    ChecksThenRemoves,
    RemovesLinkTarget,
    HidesDotFiles,
    PausesInNameOnly,
    PausesAgentOnly,
    PausedLooksRunning,
    PauseDropsOutput,
    SecondPauseFails,
    PauseOfUnknownWorks,
    SpoilsArchives,
    UnpacksThroughLinks,
    ForgivesHostileArchives,
    HidesOverflow,
    MissesNewDirectories,
    PausedIsNotDestroyed,
    PipesForTerminals,
    ForgetsTerminalSize,
    SwallowsInterrupt,
    WritersShareACount,
}

/// Which checks name which defect.
const TABLE: &[(Defect, &[&str])] = &[
    (Defect::LeaksProcessOnDestroy, &["destroy.processes"]),
    (Defect::UnknownDestroyFails, &["destroy.unknown"]),
    (Defect::CreateStartsOver, &["lifecycle.create_idempotent"]),
    (Defect::SubstitutesImage, &["lifecycle.missing_image"]),
    (Defect::UnknownConnectUnavailable, &["lifecycle.connect_unknown"]),
    (Defect::ListOmitsUnconnected, &["lifecycle.list"]),
    (Defect::EndedReturnsEarly, &["lifecycle.ended_waits", "pause.state"]),
    (Defect::EndedNeverReturns, &["lifecycle.agent_killed", "lifecycle.ended_waits"]),
    (Defect::StatsAreMadeUp, &["lifecycle.stats"]),
    (Defect::ClaimsMemoryLimit, &["limits.memory", "limits.memory_together", "limits.oom_reported"]),
    (Defect::ClaimsPidsLimit, &["limits.pids", "limits.pids_reported", "limits.pids_start"]),
    (Defect::ClaimsDiskLimit, &["limits.disk", "limits.disk_reported"]),
    (Defect::HidesOom, &["limits.oom_reported"]),
    (Defect::HidesPidsHit, &["limits.pids_reported"]),
    (Defect::HidesDiskFull, &["limits.disk_reported"]),
    (Defect::HighExitCodesAreSignals, &["exec.exit_code"]),
    (Defect::LosesOutputByte, &["output.first_reader", "output.large", "output.reader_returns"]),
    (Defect::RepeatsByteOnReattach, &["output.every_offset", "output.reader_returns", "output.resume"]),
    (Defect::HidesGap, &["output.gap"]),
    (Defect::MixesStderrIn, &["output.bytes_256", "output.separate"]),
    (Defect::InventsExitOnLoss, &["destroy.streams"]),
    (Defect::DropsEmptyArguments, &["exec.argv"]),
    (Defect::LeaksServerEnvironment, &["exec.environment"]),
    (Defect::StartsTwice, &["exec.run", "exec.start_concurrent", "exec.start_idempotent"]),
    (Defect::RunAttachesLate, &["exec.run"]),
    (Defect::StdinIgnoresPosition, &["stdin.ahead", "stdin.retry", "stdin.writers"]),
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
    // As good as can be without help from the kernel, and not good enough: without it, there would be no race.
    (Defect::ChecksThenReads, &["attack.swapped_on_read"]),
    (Defect::ChecksThenWrites, &["attack.swapped_on_write"]),
    (Defect::ChecksThenRemoves, &["attack.swapped_on_remove"]),
    (Defect::RemovesLinkTarget, &["links.remove"]),
    (Defect::SpoilsArchives, &["trees.archive", "trees.round_trip"]),
    (Defect::UnpacksThroughLinks, &["trees.links_before"]),
    (Defect::ForgivesHostileArchives, &["trees.hostile"]),
    (Defect::HidesOverflow, &["watch.overflow"]),
    (Defect::MissesNewDirectories, &["watch.new_directories"]),
    (Defect::HidesDotFiles, &["files.list", "files.names"]),
    (Defect::PausesInNameOnly, &["pause.busy", "pause.stops"]),
    (Defect::PausesAgentOnly, &["pause.busy", "pause.stops"]),
    (Defect::PausedLooksRunning, &["pause.state"]),
    (Defect::PauseDropsOutput, &["pause.output"]),
    (Defect::SecondPauseFails, &["pause.idempotent"]),
    (Defect::PauseOfUnknownWorks, &["pause.unknown"]),
    (Defect::PausedIsNotDestroyed, &["pause.busy", "pause.destroy"]),
    (
        Defect::PipesForTerminals,
        &[
            "terminal.controls",
            "terminal.eof",
            "terminal.exact",
            "terminal.hang_up",
            "terminal.interrupt",
            "terminal.many",
            "terminal.resize",
            "terminal.streams",
            "terminal.refused",
        ],
    ),
    (Defect::ForgetsTerminalSize, &["terminal.refused", "terminal.resize"]),
    (Defect::SwallowsInterrupt, &["terminal.interrupt"]),
    (Defect::WritersShareACount, &["stdin.writers"]),
];

/// Several ways to be wrong at once.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Defects(u64);

impl Defects {
    fn of(defects: impl IntoIterator<Item = Defect>) -> Self {
        Self(defects.into_iter().fold(0, |set, defect| set | 1 << defect as u32))
    }

    pub(crate) fn has(self, defect: Defect) -> bool {
        self.0 & (1 << defect as u32) != 0
    }
}

fn mock() -> MockProvider {
    MockProvider::new("conformance", 1, stacyvm_guest_binaries::AGENT).unwrap()
}

async fn check(provider: impl Provider, only: Vec<String>) -> Report {
    let options = Options { concurrency: 16, only, ..Options::default() };
    stacyvm_conformance::run(Arc::new(provider), options).await
}

/// Fails unless the checks that fail are just the expected ones.
fn compare(what: &str, report: &Report, expected: &BTreeSet<&str>) {
    let seen: BTreeSet<&str> = report.failures().into_iter().collect();
    let reasons = report.checks.iter().filter(|check| seen.contains(check.id.as_str()));
    let reasons: Vec<_> = reasons.map(|check| format!("\n  {}: {:?}", check.id, check.outcome)).collect();
    assert!(seen == *expected, "{what} should fail {expected:?}, and what fails is:{}", reasons.concat());
}

#[tokio::test]
async fn the_honest_mock_fails_nothing() {
    let report = check(mock(), Vec::new()).await;
    println!("{report}");
    assert!(report.is_success(), "{report}");
}

/// Each defect alone against the checks that name it: all of them fail, so each failure is that defect's doing.
#[tokio::test]
async fn each_defect_fails_every_check_that_names_it() {
    let all = futures::stream::iter(TABLE).map(|(defect, names)| async move {
        let broken = Broken::new(mock(), Defects::of([*defect]));
        let report = check(broken, names.iter().map(|name| (*name).to_owned()).collect()).await;
        (defect, names, report)
    });
    let mut reports = all.buffer_unordered(6);
    while let Some((defect, names, report)) = reports.next().await {
        // The name of one check may be the beginning of another's.
        let named = report.checks.iter().filter(|check| names.contains(&check.id.as_str())).count();
        assert_eq!(named, names.len(), "{defect:?}");
        compare(&format!("{defect:?}"), &report, &names.iter().copied().collect());
    }
}

/// One capability decides which checks of the memory limit are run, so this one cannot stand in the table.
#[tokio::test]
async fn a_memory_limit_that_would_end_the_sandbox_and_does_not_hold_is_seen() {
    let broken = Broken::new(mock(), Defects::of([Defect::ClaimsMemoryLimit])).that_ends_of_its_memory();
    let report = check(broken, vec!["limits.memory".to_owned()]).await;
    compare("a limit that does not hold", &report, &BTreeSet::from(["limits.memory_sandbox"]));
}

/// Many defects at once against the whole suite: nothing fails but the checks that name them, so no defect fails a check
/// that is about something else. With `STACYVM_SABOTAGE=each`, one defect at a time, which takes minutes.
async fn run_part(part: usize, parts: usize) {
    let part: Vec<_> = TABLE.iter().skip(part).step_by(parts).collect();
    let size = if std::env::var("STACYVM_SABOTAGE").is_ok_and(|how| how == "each") { 1 } else { part.len() };
    for defects in part.chunks(size) {
        let broken = Broken::new(mock(), Defects::of(defects.iter().map(|(defect, _)| *defect)));
        let report = check(broken, Vec::new()).await;
        let expected = defects.iter().flat_map(|(_, names)| names.iter().copied()).collect();
        let names: Vec<Defect> = defects.iter().map(|(defect, _)| *defect).collect();
        compare(&format!("{names:?}"), &report, &expected);
    }
}

#[tokio::test]
async fn defects_fail_no_other_check_part_1() {
    run_part(0, 3).await;
}

#[tokio::test]
async fn defects_fail_no_other_check_part_2() {
    run_part(1, 3).await;
}

#[tokio::test]
async fn defects_fail_no_other_check_part_3() {
    run_part(2, 3).await;
}

#[test]
fn the_table_names_every_defect_once_and_only_checks_that_exist() {
    let ids = stacyvm_conformance::ids();
    for (defect, checks) in TABLE {
        assert!(
            !checks.is_empty() && checks.iter().all(|check| ids.contains(check)),
            "{defect:?}: {checks:?}"
        );
    }
    let named: BTreeSet<Defect> = TABLE.iter().map(|(defect, _)| *defect).collect();
    assert_eq!(named.len(), TABLE.len());
    assert_eq!(named.len(), Defect::WritersShareACount as usize + 1);
}
