//! Our own terminal while a command in a sandbox has it: keys go through as they are typed, its size is passed on, and it
//! is given back as it was, whatever happens.

pub(crate) mod keys;

use crate::{failure::Failure, output};
use bytes::{Bytes, BytesMut};
use keys::{DetachKeys, Scanner};
use rustix::{
    stdio::{stdin, stdout},
    termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr},
};
use stacyvm_types::PtySize;
use std::{
    io::{self, Write},
    sync::{Mutex, Once, PoisonError},
};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::{mpsc, oneshot},
};

/// How the terminal was before it was taken; `None` while it is not.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// Modes that a program switches on in a terminal emulator and switches off when it ends, which one that is left behind
/// does not: the second screen, mouse and paste reports, a hidden cursor, colours.
const LEAVE: &[u8] =
    b"\x1b[?1047l\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1006l\x1b[?2004l\x1b[?1l\x1b>\x1b[?25h\x1b[0m\r\n";

/// Most that waits to be passed on, in bytes.
const WAITING: usize = 1 << 20;

/// The terminal, taken.
#[derive(Debug)]
pub(crate) struct Terminal {
    resized: Signal,
    continued: Signal,
}

impl Terminal {
    /// Takes the terminal on standard input.
    ///
    /// # Errors
    /// There is none, or the system's.
    pub(crate) fn take() -> Result<Self, Failure> {
        if !isatty(stdin()) {
            return Err(none());
        }
        let terminal = Self {
            resized: signal(SignalKind::window_change())?,
            continued: signal(SignalKind::from_raw(18))?,
        };
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let before = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |info| {
                give_back();
                before(info);
            }));
        });
        *BEFORE.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(tcgetattr(stdin()).map_err(io::Error::from)?);
        make_raw()?;
        Ok(terminal)
    }

    /// The next size that it is given. Dropping the future loses none.
    pub(crate) async fn resized(&mut self) -> PtySize {
        tokio::select! {
            _ = self.resized.recv() => {}
            // The shell that we were stopped in has made it its own meanwhile.
            _ = self.continued.recv() => drop(make_raw()),
        }
        size()
    }

    /// Gives it back, out of whatever a program that goes on without it had made of it.
    pub(crate) fn leave(self) {
        if isatty(stdout()) {
            let _ = io::stdout().lock().write_all(LEAVE).and_then(|()| io::stdout().flush());
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        give_back();
    }
}

fn make_raw() -> io::Result<()> {
    let mut modes = tcgetattr(stdin())?;
    modes.make_raw();
    Ok(tcsetattr(stdin(), OptionalActions::Now, &modes)?)
}

fn give_back() {
    let before = BEFORE.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(before) = before {
        // There is nobody left to tell.
        let _ = tcsetattr(stdin(), OptionalActions::Drain, &before);
    }
}

/// Whether it is taken, so that a new line does not begin at its beginning by itself.
pub(crate) fn is_taken() -> bool {
    BEFORE.lock().unwrap_or_else(PoisonError::into_inner).is_some()
}

/// Size of the terminal on standard output, or else on standard input, or else the usual one.
pub(crate) fn size() -> PtySize {
    let sizes = [tcgetwinsize(stdout()), tcgetwinsize(stdin())];
    let sizes = sizes.into_iter().flatten().map(|size| PtySize { rows: size.ws_row, cols: size.ws_col });
    sizes.into_iter().find(|size| size.is_possible()).unwrap_or(PtySize::USUAL)
}

/// Somebody at a terminal.
#[derive(Debug)]
pub(crate) struct Session {
    /// What they sit at.
    pub(crate) terminal: Terminal,
    /// They have typed the keys that mean to leave.
    pub(crate) left: oneshot::Receiver<()>,
}

impl Session {
    /// Reads what is typed, until the detach keys are. Returns what is typed besides, which ends behind the last of it.
    pub(crate) fn begin(
        terminal: Terminal,
        keys: &DetachKeys,
        typed: mpsc::Receiver<Bytes>,
    ) -> (Self, mpsc::Receiver<Bytes>) {
        let (leave, left) = oneshot::channel();
        let (pass, passed) = mpsc::channel(1);
        tokio::spawn(pass_on(Scanner::new(keys), typed, pass, leave));
        (Self { terminal, left }, passed)
    }
}

/// Passes on what is typed. Nobody who does not take it keeps the keys that leave from being seen.
async fn pass_on(
    mut scanner: Scanner,
    mut typed: mpsc::Receiver<Bytes>,
    pass: mpsc::Sender<Bytes>,
    leave: oneshot::Sender<()>,
) {
    let mut waiting = BytesMut::new();
    let leaving = loop {
        tokio::select! {
            piece = typed.recv() => match piece {
                Some(piece) => {
                    let (rest, leaving) = scanner.scan(&piece);
                    // What nobody has taken for so long was not meant to be typed for ever.
                    let room = WAITING.saturating_sub(waiting.len());
                    waiting.extend_from_slice(&rest[..rest.len().min(room)]);
                    if leaving {
                        break true;
                    }
                }
                // It has hung up: nobody types the end of anything.
                None => break false,
            },
            // A receiver that is gone takes nothing, and the keys that leave are still to be seen.
            Ok(turn) = pass.reserve(), if !waiting.is_empty() => turn.send(waiting.split().freeze()),
        }
    };
    if leaving {
        // Whoever is told may have ended.
        let _ = leave.send(());
    }
    if !waiting.is_empty() {
        let _ = pass.send(waiting.freeze()).await;
    }
}

/// The terminal, if it is to be passed on.
///
/// # Errors
/// As of [`Terminal::take`].
pub(crate) fn take_if(wanted: bool) -> Result<Option<Terminal>, Failure> {
    wanted.then(Terminal::take).transpose()
}

/// Refuses what cannot be, before anything is made for it. `tty`: the command is to have a terminal; `interactive`: this one.
///
/// # Errors
/// It is to be shown as JSON, or there is none.
pub(crate) fn check(json: bool, tty: bool, interactive: bool) -> Result<(), Failure> {
    if json && tty {
        return Err(Failure::new("a terminal cannot be shown as JSON", "leave out -t or --json"));
    }
    if tty && interactive && !isatty(stdin()) {
        return Err(none());
    }
    Ok(())
}

fn none() -> Failure {
    Failure::new(
        "standard input is no terminal",
        "leave -t out to pass a pipe or a file on, or -i to pass nothing",
    )
}

/// Says how to come back.
pub(crate) fn say_detached(sandbox: &str, process: &str) {
    output::note(format_args!(
        "stacyvm: detached; it goes on. Back to it: stacyvm attach {sandbox} {process} -i"
    ));
}
