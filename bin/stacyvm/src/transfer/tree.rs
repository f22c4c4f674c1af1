//! Whole directories, file by file. Links, devices and pipes in them are left out, which is said.

use super::{Entry, Files, Kind, join};
use crate::{
    commands::cp::local::{Source, Target},
    failure::{Failure, Result},
    output,
};
use futures::StreamExt;
use std::{fs, io, os::unix::fs::PermissionsExt, path::Path};

/// Most entries that a sandbox can make this host hold.
const ENTRIES: usize = 1_000_000;
/// Deepest directory that is gone into.
const DEPTH: usize = 200;

/// A failure about a local path.
pub(super) fn local(path: &Path, error: &io::Error) -> Failure {
    Failure::new(format!("{}: {error}", path.display()), "")
}

/// Copies a local directory to `target`, which is made if need be.
pub(super) async fn put(files: &impl Files, source: &Path, target: &str) -> Result<()> {
    let mut left = vec![(source.to_owned(), target.to_owned())];
    let mut skipped = 0;
    while let Some((directory, target)) = left.pop() {
        let mode = fs::metadata(&directory).map_err(|e| local(&directory, &e))?.permissions().mode() & 0o777;
        files.make_directory(&target, mode).await?;
        for entry in fs::read_dir(&directory).map_err(|e| local(&directory, &e))? {
            let entry = entry.map_err(|e| local(&directory, &e))?;
            let path = entry.path();
            let kind = entry.file_type().map_err(|e| local(&path, &e))?;
            let Ok(name) = entry.file_name().into_string() else {
                return Err(Failure::new(
                    format!("{}: the name is not UTF-8", path.display()),
                    "pack the directory with tar",
                ));
            };
            let target = join(&target, &name);
            if kind.is_dir() {
                left.push((path, target));
            } else if kind.is_file() {
                put_file(files, &path, &target).await?;
            } else {
                skipped += 1;
            }
        }
    }
    told(skipped);
    Ok(())
}

/// Copies a local file.
pub(super) async fn put_file(files: &impl Files, source: &Path, target: &str) -> Result<()> {
    let path = source
        .to_str()
        .ok_or_else(|| Failure::new(format!("{}: the name is not UTF-8", source.display()), ""))?;
    let source = Source::open(path).await?;
    let (mode, size) = (source.mode(), source.size());
    files.write(target, mode, size, source.stream().boxed()).await
}

/// Copies a directory of the sandbox to `target`, which is made if need be.
pub(super) async fn get(files: &impl Files, source: &str, target: &Path) -> Result<()> {
    let mut left = vec![(source.to_owned(), target.to_owned(), 0)];
    let (mut skipped, mut seen) = (0, 0);
    while let Some((directory, target, depth)) = left.pop() {
        make(&target)?;
        for Entry { path, kind, mode } in files.list(&directory).await? {
            seen += 1;
            if seen > ENTRIES || depth > DEPTH {
                let what =
                    format!("there are more than {ENTRIES} entries, or {DEPTH} directories in one another");
                return Err(Failure::new(what, "pack what is needed in the sandbox, and copy that"));
            }
            let name = component(&directory, &path)?;
            // By the name that was checked, so that nothing else is read than what is listed.
            let (source, target) = (join(&directory, name), target.join(name));
            match kind {
                Kind::Directory => left.push((source, target, depth + 1)),
                Kind::File => get_file(files, &source, mode, &target).await?,
                Kind::Other => skipped += 1,
            }
        }
    }
    told(skipped);
    Ok(())
}

/// Copies a file of the sandbox: the local one is replaced when all has arrived.
pub(super) async fn get_file(files: &impl Files, source: &str, mode: u32, target: &Path) -> Result<()> {
    if target.is_dir() {
        return Err(local(target, &io::Error::from(io::ErrorKind::IsADirectory)));
    }
    let mut content = files.read(source).await?;
    let mut writer = Target::File(target.to_owned()).create().await?;
    while let Some(piece) = content.next().await {
        writer.write(piece?).await?;
    }
    writer.finish(mode & 0o777).await
}

/// Makes a directory here. A link that is in its place is not gone through: the sandbox may have chosen the name.
fn make(target: &Path) -> Result<()> {
    match fs::create_dir(target) {
        Ok(()) => Ok(()),
        Err(_) if target.is_dir() && !target.is_symlink() => Ok(()),
        Err(error) => Err(local(target, &error)),
    }
}

/// The name of an entry of `directory`, if it is one.
fn component<'a>(directory: &str, path: &'a str) -> Result<&'a str> {
    let name = path.rsplit('/').next().unwrap_or_default();
    if name.is_empty() || name == "." || name == ".." || name.contains('\0') {
        return Err(Failure::new(format!("{directory} lists {path:?}, which is no name of a file"), ""));
    }
    Ok(name)
}

fn told(skipped: usize) {
    match skipped {
        0 => {}
        1 => output::note("stacyvm: one link or special file was left out; tar in the sandbox keeps it"),
        _ => output::note(format_args!(
            "stacyvm: {skipped} links and special files were left out; tar in the sandbox keeps them"
        )),
    }
}
