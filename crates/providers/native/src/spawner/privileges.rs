//! What the agent may do: the rights of root over its own sandbox's processes and files, and none over the kernel.

use crate::failure::{Doing, Failure};
use rustix::{
    fd::BorrowedFd,
    fs::{Gid, Uid},
    process::{Resource, Rlimit, getrlimit, setrlimit},
    thread::{
        CapabilitySet, CapabilitySets, LinkNameSpaceType, capabilities, clear_ambient_capability_set,
        move_into_link_name_space, remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
        set_thread_groups, set_thread_res_gid, set_thread_res_uid,
    },
};
use std::fs;

/// Everything the agent needs: to become the sandbox user, to end its processes, to give it files.
const AGENT: CapabilitySet = CapabilitySet::SETUID
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::CHOWN)
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER);
/// What a process that runs as root of a user namespace of its own needs besides, for package managers: to keep the bits
/// that chmod would clear, and to set capabilities of files, which no program ever gets.
const ROOT: CapabilitySet = CapabilitySet::FSETID.union(CapabilitySet::SETFCAP);
/// Open files: plenty to start with, more on request.
const OPEN_FILES: (u64, u64) = (65_536, 1_048_576);
/// How ready the kernel is to kill the work of a sandbox when the whole host is out of memory: before the host's own.
const WORK_OOM_SCORE: &str = "300";

/// Limits of every process of the sandbox.
pub(super) fn set_resource_limits() -> Result<(), Failure> {
    let limits = [
        (Resource::Nofile, OPEN_FILES.0, OPEN_FILES.1),
        // 1 and not 0: the kernel skips the host's core dump handler for 1 only.
        (Resource::Core, 1, 1),
        (Resource::Memlock, 8 << 20, 8 << 20),
        (Resource::Msgqueue, 819_200, 819_200),
        (Resource::Sigpending, 31_000, 31_000),
        // No more of the processor than others have, whatever the server was given.
        (Resource::Nice, 0, 0),
        (Resource::Rtprio, 0, 0),
    ];
    for (resource, current, maximum) in limits {
        // A host that gives us less than this gives the sandbox less too.
        let maximum = getrlimit(resource).maximum.map_or(maximum, |highest| highest.min(maximum));
        let limit = Rlimit { current: Some(current.min(maximum)), maximum: Some(maximum) };
        setrlimit(resource, limit).doing(|| format!("set the limit {resource:?}"))?;
    }
    let unlimited = Rlimit { current: None, maximum: None };
    for resource in [Resource::Cpu, Resource::Fsize, Resource::Data, Resource::As, Resource::Nproc] {
        // Whatever our own shell was given is none of the sandbox's. Processes are limited by cgroup: this limit would
        // count the same user's processes in all sandboxes.
        let _ = setrlimit(resource, unlimited);
    }
    let _ = setrlimit(Resource::Stack, Rlimit { current: Some(8 << 20), maximum: None });
    Ok(())
}

/// Sets the OOM score of everything that will run in the sandbox. The agent's own is lowered from outside once its
/// children have been made: from inside, each of them would inherit it.
pub(super) fn set_oom_score() {
    // A host that forbids it kills by its own order.
    let _ = fs::write("/proc/self/oom_score_adj", WORK_OOM_SCORE);
}

/// Becomes root of the sandbox's user namespace, and so nobody outside it: the last that is done with the rights of root
/// of the host.
pub(super) fn enter(user_namespace: BorrowedFd<'_>) -> Result<(), Failure> {
    set_thread_groups(&[]).doing(|| "leave the groups".to_owned())?;
    move_into_link_name_space(user_namespace, Some(LinkNameSpaceType::User))
        .doing(|| "enter the user namespace".to_owned())?;
    let doing = || "become root of the user namespace".to_owned();
    set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT).doing(doing)?;
    set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT).doing(doing)
}

/// Gives up everything else, for good. With `root`, processes may be started as root of a user namespace.
///
/// The bounding set ends up empty, so that no process of the sandbox can ever get any of it, while the agent gets its
/// share across `execve` by inheritance (and gives that up itself).
pub(super) fn reduce(root: bool) -> Result<(), Failure> {
    let kept = if root { AGENT.union(ROOT) } else { AGENT };
    // Where nobody may set groups, those of the user who runs the server stay, as groups without a name.
    if rustix::process::geteuid().is_root() {
        set_thread_groups(&[]).doing(|| "leave the groups".to_owned())?;
    }
    let doing = || "drop capabilities".to_owned();
    let _ = clear_ambient_capability_set();
    // Before the bounding set is emptied: nothing can be made inheritable that is not in it.
    let all = capabilities(None).doing(doing)?;
    set_capabilities(None, CapabilitySets { inheritable: kept, ..all }).doing(doing)?;
    for bit in 0..64 {
        match remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << bit)) {
            // No such capability in this kernel, nor any higher one.
            Err(rustix::io::Errno::INVAL) => break,
            result => result.doing(|| format!("drop capability {bit}"))?,
        }
    }
    let sets = CapabilitySets { effective: AGENT, permitted: kept, inheritable: kept };
    set_capabilities(None, sets).doing(doing)?;
    // For the agent too: it changes users downwards only, and nothing in a sandbox is to gain rights by a file.
    set_no_new_privs(true).doing(|| "forbid new privileges".to_owned())
}
