//! Memory: what collectors, databases, debuggers and just-in-time compilers do with it.

use super::{
    Entry,
    attempt::{Attempt, Judge, NONE, Not, as_linux, at, at_mut, call, child, raw, wait, works},
    processes::own,
};
use rustix::io::Errno;

pub(super) const TABLE: &[Entry] = &[
    ("memfd_create", memfd_create),
    ("memfd sealing", sealing),
    ("memfd_secret", memfd_secret),
    ("mlock", mlock),
    ("mincore", mincore),
    ("mremap MREMAP_DONTUNMAP", mremap),
    ("mmap MAP_FIXED_NOREPLACE", no_replace),
    ("madvise MADV_DONTNEED", dont_need),
    ("madvise MADV_FREE", || advise(8)),
    ("madvise MADV_DONTFORK", || advise(10)),
    ("madvise MADV_MERGEABLE", || advise(12)),
    ("madvise MADV_HUGEPAGE", || advise(14)),
    ("madvise MADV_DONTDUMP", || advise(16)),
    ("madvise MADV_WIPEONFORK", wipe_on_fork),
    ("madvise MADV_COLD", || advise(20)),
    ("madvise MADV_POPULATE_READ", || advise(22)),
    ("pkey_alloc", pkey_alloc),
    ("shmget", shmget),
    ("semget", semget),
    ("mq_open", mq_open),
];

const PAGE: usize = 4096;

/// Zeroed memory of this process, for as long as it lives.
pub(super) fn map(length: usize) -> Result<usize, Errno> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    call(libc::SYS_mmap, [0, length, protection as usize, flags as usize, NONE, 0])
}

#[expect(unsafe_code, reason = "pages by address")]
fn peek(address: usize) -> u8 {
    // SAFETY: callers pass an address within what `map` returned and nothing has unmapped.
    unsafe { std::ptr::with_exposed_provenance::<u8>(address).read_volatile() }
}

#[expect(unsafe_code, reason = "pages by address")]
fn poke(address: usize) {
    // SAFETY: as above; the pages are writable and no Rust value lives in them.
    unsafe { std::ptr::with_exposed_provenance_mut::<u8>(address).write_volatile(1) }
}

fn memfd_create() -> Attempt {
    let file = own(call(libc::SYS_memfd_create, [at(c"probe"), 0])?);
    rustix::io::write(&file, b"content")?;
    as_linux(rustix::fs::fstat(&file)?.st_size == 7, "another size")
}

fn sealing() -> Attempt {
    const ALLOW: usize = 2;
    let file = own(call(libc::SYS_memfd_create, [at(c"probe"), ALLOW])?);
    let (add, write) = (libc::F_ADD_SEALS as usize, libc::F_SEAL_WRITE as usize);
    call(libc::SYS_fcntl, [raw(&file), add, write]).unknown_if(&[Errno::INVAL])?;
    as_linux(rustix::io::write(&file, b"content") == Err(Errno::PERM), "can still be written")
}

fn memfd_secret() -> Attempt {
    call(libc::SYS_memfd_secret, [0])?;
    works()
}

fn mlock() -> Attempt {
    call(libc::SYS_mlock, [map(PAGE)?, PAGE])?;
    works()
}

fn mincore() -> Attempt {
    let (pages, mut resident) = (map(2 * PAGE)?, [0_u8; 2]);
    // A huge page would make both resident.
    let _ = call(libc::SYS_madvise, [pages, 2 * PAGE, 15]);
    poke(pages);
    call(libc::SYS_mincore, [pages, 2 * PAGE, at_mut(&mut resident)])?;
    let resident = resident.map(|page| page & 1);
    as_linux(resident == [1, 0], format!("one page of two is touched, resident are {resident:?}"))
}

fn mremap() -> Attempt {
    const MAYMOVE_DONTUNMAP: usize = 1 | 4;
    let old = map(PAGE)?;
    poke(old);
    let new = call(libc::SYS_mremap, [old, PAGE, PAGE, MAYMOVE_DONTUNMAP, 0]).unknown_if(&[Errno::INVAL])?;
    as_linux(peek(new) == 1 && peek(old) == 0, "does not move the content")
}

fn no_replace() -> Attempt {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
    let taken = map(PAGE)?;
    match call(libc::SYS_mmap, [taken, PAGE, libc::PROT_READ as usize, flags as usize, NONE, 0]) {
        Err(Errno::EXIST) => works(),
        Err(errno) => Err(errno.into()),
        Ok(other) if other == taken => Err(Not::Differs("replaces what is there".to_owned())),
        Ok(_) => Err(Not::Differs("maps elsewhere".to_owned())),
    }
}

fn advise(advice: usize) -> Attempt {
    let pages = map(4 << 20)?;
    poke(pages);
    call(libc::SYS_madvise, [pages, 4 << 20, advice]).unknown_if(&[Errno::INVAL])?;
    works()
}

fn dont_need() -> Attempt {
    let page = map(PAGE)?;
    poke(page);
    call(libc::SYS_madvise, [page, PAGE, libc::MADV_DONTNEED as usize])?;
    as_linux(peek(page) == 0, "keeps the content")
}

fn wipe_on_fork() -> Attempt {
    let page = map(PAGE)?;
    poke(page);
    call(libc::SYS_madvise, [page, PAGE, libc::MADV_WIPEONFORK as usize]).unknown_if(&[Errno::INVAL])?;
    let pid = child(|| i32::from(peek(page)))?;
    as_linux(wait(pid)? == 0, "a child sees the content")
}

fn pkey_alloc() -> Attempt {
    // No space is what a processor without them says.
    call(libc::SYS_pkey_alloc, [0, 0]).unknown_if(&[Errno::NOSPC, Errno::INVAL])?;
    works()
}

fn shmget() -> Attempt {
    let id = call(libc::SYS_shmget, [libc::IPC_PRIVATE as usize, PAGE, 0o600])?;
    let address = call(libc::SYS_shmat, [id, 0, 0]);
    call(libc::SYS_shmctl, [id, libc::IPC_RMID as usize, 0])?;
    as_linux(peek(address?) == 0, "is not zeroed")
}

fn semget() -> Attempt {
    let id = call(libc::SYS_semget, [libc::IPC_PRIVATE as usize, 1, 0o600])?;
    call(libc::SYS_semctl, [id, 0, libc::IPC_RMID as usize, 0])?;
    works()
}

fn mq_open() -> Attempt {
    let name = format!("stacyvm-probe-{}\0", std::process::id());
    // Flags, messages, size of one, messages now.
    let attributes = [0_i64, 1, 64, 0, 0, 0, 0, 0];
    let flags = libc::O_RDWR | libc::O_CREAT | libc::O_EXCL;
    call(libc::SYS_mq_open, [at(name.as_str()), flags as usize, 0o600, at(&attributes)])?;
    call(libc::SYS_mq_unlink, [at(name.as_str())])?;
    works()
}
