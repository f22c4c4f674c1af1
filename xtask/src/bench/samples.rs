//! Samples, medians, spread, and the table.

use serde::Serialize;
use std::fmt::Write;

/// One measured quantity of one side, in the unit that its comparison names.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Samples {
    /// Who was measured.
    pub(super) side: String,
    /// Every sample, in the order taken.
    pub(super) values: Vec<f64>,
}

impl Samples {
    /// An empty series.
    pub(super) fn new(side: &str) -> Self {
        Self { side: side.to_owned(), values: Vec::new() }
    }

    /// The value below which this part (0 to 1) of the samples lies.
    pub(super) fn quantile(&self, part: f64) -> f64 {
        let mut sorted = self.values.clone();
        sorted.sort_by(f64::total_cmp);
        let last = sorted.len().saturating_sub(1);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "an index"
        )]
        let index = (last as f64 * part).round() as usize;
        sorted.get(index).copied().unwrap_or(f64::NAN)
    }
}

/// Ours and the others' series of one scenario. The first is ours.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Comparison {
    /// What was done.
    pub(super) scenario: String,
    /// Unit of every value: `ms`, `MiB/s`, `s`, `MiB`.
    pub(super) unit: &'static str,
    /// True if a larger value is better.
    pub(super) more_is_better: bool,
    /// The series.
    pub(super) sides: Vec<Samples>,
    /// What could not be measured here, and why.
    pub(super) not_run: Vec<String>,
    /// What is aimed at.
    pub(super) goal: Option<Goal>,
}

/// What ours is to be.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Goal {
    /// So much better than another side.
    Ratio {
        /// The other side.
        side: String,
        /// The least ratio.
        at_least: f64,
    },
    /// No more than this, in the comparison's unit.
    AtMost(f64),
}

impl Goal {
    /// Ours is to be at least this much better than that side.
    pub(super) fn new(side: &str, at_least: f64) -> Self {
        Self::Ratio { side: side.to_owned(), at_least }
    }
}

impl Comparison {
    /// How much better ours is than that side.
    fn ratio(&self, side: &Samples) -> f64 {
        let ours = self.sides.first().map_or(f64::NAN, |ours| ours.quantile(0.5));
        let median = side.quantile(0.5);
        if self.more_is_better { ours / median } else { median / ours }
    }

    /// The line about the goal, if there is one. What was not measured is not reached.
    fn verdict(&self) -> Option<String> {
        let word = |reached: Option<bool>| match reached {
            Some(true) => "reached",
            Some(false) => "missed",
            None => "not measured",
        };
        Some(match self.goal.as_ref()? {
            Goal::Ratio { side, at_least } => {
                let other = self.sides.iter().skip(1).find(|other| other.side == *side);
                let reached = word(other.map(|other| self.ratio(other) >= *at_least));
                format!("goal: at least {at_least:.2} x against {side}: {reached}")
            }
            Goal::AtMost(most) => {
                let reached = word(self.sides.first().map(|ours| ours.quantile(0.5) <= *most));
                format!("goal: at most {most:.2} {}: {reached}", self.unit)
            }
        })
    }
}

/// The report for people. A ratio above 1 means that we are better.
pub(super) fn table(report: &[Comparison]) -> String {
    let mut text = String::new();
    let _ = writeln!(
        text,
        "{:<38} {:<26} {:>10} {:>10} {:>10} {:>5} {:>12}",
        "scenario", "side", "median", "p10", "p90", "n", "ours better"
    );
    for comparison in report {
        let mut name = comparison.scenario.as_str();
        for (index, side) in comparison.sides.iter().enumerate() {
            let _ = writeln!(
                text,
                "{:<38} {:<26} {:>10} {:>10.2} {:>10.2} {:>5} {:>12}",
                std::mem::take(&mut name),
                side.side,
                format!("{:.2} {}", side.quantile(0.5), comparison.unit),
                side.quantile(0.1),
                side.quantile(0.9),
                side.values.len(),
                if index == 0 { String::new() } else { format!("{:.2} x", comparison.ratio(side)) },
            );
        }
        for reason in &comparison.not_run {
            let _ = writeln!(text, "{:<38} not run: {reason}", std::mem::take(&mut name));
        }
        if let Some(verdict) = comparison.verdict() {
            let _ = writeln!(text, "{:<38} {verdict}", "");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles() {
        let samples = Samples { side: "us".into(), values: vec![5.0, 1.0, 3.0, 2.0, 4.0] };
        assert!((samples.quantile(0.5) - 3.0).abs() < f64::EPSILON);
        assert!((samples.quantile(0.0) - 1.0).abs() < f64::EPSILON);
        assert!((samples.quantile(1.0) - 5.0).abs() < f64::EPSILON);
        assert!(Samples::new("none").quantile(0.5).is_nan());
    }

    #[test]
    fn the_ratio_says_how_much_better_ours_is() {
        let side = |name: &str, value| Samples { side: name.into(), values: vec![value] };
        let comparison = Comparison {
            scenario: "exec".into(),
            unit: "ms",
            more_is_better: false,
            sides: vec![side("stacyvm", 2.0), side("rival", 8.0)],
            not_run: vec!["docker: no daemon".into()],
            goal: Some(Goal::new("rival", 5.0)),
        };
        let text = |comparison: &Comparison| table(std::slice::from_ref(comparison));
        let missed = text(&comparison);
        assert!(missed.contains("4.00 x"), "{missed}");
        assert!(missed.contains("not run: docker: no daemon"), "{missed}");
        assert!(missed.contains("goal: at least 5.00 x against rival: missed"), "{missed}");
        let reached = text(&Comparison { goal: Some(Goal::new("rival", 4.0)), ..comparison.clone() });
        assert!(reached.contains("rival: reached"), "{reached}");
        let unmeasured = text(&Comparison { sides: Vec::new(), ..comparison });
        assert!(unmeasured.contains("exec") && unmeasured.contains("rival: not measured"), "{unmeasured}");
    }
}
