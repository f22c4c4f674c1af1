//! What a sandbox needs and an image may lack, for runtimes that start the agent in nothing but an image: the sandbox
//! user with a home, a working directory, a place for temporary files. The image's environment becomes that of processes.
//!
//! All of it runs once, before anything of the sandbox does. What a read-only image refuses is left out: the runtime mounts
//! what must be writable.

use crate::{
    args::{Config, Listen},
    log,
};
use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, fchown},
    path::Path,
};

/// Variables that speak of or to the agent's own process and are not the image's.
const OWN: [&str; 9] = [
    "HOME",
    "HOSTNAME",
    "USER",
    "LOGNAME",
    "PWD",
    "SHLVL",
    "OLDPWD",
    "_",
    stacyvm_guest::start::BLOCKED_VARIABLE,
];

/// The variables of `environment` that an image gives to its processes. Those that are not text are left out.
pub(crate) fn image_environment(
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> Vec<(String, String)> {
    let text =
        |(name, value): (OsString, OsString)| Some((name.into_string().ok()?, value.into_string().ok()?));
    environment.into_iter().filter_map(text).filter(|(name, _)| !OWN.contains(&&**name)).collect()
}

/// Makes what is missing.
pub(crate) fn prepare(config: &Config) {
    let say = |what: &str, result: io::Result<()>| {
        if let Err(error) = result {
            log(&format!("{what}: {error}"));
        }
    };
    say("the working directory", own_directory(Path::new(&config.workdir), config));
    say("the home directory", own_directory(Path::new(&config.home), config));
    say("/tmp", shared_directory(Path::new("/tmp")));
    let user = format!("{}:x:{}:{}::{}:/bin/sh\n", config.user_name, config.uid, config.gid, config.home);
    say("/etc/passwd", register(Path::new("/etc/passwd"), &user));
    let group = format!("{}:x:{}:\n", config.user_name, config.gid);
    say("/etc/group", register(Path::new("/etc/group"), &group));
}

/// A directory that belongs to the sandbox user: never one of ours, which a link in the image may name.
fn own_directory(path: &Path, config: &Config) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o755).create(path)?;
    let directory = File::open(path)?;
    if let Listen::Path(socket) = &config.listen
        && let Some(ours) = socket.parent()
        && directory.metadata()?.dev() == fs::metadata(ours)?.dev()
    {
        return Err(io::Error::other("it leads to the agent's own"));
    }
    fchown(&directory, Some(config.uid), Some(config.gid))
}

/// A directory for everybody's temporary files, if there is none.
fn shared_directory(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Ok(()) => fs::set_permissions(path, Permissions::from_mode(0o1777)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}

/// Adds a line to a list of users or groups unless the list is missing or has the name or the number already.
fn register(list: &Path, line: &str) -> io::Result<()> {
    let text = match fs::read(list) {
        Ok(text) => String::from_utf8_lossy(&text).into_owned(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let key = |line: &str| {
        let mut fields = line.trim_end().split(':');
        (fields.next().map(str::to_owned), fields.nth(1).map(str::to_owned))
    };
    let (name, number) = key(line);
    let known = text.lines().map(key).any(|(n, i)| n == name || i == number);
    if known {
        return Ok(());
    }
    let mut file = match OpenOptions::new().append(true).open(list) {
        // An image whose root is read-only: names are a comfort, and numbers do.
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => return Ok(()),
        result => result?,
    };
    let gap = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
    file.write_all(format!("{gap}{line}").as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_image_speaks_for_itself_only() {
        let pairs = [
            ("PATH", "/opt/bin"),
            ("HOME", "/root"),
            ("HOSTNAME", "x"),
            (OWN[8], "10.0.0.1"),
            ("LANG", "de_DE.UTF-8"),
        ];
        let seen = image_environment(pairs.map(|(name, value)| (name.into(), value.into())));
        let expected = [("PATH", "/opt/bin"), ("LANG", "de_DE.UTF-8")];
        assert_eq!(seen, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }

    #[test]
    fn a_user_is_registered_once_and_never_over_another() {
        let directory = tempfile::tempdir().unwrap();
        let list = directory.path().join("passwd");
        let line = "sandbox:x:1000:1000::/home/sandbox:/bin/sh\n";
        register(&list, line).unwrap();
        assert!(!list.exists(), "an image without users stays without");
        fs::write(&list, "root:x:0:0::/root:/bin/sh").unwrap();
        register(&list, line).unwrap();
        register(&list, line).unwrap();
        assert_eq!(fs::read_to_string(&list).unwrap(), format!("root:x:0:0::/root:/bin/sh\n{line}"));
        for taken in ["node:x:1000:1000::/home/node:/bin/sh\n", "sandbox:x:7:7::/:/bin/sh\n"] {
            fs::write(&list, taken).unwrap();
            register(&list, line).unwrap();
            assert_eq!(fs::read_to_string(&list).unwrap(), taken);
        }
    }

    #[test]
    fn directories_are_made_and_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tmp");
        shared_directory(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o1777);
        fs::set_permissions(&path, Permissions::from_mode(0o700)).unwrap();
        shared_directory(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o700);
    }
}
