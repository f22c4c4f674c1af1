//! A person at a terminal: types into tmux, looks at the screen.

use anyhow::{Context, Result, bail, ensure};
use std::{
    process::Command,
    time::{Duration, Instant},
};

/// Time for something to appear on a busy host.
const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(30);

/// A terminal with a shell in it, of a tmux of its own. It goes when this is dropped.
pub struct Tmux {
    directory: tempfile::TempDir,
}

impl Tmux {
    /// Why there can be none, if so.
    pub fn missing() -> Option<&'static str> {
        let found = Command::new("tmux").arg("-V").output().is_ok_and(|output| output.status.success());
        (!found).then_some("tmux is not installed")
    }

    /// A shell of that many columns and rows, with nothing of this environment but what is given. Its prompt is `host> `.
    ///
    /// # Errors
    /// tmux does not start.
    pub fn open(cols: u16, rows: u16, environment: &[(&str, &str)]) -> Result<Self> {
        let tmux = Self { directory: tempfile::tempdir()? };
        let size = [("-x", cols.to_string()), ("-y", rows.to_string())];
        let mut command = tmux.command();
        command.args(["-f", "/dev/null", "new-session", "-d"]);
        command.args(size.iter().flat_map(|(flag, value)| [*flag, value.as_str()]));
        command
            .args(environment.iter().flat_map(|(name, value)| ["-e".to_owned(), format!("{name}={value}")]));
        tmux.succeed(command.arg("bash --norc --noprofile"))?;
        tmux.until("a shell", |screen| screen.contains("bash"))?;
        tmux.prompt("host> ")?;
        Ok(tmux)
    }

    /// Has the shell in front ask with `prompt`, on an empty screen.
    ///
    /// # Errors
    /// It does not.
    pub fn prompt(&self, prompt: &str) -> Result<()> {
        self.enter(&format!("PS1='{prompt}'; clear"))?;
        self.until(prompt, |screen| screen.trim() == prompt.trim()).map(drop)
    }

    fn command(&self) -> Command {
        let mut command = Command::new("tmux");
        command.env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin").env("LANG", "C.UTF-8");
        command.env("TERM", "xterm-256color").arg("-S").arg(self.directory.path().join("socket"));
        command
    }

    fn succeed(&self, command: &mut Command) -> Result<String> {
        let output = command.output()?;
        ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Presses keys, as tmux names them.
    ///
    /// # Errors
    /// The terminal is gone.
    pub fn press(&self, keys: &[&str]) -> Result<()> {
        self.succeed(self.command().arg("send-keys").args(keys)).map(drop)
    }

    /// Types a line, and Enter.
    ///
    /// # Errors
    /// The terminal is gone.
    pub fn enter(&self, line: &str) -> Result<()> {
        self.succeed(self.command().args(["send-keys", "-l", line]))?;
        self.press(&["Enter"])
    }

    /// Makes the terminal larger or smaller.
    ///
    /// # Errors
    /// The terminal is gone.
    pub fn resize(&self, cols: u16, rows: u16) -> Result<()> {
        let (cols, rows) = (cols.to_string(), rows.to_string());
        self.succeed(self.command().args(["resize-window", "-x", &cols, "-y", &rows])).map(drop)
    }

    /// What is on the screen, lines without the blanks at their end.
    ///
    /// # Errors
    /// The terminal is gone.
    pub fn screen(&self) -> Result<String> {
        self.succeed(self.command().args(["capture-pane", "-p", "-J"]))
    }

    /// Waits until the screen is as `wanted`.
    ///
    /// # Errors
    /// It never is; with what was there instead.
    pub fn until(&self, what: &str, wanted: impl Fn(&str) -> bool) -> Result<String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let screen = self.screen()?;
            if wanted(&screen) {
                return Ok(screen);
            }
            if Instant::now() >= deadline {
                bail!("waited in vain for {what} on this screen:\n{screen}");
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Waits until a line of the screen is `line`.
    ///
    /// # Errors
    /// As of [`Tmux::until`].
    pub fn line(&self, line: &str) -> Result<String> {
        self.until(line, |screen| screen.lines().any(|shown| shown.trim_end() == line))
    }

    /// The last line that is not empty.
    ///
    /// # Errors
    /// There is none.
    pub fn last(&self) -> Result<String> {
        let screen = self.screen()?;
        let last = screen.lines().rev().find(|line| !line.trim().is_empty());
        last.map(|line| line.trim_end().to_owned()).context("the screen is empty")
    }
}

impl Drop for Tmux {
    fn drop(&mut self) {
        // A server that is gone is as good.
        let _ = self.command().arg("kill-server").output();
    }
}
