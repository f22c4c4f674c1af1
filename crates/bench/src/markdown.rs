//! `docs/performance.md`, written from a report.

use crate::{
    Report,
    samples::Comparison,
    scenarios::list,
    table::{figure, times, warning, wrap},
};

/// Columns of a line of text.
const WIDTH: usize = 120;
/// Fewer samples than this say little about the tails.
const FEW: usize = 20;

/// The document.
pub fn document(report: &Report) -> String {
    let mut text = "# Performance\n\n".to_owned();
    text += &paragraph(
        "What StacyVM costs beside what you would otherwise pick, measured by StacyVM itself. This file is generated; \
         `make bench` repeats the run and shows the table, and this writes the file anew, with root, on a host that has \
         nothing else to do:",
    );
    text += "```\nstacyvm bench --markdown docs/performance.md\n```\n\n";
    for warning in warnings(report) {
        text += &paragraph(&format!("**Note:** {warning}."));
    }
    text += "## The host\n\n| | |\n|---|---|\n";
    let at = report.at.strftime("%Y-%m-%d %H:%M UTC");
    let run = format!("{} of version {}, up to {} samples", report.build, report.version, report.samples);
    for (name, value) in [("measured", format!("{at}, {run}"))].into_iter().chain(report.host.lines()) {
        text += &format!("| {name} | {} |\n", cell(&value));
    }
    text += "\n## Figures\n\n";
    text += &paragraph(
        "p10 and p90 enclose what eight of ten samples gave. The ratio says how much better StacyVM is than that side, by \
         the medians: below 1, the other side is better.",
    );
    let mut provider = "";
    for comparison in &report.comparisons {
        if comparison.provider != provider {
            provider = &comparison.provider;
            text += &format!("### {provider}\n\n");
            text += "| scenario | side | median | p10 | p90 | n | ratio |\n|---|---|--:|--:|--:|--:|--:|\n";
        }
        rows(&mut text, comparison);
        let next = report.comparisons.iter().skip_while(|other| !std::ptr::eq(*other, comparison)).nth(1);
        if next.is_none_or(|next| next.provider != provider) {
            text.push('\n');
        }
    }
    text += "## Scenarios\n\n";
    for about in list() {
        text += &item(&format!("`{}` ({}): {}.", about.name, about.title, about.timed));
    }
    text += "\n## How to read it\n\n";
    for note in NOTES {
        text += &item(note);
    }
    text
}

/// What a reader could otherwise get wrong.
const NOTES: [&str; 7] = [
    "Samples of the sides alternate in one run, so that a slow minute hits all of them. Ratios carry over to other hosts \
     better than milliseconds do.",
    "The sides do not do the same. `bwrap` sets no limits and keeps nothing; `runc` has no image, no API and nobody who \
     watches it; `docker` and `podman` bring networks, logs and layers. StacyVM's figures include HTTP, its store and its \
     life cycle.",
    "`native`, `bwrap` and `runc` use the host's own `/usr`; containers use `alpine:latest`, whose programs are smaller.",
    "Rivals are command lines, as they are used, and pay for a process of their own each time. `Engine API exec` is what \
     a program can do that keeps a connection to the engine.",
    "Of a rival's create, the first byte of output ends the sample; of ours, the answer that says that the command has ended.",
    "Memory is what the whole host lacks afterwards, with the kernel's share and that of an engine's helper processes. \
     On a busy host it is noise.",
    "A side that says *not run* was not on this host. A goal that is *missed* is one that this run missed.",
];

fn warnings(report: &Report) -> Vec<String> {
    let few = format!("{} samples are few, and the spread is a rough one", report.samples);
    let few = (report.samples < FEW).then_some(few);
    #[expect(clippy::cast_precision_loss, reason = "a count of processors")]
    let busy = report.host.load > 0.5 * report.host.cores as f64;
    let busy = busy.then(|| "the host had other things to do, and the spread shows it".to_owned());
    let cut = "the run was stopped before its end, and what would have come later is missing".to_owned();
    let cut = report.interrupted.then_some(cut);
    warning(report).map(str::to_owned).into_iter().chain(few).chain(busy).chain(cut).collect()
}

fn rows(text: &mut String, comparison: &Comparison) {
    let mut what = comparison.what.as_str();
    for side in &comparison.sides {
        let cells = [
            format!("{} {}", figure(side.median()), comparison.unit),
            figure(side.quantile(0.1)),
            figure(side.quantile(0.9)),
            side.values.len().to_string(),
            times(comparison.ratio(side)),
        ];
        *text +=
            &format!("| {} | {} | {} |\n", std::mem::take(&mut what), cell(&side.side), cells.join(" | "));
    }
    let not_run = comparison.not_run.iter().map(|side| format!("{}: *not run*: {}", side.side, side.why));
    for remark in not_run.chain(comparison.notes.iter().cloned()).chain(comparison.verdict()) {
        *text += &format!("| {} | {} | | | | | |\n", std::mem::take(&mut what), cell(&remark));
    }
}

/// Text that does not end a cell.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

fn paragraph(text: &str) -> String {
    wrap(text, WIDTH).iter().map(|line| line.trim_start()).collect::<Vec<_>>().join("\n") + "\n\n"
}

fn item(text: &str) -> String {
    format!("- {}\n", wrap(text, WIDTH - 2).join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Host,
        samples::{OURS, Samples},
    };

    fn report(build: &'static str, samples: usize) -> Report {
        let side = |name: &str, value| Samples { side: name.into(), values: vec![value] };
        let of = |provider: &str, comparison| Comparison { provider: provider.to_owned(), ..comparison };
        let comparisons = vec![
            of("native", Comparison::less("exec", "ms", vec![side(OURS, 2.0), side("a|b", 4.0)], Vec::new())),
            of("native", Comparison::more("files", "MiB/s", vec![side(OURS, 2.0)], Vec::new())),
            of("docker, runc", Comparison::left_out("exec", "no engine")),
        ];
        let (at, host) = (jiff::Timestamp::UNIX_EPOCH, Host { cores: 2, ..Host::default() });
        Report { version: "1.2.3", build, at, samples, host, comparisons, interrupted: false, failed: false }
    }

    #[test]
    fn a_table_for_each_provider() {
        let text = document(&report("release", 40));
        let native = "\
### native

| scenario | side | median | p10 | p90 | n | ratio |
|---|---|--:|--:|--:|--:|--:|
| exec | stacyvm | 2.00 ms | 2.00 | 2.00 | 1 |  |
|  | a\\|b | 4.00 ms | 4.00 | 4.00 | 1 | 2.00x |
| files | stacyvm | 2.00 MiB/s | 2.00 | 2.00 | 1 |  |

### docker, runc
";
        assert!(text.contains(native), "{text}");
        assert!(
            text.contains("| exec | stacyvm: *not run*: no engine | | | | | |\n\n## Scenarios"),
            "{text}"
        );
        assert!(text.contains("| measured | 1970-01-01 00:00 UTC, release of version 1.2.3"), "{text}");
        assert!(!text.contains("**Note:**"), "{text}");
    }

    #[test]
    fn what_makes_figures_doubtful_is_said() {
        let mut report = report("debug", 3);
        report.host.load = 1.5;
        report.interrupted = true;
        let text = document(&report);
        for word in ["debug build", "3 samples are few", "other things to do", "stopped before its end"] {
            assert!(text.contains(word), "{word}: {text}");
        }
    }

    #[test]
    fn the_committed_document_names_every_scenario_as_the_list_does() {
        let committed = include_str!("../../../docs/performance.md");
        let one_line = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        let committed = one_line(committed);
        for about in list() {
            let item = format!("- `{}` ({}): {}.", about.name, about.title, about.timed);
            assert!(
                committed.contains(&one_line(&item)),
                "{}: run `stacyvm bench --markdown docs/performance.md`",
                about.name
            );
        }
        for note in NOTES {
            assert!(committed.contains(&one_line(note)), "{note}");
        }
    }
}
