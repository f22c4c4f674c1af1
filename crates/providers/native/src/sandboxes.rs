//! What the disk and the kernel say about sandboxes now. Blocking, and without memory of its own.

use crate::{
    entry::describe_end,
    layout::Layout,
    process,
    record::{Record, State},
};
use rustix::fd::OwnedFd;
use stacyvm_provider::{Error, Result, SandboxId, SandboxSpec};
use std::{fs, io};

/// One look at one sandbox.
#[derive(Debug)]
pub(crate) enum Look {
    /// Nothing of it exists.
    Absent,
    /// It was made, or half made, and does not run.
    Ended { reason: String, spec: Option<SandboxSpec> },
    /// Its first process runs.
    Running { state: State, pidfd: OwnedFd, spec: Option<SandboxSpec> },
}

/// Looks at one sandbox.
///
/// # Errors
/// `Unavailable` if the system cannot tell.
pub(crate) fn look(layout: &Layout, id: &SandboxId) -> Result<Look> {
    let directory = layout.sandbox(id);
    let unknown =
        |e: io::Error| Error::unavailable(format!("the state of sandbox {id} cannot be read")).because(e);
    match fs::symlink_metadata(&directory) {
        Ok(_) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Look::Absent),
        Err(e) => return Err(unknown(e)),
    }
    let Record { spec, state } = Record::read(&directory).map_err(unknown)?;
    let Some(state) = state else {
        return Ok(Look::Ended { reason: "its creation was interrupted".to_owned(), spec });
    };
    if let Some(pidfd) = state.process.open().map_err(unknown)? {
        return Ok(Look::Running { state, pidfd, spec });
    }
    let reason = if process::boot_id().map_err(unknown)? == state.process.boot_id {
        describe_end(&state, None)
    } else {
        "the host was restarted".to_owned()
    };
    Ok(Look::Ended { reason, spec })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        process::Identity,
        record::{write_spec, write_state},
    };

    #[test]
    fn every_stage_of_a_sandbox_is_recognised() {
        let tmp = tempfile::tempdir().unwrap();
        let layout = Layout::new(tmp.path().to_owned());
        let id: SandboxId = "sb-1".parse().unwrap();
        let directory = layout.sandbox(&id);
        assert!(matches!(look(&layout, &id).unwrap(), Look::Absent));
        fs::create_dir_all(&directory).unwrap();
        let ended = || match look(&layout, &id).unwrap() {
            Look::Ended { reason, .. } => reason,
            other => panic!("{other:?}"),
        };
        assert!(ended().contains("interrupted"));

        let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        let process = Identity::of(child.id() as i32).unwrap();
        let state =
            State { process, cgroups: Default::default(), lower: "/".into(), ids: None, network: None };
        let spec = SandboxSpec::new("host");
        write_spec(&directory, &spec).unwrap();
        write_state(&directory, &state).unwrap();
        assert!(matches!(look(&layout, &id).unwrap(), Look::Running { spec: Some(_), .. }));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(ended().contains("agent has ended"));

        let boot_id = "another".to_owned();
        write_state(&directory, &State { process: Identity { boot_id, ..state.process.clone() }, ..state })
            .unwrap();
        assert!(ended().contains("restarted"));
    }
}
