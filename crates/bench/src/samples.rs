//! Samples, medians, spread, and how sides compare.

use serde::Serialize;

/// One measured quantity of one side, in the unit that its comparison names.
#[derive(Debug, Clone, Serialize)]
pub struct Samples {
    /// Who was measured.
    pub side: String,
    /// Every sample, in the order taken.
    pub values: Vec<f64>,
}

impl Samples {
    /// An empty series.
    pub(crate) fn new(side: &str) -> Self {
        Self { side: side.to_owned(), values: Vec::new() }
    }

    /// The value below which this part (0 to 1) of the samples lies. Of no samples it is not a number.
    pub(crate) fn quantile(&self, part: f64) -> f64 {
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

    /// The middle one.
    pub(crate) fn median(&self) -> f64 {
        self.quantile(0.5)
    }
}

/// A side that was not measured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NotRun {
    /// Who.
    pub side: String,
    /// Why not.
    pub why: String,
}

/// Our name among the sides.
pub(crate) const OURS: &str = "stacyvm";

/// Ours and the others' series of one quantity. The first is ours.
#[derive(Debug, Clone, Serialize)]
pub struct Comparison {
    /// Name of the scenario, as the list has it.
    pub scenario: &'static str,
    /// Provider and runtime of our side.
    pub provider: String,
    /// What was done.
    pub what: String,
    /// Unit of every value.
    pub unit: &'static str,
    /// True if a larger value is better.
    pub more_is_better: bool,
    /// The series.
    pub sides: Vec<Samples>,
    /// What could not be measured here.
    pub not_run: Vec<NotRun>,
    /// What else is to be said.
    pub notes: Vec<String>,
    /// What is aimed at.
    pub goal: Option<Goal>,
    /// Something that has to succeed did not: a note says what.
    pub incomplete: bool,
}

/// What ours is to be.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Goal {
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
    pub(crate) fn ratio(side: &str, at_least: f64) -> Self {
        Self::Ratio { side: side.to_owned(), at_least }
    }
}

impl Comparison {
    /// Of times, or whatever is better when there is less of it.
    pub(crate) fn less(what: &str, unit: &'static str, sides: Vec<Samples>, not_run: Vec<NotRun>) -> Self {
        let (scenario, provider, what) = ("", String::new(), what.to_owned());
        let (more_is_better, notes, goal, incomplete) = (false, Vec::new(), None, false);
        Self { scenario, provider, what, unit, more_is_better, sides, not_run, notes, goal, incomplete }
    }

    /// Of rates.
    pub(crate) fn more(what: &str, unit: &'static str, sides: Vec<Samples>, not_run: Vec<NotRun>) -> Self {
        Self { more_is_better: true, ..Self::less(what, unit, sides, not_run) }
    }

    /// Nothing was measured.
    pub(crate) fn left_out(what: &str, why: &str) -> Self {
        Self::less(what, "", Vec::new(), vec![NotRun { side: OURS.to_owned(), why: why.to_owned() }])
    }

    /// The same with a goal.
    pub(crate) fn aims(self, goal: Goal) -> Self {
        Self { goal: Some(goal), ..self }
    }

    /// How much better ours is than that side, where both were measured.
    pub(crate) fn ratio(&self, side: &Samples) -> Option<f64> {
        let ours = self.sides.iter().find(|side| side.side == OURS)?.median();
        let theirs = side.median();
        let ratio = if self.more_is_better { ours / theirs } else { theirs / ours };
        // A difference that is not above nothing was lost in the noise of the host.
        (side.side != OURS && ours > 0.0 && theirs > 0.0).then_some(ratio)
    }

    /// The line about the goal, if there is one. What was not measured is not reached.
    pub(crate) fn verdict(&self) -> Option<String> {
        let word = |reached: Option<bool>| match reached {
            Some(true) => "reached",
            Some(false) => "missed",
            None => "not measured",
        };
        Some(match self.goal.as_ref()? {
            Goal::Ratio { side, at_least } => {
                let other = self.sides.iter().find(|other| other.side == *side);
                let reached = word(other.and_then(|other| self.ratio(other)).map(|ratio| ratio >= *at_least));
                format!("goal: at least {at_least:.2}x against {side}: {reached}")
            }
            Goal::AtMost(most) => {
                let ours = self.sides.iter().find(|side| side.side == OURS);
                let median = ours.map(Samples::median).filter(|median| *median > 0.0);
                let reached = word(median.map(|median| median <= *most));
                format!("goal: at most {most:.2} {}: {reached}", self.unit)
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn side(name: &str, value: f64) -> Samples {
        Samples { side: name.into(), values: vec![value] }
    }

    #[test]
    fn quantiles() {
        let samples = Samples { side: "us".into(), values: vec![5.0, 1.0, 3.0, 2.0, 4.0] };
        for (part, value) in [(0.0, 1.0), (0.1, 1.0), (0.5, 3.0), (0.9, 5.0), (1.0, 5.0)] {
            assert!((samples.quantile(part) - value).abs() < f64::EPSILON, "{part}");
        }
        assert!(Samples::new("none").median().is_nan());
    }

    #[test]
    fn a_ratio_above_one_means_that_ours_is_better() {
        let sides = vec![side(OURS, 2.0), side("rival", 8.0)];
        let times = Comparison::less("exec", "ms", sides.clone(), Vec::new());
        let rates = Comparison::more("files", "MiB/s", sides, Vec::new());
        let ratio = |comparison: &Comparison, place: usize| comparison.ratio(&comparison.sides[place]);
        assert_eq!((ratio(&times, 0), ratio(&times, 1)), (None, Some(4.0)));
        assert_eq!(ratio(&rates, 1), Some(0.25));
        // Without ours there is nothing to compare with.
        assert_eq!(ratio(&Comparison::less("exec", "ms", vec![side("rival", 1.0)], Vec::new()), 0), None);
        assert_eq!(times.ratio(&Samples::new("empty")), None);
        assert_eq!(times.ratio(&side("noise", -1.0)), None);
    }

    #[test]
    fn a_goal_is_reached_missed_or_not_measured() {
        let of =
            |sides, goal| Comparison::less("exec", "ms", sides, Vec::new()).aims(goal).verdict().unwrap();
        let both = vec![side(OURS, 2.0), side("rival", 8.0)];
        assert!(of(both.clone(), Goal::ratio("rival", 4.0)).ends_with("against rival: reached"));
        assert!(of(both.clone(), Goal::ratio("rival", 5.0)).ends_with("missed"));
        assert!(of(both.clone(), Goal::ratio("other", 1.0)).ends_with("not measured"));
        assert!(of(both.clone(), Goal::AtMost(2.0)).ends_with("at most 2.00 ms: reached"));
        assert!(of(both, Goal::AtMost(1.0)).ends_with("missed"));
        assert!(of(Vec::new(), Goal::AtMost(1.0)).ends_with("not measured"));
        assert!(of(vec![side(OURS, -2.0)], Goal::AtMost(1.0)).ends_with("not measured"));
    }
}
