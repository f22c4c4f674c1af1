//! Running commands. Starting is idempotent by process id, so a connection lost at the wrong moment is simply tried again;
//! an exit code is reported only if the guest reported it.

use crate::{
    Engine, Error, ExecOutcome, ExecRequest, Limits, Operation, Result,
    attach::{Attach, attach, attached},
    core::Core,
    events::details,
    guard::{Backoff, guarded},
    reach::{Target, find},
};
use futures::{FutureExt, StreamExt, future::BoxFuture};
use jiff::Timestamp;
use serde_json::Value;
use stacyvm_provider::{
    ErrorKind, Guest, Limit, Outcome, OutputEvent, OutputStream, ProcessInfo, ProcessSpec, SandboxId, Signal,
    StdStream,
};
use stacyvm_types::{ErrorCode, EventType, WireDuration};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// Largest command line and environment together, in bytes: what fits in one message of the guest protocol.
const COMMAND_BYTES: usize = 512 << 10;
const TAG_BYTES: usize = 256;
/// How often a start is tried when the connection is lost meanwhile.
const START_ATTEMPTS: u32 = 4;
const START_RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// The guest keeps the deadline; this is how much later the host no longer believes that it will.
const OVERTIME: Duration = Duration::from_secs(15);
/// Longest wait in one question for a process's end.
const WAIT: Duration = Duration::from_secs(50);
/// Pauses between looks at a process whose end cannot be waited for.
const WATCH_RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));
/// A watcher has more patience than a reader: this many times `reconnect_window`.
const WATCH_WINDOWS: u32 = 10;
const KILL_ATTEMPTS: u32 = 6;
const KILL_RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

impl Engine {
    /// Runs a command and waits for its end. When the caller goes away, the command is killed with all it started.
    ///
    /// # Errors
    /// `BadRequest`, `NotFound` (sandbox, program), `ResourceLimit` (timeout over the limit), `Conflict` or `Unavailable`
    /// if the sandbox does not take commands, `Timeout` if the guest did not enforce the deadline either, `InternalError`
    /// if the exit status is not known. A deadline that ran out as usual is a success; see [`ExecOutcome`].
    pub async fn exec(&self, id: &str, request: ExecRequest) -> Result<ExecOutcome> {
        let started = Instant::now();
        let deadline = exec_deadline(request.timeout, &self.core.config.limits)?;
        let spec = spec(request, deadline)?;
        let target = Target::find(&self.core, id).await?;
        let result = Box::pin(run(&self.core, &target, &spec, started)).await;
        let provider = target.slot.provider.name();
        match &result {
            Ok(outcome) => report_end(&self.core, &target, &outcome.process),
            Err(error) => report_failure(&self.core, &target, &spec.id, error),
        }
        self.observe(Operation::Exec, provider, &result, started);
        result
    }

    /// Starts a process that belongs to nobody: it goes on when the caller goes away, and has no deadline unless the request
    /// names one.
    ///
    /// # Errors
    /// As [`Engine::exec`], as far as starting goes.
    pub async fn start_process(&self, id: &str, request: ExecRequest) -> Result<ProcessInfo> {
        let deadline = named_deadline(request.timeout, &self.core.config.limits)?;
        self.launch(id, spec(request, deadline)?).await
    }

    /// Starts the process behind a streamed exec: as [`Engine::start_process`], with the deadline of [`Engine::exec`].
    ///
    /// # Errors
    /// As [`Engine::exec`], as far as starting goes.
    pub async fn start_exec(&self, id: &str, request: ExecRequest) -> Result<ProcessInfo> {
        let deadline = exec_deadline(request.timeout, &self.core.config.limits)?;
        self.launch(id, spec(request, deadline)?).await
    }

    async fn launch(&self, id: &str, spec: ProcessSpec) -> Result<ProcessInfo> {
        let started = Instant::now();
        let target = Target::find(&self.core, id).await?;
        let result =
            start(&target, &spec, |guest, spec| async move { guest.start(spec).await }.boxed()).await;
        match &result {
            Ok(info) if info.outcome.is_none() => watch(&self.core, &target, &spec.id),
            Ok(info) => report_end(&self.core, &target, info),
            Err(error) => report_failure(&self.core, &target, &spec.id, error),
        }
        self.observe(Operation::ExecStream, target.slot.provider.name(), &result, started);
        result
    }

    /// Output of a process from `offset` on; see [`stacyvm_provider::Guest::attach`]. The stream connects to the guest
    /// again by itself and goes on where it was; it ends with an error when the sandbox is destroyed or its guest stays out
    /// of reach for `reconnect_window`. While the sandbox is paused it waits, also when it was paused before.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` or `Unavailable` if the sandbox does not take commands (now).
    pub async fn attach(
        &self,
        id: &str,
        process: &str,
        offset: u64,
        follow: bool,
        pace: bool,
    ) -> Result<OutputStream> {
        let target = if follow {
            Target::find_or_paused(&self.core, id).await?
        } else {
            Target::find(&self.core, id).await?
        };
        let wanted = Attach { target: target.clone(), process: process.to_owned(), offset, follow, pace };
        attach(&self.core, wanted).await.map_err(|error| target.explain(error))
    }
}

/// What the guest is asked for.
fn spec(request: ExecRequest, deadline: Option<Duration>) -> Result<ProcessSpec> {
    if request.argv.first().is_none_or(|program| program.trim().is_empty()) {
        return Err(Error::bad_request("command is required"));
    }
    let env_bytes = request.env.iter().map(|(name, value)| name.len() + value.len() + 2);
    let bytes = request.argv.iter().map(|arg| arg.len() + 1).chain(env_bytes).sum::<usize>();
    if bytes > COMMAND_BYTES {
        return Err(Error::bad_request("command line and environment are larger than 512 KiB"));
    }
    let texts = request.argv.iter().chain(request.env.values()).chain(&request.cwd).chain(&request.user);
    if texts.chain(request.env.keys()).any(|text| text.contains('\0')) {
        return Err(Error::bad_request(
            "command, environment, working directory and user cannot contain NUL",
        ));
    }
    if request.env.keys().any(|name| name.is_empty() || name.contains('=')) {
        return Err(Error::bad_request("names of environment variables cannot be empty or contain '='"));
    }
    if request.pty.is_some_and(|size| !size.is_possible()) {
        return Err(Error::bad_request("a terminal has at least one row and one column"));
    }
    if request.tag.len() > TAG_BYTES {
        return Err(Error::bad_request("tag must be at most 256 bytes"));
    }
    let id = match request.process_id {
        None => format!("p-{:016x}", rand::random::<u64>()),
        Some(id) => {
            let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
            if !(1..=64).contains(&id.len()) || !id.bytes().all(legal) {
                return Err(Error::bad_request(
                    "process id must be 1 to 64 letters, digits, '-', '_' or '.'",
                ));
            }
            id
        }
    };
    Ok(ProcessSpec {
        id,
        argv: request.argv,
        env: request.env,
        cwd: request.cwd.filter(|cwd| !cwd.is_empty()),
        user: request.user.filter(|user| !user.is_empty()),
        stdin: request.stdin,
        deadline,
        log_bytes: None,
        tag: request.tag,
        pty: request.pty,
    })
}

/// The deadline of a process: the one asked for, if any, which may not be beyond the limit.
fn named_deadline(asked: Option<Duration>, limits: &Limits) -> Result<Option<Duration>> {
    match (asked.filter(|asked| !asked.is_zero()), limits.max_exec_timeout) {
        (Some(asked), max) if asked > max && !max.is_zero() => Err(Error::resource_limit(format!(
            "timeout {} is over the limit of {} (defaults.max_exec_timeout)",
            WireDuration::from(asked),
            WireDuration::from(max)
        ))),
        (asked, _) => Ok(asked),
    }
}

/// The deadline of an exec: the one asked for, else the default, in any case not beyond the limit. No deadline at all,
/// asked for or by default, means the limit where there is one.
fn exec_deadline(asked: Option<Duration>, limits: &Limits) -> Result<Option<Duration>> {
    let set = |limit: Duration| Some(limit).filter(|limit| !limit.is_zero());
    let chosen = match asked {
        None => set(limits.default_exec_timeout),
        Some(_) => named_deadline(asked, limits)?,
    };
    Ok(chosen.into_iter().chain(set(limits.max_exec_timeout)).min())
}

/// Starts a process, once, however often `ask` has to be asked for that.
async fn start<'a, T>(
    target: &Target,
    spec: &'a ProcessSpec,
    ask: impl Fn(Arc<dyn Guest>, &'a ProcessSpec) -> BoxFuture<'a, stacyvm_provider::Result<T>>,
) -> Result<T> {
    let mut backoff = Backoff::new(START_RETRY);
    let mut attempts = 0;
    loop {
        attempts += 1;
        let attempt = async {
            let guest = target.guest().await?;
            guarded(target.deadline(), ask(guest, spec)).await
        };
        let result = tokio::select! {
            result = attempt => result,
            () = target.handle.gone.cancelled() => Err(stacyvm_provider::Error::destroyed("the sandbox is gone")),
        };
        match result {
            Ok(started) => {
                target.emit(EventType::ExecStarted, [("process_id", spec.id.as_str().into())]);
                return Ok(started);
            }
            Err(error)
                if error.kind() == ErrorKind::Unavailable
                    && attempts < START_ATTEMPTS
                    && !target.handle.is_paused() =>
            {
                tokio::time::sleep(backoff.pause()).await;
            }
            Err(error) => {
                if let Some(limit) = error.limit() {
                    target.handle.hits.add(Some(&spec.id), &[limit]);
                }
                return Err(target.explain(error));
            }
        }
    }
}

async fn run(core: &Arc<Core>, target: &Target, spec: &ProcessSpec, started: Instant) -> Result<ExecOutcome> {
    // Before the start is asked for: a caller that goes away while it is under way leaves a process, too.
    let mut kill = KillOnDrop { core: core.clone(), target: Some(target.clone()), process: spec.id.clone() };
    let (_, output) = start(target, spec, |guest, spec| async move { guest.run(spec).await }.boxed()).await?;
    let wanted =
        Attach { target: target.clone(), process: spec.id.clone(), offset: 0, follow: true, pace: true };
    let collected = collect(target, attached(core, wanted, output), core.config.limits.max_output_bytes);
    let result = match spec.deadline {
        None => collected.await,
        Some(deadline) => tokio::select! {
            result = collected => result,
            () = target.handle.sleep_awake(deadline.saturating_add(OVERTIME)) => {
                Err(Error::timeout(format!("exec timeout: {}", target.id)))
            }
        },
    };
    let (process, stdout, stderr) = result?;
    // It has ended; what it left behind on purpose may go on.
    kill.target = None;
    if let Some(Outcome::Lost(reason)) = &process.outcome {
        return Err(Error::internal(format!("how the command ended is not known: {reason}")));
    }
    Ok(ExecOutcome {
        process,
        stdout: stdout.bytes,
        stderr: stderr.bytes,
        stdout_truncated: stdout.truncated,
        stderr_truncated: stderr.truncated,
        duration: started.elapsed(),
    })
}

/// What is kept of one output stream.
#[derive(Default)]
struct Kept {
    bytes: Vec<u8>,
    truncated: bool,
}

impl Kept {
    fn add(&mut self, data: &[u8], most: usize) {
        let room = most.saturating_sub(self.bytes.len());
        self.bytes.extend_from_slice(&data[..data.len().min(room)]);
        self.truncated |= data.len() > room;
    }
}

/// Reads all output, so that the process is never held up, and keeps what may be kept.
async fn collect(target: &Target, mut output: OutputStream, most: u64) -> Result<(ProcessInfo, Kept, Kept)> {
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    let (mut stdout, mut stderr) = (Kept::default(), Kept::default());
    while let Some(event) = output.next().await {
        match event.map_err(|error| target.explain(error))? {
            OutputEvent::Chunk { stream: StdStream::Stdout, data, .. } => stdout.add(&data, most),
            OutputEvent::Chunk { stream: StdStream::Stderr, data, .. } => stderr.add(&data, most),
            OutputEvent::Gap { .. } => {
                // Nobody knows which of them the lost bytes belonged to.
                stdout.truncated = true;
                stderr.truncated = true;
            }
            OutputEvent::Exit(process) if process.outcome.is_some() => return Ok((*process, stdout, stderr)),
            OutputEvent::Exit(_) => {
                return Err(Error::internal("the guest reported an end without a status"));
            }
        }
    }
    Err(Error::internal("the guest ended the output without an exit status"))
}

/// Kills a process that nobody can get the result of.
struct KillOnDrop {
    core: Arc<Core>,
    target: Option<Target>,
    process: String,
}

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        let Some(target) = self.target.take() else { return };
        let process = std::mem::take(&mut self.process);
        // Without a runtime the whole engine is going away.
        if tokio::runtime::Handle::try_current().is_ok() {
            self.core.spawn_actor(async move { kill(&target, &process).await });
        }
    }
}

async fn kill(target: &Target, process: &str) {
    let mut backoff = Backoff::new(KILL_RETRY);
    for _ in 0..KILL_ATTEMPTS {
        let attempt = async {
            // While it is paused nothing of it runs; when it goes on, this must not.
            if !target.handle.awake().await {
                return Ok(false);
            }
            let guest = target.guest().await?;
            guarded(target.deadline(), guest.signal(process, Signal::KILL, true)).await
        };
        let result = tokio::select! {
            result = attempt => result,
            () = target.handle.gone.cancelled() => return,
        };
        match result {
            Ok(_) => return,
            // Unknown: its start may still be on its way.
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::NotFound | ErrorKind::Unavailable | ErrorKind::Timeout
                ) => {}
            Err(error) => {
                tracing::warn!(sandbox = %target.id, process, error = error.chain(), "an abandoned command was not killed");
                return;
            }
        }
        tokio::time::sleep(backoff.pause()).await;
    }
}

/// Waits in the background for a process's end, for the event. As many at once as the engine allows; beyond that there is
/// no event of the end.
fn watch(core: &Arc<Core>, target: &Target, process: &str) {
    let Ok(permit) = core.watched.clone().try_acquire_owned() else { return };
    let (watcher, target, process) = (core.clone(), target.clone(), process.to_owned());
    core.spawn(async move {
        let _permit = permit;
        let waiting = wait(&watcher, &target, &process);
        tokio::select! {
            ended = waiting => if let Some(info) = ended { report_end(&watcher, &target, &info) },
            () = target.handle.gone.cancelled() => {}
        }
    });
}

/// Watches the processes that went on while there was no engine.
pub(crate) async fn watch_adopted(core: Arc<Core>, id: SandboxId) {
    let Ok(handle) = find(&core, id.as_str()).await else { return };
    if !handle.awake().await {
        return;
    }
    let Ok(target) = Target::find(&core, id.as_str()).await else { return };
    let listed = async {
        let guest = target.guest().await?;
        guarded(target.deadline(), guest.processes()).await
    };
    match listed.await {
        Ok(processes) => {
            let known = &target.handle.record().limits_hit;
            for process in &processes {
                match process.ended {
                    None => watch(&core, &target, &process.id),
                    Some(ended) => {
                        // Those that were hit while nobody watched; what was known before is older than when it became known.
                        let ended = Timestamp::try_from(ended).unwrap_or(Timestamp::UNIX_EPOCH);
                        let news = |limit: &&Limit| known.get(limit).is_none_or(|hits| ended > hits.last_at);
                        let news: Vec<_> = process.limits_hit.iter().filter(news).copied().collect();
                        target.handle.hits.add(Some(&process.id), &news);
                    }
                }
            }
        }
        Err(error) => {
            tracing::warn!(sandbox = %id, error = error.chain(), "the ends of its running processes will not be events");
        }
    }
}

/// The end of a process, unless its guest stays out of reach or forgets it.
async fn wait(core: &Core, target: &Target, process: &str) -> Option<ProcessInfo> {
    let mut backoff = Backoff::new(WATCH_RETRY);
    let mut lost_since = None;
    loop {
        if target.handle.is_paused() {
            if !target.handle.awake().await {
                return None;
            }
            lost_since = None;
        }
        let asked = Instant::now();
        let attempt = async {
            let guest = target.guest().await?;
            // Beyond what may wait at the guest, look now and again.
            match target.handle.waits.try_acquire() {
                Ok(_turn) => guarded(WAIT + target.deadline(), guest.wait(process, WAIT)).await,
                Err(_) => guarded(target.deadline(), guest.process(process)).await,
            }
        };
        match attempt.await {
            Ok(info) if info.outcome.is_some() => return Some(info),
            Ok(info) => {
                target.handle.hits.add(Some(process), &info.limits_hit);
                lost_since = None;
            }
            Err(error) if matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Timeout) => {
                let since = *lost_since.get_or_insert_with(Instant::now);
                if since.elapsed() > core.config.reconnect_window * WATCH_WINDOWS {
                    return None;
                }
            }
            Err(_) => return None,
        }
        // A wait that took its time needs no pause; a guest that does not wait must not keep us busy.
        if asked.elapsed() >= WAIT / 2 {
            backoff.reset();
        } else {
            tokio::time::sleep(backoff.pause()).await;
        }
    }
}

/// Says how a process ended: never what it was, which may hold secrets.
fn report_end(core: &Core, target: &Target, process: &ProcessInfo) {
    let (kind, reason) = match &process.outcome {
        _ if process.timed_out => (EventType::ExecTimeout, ""),
        Some(Outcome::Lost(reason)) => (EventType::ExecFailed, reason.as_str()),
        _ => (EventType::ExecCompleted, ""),
    };
    let signal = match &process.outcome {
        Some(Outcome::Signaled(signal)) => Value::from(*signal),
        _ => Value::Null,
    };
    target.handle.hits.add(Some(&process.id), &process.limits_hit);
    let limits: Vec<_> = process.limits_hit.iter().map(|limit| limit.as_str()).collect();
    let pairs = details([
        ("process_id", process.id.as_str().into()),
        ("exit_code", process.outcome.as_ref().and_then(Outcome::shell_code).into()),
        ("signal", signal),
        ("oom_killed", if process.oom_killed { true.into() } else { Value::Null }),
        ("limits_hit", if limits.is_empty() { Value::Null } else { limits.into() }),
        ("error", reason.into()),
    ]);
    core.events.emit(kind, Some(target.id.as_str()), pairs);
}

fn report_failure(core: &Core, target: &Target, process: &str, error: &Error) {
    let kind =
        if error.code() == ErrorCode::Timeout { EventType::ExecTimeout } else { EventType::ExecFailed };
    let pairs = details([
        ("process_id", process.into()),
        ("operation", "exec".into()),
        ("provider", target.slot.provider.name().into()),
        ("error", error.message().into()),
    ]);
    core.events.emit(kind, Some(target.id.as_str()), pairs);
}

#[cfg(test)]
mod tests {
    use super::*;
    use stacyvm_types::PtySize;

    fn limits(default: u64, max: u64) -> Limits {
        Limits {
            default_exec_timeout: Duration::from_secs(default),
            max_exec_timeout: Duration::from_secs(max),
            ..Limits::default()
        }
    }

    #[test]
    fn an_exec_always_ends_within_the_limit_and_a_process_only_where_it_says_so() {
        let seconds = |s: u64| Some(Duration::from_secs(s));
        for (asked, default, max, exec, process) in [
            (None, 0, 0, None, None),
            (None, 5, 0, seconds(5), None),
            (None, 0, 9, seconds(9), None),
            (None, 20, 9, seconds(9), None),
            (seconds(3), 5, 9, seconds(3), seconds(3)),
            (seconds(9), 5, 9, seconds(9), seconds(9)),
            (seconds(30), 5, 0, seconds(30), seconds(30)),
            (seconds(0), 5, 0, None, None),
            (seconds(0), 5, 9, seconds(9), None),
        ] {
            let limits = limits(default, max);
            assert_eq!(exec_deadline(asked, &limits).unwrap(), exec, "exec: {asked:?} {limits:?}");
            assert_eq!(named_deadline(asked, &limits).unwrap(), process, "process: {asked:?} {limits:?}");
        }
        for deadline in [exec_deadline, named_deadline] {
            let error = deadline(seconds(10), &limits(0, 9)).unwrap_err();
            assert_eq!(error.code(), ErrorCode::ResourceLimit);
        }
    }

    #[test]
    fn what_cannot_be_run_is_refused() {
        let ok = ExecRequest { argv: vec!["true".into()], ..Default::default() };
        assert!(spec(ok.clone(), None).is_ok());
        let bad = [
            ExecRequest::default(),
            ExecRequest { argv: vec!["  ".into()], ..Default::default() },
            ExecRequest { argv: vec!["a\0".into()], ..Default::default() },
            ExecRequest { argv: vec!["a".into(), "x".repeat(COMMAND_BYTES)], ..Default::default() },
            ExecRequest { env: [("A=B".into(), String::new())].into(), ..ok.clone() },
            ExecRequest { env: [(String::new(), "x".into())].into(), ..ok.clone() },
            ExecRequest { process_id: Some("a/b".into()), ..ok.clone() },
            ExecRequest { process_id: Some(String::new()), ..ok.clone() },
            ExecRequest { pty: Some(PtySize { rows: 0, cols: 80 }), ..ok.clone() },
            ExecRequest { tag: "t".repeat(257), ..ok },
        ];
        for request in bad {
            let error = spec(request.clone(), None).unwrap_err();
            assert_eq!(error.code(), ErrorCode::BadRequest, "{request:?}");
        }
    }

    #[test]
    fn output_is_kept_up_to_the_limit() {
        let mut kept = Kept::default();
        kept.add(b"abc", 5);
        kept.add(b"de", 5);
        assert!(!kept.truncated);
        kept.add(b"f", 5);
        assert_eq!((kept.bytes.as_slice(), kept.truncated), (b"abcde".as_slice(), true));
    }
}
