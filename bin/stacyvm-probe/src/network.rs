//! Commands that try to reach somebody.

use crate::{Args, Failure, LONGEST, Result, identity::report, streams::say};
use std::{
    io,
    net::{SocketAddr, TcpStream},
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr as UnixAddr, UnixListener, UnixStream},
    },
    time::Duration,
};

/// How long a connection may take.
const PATIENCE: Duration = Duration::from_millis(700);

/// `ok` or `errno N`; an error that the kernel did not give is that of a time-out.
fn tell<T>(outcome: io::Result<T>) -> Result {
    report(outcome.map(drop).map_err(|error| error.raw_os_error().unwrap_or(libc::ETIMEDOUT)))
}

/// `connect ADDRESS:PORT`, over TCP.
pub(crate) fn connect(args: &Args) -> Result {
    let address: SocketAddr =
        args.text(0)?.parse().map_err(|_| Failure::Usage("this is no address with a port"))?;
    tell(TcpStream::connect_timeout(&address, PATIENCE))
}

fn abstract_name(args: &Args) -> Result<UnixAddr> {
    UnixAddr::from_abstract_name(args.bytes(0)?).map_err(|_| Failure::Usage("this name is too long"))
}

/// `connect-abstract NAME`.
pub(crate) fn connect_abstract(args: &Args) -> Result {
    tell(UnixStream::connect_addr(&abstract_name(args)?))
}

/// `listen-abstract NAME`: prints `ready` and is there to be connected to.
pub(crate) fn listen_abstract(args: &Args) -> Result {
    let error = |e: io::Error| {
        Failure::System("bind", rustix::io::Errno::from_io_error(&e).unwrap_or(rustix::io::Errno::IO))
    };
    let _listener = UnixListener::bind_addr(&abstract_name(args)?).map_err(error)?;
    say(b"ready\n")?;
    std::thread::sleep(LONGEST);
    Ok(0)
}
