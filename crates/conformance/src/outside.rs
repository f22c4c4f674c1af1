//! Something of the host that a sandbox must not reach.

use crate::{
    check::{Verdict, ensure},
    context::Context,
    observe::same,
};
use std::{fs, path::PathBuf};

/// A directory of this host with a secret in it, away from any sandbox.
pub(crate) struct Outside {
    directory: PathBuf,
}

/// What is in it.
pub(crate) const SECRET: &[u8] = b"a secret of the host";

impl Outside {
    pub(crate) fn new(cx: &Context) -> Verdict<Self> {
        let outside = Self { directory: std::env::temp_dir().join(cx.unique("stacyvm-outside")) };
        fs::create_dir(&outside.directory)?;
        fs::write(outside.secret(), SECRET)?;
        Ok(outside)
    }

    /// The file with the secret.
    pub(crate) fn secret(&self) -> PathBuf {
        self.directory.join("secret")
    }

    /// Path of `name` in it, as text.
    pub(crate) fn text(&self, name: &str) -> String {
        self.directory.join(name).to_string_lossy().into_owned()
    }

    /// Demands that nothing in it changed.
    pub(crate) fn untouched(&self) -> Verdict {
        let names: Vec<_> = fs::read_dir(&self.directory)?.flatten().map(|entry| entry.file_name()).collect();
        ensure!(names == ["secret"], "a directory of the host now holds {names:?}");
        same("the secret of the host", &fs::read(self.secret())?, SECRET)
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}
