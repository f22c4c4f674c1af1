//! Which system calls a sandbox may make: the rest of the kernel is closed to it, whatever namespaces and capabilities say.
//!
//! [`policy`] lists the calls, [`compile`] makes a program of it for the kernel's filter. The filter is in force before the
//! agent is executed, holds for everything in the sandbox and cannot be taken off.

mod compile;
#[cfg(test)]
mod docker;
#[rustfmt::skip]
mod numbers;
mod policy;
#[cfg(test)]
mod real;

use crate::sys;
use std::{io, sync::LazyLock};

static PROGRAM: LazyLock<Vec<libc::sock_filter>> = LazyLock::new(|| compile::compile(&policy::calls()));

/// Makes the program, so that the processes cloned from this one need not.
pub(crate) fn prepare() {
    LazyLock::force(&PROGRAM);
}

/// Puts this process, and all that it will start, under the filter. It must have given up gaining privileges.
///
/// # Errors
/// The kernel's.
pub(crate) fn enter() -> io::Result<()> {
    sys::install_filter(&PROGRAM)
}

/// Whether this kernel has filters, with the answers that ours gives.
pub(crate) fn is_available() -> bool {
    [libc::SECCOMP_RET_ERRNO, libc::SECCOMP_RET_KILL_PROCESS].into_iter().all(sys::filter_can_answer)
}
