//! Trees of the sandbox as archives, and archives as trees: `stacyvm_tar` beneath the sandbox's root.

use super::{
    path::SandboxPath,
    resolve::{Root, is_kernel_view, refuse_kernel_view},
};
use crate::{
    fail::{Fail, Result},
    users::Account,
};
use rustix::{
    fs::{FileType, Mode, OFlags, fstat},
    io::Errno,
};
use stacyvm_tar::{Error, Links, Options, Packer, Unpacker, Why};
use std::os::fd::OwnedFd;

/// How a directory is opened to be read.
const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY);

/// Whether a directory may be worked in: the kernel's own are neither packed nor written to.
pub(super) fn takes(directory: &OwnedFd) -> bool {
    !is_kernel_view(directory).unwrap_or(true)
}

/// What went wrong below `top`, in the agent's words.
pub(crate) fn failed(top: &SandboxPath, error: &Error) -> Fail {
    match error.why {
        Why::System(errno) => Fail::errno(&top.entry(&error.path), errno),
        Why::Changed(why) => Fail::internal(format!("{} {why}", top.entry(&error.path))),
        Why::Damaged(_) | Why::Refused(_) => Fail::invalid(error.to_string()),
    }
}

/// Opens a directory, or one file, to be packed.
///
/// # Errors
/// `NotFound`; `InvalidArgument` for what is neither.
pub(crate) fn pack(root: &Root, path: &SandboxPath) -> Result<Packer> {
    let fail = |errno| Fail::errno(path.as_str(), errno);
    // Looked at before it is opened: opening a device can have effects.
    let looked = root.open(path, OFlags::PATH, Mode::empty()).map_err(fail)?;
    refuse_kernel_view(&looked, path.as_str())?;
    let kind = |file: &OwnedFd| Ok(FileType::from_raw_mode(fstat(file).map_err(fail)?.st_mode));
    let packer = match kind(&looked)? {
        FileType::Directory => {
            let top = root.open(path, DIRECTORY, Mode::empty()).map_err(fail)?;
            Packer::directory(top, takes)
        }
        FileType::RegularFile => {
            let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
            let file = root.open(path, flags, Mode::empty()).map_err(fail)?;
            // And again, as it may be another one now.
            if kind(&file)? != FileType::RegularFile {
                return Err(fail(Errno::INVAL));
            }
            let name = path.split().map_or("file", |(_, name)| name);
            Packer::file(file, name.as_bytes())
        }
        _ => return Err(Fail::invalid(format!("{} is neither a directory nor a file", path.as_str()))),
    };
    packer.map_err(|error| failed(path, &error))
}

/// Opens the directory that an archive is unpacked in, made if it is missing.
///
/// # Errors
/// `InvalidArgument` if something else is there.
pub(crate) fn unpack(root: &Root, path: &SandboxPath, owner: &Account) -> Result<Unpacker> {
    let fail = |errno| match errno {
        Errno::NOTDIR => Fail::invalid(format!("{} is not a directory", path.as_str())),
        errno => Fail::errno(path.as_str(), errno),
    };
    let (top, new) = match root.open(path, DIRECTORY, Mode::empty()) {
        Err(Errno::NOENT) => {
            root.make_directories(path, Mode::from_raw_mode(0o755), owner)?;
            (root.open(path, DIRECTORY, Mode::empty()).map_err(fail)?, true)
        }
        result => (result.map_err(fail)?, false),
    };
    refuse_kernel_view(&top, path.as_str())?;
    let owner = root.owners.then_some((owner.uid, owner.gid));
    // Links are text here: whoever reads one later is held beneath the root like everybody.
    let options = Options { owner, mode_mask: 0o7777, links: Links::AsTheyAre, takes };
    Ok(Unpacker::new(top, new, options))
}
