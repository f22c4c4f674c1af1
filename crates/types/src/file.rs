//! Files in a sandbox. Paths are absolute; permission bits are octal digits in a string (`"644"`).

use crate::{
    Encoding,
    optional::{is_false, null_is_default},
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Metadata of a file or directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FileInfo {
    /// Absolute path.
    pub path: String,
    /// Size in bytes.
    pub size: u64,
    /// Permission bits in octal, as `644`.
    pub mode: String,
    /// It is a directory.
    pub is_dir: bool,
    /// Last change of content.
    #[schema(value_type = String, format = DateTime)]
    pub mod_time: Timestamp,
    /// What it is, when neither a regular file nor a directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<SpecialFile>,
    /// Owner, when not root.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub uid: u32,
    /// Group, when not root.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub gid: u32,
    /// Target of a symbolic link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link_target: Option<String>,
}

/// What is neither a regular file nor a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum SpecialFile {
    /// A symbolic link.
    Symlink,
    /// A device, socket or pipe.
    Other,
}

/// Body of `POST /sandboxes/{id}/files`. For content of any size use `PUT /sandboxes/{id}/files`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WriteFile {
    /// Absolute path; parents are made.
    #[serde(default, deserialize_with = "null_is_default")]
    pub path: String,
    /// The content.
    #[serde(default, deserialize_with = "null_is_default")]
    pub content: String,
    /// Permission bits in octal; default `0644`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    /// How `content` is spelt.
    #[serde(default, deserialize_with = "null_is_default")]
    pub encoding: Encoding,
}

/// Answer to a file write: the file as it is now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WrittenFile {
    /// `written`.
    pub status: String,
    /// The file.
    #[serde(flatten)]
    pub file: FileInfo,
}

/// Body of `POST /sandboxes/{id}/files/move`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MoveFile {
    /// What to move.
    #[serde(default, deserialize_with = "null_is_default")]
    pub old_path: String,
    /// Where to; parents are made, an existing file is replaced.
    #[serde(default, deserialize_with = "null_is_default")]
    pub new_path: String,
}

/// Body of `POST /sandboxes/{id}/files/chmod`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ChmodFile {
    /// Absolute path.
    #[serde(default, deserialize_with = "null_is_default")]
    pub path: String,
    /// Permission bits in octal, as `755`.
    #[serde(default, deserialize_with = "null_is_default")]
    pub mode: String,
}

/// Body of `POST /sandboxes/{id}/files/mkdir`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MakeDirectory {
    /// Absolute path.
    #[serde(default, deserialize_with = "null_is_default")]
    pub path: String,
    /// Permission bits in octal; default `0755`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    /// Also make the directories above; one that exists is fine then.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "is_false")]
    pub parents: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde calls")]
fn is_zero(value: &u32) -> bool {
    *value == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ordinary_file_has_the_five_keys_of_old() {
        let info = FileInfo {
            path: "/workspace/a".into(),
            size: 3,
            mode: "644".into(),
            is_dir: false,
            mod_time: "2026-05-04T10:32:14Z".parse().unwrap(),
            kind: None,
            uid: 0,
            gid: 0,
            link_target: None,
        };
        assert_eq!(
            serde_json::to_string(&info).unwrap(),
            r#"{"path":"/workspace/a","size":3,"mode":"644","is_dir":false,"mod_time":"2026-05-04T10:32:14Z"}"#
        );
    }

    #[test]
    fn a_null_mode_is_no_mode() {
        let file: WriteFile = serde_json::from_str(r#"{"path":"/a","content":"b","mode":null}"#).unwrap();
        assert_eq!(file.mode, None);
    }
}
