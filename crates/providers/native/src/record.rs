//! What is written down about a sandbox: `spec.json` (what was asked for) and `state.json` (what runs).
//!
//! Files are replaced in one step, so a server killed at any instant leaves the old or the new text. They are not
//! forced to disk: they describe processes, which do not survive a power failure either, and a sandbox whose files were
//! lost or cut in one is one that was never finished.

use crate::{
    cgroup::SandboxCgroups,
    failure::{Doing, Failure},
    ids::IdRange,
    network::Attachment,
    process::Identity,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use stacyvm_provider::SandboxSpec;
use std::{
    fs,
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

/// Longest record that is read, in bytes. Metadata is the caller's, so it has to end somewhere.
const MAX_BYTES: u64 = 4 << 20;

/// `state.json`: written before the first process may go on, so a process that runs a sandbox is always recorded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct State {
    /// The first process of the sandbox, its agent.
    pub(crate) process: Identity,
    /// Its cgroups.
    #[serde(default)]
    pub(crate) cgroups: SandboxCgroups,
    /// Lower layer of its root.
    pub(crate) lower: PathBuf,
    /// Its user ids on the host; none for one without a user namespace.
    #[serde(default)]
    pub(crate) ids: Option<IdRange>,
    /// Its way to the host, if it has one.
    #[serde(default)]
    pub(crate) network: Option<Attachment>,
}

/// Everything on record about one sandbox. Absent or unreadable parts are those that were never finished.
#[derive(Debug, Default)]
pub(crate) struct Record {
    pub(crate) spec: Option<SandboxSpec>,
    pub(crate) state: Option<State>,
}

impl Record {
    /// Reads what is there.
    ///
    /// # Errors
    /// Only if the system cannot tell; missing and broken files are `None`.
    pub(crate) fn read(directory: &Path) -> io::Result<Self> {
        Ok(Self { spec: read(&directory.join("spec.json"))?, state: read(&directory.join("state.json"))? })
    }
}

/// Writes `spec.json`.
pub(crate) fn write_spec(directory: &Path, spec: &SandboxSpec) -> Result<(), Failure> {
    write(directory, "spec.json", spec)
}

/// Writes `state.json`.
pub(crate) fn write_state(directory: &Path, state: &State) -> Result<(), Failure> {
    write(directory, "state.json", state)
}

fn read<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => return Ok(None),
        Err(e) => return Err(e),
    };
    let mut bytes = Vec::new();
    file.take(MAX_BYTES).read_to_end(&mut bytes)?;
    Ok(serde_json::from_slice(&bytes).ok())
}

fn write(directory: &Path, name: &str, value: &impl Serialize) -> Result<(), Failure> {
    let doing = || format!("write {}", directory.join(name).display());
    let bytes = serde_json::to_vec(value).map_err(io::Error::from).doing(doing)?;
    let temporary = directory.join(format!("{name}.new"));
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)
        .doing(doing)?;
    file.write_all(&bytes).doing(doing)?;
    drop(file);
    fs::rename(&temporary, directory.join(name)).doing(doing)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> SandboxSpec {
        SandboxSpec {
            memory_mb: 64,
            vcpus: 1,
            pids: 10,
            ephemeral: true,
            metadata: [("a".to_owned(), "b".to_owned())].into(),
            ..SandboxSpec::new("host")
        }
    }

    fn state() -> State {
        State {
            process: Identity { pid: 7, start_time: 9, boot_id: "x".to_owned() },
            cgroups: SandboxCgroups::default(),
            lower: "/lower".into(),
            ids: None,
            network: None,
        }
    }

    #[test]
    fn records_come_back() {
        let tmp = tempfile::tempdir().unwrap();
        write_spec(tmp.path(), &spec()).unwrap();
        write_state(tmp.path(), &state()).unwrap();
        let record = Record::read(tmp.path()).unwrap();
        assert_eq!((record.spec, record.state), (Some(spec()), Some(state())));
        assert_eq!(fs::read_dir(tmp.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_half_made_sandbox_has_a_half_record() {
        let tmp = tempfile::tempdir().unwrap();
        assert!(Record::read(&tmp.path().join("absent")).unwrap().spec.is_none());
        write_spec(tmp.path(), &spec()).unwrap();
        fs::write(tmp.path().join("state.json"), b"{\"process\":{\"pid\":7").unwrap();
        let record = Record::read(tmp.path()).unwrap();
        assert!(record.spec.is_some() && record.state.is_none());
        fs::write(tmp.path().join("state.json"), b"").unwrap();
        assert!(Record::read(tmp.path()).unwrap().state.is_none());
    }

    #[test]
    fn a_record_is_replaced_as_a_whole() {
        let tmp = tempfile::tempdir().unwrap();
        write_state(tmp.path(), &state()).unwrap();
        // Left by a server that was killed while writing.
        fs::write(tmp.path().join("state.json.new"), b"garbage that is longer than the record itself")
            .unwrap();
        write_state(tmp.path(), &State { lower: "/other".into(), ..state() }).unwrap();
        assert_eq!(Record::read(tmp.path()).unwrap().state.unwrap().lower, PathBuf::from("/other"));
    }
}
