//! Commands about the terminal that a process is at.
#![expect(unsafe_code, reason = "waiting for a signal")]

use crate::{Failure, LONGEST, Result, streams::say};
use rustix::{
    fs::{Mode, OFlags, open},
    process::getpgrp,
    stdio::{stderr, stdin, stdout},
    termios::{isatty, tcgetpgrp, tcgetwinsize},
};

/// `terminal`: which of the standard streams are one, its size, and whether it controls this session and has this process
/// in its foreground.
pub(crate) fn look() -> Result {
    let is = |yes: bool| u8::from(yes);
    let [first, second, third] = [isatty(stdin()), isatty(stdout()), isatty(stderr())].map(is);
    // Only the terminal that controls the session has this name.
    let controlling = open("/dev/tty", OFlags::RDWR | OFlags::NOCTTY, Mode::empty());
    let controlling =
        controlling.is_ok_and(|tty| tcgetpgrp(&tty).is_ok_and(|group| tcgetpgrp(stdin()) == Ok(group)));
    let foreground = tcgetpgrp(stdin()).is_ok_and(|group| group == getpgrp());
    let size = size().unwrap_or_default();
    let (controlling, foreground) = (is(controlling), is(foreground));
    let text = format!(
        "stdin={first} stdout={second} stderr={third} size={size} foreground={foreground} controlling={controlling}\n"
    );
    say(text.as_bytes())?;
    Ok(0)
}

fn size() -> Result<String> {
    let size = tcgetwinsize(stdin()).map_err(|errno| Failure::System("the size of the terminal", errno))?;
    Ok(format!("{}x{}", size.ws_row, size.ws_col))
}

/// `sizes`: the size of the terminal, and again whenever it is told of another one.
pub(crate) fn sizes() -> Result {
    let mut received = 0;
    // SAFETY: `set` is plain data that sigemptyset initialises before any use, and every pointer outlives its call.
    unsafe {
        libc::alarm(u32::try_from(LONGEST.as_secs()).unwrap_or(120));
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGWINCH);
        libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
        loop {
            say(format!("{}\n", size()?).as_bytes())?;
            libc::sigwait(&raw const set, &raw mut received);
        }
    }
}
