//! The progress bar: on a terminal only, and only for copies that take a moment.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::{
    io::IsTerminal,
    time::{Duration, Instant},
};

/// Copies shorter than this show nothing.
const MOMENT: Duration = Duration::from_millis(500);

/// A progress bar that appears after a moment.
#[derive(Debug, Clone)]
pub(crate) struct Progress {
    bar: ProgressBar,
    started: Instant,
}

impl Progress {
    /// A bar on standard error, for `size` bytes if that is known.
    pub(crate) fn new(size: Option<u64>) -> Self {
        let bar = match size {
            Some(size) => ProgressBar::with_draw_target(Some(size), ProgressDrawTarget::hidden()).with_style(
                style("{bar:30} {percent:>3}%  {bytes} of {total_bytes}  {bytes_per_sec}  {eta} left"),
            ),
            None => ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden())
                .with_style(style("{spinner} {bytes}  {bytes_per_sec}")),
        };
        Self { bar, started: Instant::now() }
    }

    /// No bar.
    pub(crate) fn hidden() -> Self {
        Self { bar: ProgressBar::hidden(), started: Instant::now() }
    }

    /// So many bytes more.
    pub(crate) fn advance(&self, bytes: u64) {
        if self.bar.is_hidden() && self.bar.length() != Some(0) && self.wanted() {
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
        }
        self.bar.inc(bytes);
    }

    /// Takes the bar away.
    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }

    fn wanted(&self) -> bool {
        self.started.elapsed() >= MOMENT && std::io::stderr().is_terminal()
    }
}

fn style(template: &str) -> ProgressStyle {
    // The templates above are right, so the default is never seen.
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
