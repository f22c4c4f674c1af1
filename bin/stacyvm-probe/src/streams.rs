//! Commands about stdin, stdout and stderr: exact bytes, written as soon as they exist.

use crate::{Args, Failure, LONGEST, Result};
use rustix::{fd::AsFd, io::Errno};
use std::{
    os::unix::ffi::OsStrExt,
    time::{Duration, Instant},
};

/// Writes everything, through signals and short writes.
pub(crate) fn write_all(fd: impl AsFd, mut data: &[u8]) -> Result<()> {
    while !data.is_empty() {
        match rustix::io::write(&fd, data) {
            Ok(written) => data = &data[written..],
            Err(Errno::INTR) => {}
            Err(errno) => return Err(Failure::System("write", errno)),
        }
    }
    Ok(())
}

/// Writes to stdout.
pub(crate) fn say(data: &[u8]) -> Result<()> {
    write_all(rustix::stdio::stdout(), data)
}

/// Writes to stderr as far as that works: there is nobody left to tell when it does not.
pub(crate) fn say_err(data: &[u8]) {
    let _ = write_all(rustix::stdio::stderr(), data);
}

/// `echo WORDS…`: the words, blanks between them, a newline.
pub(crate) fn echo(args: &Args) -> Result {
    let words: Vec<&[u8]> = args.0.iter().map(|word| word.as_bytes()).collect();
    say(&[words.join(&b' ').as_slice(), b"\n"].concat())?;
    Ok(0)
}

/// `args WORDS…`: each word with a NUL behind it.
pub(crate) fn args(args: &Args) -> Result {
    for word in &args.0 {
        say(&[word.as_bytes(), b"\0"].concat())?;
    }
    Ok(0)
}

fn each_input(mut take: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        match rustix::io::read(rustix::stdio::stdin(), &mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => take(&buffer[..count])?,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(Failure::System("read stdin", errno)),
        }
    }
}

/// `cat`: stdin to stdout.
pub(crate) fn cat() -> Result {
    each_input(say)?;
    Ok(0)
}

/// `stdin-hash`: how many bytes came and their 64-bit FNV-1a hash, as `BYTES HASH`.
pub(crate) fn stdin_hash() -> Result {
    let (mut count, mut hash) = (0_u64, 0xcbf2_9ce4_8422_2325_u64);
    each_input(|data| {
        count += data.len() as u64;
        for byte in data {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        Ok(())
    })?;
    say(format!("{count} {hash:016x}\n").as_bytes())?;
    Ok(0)
}

/// `bytes N`: all 256 byte values in order, N times, to stdout; in reverse order to stderr.
pub(crate) fn bytes(args: &Args) -> Result {
    let up: Vec<u8> = (0..=255).collect();
    let down: Vec<u8> = (0..=255).rev().collect();
    for _ in 0..args.number(0)? {
        say(&up)?;
        write_all(rustix::stdio::stderr(), &down)?;
    }
    Ok(0)
}

/// `both N`: lines `out I` to stdout and `err I` to stderr, in turn.
pub(crate) fn both(args: &Args) -> Result {
    for line in 0..args.number(0)? {
        say(format!("out {line}\n").as_bytes())?;
        write_all(rustix::stdio::stderr(), format!("err {line}\n").as_bytes())?;
    }
    Ok(0)
}

/// `count INTERVAL_MS N`: the numbers from 0 to N-1, a line each.
pub(crate) fn count(args: &Args) -> Result {
    let (interval, until) = (args.millis(0)?, Instant::now() + LONGEST);
    for number in 0..args.number(1)? {
        say(format!("{number}\n").as_bytes())?;
        if interval > Duration::ZERO {
            std::thread::sleep(interval);
        }
        if Instant::now() > until {
            break;
        }
    }
    Ok(0)
}

/// Byte at a position of what `flood` writes. The checks compute the same.
fn pattern(position: u64) -> u8 {
    position.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes()[0]
}

/// `flood BYTES [wait]`: that many bytes of a fixed pattern to stdout, as fast as they are taken. With `wait`, not before
/// the end of stdin: until then a reader can attach.
pub(crate) fn flood(args: &Args) -> Result {
    let total = args.number(0)?;
    if args.text(1).is_ok_and(|word| word == "wait") {
        each_input(|_| Ok(()))?;
    }
    let mut position = 0;
    while position < total {
        let end = total.min(position + (64 << 10));
        let piece: Vec<u8> = (position..end).map(pattern).collect();
        say(&piece)?;
        position = end;
    }
    Ok(0)
}
