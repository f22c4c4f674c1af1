//! The command line. Read by hand: a parser library would be a tenth of the binary that every sandbox maps.

use std::{ffi::OsString, os::fd::RawFd, path::PathBuf};

/// What the runtime that started this agent decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Config {
    /// Where callers come from.
    pub(crate) listen: Listen,
    /// Id of the sandbox, shown to the host half.
    pub(crate) sandbox: String,
    /// The only installation that may connect.
    pub(crate) installation: String,
    /// The sandbox user: processes run as it unless they ask otherwise.
    pub(crate) uid: u32,
    /// Its group.
    pub(crate) gid: u32,
    /// Its name.
    pub(crate) user_name: String,
    /// Its home, as the sandbox sees it.
    pub(crate) home: String,
    /// Working directory of processes, as the sandbox sees it.
    pub(crate) workdir: String,
    /// Set without isolation: paths of the protocol resolve beneath this directory, nobody changes user, and this agent
    /// is not PID 1.
    pub(crate) root: Option<PathBuf>,
    /// Inherited descriptor of `memory.events` (cgroup v2) or `memory.oom_control` (v1) of the sandbox.
    pub(crate) memory_events_fd: Option<RawFd>,
    /// Inherited descriptor of `pids.events` of the sandbox.
    pub(crate) pids_events_fd: Option<RawFd>,
    /// Inherited descriptors of the files by which a process joins the cgroups that limit the work; this agent is in others.
    pub(crate) work_fds: Vec<RawFd>,
    /// Processes may run as uid 0.
    pub(crate) root_user: bool,
    /// There is no user but the sandbox user, whom this agent runs as too.
    pub(crate) single_user: bool,
    /// The runtime gives nothing but an image: what a sandbox needs is made in it, and its environment is that of
    /// processes.
    pub(crate) container: bool,
    /// This program's environment is the image's, for processes.
    pub(crate) takes_environment: bool,
    /// The network is restricted to the internet before anybody is served.
    pub(crate) restrict_network: bool,
    /// Environment of processes beside the agent's own words, from the image.
    pub(crate) environment: Vec<(String, String)>,
}

/// Where callers come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Listen {
    /// An inherited listening socket.
    Fd(RawFd),
    /// A socket to be made, in a directory that only root of the sandbox may enter. Its callers are bridges.
    Path(PathBuf),
}

impl Config {
    /// Reads the arguments behind the program name.
    ///
    /// # Errors
    /// A sentence that names the argument at fault.
    pub(crate) fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Self, String> {
        let mut listen = None;
        let mut config = Self {
            listen: Listen::Fd(-1),
            sandbox: String::new(),
            installation: String::new(),
            uid: 1000,
            gid: 1000,
            user_name: "sandbox".to_owned(),
            home: "/home/sandbox".to_owned(),
            workdir: "/workspace".to_owned(),
            root: None,
            memory_events_fd: None,
            pids_events_fd: None,
            work_fds: Vec::new(),
            root_user: false,
            single_user: false,
            container: false,
            takes_environment: false,
            restrict_network: false,
            environment: Vec::new(),
        };
        let mut args = args.into_iter();
        while let Some(name) = args.next() {
            let name = name.to_string_lossy().into_owned();
            match name.as_str() {
                "--root-user" => config.root_user = true,
                "--single-user" => config.single_user = true,
                "--container" => {
                    config.container = true;
                    config.takes_environment = true;
                }
                "--environment" => config.takes_environment = true,
                "--restrict-network" => config.restrict_network = true,
                _ => {
                    let value = args.next().ok_or_else(|| format!("{name} needs a value"))?;
                    config.set(&name, value, &mut listen)?;
                }
            }
        }
        config.listen = listen.ok_or("--listen-fd or --listen is missing")?;
        if config.sandbox.is_empty() || config.installation.is_empty() {
            return Err("--sandbox and --installation are needed".to_owned());
        }
        // To the kernel it means "leave it as it is", which here would be root.
        for (name, id) in [("--uid", config.uid), ("--gid", config.gid)] {
            if id == u32::MAX {
                return Err(format!("{name} cannot be {id}"));
            }
        }
        for (name, path) in [("--home", &config.home), ("--workdir", &config.workdir)] {
            if !path.starts_with('/') || path.contains('\0') {
                return Err(format!("{name} must be an absolute path"));
            }
        }
        Ok(config)
    }

    fn set(&mut self, name: &str, value: OsString, listen: &mut Option<Listen>) -> Result<(), String> {
        match name {
            "--root" => self.root = Some(PathBuf::from(value)),
            "--listen" => *listen = Some(Listen::Path(PathBuf::from(value))),
            _ => {
                let text = value.into_string().map_err(|_| format!("the value of {name} is not UTF-8"))?;
                match name {
                    "--listen-fd" => *listen = Some(Listen::Fd(number(name, &text)?)),
                    "--memory-events-fd" => self.memory_events_fd = Some(number(name, &text)?),
                    "--pids-events-fd" => self.pids_events_fd = Some(number(name, &text)?),
                    "--work-fds" => {
                        self.work_fds =
                            text.split(',').map(|one| number(name, one)).collect::<Result<_, _>>()?;
                    }
                    "--uid" => self.uid = number(name, &text)?,
                    "--gid" => self.gid = number(name, &text)?,
                    "--sandbox" => self.sandbox = text,
                    "--installation" => self.installation = text,
                    "--user-name" => self.user_name = text,
                    "--home" => self.home = text,
                    "--workdir" => self.workdir = text,
                    _ => return Err(format!("unknown argument {name}")),
                }
            }
        }
        Ok(())
    }
}

fn number<T: std::str::FromStr>(name: &str, text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("{name} needs a number, not {text:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Config, String> {
        Config::parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn a_full_line_is_understood() {
        let config = parse(
            "--listen-fd 3 --sandbox sb-1 --installation i --uid 7 --gid 8 --user-name u --home /h --workdir /w \
             --root /r --memory-events-fd 5 --pids-events-fd 6 --work-fds 7,8 --root-user",
        )
        .unwrap();
        assert_eq!((config.listen, config.uid, config.gid), (Listen::Fd(3), 7, 8));
        assert_eq!(config.root, Some(PathBuf::from("/r")));
        assert_eq!((config.memory_events_fd, config.pids_events_fd), (Some(5), Some(6)));
        assert_eq!(config.work_fds, [7, 8]);
        assert!(config.root_user);
    }

    #[test]
    fn a_container_names_its_socket() {
        let line = "--listen /run/a.sock --container --restrict-network --sandbox sb-1 --installation i --single-user";
        let config = parse(line).unwrap();
        assert_eq!(config.listen, Listen::Path(PathBuf::from("/run/a.sock")));
        assert!(config.container && config.restrict_network && config.single_user && !config.root_user);
        assert!(config.takes_environment);
    }

    #[test]
    fn what_is_missing_or_wrong_is_named() {
        assert!(parse("--sandbox sb-1 --installation i").unwrap_err().contains("--listen-fd"));
        assert!(parse("--listen-fd 3 --sandbox sb-1").unwrap_err().contains("--installation"));
        assert!(parse("--listen-fd 3 --sandbox s --installation i --uid 4294967295").is_err());
        assert!(parse("--listen-fd x").unwrap_err().contains("\"x\""));
        assert!(parse("--wat 1").unwrap_err().contains("--wat"));
        assert!(parse("--uid").unwrap_err().contains("needs a value"));
        let relative = "--listen-fd 3 --sandbox s --installation i --workdir w";
        assert!(parse(relative).unwrap_err().contains("--workdir"));
    }
}
