//! Making a sandbox, in steps between which the server may be killed:
//!
//! 1. its directory and `spec.json`: from here on `list` shows it and `destroy` removes it;
//! 2. its socket and cgroups;
//! 3. its first process, which sets itself up and waits;
//! 4. `state.json`, which names that process;
//! 5. the word to go, upon which the process becomes the agent.
//!
//! A server that dies before step 5 is done takes the process with it, because the process waits on a pipe of the
//! server's. Synchronous: it is a millisecond or two of system calls.

use crate::{
    cgroup::{self, Limits, SandboxCgroups},
    disk::Disks,
    failure::{Doing, Failure},
    image::{Image, profile::Profile},
    layout::{self, Layout, make_private_dir, open_dir},
    network::Network,
    process::{self, Identity},
    record::{State, write_spec, write_state},
    rights,
    spawner::{
        CloneFds, ClonedChild, LISTENER, MAX_REPORT, MEMORY_EVENTS, PIDS_EVENTS, Report, Setup, Spawner, WORK,
    },
    user_namespaces::UserNamespace,
};
use rustix::{
    fd::{AsFd, BorrowedFd, OwnedFd},
    fs::{Mode, OFlags},
    pipe::{PipeFlags, pipe_with},
};
use stacyvm_fault::{Point, hit};
use stacyvm_provider::{Error, SandboxId, SandboxSpec};
use std::{
    fs::{self, File},
    io::{self, Read},
    os::unix::net::UnixListener,
};

/// What making a sandbox needs.
pub(crate) struct Maker<'a> {
    pub(crate) layout: &'a Layout,
    pub(crate) cgroups: &'a cgroup::Host,
    pub(crate) spawner: &'a Spawner,
    pub(crate) network: &'a Network,
    pub(crate) disks: &'a Disks,
    pub(crate) installation_id: &'a str,
}

/// A sandbox whose agent is starting.
pub(crate) struct Made {
    pub(crate) state: State,
    pub(crate) pidfd: OwnedFd,
    /// Reports of the first process, until it has become the agent.
    pub(crate) status: OwnedFd,
}

/// What a first process is handed whichever spawner makes it.
struct Handed<'fd> {
    lower: BorrowedFd<'fd>,
    listener: BorrowedFd<'fd>,
    log: BorrowedFd<'fd>,
    cgroup: Option<BorrowedFd<'fd>>,
    memory_events: Option<BorrowedFd<'fd>>,
    user_namespace: Option<BorrowedFd<'fd>>,
    pids_events: Option<BorrowedFd<'fd>>,
    network: Option<BorrowedFd<'fd>>,
}

impl Maker<'_> {
    /// Makes the sandbox. Nothing of it may exist yet.
    ///
    /// After an error, what was made so far is for `destroy` to remove; no process runs.
    pub(crate) fn make(
        &self,
        id: &SandboxId,
        spec: &SandboxSpec,
        image: &Image,
        user_namespace: Option<&UserNamespace>,
    ) -> Result<Made, Error> {
        let directory = self.layout.sandbox(id);
        make_private_dir(&directory, false)?;
        write_spec(&directory, spec)?;
        hit(Point::NativeDirMade);
        // Behind the directory, whose end is the end of the hold.
        if let Some(stored) = &image.stored {
            stored.hold(&directory)?;
        }

        for name in ["upper", "work", "root"] {
            make_private_dir(&directory.join(name), false)?;
        }
        let handle = open_dir(&directory).doing(|| format!("open {}", directory.display()))?;
        let listener = bind(&handle).doing(|| "bind the agent's socket".to_owned())?;
        let log = rustix::fs::openat(
            &handle,
            "agent.log",
            OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::from_raw_mode(0o600),
        )
        .doing(|| "open the agent's log".to_owned())?;

        let disk = self.disks.limit(&directory, spec.disk_mb)?;
        hit(Point::NativeDiskMade);
        let limits = Limits { memory_mb: spec.memory_mb, vcpus: spec.vcpus, pids: spec.pids };
        let groups = self.make_cgroups(id, limits)?;
        hit(Point::NativeCgroupMade);

        // Behind the specification, which says that the rules are needed.
        let network = self.network.give(spec.network.as_deref())?;
        let target = groups.open_clone_target()?;
        let memory_events = groups.open_memory_events()?;
        let pids_events = groups.open_pids_events();
        let setup = Setup {
            id: id.clone(),
            ephemeral: spec.ephemeral,
            directory: directory.clone(),
            lower: image.lower.clone(),
            layers: image.layers.clone(),
            binds: image.binds.clone(),
            join: groups.joins(),
            memory_mb: spec.memory_mb,
            disk,
            user: image.profile.user.clone(),
            environment: image.profile.environment.clone(),
            argv: self.agent_arguments(
                id,
                &image.profile,
                memory_events.is_some(),
                pids_events.is_some(),
                groups.joins().len(),
                user_namespace.is_some(),
            ),
            ids: user_namespace.map(UserNamespace::range),
            clones_into_cgroup: target.is_some(),
            has_memory_events: memory_events.is_some(),
            has_pids_events: pids_events.is_some(),
            has_network: network.namespace.is_some(),
            resolv_conf: network.resolv_conf,
        };
        let (child, go, status) = self.clone_child(
            &setup,
            &Handed {
                lower: image.lower_fd.as_fd(),
                listener: listener.as_fd(),
                log: log.as_fd(),
                cgroup: target.as_ref().map(AsFd::as_fd),
                memory_events: memory_events.as_ref().map(AsFd::as_fd),
                user_namespace: user_namespace.map(AsFd::as_fd),
                pids_events: pids_events.as_ref().map(AsFd::as_fd),
                network: network.namespace.as_ref().map(AsFd::as_fd),
            },
        )?;
        hit(Point::NativeCloned);

        let process = identify(&child, &status)?;
        let state = State {
            process,
            cgroups: groups,
            lower: image.lower.clone(),
            ids: setup.ids,
            network: network.attachment,
        };
        write_state(&directory, &state)?;
        hit(Point::NativeRecorded);

        // A child that has failed and ended reports that itself.
        match rustix::io::write(&go, b"g") {
            Ok(_) | Err(rustix::io::Errno::PIPE) => {}
            Err(e) => return Ok(Err(e).doing(|| "let the first process go on".to_owned())?),
        }
        hit(Point::NativeReleased);
        Ok(Made { state, pidfd: child.pidfd, status })
    }

    fn make_cgroups(&self, id: &SandboxId, limits: Limits) -> Result<SandboxCgroups, Failure> {
        let groups = self.cgroups.plan(id.as_str(), limits);
        let mut tries = 0;
        loop {
            match self.cgroups.prepare(&groups).and_then(|()| groups.make(limits)) {
                // The destroy of what was the last sandbox has just removed the empty parent.
                Err(failure) if failure.errno == libc::ENOENT && tries < 5 => tries += 1,
                result => return result.map(|()| groups),
            }
        }
    }

    /// Clones the first process; also returns our ends of its go and status pipes.
    fn clone_child(
        &self,
        setup: &Setup,
        handed: &Handed<'_>,
    ) -> Result<(ClonedChild, OwnedFd, OwnedFd), Failure> {
        // A spawner that died is replaced once. Pipes are made anew each time: the child of the first attempt, if there
        // is one, must not get the word that is meant for the second.
        for _ in 0..2 {
            let (go_read, go_write) = pipe()?;
            let (status_read, status_write) = pipe()?;
            let fds = CloneFds {
                lower: handed.lower,
                listener: handed.listener,
                log: handed.log,
                go: go_read.as_fd(),
                status: status_write.as_fd(),
                cgroup: handed.cgroup,
                memory_events: handed.memory_events,
                user_namespace: handed.user_namespace,
                pids_events: handed.pids_events,
                network: handed.network,
            };
            if let Ok(answer) = self.spawner.clone_child(setup.clone(), &fds) {
                return answer.map(|child| (child, go_write, status_read));
            }
        }
        Err(Failure::plain("clone a process: the spawner ended before it answered, twice"))
    }

    fn agent_arguments(
        &self,
        id: &SandboxId,
        profile: &Profile,
        memory_events: bool,
        pids_events: bool,
        work: usize,
        root_user: bool,
    ) -> Vec<String> {
        let (uid, gid, listener) =
            (profile.user.uid.to_string(), profile.user.gid.to_string(), LISTENER.to_string());
        let arguments = [
            ("--listen-fd", listener.as_str()),
            ("--sandbox", id.as_str()),
            ("--installation", self.installation_id),
            ("--uid", &uid),
            ("--gid", &gid),
            ("--user-name", &profile.user.name),
            ("--home", &profile.user.home),
            ("--workdir", &profile.workdir),
        ];
        let mut argv = vec!["stacyvm-agent".to_owned()];
        argv.extend(arguments.into_iter().flat_map(|(name, value)| [name.to_owned(), value.to_owned()]));
        for (handed, name, number) in [
            (memory_events, "--memory-events-fd", MEMORY_EVENTS),
            (pids_events, "--pids-events-fd", PIDS_EVENTS),
        ] {
            if handed {
                argv.extend([name.to_owned(), number.to_string()]);
            }
        }
        if work != 0 {
            let numbers: Vec<_> = (WORK..).take(work).map(|number| number.to_string()).collect();
            argv.extend(["--work-fds".to_owned(), numbers.join(",")]);
        }
        if !profile.environment.is_empty() {
            argv.push("--environment".to_owned());
        }
        if root_user {
            argv.push("--root-user".to_owned());
        }
        if rights::rootless() {
            argv.push("--single-user".to_owned());
        }
        argv
    }
}

/// Names the first process for good. It may have failed and ended by now, and its number may be somebody else's.
fn identify(child: &ClonedChild, status: &OwnedFd) -> Result<Identity, Failure> {
    let doing = || format!("identify process {}", child.pid);
    let identity = Identity::of(child.pid);
    if process::ended(child.pidfd.as_fd()).doing(doing)? {
        // It has said why, and the pipe has ended with it.
        let mut text = Vec::new();
        File::from(status.try_clone().doing(doing)?).take(MAX_REPORT).read_to_end(&mut text).doing(doing)?;
        let failed = Report::parse(&text).into_iter().find_map(|report| match report {
            Report::Failed(failure) => Some(failure),
            Report::UpperInMemory | Report::NotMapped(_) => None,
        });
        return Err(failed.unwrap_or_else(|| Failure::plain("keep the first process alive: it was killed")));
    }
    identity.doing(doing)
}

/// Binds the agent's socket: listening before the agent exists, so that connecting never has to be tried twice.
fn bind(directory: &OwnedFd) -> io::Result<UnixListener> {
    let path = layout::socket_path(directory);
    let listener = UnixListener::bind(&path)?;
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    Ok(listener)
}

fn pipe() -> Result<(OwnedFd, OwnedFd), Failure> {
    pipe_with(PipeFlags::CLOEXEC).doing(|| "make a pipe".to_owned())
}
