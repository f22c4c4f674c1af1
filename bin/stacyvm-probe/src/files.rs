//! Commands that make what the files API is then asked about, or look at what it made.

use crate::{
    Args, Failure, Result,
    streams::{say, write_all},
};
use rustix::{
    fs::{CWD, FileType, Mode, OFlags},
    io::Errno,
};

fn system(what: &'static str) -> impl Fn(Errno) -> Failure {
    move |errno| Failure::System(what, errno)
}

/// A whole file.
pub(crate) fn slurp(path: &[u8]) -> Result<Vec<u8>> {
    let file =
        rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(system("open"))?;
    let (mut content, mut buffer) = (Vec::new(), vec![0; 64 << 10]);
    loop {
        match rustix::io::read(&file, &mut buffer) {
            Ok(0) => return Ok(content),
            Ok(count) => content.extend_from_slice(&buffer[..count]),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(Failure::System("read", errno)),
        }
    }
}

/// `read FILE`: its content to stdout.
pub(crate) fn read(args: &Args) -> Result {
    say(&slurp(args.bytes(0)?)?)?;
    Ok(0)
}

fn put(args: &Args, flags: OFlags) -> Result {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC | flags;
    let file = rustix::fs::open(args.bytes(0)?, flags, Mode::from_raw_mode(0o644)).map_err(system("open"))?;
    write_all(file, args.bytes(1)?)?;
    Ok(0)
}

/// `write FILE TEXT`: replaces its content.
pub(crate) fn write(args: &Args) -> Result {
    put(args, OFlags::TRUNC)
}

/// `append FILE TEXT`.
pub(crate) fn append(args: &Args) -> Result {
    put(args, OFlags::APPEND)
}

/// `symlink TARGET LINK`.
pub(crate) fn symlink(args: &Args) -> Result {
    rustix::fs::symlink(args.bytes(0)?, args.bytes(1)?).map_err(system("symlink"))?;
    Ok(0)
}

/// `mkfifo PATH`.
pub(crate) fn mkfifo(args: &Args) -> Result {
    let mode = Mode::from_raw_mode(0o644);
    rustix::fs::mknodat(CWD, args.bytes(0)?, FileType::Fifo, mode, 0).map_err(system("mknod"))?;
    Ok(0)
}

/// `mkdir PATH`.
pub(crate) fn mkdir(args: &Args) -> Result {
    rustix::fs::mkdir(args.bytes(0)?, Mode::from_raw_mode(0o755)).map_err(system("mkdir"))?;
    Ok(0)
}

/// `truncate FILE LENGTH`.
pub(crate) fn truncate(args: &Args) -> Result {
    let file = rustix::fs::open(args.bytes(0)?, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty());
    rustix::fs::ftruncate(file.map_err(system("open"))?, args.number(1)?).map_err(system("truncate"))?;
    Ok(0)
}

/// `fill FILE MIB`: writes so many MiB; prints how many were written, also where the next did not fit.
pub(crate) fn fill(args: &Args) -> Result {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
    let file = rustix::fs::open(args.bytes(0)?, flags, Mode::from_raw_mode(0o644)).map_err(system("open"))?;
    let piece = vec![0xa5; 64 << 10];
    let pieces = args.number(1)?.saturating_mul(16);
    let mut written = 0;
    let result = (0..pieces).try_for_each(|_| {
        write_all(&file, &piece)?;
        written += 1;
        Ok(())
    });
    say(format!("{}\n", written / 16).as_bytes())?;
    result.map(|()| 0)
}

/// `swap A B MS`: prints `ready` and exchanges the two names over and over, for that long.
pub(crate) fn swap(args: &Args) -> Result {
    let (one, other) = (args.bytes(0)?, args.bytes(1)?);
    let aside = [one, b".aside"].concat();
    let until = std::time::Instant::now() + args.millis(2)?;
    say(b"ready\n")?;
    let mut turns = 0u32;
    while std::time::Instant::now() < until {
        turns = turns.wrapping_add(1);
        if turns.is_multiple_of(32) {
            // Whoever races with us wants some of the processor, too.
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        let exchanged = rustix::fs::renameat_with(CWD, one, CWD, other, rustix::fs::RenameFlags::EXCHANGE);
        if exchanged.is_err() {
            // A kernel that cannot do it in one step; whoever races with us may be in the way, too.
            let steps = [(one, &aside[..]), (other, one), (&aside[..], other)];
            for (from, to) in steps {
                let _ = rustix::fs::rename(from, to);
            }
        }
    }
    Ok(0)
}

/// `touch-many DIRECTORY N`: empty files `f0000`, `f0001`, …
pub(crate) fn touch_many(args: &Args) -> Result {
    for number in 0..args.number(1)? {
        let path = [args.bytes(0)?, format!("/f{number:04}").as_bytes()].concat();
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC;
        rustix::fs::open(path, flags, Mode::from_raw_mode(0o644)).map_err(system("open"))?;
    }
    Ok(0)
}

/// `rename-many DIRECTORY N`: one file, whose name is `f0`, `f1`, … one after the other.
pub(crate) fn rename_many(args: &Args) -> Result {
    let path =
        |number: u64| Ok::<_, crate::Failure>([args.bytes(0)?, format!("/f{number}").as_bytes()].concat());
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC;
    rustix::fs::open(path(0)?, flags, Mode::from_raw_mode(0o644)).map_err(system("open"))?;
    for number in 0..args.number(1)? {
        rustix::fs::rename(path(number)?, path(number + 1)?).map_err(system("rename"))?;
    }
    Ok(0)
}

/// `raw-name DIRECTORY`: a file there whose name is not UTF-8.
pub(crate) fn raw_name(args: &Args) -> Result {
    let path = [args.bytes(0)?, b"/bad\xff\xfename"].concat();
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::from_raw_mode(0o644)).map_err(system("open"))?;
    Ok(0)
}
