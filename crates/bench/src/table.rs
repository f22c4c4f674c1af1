//! The report for people, within 100 columns.

use crate::{Report, samples::Comparison};
use std::fmt::Write;

/// Columns of a line.
const WIDTH: usize = 100;
/// Columns of what was done, and of who did it.
const WHAT: usize = 33;
const SIDE: usize = 23;

/// The report as a table, a part for each provider. A ratio above 1 means that ours is better.
pub fn table(report: &Report) -> String {
    let mut text = String::new();
    for comparison in &report.comparisons {
        let heading = format!("\n{}\n", comparison.provider);
        if !text.contains(&heading) {
            text += &heading;
            line(&mut text, "scenario", "side", ["median", "p10", "p90", "n", "ratio"]);
        }
        rows(&mut text, comparison);
    }
    if !report.comparisons.is_empty() {
        text += "\nratio: how much better stacyvm is, by the medians; below 1 the other side is better\n";
    }
    if let Some(warning) = warning(report) {
        let _ = writeln!(text, "{warning}");
    }
    text.trim_start().to_owned()
}

/// What must be known before a figure is believed.
pub(crate) fn warning(report: &Report) -> Option<&'static str> {
    (report.build != "release")
        .then_some("this is a debug build: none of these figures says anything about a release")
}

/// A figure with its unit, so that it is read and not counted.
pub(crate) fn figure(value: f64) -> String {
    if value.abs() < 100.0 { format!("{value:.2}") } else { format!("{value:.0}") }
}

/// A ratio.
pub(crate) fn times(ratio: Option<f64>) -> String {
    ratio.map(|ratio| figure(ratio) + "x").unwrap_or_default()
}

fn line(text: &mut String, what: &str, side: &str, figures: [&str; 5]) {
    let [median, low, high, count, ratio] = figures;
    let line = format!("{what:<WHAT$} {side:<SIDE$} {median:>13} {low:>8} {high:>8} {count:>3} {ratio:>6}");
    let _ = writeln!(text, "{}", line.trim_end());
}

fn rows(text: &mut String, comparison: &Comparison) {
    let mut what = comparison.what.as_str();
    for side in &comparison.sides {
        let median = format!("{} {}", figure(side.median()), comparison.unit);
        let (low, high) = (figure(side.quantile(0.1)), figure(side.quantile(0.9)));
        let (count, ratio) = (side.values.len().to_string(), times(comparison.ratio(side)));
        line(text, std::mem::take(&mut what), &side.side, [&median, &low, &high, &count, &ratio]);
    }
    let not_run = comparison.not_run.iter().map(|side| format!("{}: not run: {}", side.side, side.why));
    for remark in not_run.chain(comparison.notes.iter().cloned()).chain(comparison.verdict()) {
        for part in wrap(&remark, WIDTH - WHAT - 1) {
            let _ = writeln!(text, "{:<WHAT$} {part}", std::mem::take(&mut what));
        }
    }
}

/// The text in lines of at most that many characters, unless a word has more; what follows the first is indented.
pub(crate) fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let current = lines.last().map_or(0, |line| line.chars().count());
        if current > 2 && current + 1 + word.chars().count() > width {
            lines.push("  ".to_owned());
        }
        if let Some(line) = lines.last_mut() {
            if !line.trim().is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Goal, Host, NotRun,
        samples::{OURS, Samples},
    };

    fn report(build: &'static str) -> Report {
        let side = |name: &str, values: &[f64]| Samples { side: name.into(), values: values.to_vec() };
        let why =
            "a reason that is so long that it cannot possibly stand on what is left of one line of the table";
        let not_run = vec![NotRun { side: "podman".into(), why: why.into() }];
        let sides = vec![side(OURS, &[1.0, 2.0, 3.0]), side("bwrap --unshare-all", &[1234.5; 3])];
        let of = |provider: &str, what: &str, sides, not_run| Comparison {
            scenario: "create",
            provider: provider.to_owned(),
            ..Comparison::less(what, "ms", sides, not_run)
        };
        let comparisons = vec![
            of("native", "create → first output, limits", sides, not_run)
                .aims(Goal::ratio("bwrap --unshare-all", 1.0)),
            of("native", "warm exec", vec![side(OURS, &[0.5])], Vec::new()),
            Comparison {
                scenario: "exec",
                provider: "docker, runc".into(),
                ..Comparison::left_out("warm exec", "no Docker Engine")
            },
        ];
        let (at, host) = (jiff::Timestamp::UNIX_EPOCH, Host::default());
        Report {
            version: "1.2.3",
            build,
            at,
            samples: 3,
            host,
            comparisons,
            interrupted: false,
            failed: false,
        }
    }

    #[test]
    fn a_line_has_who_how_much_how_spread_and_how_compared() {
        let text = table(&report("release"));
        let expected = "\
create → first output, limits     stacyvm                       2.00 ms     1.00     3.00   3
                                  bwrap --unshare-all           1234 ms     1234     1234   3   617x
                                  podman: not run: a reason that is so long that it cannot possibly
                                    stand on what is left of one line of the table
                                  goal: at least 1.00x against bwrap --unshare-all: reached
warm exec                         stacyvm                       0.50 ms     0.50     0.50   1
";
        assert!(text.contains(expected), "{text}");
        assert!(text.starts_with("native\nscenario "), "{text}");
        assert!(
            text.contains("\n\ndocker, runc\nscenario ")
                && text.contains("warm exec                         stacyvm: not run: no Docker Engine\n"),
            "{text}"
        );
        assert_eq!(text.matches("\nscenario ").count(), 2, "{text}");
        for line in text.lines() {
            assert!(line.chars().count() <= WIDTH, "{line}");
        }
    }

    #[test]
    fn a_debug_build_says_so() {
        assert!(table(&report("debug")).contains("this is a debug build"));
        assert!(!table(&report("release")).contains("debug"));
    }

    #[test]
    fn titles_and_sides_fit_their_columns() {
        for scenario in crate::scenarios::ALL {
            let title = scenario.about.title;
            assert!(title.chars().count() <= WHAT, "{title}");
        }
    }

    #[test]
    fn text_is_wrapped_between_words() {
        assert_eq!(wrap("one two three", 8), ["one two", "  three"]);
        assert_eq!(wrap("incomprehensibilities are", 4), ["incomprehensibilities", "  are"]);
        assert_eq!(wrap("", 8), [""]);
    }
}
