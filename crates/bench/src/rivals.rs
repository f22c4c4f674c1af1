//! The tools that a user would otherwise pick, each as a command line: one sandbox for one command, or one that stays and is
//! entered again and again.

use crate::{
    context::{Context, IMAGE, Provider, Target},
    engine::Engine,
    measure::succeed,
    runc::Bundles,
    samples::NotRun,
};
use anyhow::Result;
use std::{
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
};

/// A read-only `/usr` and nothing else of the host: what `native` has with the image `host`.
const BWRAP: [&str; 21] = [
    "--unshare-all",
    "--die-with-parent",
    "--ro-bind",
    "/usr",
    "/usr",
    "--proc",
    "/proc",
    "--dev",
    "/dev",
    "--tmpfs",
    "/tmp",
    "--symlink",
    "usr/bin",
    "/bin",
    "--symlink",
    "usr/lib",
    "/lib",
    "--symlink",
    "usr/lib64",
    "/lib64",
    "--",
];
/// Limits as [`crate::runc`] sets them.
const LIMITS: [&str; 6] = ["--memory", "1g", "--cpus", "1", "--pids-limit", "512"];

/// Who is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tool {
    /// `bwrap --unshare-all`
    Bwrap,
    /// `runc` without an engine.
    Runc,
    /// The engine's own command.
    Docker,
    /// The same without an engine.
    Podman,
}

const ALL: [Tool; 4] = [Tool::Bwrap, Tool::Runc, Tool::Docker, Tool::Podman];

impl Tool {
    fn name(self) -> &'static str {
        match self {
            Self::Bwrap => "bwrap",
            Self::Runc => "runc",
            Self::Docker => "docker",
            Self::Podman => "podman",
        }
    }
}

/// What there is on this host, tried once.
pub(crate) struct Tools {
    bundles: Bundles,
    missing: Vec<(Tool, String)>,
    next: AtomicUsize,
}

impl Tools {
    /// Looks for each tool. `engine` is an engine, or why there is none.
    pub(crate) fn find(engine: Result<&Engine, &str>) -> Result<Self> {
        let mut tools = Self { bundles: Bundles::new()?, missing: Vec::new(), next: AtomicUsize::new(0) };
        for tool in ALL {
            if let Err(why) = tools.try_out(tool, engine) {
                tools.missing.push((tool, why));
            }
        }
        Ok(tools)
    }

    fn try_out(&self, tool: Tool, engine: Result<&Engine, &str>) -> Result<(), String> {
        if !present(tool.name()) {
            return Err("not on this host".to_owned());
        }
        if tool == Tool::Docker {
            let why = engine.map_err(str::to_owned)?.why_not("runc");
            return why.map_or(Ok(()), Err);
        }
        if tool == Tool::Podman
            && !command("podman")
                .args(["image", "exists", IMAGE])
                .status()
                .is_ok_and(|status| status.success())
        {
            return Err(format!("it has no {IMAGE}: podman pull {IMAGE}"));
        }
        let rival = Rival { tools: self, engine: None, tool, runtime: "runc" };
        let tried = rival.once(&["/bin/true"], false).and_then(succeed);
        tried.map_err(|error| {
            let text = format!("{error:#}");
            // The command line is known; what it says of itself is the news.
            format!("it does not work here: {}", text.rsplit(": ").next().unwrap_or_default())
        })
    }
}

/// A tool that works here.
pub(crate) struct Rival<'a> {
    tools: &'a Tools,
    engine: Option<&'a Engine>,
    tool: Tool,
    runtime: &'static str,
}

/// Those that say something about a target, and why others are not there. What a server elsewhere does is compared with
/// nothing here.
pub(crate) fn beside<'a>(context: &'a Context, target: &Target) -> (Vec<Rival<'a>>, Vec<NotRun>) {
    let (mut rivals, mut missing) = (Vec::new(), Vec::new());
    let tools: &[Tool] = match (target.provider, target.runtime) {
        (Provider::Native, _) => &ALL,
        (Provider::Docker, Some("runsc")) => &[Tool::Docker],
        (Provider::Docker, _) => &[Tool::Docker, Tool::Podman],
    };
    for tool in tools {
        let why = context.tools.missing.iter().find(|(known, _)| known == tool).map(|(_, why)| why.clone());
        let why = why.or_else(|| context.foreign.is_some().then(|| "the server is not ours".to_owned()));
        match why {
            Some(why) => missing.push(NotRun { side: tool.name().to_owned(), why }),
            None => rivals.push(Rival {
                tools: &context.tools,
                engine: context.engine.as_ref().ok(),
                tool: *tool,
                runtime: target.runtime.unwrap_or("runc"),
            }),
        }
    }
    (rivals, missing)
}

impl<'a> Rival<'a> {
    /// Who it is.
    pub(crate) fn tool(&self) -> Tool {
        self.tool
    }

    /// What [`Rival::once`] is called in the report.
    pub(crate) fn once_name(&self) -> &'static str {
        match self.tool {
            Tool::Bwrap => "bwrap --unshare-all",
            Tool::Runc => "runc run",
            Tool::Docker => "docker run",
            Tool::Podman => "podman run",
        }
    }

    /// What [`Warm::exec`] is called in the report.
    pub(crate) fn exec_name(&self) -> &'static str {
        match self.tool {
            Tool::Bwrap => "bwrap, a new one each",
            Tool::Runc => "runc exec",
            Tool::Docker => "docker exec",
            Tool::Podman => "podman exec",
        }
    }

    /// A sandbox for one command.
    pub(crate) fn once(&self, words: &[&str], limits: bool) -> Result<Command> {
        match self.tool {
            Tool::Bwrap => {
                let mut bwrap = command("bwrap");
                bwrap.args(BWRAP).args(words);
                Ok(bwrap)
            }
            Tool::Runc => {
                let (bundle, id) = self.tools.bundles.make(words, limits)?;
                Ok(self.tools.bundles.runc(&["run", "--bundle", &bundle.to_string_lossy(), &id]))
            }
            Tool::Docker | Tool::Podman => {
                let limits = if limits { &LIMITS[..] } else { &[] };
                Ok(self.containers(&[&["run", "--rm", "--network", "none"], limits], words))
            }
        }
    }

    /// A sandbox that stays until what is returned is dropped.
    pub(crate) fn warm(&self) -> Result<Warm<'_>> {
        let sleep = ["sleep", "3600"];
        match self.tool {
            Tool::Bwrap => {
                let child = self.once(&sleep, false)?.stdout(Stdio::null()).spawn()?;
                Ok(Warm { rival: self, id: String::new(), child: Some(child) })
            }
            Tool::Runc => {
                let (bundle, id) = self.tools.bundles.make(&sleep, false)?;
                let warm = Warm { rival: self, id, child: None };
                let bundle = bundle.to_string_lossy();
                let mut run = self.tools.bundles.runc(&["run", "--detach", "--bundle", &bundle, &warm.id]);
                // The container keeps what it is given: a pipe would never end.
                let status = run.stdout(Stdio::null()).stderr(Stdio::null()).status()?;
                anyhow::ensure!(status.success(), "{run:?}: {status}");
                Ok(warm)
            }
            Tool::Docker | Tool::Podman => {
                let number = self.tools.next.fetch_add(1, Ordering::Relaxed);
                let id = format!("stacyvm-bench-{}-{number}", std::process::id());
                let warm = Warm { rival: self, id, child: None };
                let flags = ["run", "--detach", "--network", "none", "--name", &warm.id];
                succeed(self.containers(&[&flags], &sleep))?;
                Ok(warm)
            }
        }
    }

    /// `docker` or `podman`, with the runtime of the target and the image.
    fn containers(&self, flags: &[&[&str]], words: &[&str]) -> Command {
        let runtime = ["--runtime", self.runtime];
        let runtime = if self.tool == Tool::Docker { &runtime[..] } else { &[] };
        self.cli(&[&flags.concat()[..], runtime, &[IMAGE], words].concat())
    }

    fn cli(&self, words: &[&str]) -> Command {
        match (self.tool, self.engine) {
            (Tool::Docker, Some(engine)) => engine.cli(words),
            (tool, _) => {
                let mut command = command(tool.name());
                command.args(words);
                command
            }
        }
    }
}

/// A sandbox of a tool that stays. Dropped, it goes.
pub(crate) struct Warm<'a> {
    rival: &'a Rival<'a>,
    id: String,
    child: Option<Child>,
}

impl Warm<'_> {
    /// Its name for the tool.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// A command in it. `bwrap` has no way in: it is a new one.
    pub(crate) fn exec(&self, words: &[&str]) -> Result<Command> {
        match self.rival.tool {
            Tool::Bwrap => self.rival.once(words, false),
            Tool::Runc => Ok(self.rival.tools.bundles.runc(&[&["exec", &self.id], words].concat())),
            Tool::Docker | Tool::Podman => Ok(self.rival.cli(&[&["exec", &self.id], words].concat())),
        }
    }

    /// Copies a file of the host into it, or out of it; `None` for who cannot.
    pub(crate) fn copy(&self, host: &Path, inside: &str, out: bool) -> Option<Command> {
        if matches!(self.rival.tool, Tool::Bwrap | Tool::Runc) {
            return None;
        }
        let (host, inside) = (host.to_string_lossy(), format!("{}:{inside}", self.id));
        let places = if out { [&*inside, &*host] } else { [&*host, &*inside] };
        Some(self.rival.cli(&["cp", places[0], places[1]]))
    }
}

impl Drop for Warm<'_> {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
        let removed = match self.rival.tool {
            Tool::Bwrap => return,
            Tool::Runc => self.rival.tools.bundles.runc(&["delete", "--force", &self.id]),
            Tool::Docker | Tool::Podman => self.rival.cli(&["rm", "--force", "--volumes", &self.id]),
        };
        // It may never have come to be.
        let _ = succeed(removed);
    }
}

/// A program whose output is ours. It is in a process group of its own: Ctrl-C is for us, and it is taken away in order.
pub(crate) fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    command
}

/// Whether a program of this name is here.
pub(crate) fn present(program: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).exists()))
}
