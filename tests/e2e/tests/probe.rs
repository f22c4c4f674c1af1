//! `stacyvm probe` in sandboxes of the native runtime; and that its sandbox goes, also when it is interrupted.

use anyhow::{Result, ensure};
use serde_json::Value;
use stacyvm_e2e::{
    Host,
    probe::{findings, refuses_what_native_closes, refuses_what_reaches_beyond},
};
use stacyvm_testkit::surface::{self, Beacon, Column};
use std::{process::Stdio, time::Duration};

#[tokio::test]
async fn native_has_the_kernel_of_the_host() -> Result<()> {
    let host = Host::start().await?;
    let output = host.cli(&["probe", "--image", "host", "--json"])?;
    ensure!(output.status.success(), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout)?;
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    ensure!(report["provider"] == "native" && report["runtime"].is_null(), "{report}");
    ensure!(report["kernel"]["release"] == release.trim() && report["kernel"]["gvisor"] == false, "{report}");
    let found = findings(&report)?;
    for name in [
        "pidfd_open",
        "ptrace of a child",
        "seccomp filter",
        "openat2",
        "inotify",
        "O_TMPFILE",
        "TCP over loopback",
    ] {
        ensure!(found[name] == "works", "{name}: {}", found[name]);
    }
    ensure!(report["counts"]["differs"] == 0 && report["counts"]["failed"] == 0, "{report}");
    refuses_what_reaches_beyond(&found)?;
    refuses_what_native_closes(&found)?;
    ensure!(host.states().await?.is_empty());
    host.finish().await
}

#[tokio::test]
async fn interrupted_it_leaves_nothing() -> Result<()> {
    let host = Host::start().await?;
    for moment in [1, 50, 120, 200, 350] {
        let mut child = host.cli_command(&["probe", "--image", "host"])?.stdout(Stdio::null()).spawn()?;
        tokio::time::sleep(Duration::from_millis(moment)).await;
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::INT)?;
        let status = child.wait()?;
        // At the very first it does not listen yet, and at the end it may be done.
        ensure!(!status.success() || moment > 100, "{moment} ms: {status}");
        host.until("its sandbox is gone", <[_]>::is_empty).await?;
    }
    host.finish().await
}

#[tokio::test]
async fn no_more_is_open_than_the_documentation_says() -> Result<()> {
    let host = Host::start().await?;
    let beacon = Beacon::start()?;
    let rows = surface::in_sandbox(&host.server, "native", None, &beacon).await?;
    let native = Column { heading: "native".to_owned(), of: surface::versions(None, None)?, rows };
    println!("{}", surface::agrees(&std::fs::read_to_string(surface::document())?, &native)?);
    drop(beacon);
    host.finish().await
}

/// What Python does on an ordinary day: threads, processes, pools, servers, names, a database, a terminal, files of every kind.
const PYTHON: &str = r#"
import asyncio, concurrent.futures, fcntl, mmap, multiprocessing, os, pty, resource, select, signal, socket
import sqlite3, subprocess, tempfile, threading, time
from multiprocessing import shared_memory

os.chdir(tempfile.mkdtemp(dir="/workspace"))
counter, lock = [0], threading.Lock()
def count():
    for _ in range(1000):
        with lock:
            counter[0] += 1
threads = [threading.Thread(target=count) for _ in range(20)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
assert counter == [20000]

assert subprocess.check_output("echo hi | tr a-z A-Z", shell=True) == b"HI\n"
try:
    subprocess.run(["sleep", "5"], start_new_session=True, timeout=0.1)
    raise SystemExit("it slept for 0.1 seconds only")
except subprocess.TimeoutExpired:
    pass
for method in ["fork", "spawn", "forkserver"]:
    context = multiprocessing.get_context(method)
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as pool:
        assert list(pool.map(abs, [-1, -2])) == [1, 2], method
context = multiprocessing.get_context("fork")
queue, shared = context.Queue(), shared_memory.SharedMemory(create=True, size=100)
def child():
    shared.buf[0] = 42
    queue.put("done")
process = context.Process(target=child)
process.start()
assert queue.get() == "done" and shared.buf[0] == 42
process.join()
shared.close()
shared.unlink()

with socket.socket() as listener:
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    socket.create_connection(listener.getsockname()).close()
assert socket.getaddrinfo("localhost", 80)
assert [name for _, name in socket.if_nameindex()]
ours, theirs = socket.socketpair()
with tempfile.TemporaryFile() as file:
    socket.send_fds(ours, [b"x"], [file.fileno()])
    _, fds, _, _ = socket.recv_fds(theirs, 1, 1)
    os.write(fds[0], b"through another descriptor")
    assert file.seek(0, 2) == 26
    fcntl.flock(file, fcntl.LOCK_EX)
    fcntl.lockf(file, fcntl.LOCK_EX)
    os.posix_fallocate(file.fileno(), 0, 1 << 16)
    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
    mmap.mmap(file.fileno(), 1 << 16).flush()
    with open("copy", "w+b") as copy:
        assert os.copy_file_range(file.fileno(), copy.fileno(), 1000, 0) == 1000
        assert os.sendfile(copy.fileno(), file.fileno(), 0, 1000) == 1000
os.mkfifo("pipe")
os.setxattr("copy", "user.note", b"x")
os.link("copy", "link"), os.replace("link", "moved"), os.symlink("moved", "link"), os.chmod("moved", 0o600)
os.utime("moved", (1, 2)), os.truncate("moved", 5), os.statvfs("."), os.sync()
os.close(os.memfd_create("x"))
epoll = select.epoll()
epoll.register(theirs, select.EPOLLIN)
ours.send(b"x")
assert epoll.poll(1)
assert os.waitstatus_to_exitcode(os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)[1]) == 0
if hasattr(os, "pidfd_open"):
    os.close(os.pidfd_open(os.getpid()))
rang = []
signal.signal(signal.SIGALRM, lambda *_: rang.append(1))
signal.setitimer(signal.ITIMER_REAL, 0.01)
time.sleep(0.1)
assert rang
os.sched_setaffinity(0, os.sched_getaffinity(0)), os.nice(1), os.getloadavg(), os.getrandom(8)
resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 4096))
sqlite3.connect("db").executescript("pragma journal_mode = wal; create table t (a); insert into t values (1)")

async def everything():
    server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    assert await reader.read() == b""
    writer.close()
    assert await asyncio.get_running_loop().run_in_executor(None, sum, [1, 2]) == 3
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, lambda: None)
    return await (await asyncio.create_subprocess_exec("true")).wait()
assert asyncio.run(everything()) == 0
assert pty.spawn(["true"]) == 0
print("all of it")
"#;

/// Other programs that agents use; those that the host does not have are named.
const TOOLS: &str = r#"
set -eu
cd "$(mktemp -d -p /workspace)"
has() { command -v "$1" >/dev/null || { echo "not run: $1 is not installed"; return 1; }; }
if has git; then
  git init -q repository
  cd repository
  echo a >file
  git add file
  git -c user.name=a -c user.email=a@b commit -q -m first
  git clone -q . ../clone
  git -C ../clone log --oneline | grep -q first
  git gc -q
  cd ..
fi
if has gcc; then
  cat >program.c <<'END'
#include <pthread.h>
#include <sys/wait.h>
#include <unistd.h>
static void *work(void *result) { *(int *)result = 42; return 0; }
int main(void) {
  pthread_t thread;
  int result = 0, status = 0;
  if (pthread_create(&thread, 0, work, &result) || pthread_join(thread, 0) || result != 42) return 1;
  pid_t child = fork();
  if (child == 0) _exit(7);
  return waitpid(child, &status, 0) != child || WEXITSTATUS(status) != 7;
}
END
  gcc -O2 -pthread -o program program.c
  ./program
fi
if has perl; then
  said=$(perl -MSocket -e 'socketpair(A, B, AF_UNIX, SOCK_STREAM, 0) or die $!; defined($p = fork) or die $!;
    unless ($p) { syswrite B, "hi\n"; exit } waitpid $p, 0; print scalar <A>')
  test "$said" = hi
fi
if has node; then
  node -e 'const { Worker } = require("worker_threads"), { execFileSync } = require("child_process");
    const ends = require("net").createServer((s) => s.end("x")).listen(0, "127.0.0.1", () =>
      require("net").connect(ends.address().port, "127.0.0.1").on("data", () => ends.close()));
    require("fs").watch(".").close();
    if (String(execFileSync("echo", ["hi"])) !== "hi\n") throw 1;
    new Worker("require(\"worker_threads\").parentPort.postMessage(42)", { eval: true }).on("message", console.log)' >said
  test "$(cat said)" = 42
fi
mkdir tree out
cp -a /etc/hosts tree/
ln -s hosts tree/link
mkfifo tree/pipe
tar -czf tree.tgz tree
tar -xpzf tree.tgz -C out
cmp tree/hosts out/tree/hosts
test -p out/tree/pipe
gzip -c tree/hosts | gunzip | cmp - tree/hosts
test "$(seq 10000 | sort -R | sort -n | xargs -P 4 -n 1000 echo | wc -l)" = 10
timeout 0.1 sleep 5 || test $? = 124
echo "all of it"
"#;

#[tokio::test]
async fn ordinary_programs_do_not_notice_the_filter() -> Result<()> {
    let host = Host::start().await?;
    for words in [["python3", "-c", PYTHON], ["sh", "-c", TOOLS]] {
        let output = host.cli(&[&["run", "--image", "host", "--"], &words[..]].concat())?;
        ensure!(output.status.success() && output.stdout.ends_with(b"all of it\n"), "{output:?}");
        // What was not run.
        print!("{}", String::from_utf8_lossy(&output.stdout));
    }
    let output = host.cli(&["run", "--image", "host", "--", "unshare", "--user", "true"])?;
    ensure!(String::from_utf8_lossy(&output.stderr).contains("Operation not permitted"), "{output:?}");
    host.finish().await
}
