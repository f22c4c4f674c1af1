//! Files: what databases, build tools, package managers and editors need of a filesystem.

use super::{
    Entry,
    attempt::{Attempt, HERE, Judge, Not, as_linux, at, at_mut, call, raw, works},
    privileged,
    processes::{own, readable},
};
use rustix::{
    fd::OwnedFd,
    fs::{Mode, OFlags},
    io::Errno,
};

pub(super) const TABLE: &[Entry] = &[
    ("openat2", openat2),
    ("faccessat2", faccessat2),
    ("statx", statx),
    ("utimensat", utimensat),
    ("extended attributes", extended_attributes),
    ("name_to_handle_at", privileged::name_to_handle_at),
    ("O_TMPFILE", tmpfile),
    ("O_DIRECT", direct),
    ("renameat2 RENAME_NOREPLACE", rename_no_replace),
    ("renameat2 RENAME_EXCHANGE", rename_exchange),
    ("fallocate", || allocate(0)),
    ("fallocate FALLOC_FL_PUNCH_HOLE", punch_hole),
    ("lseek SEEK_DATA", seek_data),
    ("preadv2 RWF_NOWAIT", preadv2),
    ("copy_file_range", copy_file_range),
    ("sendfile", sendfile),
    ("splice", splice),
    ("tee", tee),
    ("vmsplice", vmsplice),
    ("inotify", inotify),
];

/// An empty file of this name, for reading and writing.
pub(super) fn file(name: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
    rustix::fs::open(name, flags, Mode::from_raw_mode(0o644))
}

/// One with content.
fn filled(name: &str) -> Result<OwnedFd, Errno> {
    let file = file(name)?;
    rustix::io::write(&file, CONTENT)?;
    rustix::fs::seek(&file, rustix::fs::SeekFrom::Start(0))?;
    Ok(file)
}

const CONTENT: &[u8] = b"content";

/// Whether a file, or what can be read of a pipe, is the content.
fn holds_content(fd: &OwnedFd) -> Attempt {
    let mut bytes = [0; 16];
    let _ = rustix::fs::seek(fd, rustix::fs::SeekFrom::Start(0));
    let length = rustix::io::read(fd, &mut bytes)?;
    as_linux(&bytes[..length] == CONTENT, "other bytes")
}

fn openat2() -> Attempt {
    const BENEATH: u64 = 8;
    // Flags, mode, how to resolve.
    let how = [(libc::O_PATH | libc::O_DIRECTORY) as u64, 0, BENEATH];
    call(libc::SYS_openat2, [HERE, at(c"."), at(&how), size_of_val(&how)])?;
    let outside = call(libc::SYS_openat2, [HERE, at(c".."), at(&how), size_of_val(&how)]);
    as_linux(outside == Err(Errno::XDEV), "RESOLVE_BENEATH does not keep within")
}

fn faccessat2() -> Attempt {
    call(libc::SYS_faccessat2, [HERE, at(c"."), libc::R_OK as usize, libc::AT_EACCESS as usize])?;
    works()
}

fn statx() -> Attempt {
    const SIZE: usize = 5;
    const BIRTH: u64 = 0x800;
    let file = filled("statx")?;
    let mut answer = [0_u64; 32];
    let wanted = 0x7ff | BIRTH as usize;
    let flags = libc::AT_EMPTY_PATH as usize;
    call(libc::SYS_statx, [raw(&file), at(c""), flags, wanted, at_mut(&mut answer)])?;
    if answer[SIZE] != CONTENT.len() as u64 {
        return Err(Not::Differs("another size".to_owned()));
    }
    if answer[0] & BIRTH == 0 { Ok("no birth time".to_owned()) } else { works() }
}

fn utimensat() -> Attempt {
    let file = file("utimensat")?;
    let times = [1_000_000_000_i64, 123_456_789, 1_000_000_001, 987_654_321];
    call(libc::SYS_utimensat, [raw(&file), 0, at(&times), 0])?;
    let stat = rustix::fs::fstat(&file)?;
    let kept = stat.st_mtime == times[2] && i64::try_from(stat.st_mtime_nsec) == Ok(times[3]);
    as_linux(kept, "is not kept to the nanosecond")
}

fn extended_attributes() -> Attempt {
    let file = file("attributes")?;
    let (name, mut value) = (c"user.stacyvm", [0_u8; 7]);
    call(libc::SYS_fsetxattr, [raw(&file), at(name), at(CONTENT), CONTENT.len(), 0])?;
    let length = call(libc::SYS_fgetxattr, [raw(&file), at(name), at_mut(&mut value), value.len()])?;
    as_linux(&value[..length] == CONTENT, "other bytes")
}

fn tmpfile() -> Attempt {
    let flags = libc::O_TMPFILE | libc::O_RDWR;
    let opened = call(libc::SYS_openat, [HERE, at(c"."), flags as usize, 0o600]);
    let file = own(opened.unknown_if(&[Errno::ISDIR, Errno::INVAL, Errno::NOENT])?);
    let path = format!("/proc/self/fd/{}\0", raw(&file));
    let follow = libc::AT_SYMLINK_FOLLOW as usize;
    call(libc::SYS_linkat, [HERE, at(path.as_str()), HERE, at(c"tmpfile"), follow])?;
    works()
}

fn direct() -> Attempt {
    drop(file("direct")?);
    let flags = libc::O_DIRECT | libc::O_RDWR;
    call(libc::SYS_openat, [HERE, at(c"direct"), flags as usize, 0]).unknown_if(&[Errno::INVAL])?;
    works()
}

fn rename(flags: usize) -> Result<(u64, u64), Not> {
    let inode = |name: &str| Ok::<_, Errno>(rustix::fs::fstat(filled(name)?)?.st_ino);
    let before = (inode("one")?, inode("two")?);
    call(libc::SYS_renameat2, [HERE, at(c"one"), HERE, at(c"two"), flags]).unknown_if(&[Errno::INVAL])?;
    Ok(before)
}

fn rename_no_replace() -> Attempt {
    const NOREPLACE: usize = 1;
    match rename(NOREPLACE) {
        Err(not) if not == Errno::EXIST.into() => works(),
        Err(not) => Err(not),
        Ok(_) => Err(Not::Differs("replaces".to_owned())),
    }
}

fn rename_exchange() -> Attempt {
    const EXCHANGE: usize = 2;
    let (one, two) = rename(EXCHANGE)?;
    let after = (rustix::fs::stat("one")?.st_ino, rustix::fs::stat("two")?.st_ino);
    as_linux(after == (two, one), "does not exchange")
}

fn allocate(mode: usize) -> Attempt {
    let file = filled("allocated")?;
    call(libc::SYS_fallocate, [raw(&file), mode, 0, 1 << 16])?;
    as_linux(rustix::fs::fstat(&file)?.st_size == 1 << 16, "another size")
}

fn punch_hole() -> Attempt {
    const PUNCH_KEEP_SIZE: usize = 2 | 1;
    let file = filled("hole")?;
    call(libc::SYS_fallocate, [raw(&file), PUNCH_KEEP_SIZE, 0, CONTENT.len()])?;
    let mut bytes = [1; 16];
    let length = rustix::io::read(&file, &mut bytes)?;
    as_linux(bytes[..length] == [0; CONTENT.len()], "keeps the content")
}

fn seek_data() -> Attempt {
    const START: usize = 1 << 20;
    let file = file("sparse")?;
    rustix::fs::seek(&file, rustix::fs::SeekFrom::Start(START as u64))?;
    rustix::io::write(&file, CONTENT)?;
    let data = call(libc::SYS_lseek, [raw(&file), 0, libc::SEEK_DATA as usize]);
    match data.unknown_if(&[Errno::INVAL])? {
        START => works(),
        0 => Err(Not::Differs("takes a hole for data".to_owned())),
        other => Err(Not::Differs(format!("data at {other}"))),
    }
}

fn preadv2() -> Attempt {
    const NOWAIT: usize = 8;
    let (file, mut bytes) = (filled("preadv2")?, [0_u8; 16]);
    let buffers = [at_mut(&mut bytes), bytes.len()];
    match call(libc::SYS_preadv2, [raw(&file), at(&buffers), 1, 0, 0, NOWAIT]) {
        Ok(_) | Err(Errno::AGAIN) => works(),
        Err(errno) => Err(errno.into()),
    }
}

fn copy_file_range() -> Attempt {
    let (from, to) = (filled("from")?, file("to")?);
    call(libc::SYS_copy_file_range, [raw(&from), 0, raw(&to), 0, CONTENT.len(), 0])?;
    holds_content(&to)
}

fn sendfile() -> Attempt {
    let (from, to) = (filled("sent")?, file("received")?);
    call(libc::SYS_sendfile, [raw(&to), raw(&from), 0, CONTENT.len()])?;
    holds_content(&to)
}

/// The read end of a pipe that holds the content, and another pipe.
fn pipes() -> Result<(OwnedFd, OwnedFd, (OwnedFd, OwnedFd)), Errno> {
    let (reader, writer) = rustix::pipe::pipe()?;
    rustix::io::write(&writer, CONTENT)?;
    Ok((reader, writer, rustix::pipe::pipe()?))
}

fn splice() -> Attempt {
    let (from, _writer, (reader, to)) = pipes()?;
    call(libc::SYS_splice, [raw(&from), 0, raw(&to), 0, CONTENT.len(), 0])?;
    holds_content(&reader)
}

fn tee() -> Attempt {
    let (from, _writer, (reader, to)) = pipes()?;
    call(libc::SYS_tee, [raw(&from), raw(&to), CONTENT.len(), 0])?;
    holds_content(&reader)?;
    holds_content(&from)
}

fn vmsplice() -> Attempt {
    let (reader, writer) = rustix::pipe::pipe()?;
    let buffer = [at(CONTENT), CONTENT.len()];
    call(libc::SYS_vmsplice, [raw(&writer), at(&buffer), 1, 0])?;
    holds_content(&reader)
}

fn inotify() -> Attempt {
    let watcher = own(call(libc::SYS_inotify_init1, [0])?);
    call(libc::SYS_inotify_add_watch, [raw(&watcher), at(c"."), libc::IN_CREATE as usize])?;
    drop(file("watched")?);
    as_linux(readable(&watcher), "does not tell of a new file")
}
