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
}

/// The report for people. A ratio above 1 means that we are better.
pub(super) fn table(report: &[Comparison]) -> String {
    let mut text = String::new();
    let _ = writeln!(
        text,
        "{:<34} {:<26} {:>10} {:>10} {:>10} {:>5} {:>12}",
        "scenario", "side", "median", "p10", "p90", "n", "ours better"
    );
    for comparison in report {
        let ours = comparison.sides.first().map_or(f64::NAN, |ours| ours.quantile(0.5));
        for (index, side) in comparison.sides.iter().enumerate() {
            let median = side.quantile(0.5);
            let ratio = if comparison.more_is_better { ours / median } else { median / ours };
            let _ = writeln!(
                text,
                "{:<34} {:<26} {:>10} {:>10.2} {:>10.2} {:>5} {:>12}",
                if index == 0 { comparison.scenario.as_str() } else { "" },
                side.side,
                format!("{median:.2} {}", comparison.unit),
                side.quantile(0.1),
                side.quantile(0.9),
                side.values.len(),
                if index == 0 { String::new() } else { format!("{ratio:.2} x") },
            );
        }
        for reason in &comparison.not_run {
            let _ = writeln!(text, "{:<34} not run: {reason}", "");
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
        };
        let table = table(&[comparison]);
        assert!(table.contains("4.00 x"), "{table}");
        assert!(table.contains("not run: docker: no daemon"), "{table}");
    }
}
