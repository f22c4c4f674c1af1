//! Limits hold, hit the work and not the agent, and are counted.

mod common;

use common::{Host, id, run, sandbox, sh, spec};
use stacyvm_provider::{Limit, Outcome, Provider, SandboxSpec};
use std::time::{Duration, Instant};

#[tokio::test(flavor = "multi_thread")]
async fn memory_is_limited_and_the_sandbox_survives_it() {
    let host = Host::new();
    let provider = host.provider(1);
    if !provider.capabilities().memory_limit {
        let health = provider.health().await;
        assert!(health.warnings.iter().any(|w| w.contains("memory")), "{health:?}");
        return;
    }
    let id = id("memory");
    let spec = SandboxSpec { memory_mb: 64, ..spec() };
    let guest = sandbox(&provider, &id, &spec).await;
    let small = run(guest.as_ref(), &["python3", "-c", "x = bytearray(16 << 20); print(len(x))"]).await;
    assert!(small.info.limits_hit.is_empty(), "{small:?}");
    assert_eq!(small.ok().trim(), (16 << 20).to_string());
    let big = run(guest.as_ref(), &["python3", "-c", "x = bytearray(512 << 20); print(len(x))"]).await;
    assert_eq!(big.info.outcome, Some(Outcome::Signaled(9)), "{big:?}");
    assert_eq!(big.info.limits_hit, [Limit::Oom]);
    // Not the process itself, but one that it started.
    let child = run(guest.as_ref(), &["sh", "-c", "python3 -c 'bytearray(512 << 20)'; exit 3"]).await;
    assert_eq!(child.info.outcome, Some(Outcome::Exited(3)), "{child:?}");
    assert_eq!((child.info.oom_killed, child.info.limits_hit.as_slice()), (false, [Limit::Oom].as_slice()));
    guest.ping().await.unwrap();
    assert_eq!(sh(guest.as_ref(), "echo still here").await, "still here\n");
    let stats = provider.stats(&id).await.unwrap();
    assert_eq!(stats.memory_limit_bytes, 64 << 20);
    assert!((1..64 << 20).contains(&stats.memory_bytes), "{stats:?}");
    provider.destroy(&id).await.unwrap();
    host.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_are_limited() {
    let host = Host::new();
    let provider = host.provider(1);
    if !provider.capabilities().pids_limit {
        let health = provider.health().await;
        assert!(health.warnings.iter().any(|w| w.contains("pids")), "{health:?}");
        return;
    }
    let id = id("pids");
    let guest = sandbox(&provider, &id, &SandboxSpec { pids: 40, ..spec() }).await;
    let bomb = "import os, time, signal\n\
                made = []\n\
                try:\n  \
                  while len(made) < 200:\n    \
                    pid = os.fork()\n    \
                    if pid == 0: time.sleep(60); os._exit(0)\n    \
                    made.append(pid)\n\
                except BlockingIOError: pass\n\
                print(len(made))\n\
                for pid in made: os.kill(pid, signal.SIGKILL)\n";
    let ran = run(guest.as_ref(), &["python3", "-c", bomb]).await;
    assert_eq!(ran.info.limits_hit, [Limit::Pids], "it went on, and yet it hit the limit");
    let made: u32 = ran.ok().trim().parse().unwrap();
    assert!((20..40).contains(&made), "{made}");
    let stats = provider.stats(&id).await.unwrap();
    assert!((1..=45).contains(&stats.pids), "{stats:?}");
    guest.ping().await.unwrap();
    provider.destroy(&id).await.unwrap();
    host.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn processor_time_is_limited_and_counted() {
    let host = Host::new();
    let provider = host.provider(1);
    if !provider.capabilities().cpu_limit {
        let health = provider.health().await;
        assert!(health.warnings.iter().any(|w| w.contains("cpu")), "{health:?}");
        return;
    }
    let id = id("cpu");
    let guest = sandbox(&provider, &id, &SandboxSpec { vcpus: 1, ..spec() }).await;
    let burn = "import os, time\n\
                for _ in range(3):\n  \
                  if os.fork() == 0:\n    \
                    end = time.time() + 1\n    \
                    while time.time() < end: pass\n    \
                    os._exit(0)\n\
                for _ in range(3): os.wait()\n\
                print(sum(os.times()[2:4]))\n";
    let started = Instant::now();
    let used: f64 = run(guest.as_ref(), &["python3", "-c", burn]).await.ok().trim().parse().unwrap();
    // Three that want a processor each got one between them, however many the host has.
    assert!(used <= started.elapsed().as_secs_f64() * 1.25, "{used} s used");
    let stats = provider.stats(&id).await.unwrap();
    assert!(stats.cpu_time >= Duration::from_secs_f64(used * 0.9), "{stats:?}, {used}");
    provider.destroy(&id).await.unwrap();
    host.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn without_limits_time_is_counted_all_the_same() {
    let host = Host::new();
    let provider = host.provider(1);
    let id = id("unlimited");
    let guest = sandbox(&provider, &id, &spec()).await;
    let burn = "import time; end = time.process_time() + 0.3\nwhile time.process_time() < end: pass";
    run(guest.as_ref(), &["python3", "-c", burn]).await.ok();
    // Also what processes used that have ended.
    let stats = provider.stats(&id).await.unwrap();
    assert!(stats.cpu_time >= Duration::from_millis(300), "{stats:?}");
    assert!(stats.memory_bytes > 0 && stats.pids > 0, "{stats:?}");
    assert_eq!(stats.memory_limit_bytes, 0);
    provider.destroy(&id).await.unwrap();
    host.assert_nothing_left();
}
