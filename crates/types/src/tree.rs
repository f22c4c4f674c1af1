//! Trees of files in a sandbox: what became of an archive, what changes, how much disk they take.

use crate::{ErrorBody, FileInfo, optional::is_false};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Answer to `PUT /sandboxes/{id}/files/archive`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExtractedArchive {
    /// `extracted`.
    pub status: String,
    /// Absolute path of the directory.
    pub path: String,
    /// Regular files, hard links included.
    pub files: u64,
    /// Directories that were not there before.
    pub directories: u64,
    /// Symbolic links.
    pub links: u64,
    /// Bytes of the files.
    pub bytes: u64,
}

/// Answer to `POST /sandboxes/{id}/files/upload`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UploadedFiles {
    /// The files as they are now, in the order of the form.
    pub files: Vec<FileInfo>,
}

/// Answer to `GET /sandboxes/{id}/files/usage`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DiskUsage {
    /// Absolute path.
    pub path: String,
    /// Bytes of disk.
    pub bytes: u64,
    /// Lengths of the regular files.
    pub apparent_bytes: u64,
    /// Everything that is no directory.
    pub files: u64,
    /// Directories, the path itself included.
    pub directories: u64,
    /// There are so many files with several names that some are counted twice.
    #[serde(default, skip_serializing_if = "is_false")]
    pub counted_twice: bool,
}

/// One event of `GET /sandboxes/{id}/files/watch`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FileEvent {
    /// What happened.
    #[serde(rename = "type")]
    pub kind: FileEventKind,
    /// Absolute path; not in `overflow` and `error`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub path: String,
    /// Of a `move`: where it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// It is a directory.
    #[serde(default, skip_serializing_if = "is_false")]
    pub is_dir: bool,
    /// Of an `error`: why nothing more comes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorBody>,
}

/// What happened to a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum FileEventKind {
    /// The first event: what happens from now on is told.
    Ready,
    /// It is there now; also moved in from outside the directory.
    Create,
    /// Its content changed.
    Modify,
    /// Its mode, owner or time changed.
    Attribute,
    /// It is gone; also moved to outside the directory.
    Delete,
    /// It has another name.
    Move,
    /// Changes are lost: look at the directory again.
    Overflow,
    /// The last event: `error` says why nothing more comes.
    Error,
}

impl FileEventKind {
    /// The kind as it is sent.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Create => "create",
            Self::Modify => "modify",
            Self::Attribute => "attribute",
            Self::Delete => "delete",
            Self::Move => "move",
            Self::Overflow => "overflow",
            Self::Error => "error",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_says_what_it_has_to_say() {
        let event = |kind| FileEvent { kind, path: "/a".into(), from: None, is_dir: false, error: None };
        let text = serde_json::to_string(&event(FileEventKind::Create)).unwrap();
        assert_eq!(text, r#"{"type":"create","path":"/a"}"#);
        for kind in [FileEventKind::Ready, FileEventKind::Move, FileEventKind::Overflow] {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.as_str());
            let text = serde_json::to_string(&event(kind)).unwrap();
            assert_eq!(serde_json::from_str::<FileEvent>(&text).unwrap(), event(kind));
        }
    }
}
