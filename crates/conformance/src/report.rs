//! What a run found, as data for programs and as a table for people.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Result of a run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    /// Name of the provider.
    pub provider: String,
    /// How it says that it isolates.
    pub isolation: String,
    /// Image of the sandboxes.
    pub image: String,
    /// Checks that passed.
    pub passed: usize,
    /// Checks that failed.
    pub failed: usize,
    /// Checks that were not run.
    pub not_run: usize,
    /// Duration of the run in milliseconds.
    pub duration_ms: u64,
    /// Every check, in the order of the suite.
    pub checks: Vec<CheckReport>,
    /// Sandboxes of the suite that could not be destroyed, with the reason.
    pub left_behind: Vec<String>,
}

/// Result of one check.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CheckReport {
    /// Stable name.
    pub id: String,
    /// What a pass says.
    pub promise: String,
    /// What was found.
    #[serde(flatten)]
    pub outcome: Outcome,
    /// Duration in milliseconds.
    pub duration_ms: u64,
}

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    /// The promise was kept.
    Passed,
    /// It was not.
    Failed {
        /// What was seen instead.
        reason: String,
    },
    /// Nobody looked.
    NotRun {
        /// Why not.
        reason: String,
    },
}

impl Report {
    /// Every check that ran passed, at least one did, and nothing was left behind.
    pub fn is_success(&self) -> bool {
        self.failed == 0 && self.passed > 0 && self.left_behind.is_empty()
    }

    /// Ids of failed checks, in the order of the suite.
    pub fn failures(&self) -> Vec<&str> {
        let failed = |check: &&CheckReport| matches!(check.outcome, Outcome::Failed { .. });
        self.checks.iter().filter(failed).map(|check| check.id.as_str()).collect()
    }

    /// Counts the outcomes of `checks` into the totals.
    pub(crate) fn count(&mut self) {
        let of =
            |wanted: fn(&Outcome) -> bool| self.checks.iter().filter(|check| wanted(&check.outcome)).count();
        let passed = of(|outcome| matches!(outcome, Outcome::Passed));
        let not_run = of(|outcome| matches!(outcome, Outcome::NotRun { .. }));
        (self.passed, self.not_run) = (passed, not_run);
        self.failed = self.checks.len() - passed - not_run;
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.checks.iter().map(|check| check.id.len()).max().unwrap_or_default();
        writeln!(f, "conformance of {} ({}), image {}", self.provider, self.isolation, self.image)?;
        for check in &self.checks {
            let (mark, reason) = match &check.outcome {
                Outcome::Passed => ("passed ", None),
                Outcome::Failed { reason } => ("FAILED ", Some(reason)),
                Outcome::NotRun { reason } => ("not run", Some(reason)),
            };
            writeln!(f, "{mark}  {:width$}  {:>6} ms  {}", check.id, check.duration_ms, check.promise)?;
            if let Some(reason) = reason {
                writeln!(f, "         {:width$}             {reason}", "")?;
            }
        }
        for left in &self.left_behind {
            writeln!(f, "LEFT BEHIND  {left}")?;
        }
        let seconds = self.duration_ms as f64 / 1000.0;
        write!(
            f,
            "{} passed, {} failed, {} not run in {seconds:.1} s",
            self.passed, self.failed, self.not_run
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(id: &str, outcome: Outcome) -> CheckReport {
        CheckReport { id: id.to_owned(), promise: "it holds".to_owned(), outcome, duration_ms: 3 }
    }

    fn report(checks: Vec<CheckReport>) -> Report {
        let mut report = Report {
            provider: "p".into(),
            isolation: "i".into(),
            image: "host".into(),
            passed: 0,
            failed: 0,
            not_run: 0,
            duration_ms: 1500,
            checks,
            left_behind: Vec::new(),
        };
        report.count();
        report
    }

    #[test]
    fn a_check_that_was_not_run_is_not_a_pass() {
        let nobody_looked = report(vec![check("a.b", Outcome::NotRun { reason: "no".into() })]);
        assert_eq!((nobody_looked.passed, nobody_looked.not_run), (0, 1));
        assert!(!nobody_looked.is_success());
    }

    #[test]
    fn a_failure_is_named_with_its_reason() {
        let report = report(vec![
            check("a.b", Outcome::Passed),
            check("a.c", Outcome::Failed { reason: "it did not".into() }),
        ]);
        assert_eq!(report.failures(), ["a.c"]);
        assert!(!report.is_success());
        let text = report.to_string();
        assert!(text.contains("FAILED   a.c") && text.contains("it did not"), "{text}");
        assert!(text.ends_with("1 passed, 1 failed, 0 not run in 1.5 s"), "{text}");
    }

    #[test]
    fn what_is_left_behind_spoils_success() {
        let mut report = report(vec![check("a.b", Outcome::Passed)]);
        assert!(report.is_success());
        report.left_behind.push("sb-1: busy".into());
        assert!(!report.is_success());
    }

    #[test]
    fn it_survives_json() {
        let before = report(vec![check("a.b", Outcome::NotRun { reason: "r".into() })]);
        let text = serde_json::to_string(&before).unwrap();
        assert!(text.contains(r#""outcome":"not_run","reason":"r""#), "{text}");
        let after: Report = serde_json::from_str(&text).unwrap();
        assert_eq!(after.checks[0].outcome, before.checks[0].outcome);
    }
}
