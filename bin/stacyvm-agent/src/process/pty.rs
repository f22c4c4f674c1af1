//! A terminal: our end of the pair, its size, and what it takes to make one in a place where `/dev` is not ours to trust.

use crate::fail::{Fail, Result};
use rustix::{
    fs::{FileType, Mode, OFlags, fstat, major, minor, open},
    io::{Errno, fcntl_dupfd_cloexec},
    pty::{OpenptFlags, ioctl_tiocgptpeer, ptsname, unlockpt},
    termios::{InputModes, OptionalActions, Winsize, tcgetattr, tcsetattr, tcsetwinsize},
};
use stacyvm_guest::proto::PtySize;
use std::os::fd::OwnedFd;

/// Device number of the multiplexer, on every Linux.
const MULTIPLEXER: (u32, u32) = (5, 2);
/// Device numbers of the terminals that it makes.
const TERMINALS: std::ops::RangeInclusive<u32> = 136..=143;

/// Rows and columns, neither of them 0: programs divide by them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size {
    rows: u16,
    cols: u16,
}

impl Size {
    /// A size that a terminal can have.
    ///
    /// # Errors
    /// `InvalidArgument`.
    pub(crate) fn new(size: PtySize) -> Result<Self> {
        let side = |side| u16::try_from(side).ok().filter(|side| *side > 0);
        match (side(size.rows), side(size.cols)) {
            (Some(rows), Some(cols)) => Ok(Self { rows, cols }),
            _ => Err(Fail::invalid("a terminal has 1 to 65535 rows and as many columns")),
        }
    }
}

impl From<Size> for PtySize {
    fn from(size: Size) -> Self {
        Self { rows: size.rows.into(), cols: size.cols.into() }
    }
}

/// Our end. The terminal hangs up when the last descriptor of it is closed.
#[derive(Debug)]
pub(super) struct Pty {
    /// Until it is closed.
    ours: Option<OwnedFd>,
    size: Size,
}

impl Pty {
    /// A new terminal: our end, the same again, twice, for reading and writing, and the end for a process.
    ///
    /// # Errors
    /// The kernel's; `NOSPC` if there are too many terminals, `NODEV` if `/dev/ptmx` is something else.
    pub(super) fn open(size: Size) -> Result<(Self, [OwnedFd; 2], OwnedFd), Errno> {
        // Whoever is root inside may have put anything there, a pipe that nobody writes to for example.
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let ours = open("/dev/ptmx", flags, Mode::empty())?;
        let is = device(&ours)?;
        if is != Some(MULTIPLEXER) {
            return Err(Errno::NODEV);
        }
        unlockpt(&ours)?;
        let theirs =
            match ioctl_tiocgptpeer(&ours, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC) {
                // A kernel that does not know how (gVisor): by its name, then.
                Err(Errno::NOTTY | Errno::INVAL | Errno::NOSYS) => by_name(&ours)?,
                theirs => theirs?,
            };
        // Erasing a character erases all of its bytes.
        let mut modes = tcgetattr(&theirs)?;
        modes.input_modes |= InputModes::IUTF8;
        tcsetattr(&theirs, OptionalActions::Now, &modes)?;
        let more = [fcntl_dupfd_cloexec(&ours, 0)?, fcntl_dupfd_cloexec(&ours, 0)?];
        let mut pty = Self { ours: Some(ours), size };
        pty.resize(size)?;
        Ok((pty, more, theirs))
    }

    /// Makes it as large as said; what runs in its foreground gets `SIGWINCH` if that is news. Nothing once it is closed.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn resize(&mut self, size: Size) -> Result<(), Errno> {
        let Size { rows, cols } = size;
        if let Some(ours) = &self.ours {
            tcsetwinsize(ours, Winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 })?;
            self.size = size;
        }
        Ok(())
    }

    /// Gives this descriptor back: nobody looks at the terminal of a process that has ended.
    pub(super) fn close(&mut self) {
        self.ours = None;
    }

    /// As large as it was made last.
    pub(super) fn size(&self) -> Size {
        self.size
    }
}

/// Major and minor number of a character device.
fn device(file: &OwnedFd) -> Result<Option<(u32, u32)>, Errno> {
    let stat = fstat(file)?;
    let is_device = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice;
    Ok(is_device.then(|| (major(stat.st_rdev), minor(stat.st_rdev))))
}

fn by_name(ours: &OwnedFd) -> Result<OwnedFd, Errno> {
    let name = ptsname(ours, Vec::new())?;
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOFOLLOW;
    let theirs = open(name.as_c_str(), flags, Mode::empty())?;
    match device(&theirs)? {
        Some((major, _)) if TERMINALS.contains(&major) => {}
        _ => return Err(Errno::NODEV),
    }
    // A process expects to wait for what it reads.
    rustix::fs::fcntl_setfl(&theirs, OFlags::RDWR)?;
    Ok(theirs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::termios::tcgetwinsize;

    fn size(rows: u32, cols: u32) -> Result<Size> {
        Size::new(PtySize { rows, cols })
    }

    #[test]
    fn sizes_are_what_a_terminal_can_have() {
        assert!(size(1, 65_535).is_ok());
        for (rows, cols) in [(0, 80), (24, 0), (65_536, 80), (24, u32::MAX)] {
            assert!(size(rows, cols).is_err(), "{rows} x {cols}");
        }
    }

    #[test]
    fn both_ends_know_the_size() {
        let (mut pty, _, theirs) = Pty::open(size(24, 80).unwrap()).unwrap();
        let seen = || tcgetwinsize(&theirs).map(|seen| (seen.ws_row, seen.ws_col)).unwrap();
        assert_eq!(seen(), (24, 80));
        pty.resize(size(50, 132).unwrap()).unwrap();
        assert_eq!((seen(), PtySize::from(pty.size())), ((50, 132), PtySize { rows: 50, cols: 132 }));
        let modes = tcgetattr(&theirs).unwrap();
        assert!(modes.input_modes.contains(InputModes::IUTF8));
    }

    #[test]
    fn a_terminal_found_by_its_name_is_the_same_one() {
        let (_pty, [ours, _], theirs) = Pty::open(size(24, 80).unwrap()).unwrap();
        let named = by_name(&ours).unwrap();
        assert_eq!(fstat(&named).unwrap().st_rdev, fstat(&theirs).unwrap().st_rdev);
    }
}
