//! A data directory as an installation: its directory, its lock, its name.

use crate::{
    failure::{Failure, Result},
    lock::{Lock, Refused},
};
use stacyvm_store::Store;
use std::{
    fs,
    io::{self, Write},
    os::unix::fs::DirBuilderExt,
    path::Path,
};

/// Name of the file that holds the installation's id.
const ID_FILE: &str = "installation";

/// Makes a directory that only its owner may enter.
pub(crate) fn make_private(directory: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)
}

/// Makes and locks a data directory.
pub(crate) fn claim(data_dir: &Path) -> Result<Lock> {
    let shown = data_dir.display();
    let unusable = |error: &io::Error| {
        Failure::new(
            format!("the data directory {shown} cannot be used: {error}"),
            "choose another with --data-dir (STACYVM_DATA_DIR), or run as a user that may write there",
        )
    };
    make_private(data_dir).map_err(|e| unusable(&e))?;
    Lock::take(data_dir).map_err(|refused| match refused {
        Refused::Held { pid } => {
            let who = pid.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"));
            Failure::new(
                format!("the data directory {shown} is in use by {who}"),
                "stop that one, or choose another directory with --data-dir (STACYVM_DATA_DIR)",
            )
        }
        Refused::Failed(error) => unusable(&error),
    })
}

/// A new name for an installation: short, as it is part of cgroup and container names.
pub(crate) fn new_id() -> String {
    format!("{:012x}", uuid::Uuid::new_v4().as_u128() >> 80)
}

/// The id of the installation, which directory and database agree on.
pub(crate) async fn id(data_dir: &Path, store: &Store) -> Result<String> {
    let path = data_dir.join(ID_FILE);
    let unusable = |what: String| Failure::new(format!("{}: {what}", path.display()), "");
    let known = match fs::read_to_string(&path) {
        Ok(text) => Some(text.trim().to_owned()).filter(|id| !id.is_empty()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(unusable(error.to_string())),
    };
    let proposal = known.clone().unwrap_or_else(new_id);
    let stored = store.installation_id(&proposal).await.map_err(|e| Failure::new(e.to_string(), ""))?;
    match known {
        Some(known) if known == stored => {}
        Some(known) => {
            return Err(Failure::new(
                format!("the database belongs to installation {stored}, the data directory to {known}"),
                format!(
                    "use the database that belongs to {}; or, if its sandboxes are all gone, remove {}",
                    data_dir.display(),
                    path.display()
                ),
            ));
        }
        None => write_id(data_dir, &path, &stored).map_err(|e| unusable(e.to_string()))?,
    }
    Ok(stored)
}

/// Written aside and renamed, so that a crash leaves no half of it.
fn write_id(data_dir: &Path, path: &Path, id: &str) -> io::Result<()> {
    let mut file = tempfile::NamedTempFile::with_prefix_in(".installation-", data_dir)?;
    writeln!(file, "{id}")?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|e| e.error)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn directory_and_database_agree() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::in_memory().await.unwrap();
        let first = id(dir.path(), &store).await.unwrap();
        assert_eq!(id(dir.path(), &store).await.unwrap(), first);
        // A directory whose database was lost keeps its name: its sandboxes carry it.
        let empty = Store::in_memory().await.unwrap();
        assert_eq!(id(dir.path(), &empty).await.unwrap(), first);
        let other = tempfile::tempdir().unwrap();
        let foreign = Store::in_memory().await.unwrap();
        id(other.path(), &foreign).await.unwrap();
        assert!(id(dir.path(), &foreign).await.unwrap_err().what.contains("belongs to"));
    }

    #[test]
    fn ids_fit_into_names() {
        let id = new_id();
        assert!(id.len() == 12 && id.bytes().all(|b| b.is_ascii_hexdigit()), "{id}");
    }

    #[test]
    fn a_second_claim_names_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let _first = claim(&dir.path().join("a/b")).unwrap();
        let failure = claim(&dir.path().join("a/b")).unwrap_err();
        assert!(failure.what.contains(&format!("in use by process {}", std::process::id())), "{failure}");
    }
}
