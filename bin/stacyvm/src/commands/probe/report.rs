//! What the probe found: read from its lines, shown to people and to programs.

use crate::table::{Cell, Table};
use serde::Serialize;
use std::collections::BTreeMap;

/// The findings in one sandbox.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    provider: String,
    /// What isolates the provider's sandboxes, where it offers a choice.
    runtime: Option<String>,
    kernel: Kernel,
    counts: BTreeMap<Outcome, usize>,
    entries: Vec<Entry>,
}

/// The kernel as a process in the sandbox sees it.
#[derive(Debug, Serialize)]
struct Kernel {
    release: String,
    version: String,
    gvisor: bool,
    seccomp: String,
}

#[derive(Debug, Serialize)]
struct Entry {
    name: String,
    outcome: Outcome,
    detail: String,
}

/// In the order of how much it will surprise a workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Outcome {
    Differs,
    Failed,
    Absent,
    Refused,
    Works,
}

impl Outcome {
    const ALL: [Self; 5] = [Self::Works, Self::Refused, Self::Absent, Self::Differs, Self::Failed];

    fn word(self) -> &'static str {
        match self {
            Self::Works => "works",
            Self::Refused => "refused",
            Self::Absent => "absent",
            Self::Differs => "differs",
            Self::Failed => "failed",
        }
    }

    fn colour(self) -> &'static str {
        match self {
            Self::Works => "32",
            Self::Refused => "2",
            Self::Absent => "33",
            Self::Differs | Self::Failed => "31",
        }
    }
}

impl Report {
    /// Reads the lines of the probe; `None` if they are not all there.
    pub(super) fn parse(provider: String, runtime: Option<String>, text: &str) -> Option<Self> {
        let mut header = BTreeMap::new();
        let mut entries = Vec::new();
        for line in text.lines() {
            let (name, rest) = line.split_once('\t')?;
            if let Some(key) = name.strip_prefix('#') {
                header.insert(key, rest);
                continue;
            }
            let (outcome, detail) = rest.split_once('\t')?;
            let outcome = Outcome::ALL.into_iter().find(|known| known.word() == outcome)?;
            entries.push(Entry { name: name.to_owned(), outcome, detail: detail.to_owned() });
        }
        let kernel = Kernel {
            release: (*header.get("release")?).to_owned(),
            version: (*header.get("version")?).to_owned(),
            gvisor: *header.get("gvisor")? == "yes",
            seccomp: (*header.get("seccomp")?).to_owned(),
        };
        // The last line says that nothing was cut off.
        header.get("end")?;
        let mut counts: BTreeMap<_, _> = Outcome::ALL.into_iter().map(|outcome| (outcome, 0)).collect();
        for entry in &entries {
            *counts.entry(entry.outcome).or_default() += 1;
        }
        Some(Self { provider, runtime, kernel, counts, entries })
    }

    /// `gVisor (runsc): 58 work, 6 refused, 11 absent, 2 differ`.
    fn summary(&self) -> String {
        let kernel = match self.kernel.gvisor {
            true => "gVisor".to_owned(),
            false => format!("Linux {}", self.kernel.release),
        };
        let counts = Outcome::ALL.into_iter().filter_map(|outcome| {
            let count = self.counts.get(&outcome).copied().unwrap_or(0);
            let word = match (outcome, count) {
                (Outcome::Works | Outcome::Differs, 1) => outcome.word(),
                (Outcome::Works, _) => "work",
                (Outcome::Differs, _) => "differ",
                _ => outcome.word(),
            };
            (count > 0).then(|| format!("{count} {word}"))
        });
        let counts: Vec<_> = counts.collect();
        let runtime = self.runtime.as_ref().unwrap_or(&self.provider);
        format!("{kernel} ({runtime}): {}", counts.join(", "))
    }

    /// A table, grouped by outcome, and the summary below it, where a terminal is after the command.
    pub(super) fn render(&self, all: bool, width: Option<usize>, colours: bool) -> String {
        let mut shown: Vec<_> =
            self.entries.iter().filter(|entry| all || entry.outcome != Outcome::Works).collect();
        shown.sort_by_key(|entry| entry.outcome);
        let summary = Cell::new(self.summary()).text().to_owned();
        if shown.is_empty() {
            return summary + "\n";
        }
        let mut table = Table::new(&["OUTCOME", "NAME", "DETAIL"]).cut(&[(2, 8), (1, 8)]);
        for entry in shown {
            let outcome = Cell::new(entry.outcome.word()).coloured(entry.outcome.colour());
            table.row(vec![outcome, Cell::new(&entry.name), Cell::new(&entry.detail)]);
        }
        format!("{}\n{summary}\n", table.render(width, colours))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "#release\t4.4.0\n#version\t#1 SMP\n#gvisor\tyes\n#seccomp\tnone\n\
        clone3\tworks\t\nmount\trefused\tEPERM\nmincore\tdiffers\tall resident\nbpf\trefused\tEPERM\n#end\t4\n";

    fn report(text: &str) -> Option<Report> {
        Report::parse("docker".to_owned(), Some("runsc".to_owned()), text)
    }

    #[test]
    fn what_does_not_work_is_shown_by_outcome() {
        let report = report(TEXT).unwrap();
        assert_eq!(
            report.render(false, None, false),
            "OUTCOME  NAME     DETAIL\n\
             differs  mincore  all resident\n\
             refused  mount    EPERM\n\
             refused  bpf      EPERM\n\n\
             gVisor (runsc): 1 works, 2 refused, 1 differs\n"
        );
        assert!(report.render(true, None, false).contains("\nworks    clone3\n"));
    }

    #[test]
    fn programs_get_everything() {
        let json = serde_json::to_value(report(TEXT).unwrap()).unwrap();
        assert_eq!(json["counts"]["refused"], 2);
        assert_eq!(json["counts"]["absent"], 0);
        assert_eq!(json["kernel"]["gvisor"], true);
        assert_eq!(
            json["entries"][1],
            serde_json::json!({"name": "mount", "outcome": "refused", "detail": "EPERM"})
        );
    }

    #[test]
    fn half_a_report_is_none() {
        for end in ["#end", "#version", "mount\trefused"] {
            let cut = &TEXT[..TEXT.find(end).unwrap()];
            assert!(report(cut).is_none(), "{cut}");
        }
        assert!(report("clone3\tflies\t\n").is_none());
    }
}
