//! The host that was measured on. Figures without it say nothing.

use crate::{context::Context, rivals::command};
use serde::Serialize;
use std::path::Path;

/// What figures depend on. What cannot be found out is empty.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Host {
    /// Model of the processors.
    pub cpu: String,
    /// Processors that this process may use.
    pub cores: usize,
    /// Whether it is a virtual machine.
    pub virtual_machine: bool,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Distribution.
    pub system: String,
    /// Release of the kernel.
    pub kernel: String,
    /// Filesystem that data directories are on, and what it is mounted from.
    pub filesystem: String,
    /// Load over a minute when the run began: what else the host had to do.
    pub load: f64,
    /// Version, storage driver and runtimes of the Docker Engine.
    pub docker: Option<Docker>,
    /// What each tool that is here says of its version.
    pub tools: Vec<String>,
}

/// A Docker Engine.
#[derive(Debug, Clone, Serialize)]
pub struct Docker {
    /// Its version.
    pub version: String,
    /// How it keeps images and layers.
    pub storage_driver: String,
    /// What it can start containers with.
    pub runtimes: Vec<String>,
}

impl Host {
    /// Looks around.
    pub(crate) async fn look(context: &Context) -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let (cpu, virtual_machine) = processor(&read("/proc/cpuinfo"));
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a size for people")]
        let memory_mib = memory(&read("/proc/meminfo"), "MemTotal").map_or(0, |kib| (kib / 1024.0) as u64);
        let temporary = std::env::temp_dir();
        let docker = context.engine.as_ref().ok().map(|engine| {
            let info = engine.info();
            let text = |name: &str| info[name].as_str().unwrap_or_default().to_owned();
            let runtimes = info["Runtimes"].as_object().into_iter().flatten();
            Docker {
                version: text("ServerVersion"),
                storage_driver: text("Driver"),
                runtimes: runtimes.map(|(name, _)| name.clone()).collect(),
            }
        });
        let tools = ["bwrap", "runc", "runsc", "docker", "podman", "tar"];
        Self {
            cpu,
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            virtual_machine,
            memory_mib,
            system: system(&read("/etc/os-release")),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            filesystem: filesystem(
                &read("/proc/self/mountinfo"),
                &temporary.canonicalize().unwrap_or(temporary),
            ),
            load: read("/proc/loadavg").split(' ').next().and_then(|word| word.parse().ok()).unwrap_or(0.0),
            docker,
            tools: tools.into_iter().filter_map(version).collect(),
        }
    }

    /// Lines of a description: what, and how it is.
    pub(crate) fn lines(&self) -> Vec<(&'static str, String)> {
        let machine = if self.virtual_machine { ", a virtual machine" } else { "" };
        let mut lines = vec![
            ("processor", format!("{}, {} of them{machine}", self.cpu, self.cores)),
            ("memory", format!("{} MiB", self.memory_mib)),
            ("system", format!("{}, Linux {}", self.system, self.kernel)),
            ("filesystem", self.filesystem.clone()),
            ("load before", format!("{:.2}", self.load)),
        ];
        if let Some(docker) = &self.docker {
            let runtimes = docker.runtimes.join(", ");
            let of = format!("{}, {}, with {runtimes}", docker.version, docker.storage_driver);
            lines.push(("Docker Engine", of));
        }
        lines.push(("tools", self.tools.join("; ")));
        lines
    }
}

/// Model, and whether a hypervisor is below.
fn processor(cpuinfo: &str) -> (String, bool) {
    let of = |wanted: &str| {
        let mut lines = cpuinfo.lines().filter_map(|line| line.split_once(':'));
        lines.find(|(name, _)| name.trim() == wanted).map(|(_, value)| value.trim())
    };
    let model = of("model name").or_else(|| of("CPU part")).unwrap_or("unknown").to_owned();
    (model, of("flags").is_some_and(|flags| flags.split(' ').any(|flag| flag == "hypervisor")))
}

/// One of the kernel's counts of memory, in KiB.
pub(crate) fn memory(meminfo: &str, wanted: &str) -> Option<f64> {
    let mut lines = meminfo.lines().filter_map(|line| line.split_once(':'));
    let (_, value) = lines.find(|(name, _)| *name == wanted)?;
    value.trim().strip_suffix(" kB")?.parse().ok()
}

/// The name that a distribution gives itself.
fn system(os_release: &str) -> String {
    let name = os_release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    name.unwrap_or("unknown").trim_matches('"').to_owned()
}

/// Kind of the filesystem that a path is on: of the last mount at the longest place that leads to it.
fn filesystem(mountinfo: &str, path: &Path) -> String {
    let mounts = mountinfo.lines().filter_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let place = before.split(' ').nth(4)?;
        path.starts_with(place).then_some((place.len(), after.split(' ').next()?))
    });
    mounts.max_by_key(|(length, _)| *length).map_or("unknown", |(_, kind)| kind).to_owned()
}

/// The first line of what a program says of its version, with its name in it.
fn version(program: &str) -> Option<String> {
    let output = command(program).arg("--version").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().next()?.trim();
    Some(if line.to_lowercase().contains(program) { line.to_owned() } else { format!("{program}: {line}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors() {
        let text = "processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\nflags\t\t: fpu hypervisor lm\n\nprocessor\t: 1\n";
        assert_eq!(processor(text), ("Some CPU @ 2 GHz".to_owned(), true));
        assert_eq!(processor("model name\t: Other\nflags\t: fpu\n"), ("Other".to_owned(), false));
        assert_eq!(processor(""), ("unknown".to_owned(), false));
    }

    #[test]
    fn memory_is_in_kib() {
        let text = "MemTotal:       24683900 kB\nMemFree:         100 kB\nHugePages_Total:       0\n";
        assert_eq!(memory(text, "MemFree"), Some(100.0));
        assert_eq!((memory(text, "HugePages_Total"), memory(text, "Mem")), (None, None));
    }

    #[test]
    fn the_nearest_mount_counts_and_of_two_the_upper_one() {
        let text = "\
21 1 254:0 / / rw,relatime - ext4 /dev/root rw
22 21 0:5 / /tmp rw shared:1 - xfs /dev/vdb rw
23 22 0:6 / /tmp rw shared:2 - tmpfs tmpfs rw
24 21 0:7 / /tm rw - btrfs none rw
";
        assert_eq!(filesystem(text, Path::new("/tmp/x")), "tmpfs");
        assert_eq!(filesystem(text, Path::new("/var")), "ext4");
        assert_eq!(filesystem("", Path::new("/var")), "unknown");
    }

    #[test]
    fn a_distribution_has_a_name() {
        assert_eq!(system("NAME=x\nPRETTY_NAME=\"Some Linux 12\"\n"), "Some Linux 12");
        assert_eq!(system(""), "unknown");
    }

    #[test]
    fn lines_leave_out_what_is_not_there() {
        let names = |host: &Host| host.lines().into_iter().map(|(name, _)| name).collect::<Vec<_>>();
        assert!(!names(&Host::default()).contains(&"Docker Engine"));
        let docker = Docker {
            version: "20".into(),
            storage_driver: "overlay2".into(),
            runtimes: vec!["runc".into(), "runsc".into()],
        };
        let host = Host { docker: Some(docker), ..Host::default() };
        assert!(host.lines().contains(&("Docker Engine", "20, overlay2, with runc, runsc".to_owned())));
    }
}
