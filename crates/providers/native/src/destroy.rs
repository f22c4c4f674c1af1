//! Taking a sandbox away: kill, remove cgroups, move the files aside, delete them.
//!
//! Each step starts from what is there, never from what an earlier attempt remembers, so a destroy that was killed at
//! any instant is finished by the next one. Synchronous, because the spawner does the same for ephemeral sandboxes
//! when its server has died.

use crate::{
    cgroup::{self, Freezer},
    disk,
    failure::{Doing, Failure},
    layout::Layout,
    network,
    process::{self, Identity},
    record::Record,
    remove::remove_tree,
};
use rustix::fd::AsFd;
use stacyvm_fault::{Point, hit};
use stacyvm_provider::SandboxId;
use std::{fs, io, path::Path, time::Duration};

/// Time for a killed sandbox to end: its processes may have much memory to give back.
const END: Duration = Duration::from_secs(20);
/// Time for the kernel to let go of a cgroup whose processes are dead.
const LET_GO: Duration = Duration::from_secs(5);

/// Removes everything that belongs to `id`; `Ok` means that nothing is left.
pub(crate) fn destroy(layout: &Layout, cgroups: &cgroup::Host, id: &SandboxId) -> Result<(), Failure> {
    let directory = layout.sandbox(id);
    let there = match fs::symlink_metadata(&directory) {
        Ok(_) => true,
        Err(e) if e.kind() == io::ErrorKind::NotFound => false,
        Err(e) => return Err(e).doing(|| format!("look at {}", directory.display())),
    };
    // The directory is made first and moved away last, so without it there are no processes and no cgroups.
    if there {
        let record =
            Record::read(&directory).doing(|| format!("read what is recorded of {}", directory.display()))?;
        if let Some(state) = &record.state {
            kill(&state.process, cgroups.freezer(id.as_str(), &state.cgroups))?;
        }
        hit(Point::NativeKilled);
        if let Some(state) = &record.state {
            state.cgroups.kill();
            state.cgroups.remove(LET_GO)?;
        }
        // Those of a sandbox that was never recorded.
        let unrecorded = cgroups.all(id.as_str());
        unrecorded.kill();
        unrecorded.remove(LET_GO)?;
        cgroups.remove_if_empty();
        if let Some(attachment) = record.state.as_ref().and_then(|state| state.network.as_ref()) {
            network::free(attachment)?;
        }
        disk::release(&directory);
        hit(Point::NativeCgroupGone);
        set_aside(layout, id, &directory)?;
        hit(Point::NativeFilesMoved);
    }
    empty_trash(layout, Some(id))
}

fn kill(process: &Identity, freezer: Option<Freezer>) -> Result<(), Failure> {
    let doing = || format!("kill process {}", process.pid);
    let pidfd = process.open().doing(doing)?;
    if let Some(pidfd) = &pidfd {
        process::kill(pidfd.as_fd()).doing(doing)?;
    }
    // One that is frozen ends when it goes on, and so does what it has started. Killed before, it has nothing left to do.
    freezer.map_or(Ok(()), |freezer| freezer.thaw())?;
    let Some(pidfd) = pidfd else { return Ok(()) };
    if process::kill_and_wait(pidfd.as_fd(), END).doing(doing)? {
        return Ok(());
    }
    Err(Failure::plain(format!(
        "end process {}: it was killed and has not ended after {} s; it waits for the system, try again",
        process.pid,
        END.as_secs()
    )))
}

/// Renames the directory, so that the sandbox is gone in one step however much there is to delete.
fn set_aside(layout: &Layout, id: &SandboxId, directory: &Path) -> Result<(), Failure> {
    let doing = || format!("move {} away", directory.display());
    crate::layout::make_private_dir(&layout.trash(), true)?;
    loop {
        let name = format!("{id}-{:016x}", random().doing(doing)?);
        match rustix::fs::renameat_with(
            rustix::fs::CWD,
            directory,
            rustix::fs::CWD,
            layout.trash().join(name),
            rustix::fs::RenameFlags::NOREPLACE,
        ) {
            Err(rustix::io::Errno::EXIST) => {}
            // A second destroy of the same sandbox was faster.
            Err(rustix::io::Errno::NOENT) if !directory.exists() => return Ok(()),
            result => return result.doing(doing),
        }
    }
}

fn random() -> io::Result<u64> {
    let mut bytes = [0_u8; 8];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(u64::from_le_bytes(bytes))
}

/// Deletes what was set aside: of one sandbox, or of all.
pub(crate) fn empty_trash(layout: &Layout, id: Option<&SandboxId>) -> Result<(), Failure> {
    let trash = layout.trash();
    let entries = match fs::read_dir(&trash) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        result => result.doing(|| format!("list {}", trash.display()))?,
    };
    for entry in entries {
        let entry = entry.doing(|| format!("list {}", trash.display()))?;
        let name = entry.file_name();
        let wanted = match id {
            None => true,
            Some(id) => name
                .to_str()
                .and_then(|n| n.strip_prefix(id.as_str()))
                .is_some_and(|rest| rest.starts_with('-')),
        };
        if wanted {
            remove_tree(&entry.path()).doing(|| format!("delete {}", entry.path().display()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{State, write_state};
    use std::process::Command;

    fn fixture() -> (tempfile::TempDir, Layout, SandboxId) {
        let tmp = tempfile::tempdir().unwrap();
        let layout = Layout::new(tmp.path().to_owned());
        layout.prepare().unwrap();
        (tmp, layout, "sb-1".parse().unwrap())
    }

    fn nothing_left(layout: &Layout) -> bool {
        let empty = |path: &Path| fs::read_dir(path).unwrap().count() == 0;
        empty(&layout.sandboxes()) && empty(&layout.trash())
    }

    #[test]
    fn unknown_and_half_made_sandboxes_go() {
        let (_tmp, layout, id) = fixture();
        let cgroups = cgroup::Host::default();
        destroy(&layout, &cgroups, &id).unwrap();
        fs::create_dir_all(layout.sandbox(&id).join("upper/deep")).unwrap();
        fs::write(layout.sandbox(&id).join("state.json"), "{").unwrap();
        destroy(&layout, &cgroups, &id).unwrap();
        assert!(nothing_left(&layout));
        destroy(&layout, &cgroups, &id).unwrap();
    }

    #[test]
    fn what_was_set_aside_is_deleted_by_the_next_call() {
        let (_tmp, layout, id) = fixture();
        fs::create_dir_all(layout.trash().join("sb-1-00/upper")).unwrap();
        fs::create_dir_all(layout.trash().join("sb-12-00/upper")).unwrap();
        destroy(&layout, &cgroup::Host::default(), &id).unwrap();
        assert!(!layout.trash().join("sb-1-00").exists());
        assert!(layout.trash().join("sb-12-00").exists(), "another sandbox's");
        empty_trash(&layout, None).unwrap();
        assert!(nothing_left(&layout));
    }

    #[test]
    fn the_recorded_process_is_killed_and_a_stranger_with_its_number_is_not() {
        let (_tmp, layout, id) = fixture();
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        let real = Identity::of(child.id() as i32).unwrap();
        let recycled = Identity { start_time: real.start_time.wrapping_sub(1), ..real.clone() };
        for (process, dies) in [(recycled, false), (real, true)] {
            fs::create_dir(layout.sandbox(&id)).unwrap();
            let state =
                State { process, cgroups: Default::default(), lower: "/".into(), ids: None, network: None };
            write_state(&layout.sandbox(&id), &state).unwrap();
            destroy(&layout, &cgroup::Host::default(), &id).unwrap();
            assert_eq!(child.try_wait().unwrap().is_some(), dies);
            assert!(nothing_left(&layout));
        }
    }
}
