//! One attempt: in a process of its own, so that it may change or lose that process, with a verdict whatever happens to it.
#![expect(unsafe_code, reason = "system calls that no crate wraps, and fork")]

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fd::{AsRawFd, OwnedFd},
    io::Errno,
};
use std::time::{Duration, Instant};

/// Seconds after which an attempt is taken to hang.
const PATIENCE: u32 = 5;
/// For an attempt that the alarm does not end, and again for one that a kill does not end.
const MERCY: Duration = Duration::from_secs(1);

/// What works, with what is worth knowing about it, or why it does not.
pub(super) type Attempt = Result<String, Not>;

/// How something does not work, with what was seen.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Not {
    /// A policy said no.
    Refused(String),
    /// This kernel does not have it.
    Absent(String),
    /// It answers, but not as Linux does.
    Differs(String),
    /// Anything else.
    Failed(String),
}

impl From<Errno> for Not {
    fn from(errno: Errno) -> Self {
        let name = name(errno);
        match errno {
            Errno::PERM | Errno::ACCESS | Errno::ROFS => Self::Refused(name),
            Errno::NOSYS
            | Errno::OPNOTSUPP
            | Errno::AFNOSUPPORT
            | Errno::PROTONOSUPPORT
            | Errno::SOCKTNOSUPPORT
            | Errno::NOPROTOOPT
            | Errno::NODEV
            | Errno::NXIO => Self::Absent(name),
            _ => Self::Failed(name),
        }
    }
}

/// It works, and there is no more to say.
pub(super) fn works() -> Attempt {
    Ok(String::new())
}

/// It works if it did what Linux does, else what was seen.
pub(super) fn as_linux(does: bool, seen: impl Into<String>) -> Attempt {
    if does { works() } else { Err(Not::Differs(seen.into())) }
}

/// Outcomes that only the caller of a call can judge.
pub(super) trait Judge<T> {
    /// An error by which a kernel says that it does not know this.
    fn unknown_if(self, errnos: &[Errno]) -> Result<T, Not>;
    /// Whether a call was permitted that is made with arguments which mean nothing, because it must not happen: one of
    /// the errors that come behind the check of permissions.
    fn permitted_if(self, errnos: &[Errno]) -> Attempt;
}

impl<T> Judge<T> for Result<T, Errno> {
    fn unknown_if(self, errnos: &[Errno]) -> Result<T, Not> {
        self.map_err(|errno| if errnos.contains(&errno) { Not::Absent(name(errno)) } else { errno.into() })
    }

    fn permitted_if(self, errnos: &[Errno]) -> Attempt {
        match self {
            Ok(_) => works(),
            Err(errno) if errnos.contains(&errno) => Ok(format!("permitted: {}", name(errno))),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// Name of an error.
pub(super) fn name(errno: Errno) -> String {
    let name = match errno {
        Errno::PERM => "EPERM",
        Errno::ACCESS => "EACCES",
        Errno::NOSYS => "ENOSYS",
        Errno::INVAL => "EINVAL",
        Errno::OPNOTSUPP => "EOPNOTSUPP",
        Errno::AFNOSUPPORT => "EAFNOSUPPORT",
        Errno::PROTONOSUPPORT => "EPROTONOSUPPORT",
        Errno::SOCKTNOSUPPORT => "ESOCKTNOSUPPORT",
        Errno::NOPROTOOPT => "ENOPROTOOPT",
        Errno::NODEV => "ENODEV",
        Errno::NXIO => "ENXIO",
        Errno::NOENT => "ENOENT",
        Errno::ROFS => "EROFS",
        Errno::NOTTY => "ENOTTY",
        Errno::NOSPC => "ENOSPC",
        Errno::NOMEM => "ENOMEM",
        Errno::NOEXEC => "ENOEXEC",
        Errno::BADF => "EBADF",
        Errno::BUSY => "EBUSY",
        Errno::AGAIN => "EAGAIN",
        Errno::ISDIR => "EISDIR",
        Errno::EXIST => "EEXIST",
        Errno::STALE => "ESTALE",
        Errno::FAULT => "EFAULT",
        Errno::SRCH => "ESRCH",
        Errno::XDEV => "EXDEV",
        Errno::ADDRNOTAVAIL => "EADDRNOTAVAIL",
        Errno::MFILE => "EMFILE",
        Errno::USERS => "EUSERS",
        _ => return format!("errno {}", errno.raw_os_error()),
    };
    name.to_owned()
}

/// The system call itself, past any library that would emulate it.
pub(super) fn call<const N: usize>(number: libc::c_long, args: [usize; N]) -> Result<usize, Errno> {
    let arg = |index: usize| args.get(index).copied().unwrap_or(0);
    // SAFETY: addresses among the arguments come from `at` and `at_mut`, of values that the caller holds over the call.
    // What a call does to the process otherwise, it does to one that is forked for the attempt and ends behind it.
    let result = unsafe { libc::syscall(number, arg(0), arg(1), arg(2), arg(3), arg(4), arg(5)) };
    usize::try_from(result).map_err(|_| last_errno())
}

pub(super) fn last_errno() -> Errno {
    Errno::from_raw_os_error(std::io::Error::last_os_error().raw_os_error().unwrap_or_default())
}

/// Address of a value, as an argument.
pub(super) fn at<T: ?Sized>(value: &T) -> usize {
    std::ptr::from_ref(value).cast::<u8>().expose_provenance()
}

/// The same of one that the call writes to.
pub(super) fn at_mut<T: ?Sized>(value: &mut T) -> usize {
    std::ptr::from_mut(value).cast::<u8>().expose_provenance()
}

/// A descriptor as an argument.
pub(super) fn raw(fd: &OwnedFd) -> usize {
    fd.as_raw_fd() as usize
}

/// -1 as an argument.
pub(super) const NONE: usize = usize::MAX;
/// `AT_FDCWD` as an argument.
pub(super) const HERE: usize = libc::AT_FDCWD as usize;

/// Forks within an attempt; the child does `child` and ends with its status. Returns its number.
pub(super) fn child(child: impl FnOnce() -> i32) -> Result<usize, Errno> {
    // SAFETY: this program has one thread, so the child may go on as the parent could.
    match unsafe { libc::fork() } {
        -1 => Err(last_errno()),
        0 => leave(child()),
        pid => Ok(pid as usize),
    }
}

/// Status of a child, once it has one.
pub(super) fn wait(pid: usize) -> Result<i32, Errno> {
    let mut status = 0_i32;
    call(libc::SYS_wait4, [pid, at_mut(&mut status), 0, 0])?;
    Ok(status)
}

/// Ends this process without anything that belongs to the one it was forked from.
pub(super) fn leave(status: i32) -> ! {
    // SAFETY: ends the process; nothing of it is used afterwards.
    unsafe { libc::_exit(status) }
}

/// Runs one in a process of its own.
pub(super) fn run(attempt: impl FnOnce() -> Attempt) -> Attempt {
    let (reader, writer) = rustix::pipe::pipe()?;
    let pid = child(|| {
        // Alone in its group, so that whatever it leaves behind can be killed with it.
        let _ = call(libc::SYS_setpgid, [0, 0]);
        // SAFETY: a plain number; the default action of the signal is to end the process.
        unsafe { libc::alarm(PATIENCE) };
        let record = encode(&attempt());
        i32::from(rustix::io::write(&writer, record.as_bytes()).is_err())
    })?;
    drop(writer);
    let _ = call(libc::SYS_setpgid, [pid, pid]);
    let record = read(&reader);
    // Its own end is waited for only where that is all there is to know.
    let group = (pid as isize).wrapping_neg() as usize;
    if record.is_some() {
        let _ = call(libc::SYS_kill, [group, libc::SIGKILL as usize]);
    }
    let status = reap(pid, MERCY).or_else(|| {
        let _ = call(libc::SYS_kill, [group, libc::SIGKILL as usize]);
        let _ = call(libc::SYS_kill, [pid, libc::SIGKILL as usize]);
        reap(pid, MERCY)
    });
    match record {
        Some(verdict) => verdict,
        None => Err(ended(status)),
    }
}

/// The verdict; none if the attempt ended or hung without one.
fn read(reader: &OwnedFd) -> Option<Attempt> {
    let patience = Timespec { tv_sec: i64::from(PATIENCE) + 1, tv_nsec: 0 };
    let mut fds = [PollFd::new(reader, PollFlags::IN)];
    poll(&mut fds, Some(&patience)).ok().filter(|ready| *ready > 0)?;
    // Shorter than what a pipe takes and gives in one piece.
    let mut record = [0; 1024];
    let length = rustix::io::read(reader, &mut record).ok().filter(|length| *length > 0)?;
    decode(&String::from_utf8_lossy(&record[..length]))
}

fn reap(pid: usize, patience: Duration) -> Option<i32> {
    let until = Instant::now() + patience;
    let mut status = 0_i32;
    loop {
        match call(libc::SYS_wait4, [pid, at_mut(&mut status), libc::WNOHANG as usize, 0]) {
            Ok(0) if Instant::now() < until => std::thread::sleep(Duration::from_millis(1)),
            Ok(0) | Err(_) => return None,
            Ok(_) => return Some(status),
        }
    }
}

/// What an end without a verdict says.
fn ended(status: Option<i32>) -> Not {
    match status {
        Some(status) if libc::WIFSIGNALED(status) => match libc::WTERMSIG(status) {
            libc::SIGSYS => Not::Refused("SIGSYS".to_owned()),
            libc::SIGALRM | libc::SIGKILL => Not::Failed("hangs".to_owned()),
            signal => Not::Failed(format!("signal {signal}")),
        },
        Some(status) => Not::Failed(format!("status {}", libc::WEXITSTATUS(status))),
        None => Not::Failed("hangs and cannot be killed".to_owned()),
    }
}

/// Outcome and detail of a verdict.
pub(super) fn words(verdict: &Attempt) -> (&'static str, &str) {
    match verdict {
        Ok(detail) => ("works", detail),
        Err(Not::Refused(detail)) => ("refused", detail),
        Err(Not::Absent(detail)) => ("absent", detail),
        Err(Not::Differs(detail)) => ("differs", detail),
        Err(Not::Failed(detail)) => ("failed", detail),
    }
}

fn encode(verdict: &Attempt) -> String {
    let (outcome, detail) = words(verdict);
    format!("{outcome}\t{}", detail.chars().take(200).collect::<String>())
}

fn decode(record: &str) -> Option<Attempt> {
    let (outcome, detail) = record.split_once('\t')?;
    // Tabs and ends of lines are how the report is read.
    let detail = detail.replace(char::is_control, " ").trim().to_owned();
    Some(match outcome {
        "works" => Ok(detail),
        "refused" => Err(Not::Refused(detail)),
        "absent" => Err(Not::Absent(detail)),
        "differs" => Err(Not::Differs(detail)),
        _ => Err(Not::Failed(detail)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_comes_whatever_happens() {
        assert_eq!(run(|| Ok("a\tb\n".to_owned())), Ok("a b".to_owned()));
        assert_eq!(run(|| as_linux(false, "seen")), Err(Not::Differs("seen".to_owned())));
        assert_eq!(run(|| Err(Errno::PERM)?), Err(Not::Refused("EPERM".to_owned())));
        fn killed(signal: i32) -> Attempt {
            call(libc::SYS_kill, [std::process::id() as usize, signal as usize])?;
            works()
        }
        assert_eq!(run(|| killed(libc::SIGSYS)), Err(Not::Refused("SIGSYS".to_owned())));
        assert_eq!(run(|| killed(libc::SIGALRM)), Err(Not::Failed("hangs".to_owned())));
        assert_eq!(run(|| leave(3)), Err(Not::Failed("status 3".to_owned())));
    }

    #[test]
    fn what_an_error_means_depends_on_the_call() {
        let result = || Err::<(), _>(Errno::INVAL);
        assert_eq!(result().unknown_if(&[Errno::INVAL]), Err(Not::Absent("EINVAL".to_owned())));
        assert_eq!(result().permitted_if(&[Errno::INVAL]), Ok("permitted: EINVAL".to_owned()));
        assert_eq!(result().permitted_if(&[Errno::BADF]), Err(Not::Failed("EINVAL".to_owned())));
    }
}
