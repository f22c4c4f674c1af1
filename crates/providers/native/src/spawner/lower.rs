//! What a sandbox's root shows of its image: the image's directory, looked at again in this mount namespace, with the sandbox's
//! own users.

use super::{
    mounts::READ_ONLY_TREE,
    protocol::{Report, Setup},
};
use crate::{
    failure::{Doing, Failure},
    image::layers::{Layers, open_lower},
    sys,
};
use rustix::{
    fd::{AsFd, BorrowedFd, OwnedFd},
    fs::{CWD, fstat},
    mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree},
};

/// Opens the image's layers. `checked` is the image's directory as the server saw it, `map` the sandbox's user namespace.
pub(super) fn open_layers(
    setup: &Setup,
    checked: BorrowedFd<'_>,
    map: Option<BorrowedFd<'_>>,
    report: &mut dyn FnMut(Report),
) -> Result<Layers, Failure> {
    let doing = || format!("open the image {}", setup.lower.display());
    let lower = open_lower(&setup.lower).doing(doing)?;
    let (wanted, found) = (fstat(checked).doing(doing)?, fstat(&lower).doing(doing)?);
    if (wanted.st_dev, wanted.st_ino) != (found.st_dev, found.st_ino) {
        return Err(Failure::plain(format!("{}: another directory took its place", doing())));
    }
    let mapped = map.map(|map| map_lower(lower.as_fd(), map)).transpose().unwrap_or_default();
    if map.is_some() && mapped.is_none() {
        report(Report::NotMapped(setup.lower.clone()));
    }
    Layers::open(mapped.as_ref().unwrap_or(&lower).as_fd(), &setup.layers).doing(doing)
}

/// Shows the image at `root`, out of everybody's sight by what is mounted over it, with owners that the sandbox knows: a layer
/// of an overlay has to be somewhere. All layers of an image are in one directory, so one mount does for all.
fn map_lower(lower: BorrowedFd<'_>, map: BorrowedFd<'_>) -> std::io::Result<OwnedFd> {
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = open_tree(lower, "", flags)?;
    sys::set_mount_attributes(tree.as_fd(), READ_ONLY_TREE, Some(map))?;
    move_mount(tree.as_fd(), "", CWD, "root", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    open_lower("root".as_ref())
}
