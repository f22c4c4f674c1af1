//! The numbers of system calls, by what they are for. Architectures agree on those from 424 on, so that calls which are newer
//! than the library's names for them are given as numbers.

use libc::*;
use own::*;

/// Numbers that the library lacks for one architecture or the other.
#[cfg(target_arch = "x86_64")]
mod own {
    use libc::*;
    pub(super) const FADVISE64: c_long = SYS_fadvise64;
    pub(super) const GETRLIMIT: c_long = SYS_getrlimit;
    pub(super) const IO_PGETEVENTS: c_long = 333;
    pub(super) const KEXEC_FILE_LOAD: c_long = 320;
    pub(super) const RENAMEAT: c_long = SYS_renameat;
    pub(super) const SENDFILE: c_long = SYS_sendfile;
    pub(super) const SETRLIMIT: c_long = SYS_setrlimit;
    pub(super) const SYNC_FILE_RANGE: c_long = SYS_sync_file_range;
}
#[cfg(target_arch = "aarch64")]
mod own {
    use libc::c_long;
    pub(super) const FADVISE64: c_long = 223;
    pub(super) const GETRLIMIT: c_long = 163;
    pub(super) const IO_PGETEVENTS: c_long = 292;
    pub(super) const KEXEC_FILE_LOAD: c_long = 294;
    pub(super) const RENAMEAT: c_long = 38;
    pub(super) const SENDFILE: c_long = 71;
    pub(super) const SETRLIMIT: c_long = 164;
    pub(super) const SYNC_FILE_RANGE: c_long = 84;
}

/// Harmless without privileges, or checked by the kernel against what the caller is.
pub(super) const ALLOWED: &[&[c_long]] = &[FILES, WAITING, MEMORY, PROCESSES, SIGNALS, TIME, NETWORK, IPC, FENCES, OLD];

const FILES: &[c_long] = &[
    SYS_read, SYS_write, SYS_readv, SYS_writev, SYS_pread64, SYS_pwrite64, SYS_preadv, SYS_pwritev, SYS_preadv2,
    SYS_pwritev2, SYS_openat, SYS_openat2, SYS_close, SYS_close_range, SYS_lseek, SYS_dup, SYS_dup3, SYS_fcntl,
    SYS_flock, SYS_fsync, SYS_fdatasync, SYS_sync, SYS_syncfs, SYNC_FILE_RANGE, SYS_truncate, SYS_ftruncate,
    SYS_fallocate, FADVISE64, SYS_readahead, SENDFILE, SYS_splice, SYS_tee, SYS_vmsplice, SYS_copy_file_range,
    SYS_statx, SYS_newfstatat, SYS_fstat, SYS_statfs, SYS_fstatfs, SYS_faccessat, SYS_faccessat2, SYS_readlinkat,
    SYS_getdents64, SYS_getcwd, SYS_chdir, SYS_fchdir, SYS_mkdirat, RENAMEAT, SYS_renameat2,
    SYS_linkat, SYS_symlinkat, SYS_unlinkat, SYS_fchmod, SYS_fchmodat, SYS_fchown, SYS_fchownat, SYS_umask,
    SYS_utimensat, SYS_getxattr, SYS_lgetxattr, SYS_fgetxattr, SYS_listxattr, SYS_llistxattr, SYS_flistxattr,
    SYS_setxattr, SYS_lsetxattr, SYS_fsetxattr, SYS_removexattr, SYS_lremovexattr, SYS_fremovexattr,
    SYS_inotify_init1, SYS_inotify_add_watch, SYS_inotify_rm_watch,
    SYS_io_setup, SYS_io_submit, SYS_io_getevents, IO_PGETEVENTS, SYS_io_cancel, SYS_io_destroy,
    // For root with the privilege, as installers of packages; nobody else gets past the kernel.
    SYS_chroot,
];

const WAITING: &[c_long] = &[
    SYS_ppoll, SYS_pselect6, SYS_epoll_create1, SYS_epoll_ctl, SYS_epoll_pwait, EPOLL_PWAIT2, SYS_eventfd2,
    SYS_signalfd4, SYS_timerfd_create, SYS_timerfd_settime, SYS_timerfd_gettime, SYS_pipe2, SYS_futex, FUTEX_WAITV,
    SYS_membarrier,
];
const EPOLL_PWAIT2: c_long = 441;
const FUTEX_WAITV: c_long = 449;

const MEMORY: &[c_long] = &[
    SYS_mmap, SYS_munmap, SYS_mremap, SYS_mprotect, SYS_madvise, SYS_mincore, SYS_mlock, SYS_mlock2, SYS_munlock,
    SYS_mlockall, SYS_munlockall, SYS_msync, SYS_brk, SYS_remap_file_pages, SYS_memfd_create, MEMFD_SECRET,
];
const MEMFD_SECRET: c_long = 447;

const PROCESSES: &[c_long] = &[
    SYS_execve, SYS_execveat, SYS_exit, SYS_exit_group, SYS_wait4, SYS_waitid, SYS_getpid, SYS_getppid, SYS_gettid,
    SYS_getuid, SYS_geteuid, SYS_getgid, SYS_getegid, SYS_getresuid, SYS_getresgid, SYS_getgroups, SYS_setuid,
    SYS_setgid, SYS_setreuid, SYS_setregid, SYS_setresuid, SYS_setresgid, SYS_setgroups, SYS_setfsuid, SYS_setfsgid,
    SYS_getpgid, SYS_setpgid, SYS_getsid, SYS_setsid, SYS_set_tid_address, SYS_set_robust_list, SYS_get_robust_list,
    SYS_rseq, SYS_prctl, SYS_capget, SYS_capset, SYS_getpriority, SYS_setpriority, SYS_sched_yield,
    SYS_sched_getaffinity, SYS_sched_setaffinity, SYS_sched_getparam, SYS_sched_setparam, SYS_sched_getscheduler,
    SYS_sched_setscheduler, SYS_sched_get_priority_max, SYS_sched_get_priority_min, SYS_sched_rr_get_interval,
    SYS_sched_getattr, SYS_sched_setattr, GETRLIMIT, SETRLIMIT, SYS_prlimit64, SYS_getrusage, SYS_times,
    SYS_sysinfo, SYS_uname, SYS_getcpu, SYS_pidfd_open, PROCESS_MRELEASE, SYS_ioprio_get, SYS_ioprio_set,
    SYS_getrandom, SYS_restart_syscall,
    // Debuggers: of processes of the same user, and never of the agent, which is not dumpable.
    SYS_ptrace,
];
const PROCESS_MRELEASE: c_long = 448;

const SIGNALS: &[c_long] = &[
    SYS_kill, SYS_tkill, SYS_tgkill, SYS_pidfd_send_signal, SYS_rt_sigaction, SYS_rt_sigprocmask, SYS_rt_sigpending,
    SYS_rt_sigqueueinfo, SYS_rt_tgsigqueueinfo, SYS_rt_sigreturn, SYS_rt_sigsuspend, SYS_rt_sigtimedwait,
    SYS_sigaltstack,
];

const TIME: &[c_long] = &[
    SYS_clock_gettime, SYS_clock_getres, SYS_clock_nanosleep, SYS_nanosleep, SYS_gettimeofday, SYS_timer_create,
    SYS_timer_settime, SYS_timer_gettime, SYS_timer_getoverrun, SYS_timer_delete, SYS_getitimer, SYS_setitimer,
    // Without the privilege it only reads.
    SYS_adjtimex,
];

const NETWORK: &[c_long] = &[
    SYS_bind, SYS_connect, SYS_listen, SYS_accept, SYS_accept4, SYS_getsockname, SYS_getpeername, SYS_getsockopt,
    SYS_setsockopt, SYS_sendto, SYS_recvfrom, SYS_sendmsg, SYS_recvmsg, SYS_sendmmsg, SYS_recvmmsg, SYS_shutdown,
];

/// In the sandbox's own namespace.
const IPC: &[c_long] = &[
    SYS_shmget, SYS_shmat, SYS_shmctl, SYS_shmdt, SYS_semget, SYS_semop, SYS_semctl, SYS_semtimedop, SYS_msgget,
    SYS_msgsnd, SYS_msgrcv, SYS_msgctl, SYS_mq_open, SYS_mq_unlink, SYS_mq_timedsend, SYS_mq_timedreceive,
    SYS_mq_notify, SYS_mq_getsetattr,
];

/// With which a process takes rights from itself.
const FENCES: &[c_long] =
    &[SYS_seccomp, SYS_landlock_create_ruleset, SYS_landlock_add_rule, SYS_landlock_restrict_self];

/// What newer architectures do without.
#[cfg(target_arch = "x86_64")]
const OLD: &[c_long] = &[
    SYS_open, SYS_creat, SYS_dup2, SYS_stat, SYS_lstat, SYS_access, SYS_readlink, SYS_getdents, SYS_mkdir,
    SYS_rmdir, SYS_rename, SYS_link, SYS_symlink, SYS_unlink, SYS_chmod, SYS_chown, SYS_lchown, SYS_utime, SYS_utimes,
    SYS_futimesat, SYS_inotify_init, SYS_poll, SYS_select, SYS_epoll_create, SYS_epoll_wait, SYS_eventfd,
    SYS_signalfd, SYS_pipe, SYS_fork, SYS_vfork, SYS_getpgrp, SYS_arch_prctl, SYS_alarm, SYS_pause, SYS_time,
];
#[cfg(not(target_arch = "x86_64"))]
const OLD: &[c_long] = &[];

/// Refused as if the privilege were missing, which for most of them it is.
pub(super) const REFUSED: &[&[c_long]] = &[MOUNTS, NAMESPACES, KERNEL, SURFACE, KEYS, OTHERS, OLD_REFUSED];

const MOUNTS: &[c_long] = &[
    SYS_mount, SYS_umount2, SYS_pivot_root, SYS_fsopen, SYS_fsconfig, SYS_fsmount, SYS_fspick, SYS_open_tree,
    SYS_move_mount, MOUNT_SETATTR, OPEN_TREE_ATTR, SYS_name_to_handle_at, SYS_open_by_handle_at, SYS_quotactl,
    QUOTACTL_FD, SYS_swapon, SYS_swapoff,
];
const MOUNT_SETATTR: c_long = 442;
const QUOTACTL_FD: c_long = 443;
const OPEN_TREE_ATTR: c_long = 467;

const NAMESPACES: &[c_long] = &[SYS_unshare, SYS_setns, SYS_sethostname, SYS_setdomainname];

const KERNEL: &[c_long] = &[
    SYS_init_module, SYS_finit_module, SYS_delete_module, SYS_kexec_load, KEXEC_FILE_LOAD, SYS_reboot, SYS_acct,
    SYS_syslog, SYS_settimeofday, SYS_clock_settime, SYS_clock_adjtime, SYS_vhangup, SYS_nfsservctl, SYS_lookup_dcookie,
];

/// Large, young or clever parts of the kernel, each with a history of holes.
const SURFACE: &[c_long] = &[
    SYS_bpf, SYS_perf_event_open, SYS_userfaultfd, SYS_io_uring_setup, SYS_io_uring_enter, SYS_io_uring_register,
    SYS_fanotify_init, SYS_fanotify_mark,
];

/// Keyrings belong to a user, and the users of all sandboxes have the same number.
const KEYS: &[c_long] = &[SYS_add_key, SYS_request_key, SYS_keyctl];

/// Other processes' descriptors, memory and placement. What debuggers do, they do by `ptrace` and `/proc`.
const OTHERS: &[c_long] = &[
    SYS_kcmp, SYS_process_vm_readv, SYS_process_vm_writev, PIDFD_GETFD, PROCESS_MADVISE, SYS_move_pages,
    SYS_migrate_pages, SYS_mbind, SYS_get_mempolicy, SYS_set_mempolicy, SET_MEMPOLICY_HOME_NODE,
];
const PIDFD_GETFD: c_long = 438;
const PROCESS_MADVISE: c_long = 440;
const SET_MEMPOLICY_HOME_NODE: c_long = 450;

#[cfg(target_arch = "x86_64")]
const OLD_REFUSED: &[c_long] = &[
    SYS_iopl, SYS_ioperm, SYS_modify_ldt, SYS_uselib, SYS_ustat, SYS_sysfs, SYS__sysctl,
];
#[cfg(not(target_arch = "x86_64"))]
const OLD_REFUSED: &[c_long] = &[];
