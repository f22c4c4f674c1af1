//! Paths and permission bits as clients write them. Containment is the guest's work; here is only what the wire allows.

use crate::error::ApiError;

/// Where relative paths start, as it is where commands start.
const HOME: &str = "/workspace/";
/// Longest path, as the kernel has it.
const PATH_BYTES: usize = 4096;

/// `path` as an absolute path; a relative one starts in `/workspace`.
pub(crate) fn absolute(path: &str) -> Result<String, ApiError> {
    if path.trim().is_empty() {
        return Err(ApiError::bad_request("path is required"));
    }
    if path.contains('\0') {
        return Err(ApiError::bad_request("path must not contain NUL bytes"));
    }
    if path.len() > PATH_BYTES {
        return Err(ApiError::bad_request(format!("path is longer than {PATH_BYTES} bytes")));
    }
    if path.starts_with('/') { Ok(path.to_owned()) } else { Ok(format!("{HOME}{path}")) }
}

/// Permission bits from octal digits (`644`, `0644`, `0o644`); `None` and blank mean `default`.
pub(crate) fn mode(text: Option<&str>, default: u32) -> Result<u32, ApiError> {
    let Some(text) = text.map(str::trim).filter(|text| !text.is_empty()) else { return Ok(default) };
    let digits = text.strip_prefix("0o").unwrap_or(text);
    let legal = !digits.is_empty() && digits.bytes().all(|b| (b'0'..=b'7').contains(&b));
    let bits = if legal { u32::from_str_radix(digits, 8).ok() } else { None };
    bits.filter(|bits| *bits <= 0o7777).ok_or_else(|| {
        ApiError::bad_request(format!("invalid mode {text:?}: use octal permission bits, as in 0644"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relative_paths_start_in_the_workspace() {
        assert_eq!(absolute("/etc/hosts").unwrap(), "/etc/hosts");
        assert_eq!(absolute("a/b").unwrap(), "/workspace/a/b");
        assert_eq!(absolute(" x").unwrap(), "/workspace/ x");
    }

    #[test]
    fn impossible_paths_are_refused() {
        for path in ["", "  ", "/a\0b", &"/x".repeat(2049)] {
            assert!(absolute(path).is_err(), "{path:?}");
        }
    }

    #[test]
    fn modes_are_octal() {
        for (text, bits) in [("644", 0o644), ("0755", 0o755), ("0o600", 0o600), ("7777", 0o7777), ("0", 0)] {
            assert_eq!(mode(Some(text), 1).unwrap(), bits);
        }
        assert_eq!(mode(None, 0o644).unwrap(), 0o644);
        assert_eq!(mode(Some(" "), 0o644).unwrap(), 0o644);
        for text in ["rwx", "888", "-1", "+644", "10000", "0x1", "0o", "77777777777777777777"] {
            assert!(mode(Some(text), 0).is_err(), "{text}");
        }
    }
}
