//! What agent and supervisor say to each other: frames of 16 bytes over a stream socket, one per event.

use rustix::io::Errno;

/// Length of every frame, in bytes.
pub(crate) const FRAME: usize = 16;

/// Where the start of a process failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Step {
    /// No process could be made.
    Fork = 1,
    /// Reading the request or setting up descriptors, signals, limits.
    Prepare = 2,
    /// Making the process an ordinary victim of memory shortage.
    OomScore = 3,
    /// Changing to the user and its groups.
    User = 4,
    /// Dropping capabilities and forbidding new ones.
    Privileges = 5,
    /// Entering the working directory.
    Directory = 6,
    /// Executing the program.
    Execute = 7,
    /// The program is there, its interpreter is not.
    Interpreter = 8,
}

impl Step {
    const ALL: [Self; 8] = [
        Self::Fork,
        Self::Prepare,
        Self::OomScore,
        Self::User,
        Self::Privileges,
        Self::Directory,
        Self::Execute,
        Self::Interpreter,
    ];

    /// The step with this number.
    pub(crate) fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|step| *step as u8 == number)
    }
}

/// How a leader ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// By itself, with this code.
    Exited(i32),
    /// By this signal.
    Signaled(i32),
}

/// From a supervisor, and about it. The stream ends when it is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Report {
    /// From the zygote, at any time: the supervisor's own process id.
    Forked { pid: i32 },
    /// The program runs.
    Started { pid: i32 },
    /// It does not, and never will.
    Failed { step: Step, errno: i32 },
    /// The leader ended. `ours`: we had sent the signal that ended it, or may have.
    Ended { ending: Ending, timed_out: bool, ours: bool },
    /// Answer to a [`Command`].
    Signalled { sequence: u32, delivered: bool },
    /// No process of the tree is left. A stream that ends without this is that of a supervisor that was killed.
    Done,
}

/// To a supervisor: send a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Command {
    pub(crate) sequence: u32,
    pub(crate) signal: i32,
    pub(crate) tree: bool,
}

fn frame(kind: u8, flags: u8, a: i32, b: u32) -> [u8; FRAME] {
    let mut frame = [0; FRAME];
    frame[0] = kind;
    frame[1] = flags;
    frame[4..8].copy_from_slice(&a.to_le_bytes());
    frame[8..12].copy_from_slice(&b.to_le_bytes());
    frame
}

fn fields(frame: [u8; FRAME]) -> (u8, u8, i32, u32) {
    let [kind, flags, _, _, a0, a1, a2, a3, b0, b1, b2, b3, ..] = frame;
    (kind, flags, i32::from_le_bytes([a0, a1, a2, a3]), u32::from_le_bytes([b0, b1, b2, b3]))
}

impl Report {
    /// A failure at `step`.
    pub(crate) fn failed(step: Step, errno: Errno) -> Self {
        Self::Failed { step, errno: errno.raw_os_error() }
    }

    pub(crate) fn encode(self) -> [u8; FRAME] {
        match self {
            Self::Started { pid } => frame(1, 0, pid, 0),
            Self::Failed { step, errno } => frame(2, step as u8, errno, 0),
            Self::Ended { ending, timed_out, ours } => {
                let (signaled, number) = match ending {
                    Ending::Exited(code) => (0, code),
                    Ending::Signaled(signal) => (1, signal),
                };
                frame(3, signaled | u8::from(timed_out) << 1 | u8::from(ours) << 2, number, 0)
            }
            Self::Signalled { sequence, delivered } => frame(4, delivered.into(), 0, sequence),
            Self::Done => frame(5, 0, 0, 0),
            Self::Forked { pid } => frame(6, 0, pid, 0),
        }
    }

    /// `None` for what no supervisor sends.
    pub(crate) fn decode(frame: [u8; FRAME]) -> Option<Self> {
        let (kind, flags, a, b) = fields(frame);
        Some(match kind {
            1 => Self::Started { pid: a },
            2 => Self::Failed { step: Step::from_number(flags)?, errno: a },
            3 => Self::Ended {
                ending: if flags & 1 == 0 { Ending::Exited(a) } else { Ending::Signaled(a) },
                timed_out: flags & 2 != 0,
                ours: flags & 4 != 0,
            },
            4 => Self::Signalled { sequence: b, delivered: flags != 0 },
            5 => Self::Done,
            6 => Self::Forked { pid: a },
            _ => return None,
        })
    }
}

impl Command {
    pub(crate) fn encode(self) -> [u8; FRAME] {
        frame(1, self.tree.into(), self.signal, self.sequence)
    }

    /// `None` for what no agent sends.
    pub(crate) fn decode(frame: [u8; FRAME]) -> Option<Self> {
        let (kind, flags, signal, sequence) = fields(frame);
        (kind == 1).then_some(Self { sequence, signal, tree: flags != 0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_frame_survives() {
        let mut reports = vec![
            Report::Forked { pid: 6 },
            Report::Started { pid: 7 },
            Report::Done,
            Report::Signalled { sequence: u32::MAX, delivered: true },
            Report::Signalled { sequence: 0, delivered: false },
        ];
        reports.extend(Step::ALL.map(|step| Report::Failed { step, errno: 13 }));
        for ending in [Ending::Exited(255), Ending::Signaled(9)] {
            for (timed_out, ours) in [(false, false), (true, false), (false, true), (true, true)] {
                reports.push(Report::Ended { ending, timed_out, ours });
            }
        }
        for report in reports {
            assert_eq!(Report::decode(report.encode()), Some(report));
        }
        let command = Command { sequence: 9, signal: 15, tree: true };
        assert_eq!(Command::decode(command.encode()), Some(command));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_decoders_panic(frame in any::<[u8; FRAME]>()) {
            let _ = Report::decode(frame);
            let _ = Command::decode(frame);
        }
    }
}
