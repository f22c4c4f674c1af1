//! Create, find again, end, destroy: twice, concurrently, behind our back, and across servers and spawners.

mod common;

use common::{Host, collect, first_process, id, kill, run, sandbox, sh, spawners, spec};
use stacyvm_provider::{ErrorKind, ProcessSpec, Provider, RuntimeState, SandboxSpec};
use std::{fs, sync::Arc, time::Duration};

#[tokio::test(flavor = "multi_thread")]
async fn create_and_destroy_can_be_said_twice() {
    let host = Host::new();
    let provider = host.provider(1);
    let id = id("twice");
    provider.destroy(&id).await.unwrap();
    let guest = sandbox(&provider, &id, &spec()).await;
    sh(guest.as_ref(), "echo kept > /workspace/f").await;
    provider.create(&id, &spec()).await.unwrap();
    let guest = provider.connect(&id).await.unwrap();
    assert_eq!(sh(guest.as_ref(), "cat /workspace/f").await, "kept\n");
    let other = SandboxSpec { metadata: [("a".into(), "b".into())].into(), ..spec() };
    assert_eq!(provider.create(&id, &other).await.unwrap_err().kind(), ErrorKind::InvalidArgument);
    provider.destroy(&id).await.unwrap();
    host.assert_nothing_left();
    provider.destroy(&id).await.unwrap();
    assert_eq!(provider.status(&id).await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(provider.connect(&id).await.err().unwrap().kind(), ErrorKind::NotFound);
    assert_eq!(provider.stats(&id).await.unwrap_err().kind(), ErrorKind::NotFound);
    assert!(provider.list().await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn many_at_once_all_succeed() {
    let host = Host::new();
    let provider = Arc::new(host.provider(1));
    let ids: Vec<_> = (0..20).map(|n| id(&format!("many{n}"))).collect();
    let each = |id| {
        let provider = Arc::clone(&provider);
        async move {
            let spec = SandboxSpec { memory_mb: 128, vcpus: 1, pids: 64, ..spec() };
            let guest = sandbox(&provider, &id, &spec).await;
            assert_eq!(sh(guest.as_ref(), "hostname").await.trim(), id.as_str());
        }
    };
    let tasks: Vec<_> = ids.iter().cloned().map(|id| tokio::spawn(each(id))).collect();
    for task in tasks {
        task.await.unwrap();
    }
    let listed: Vec<_> = provider.list().await.unwrap();
    assert_eq!(listed.len(), ids.len());
    assert!(listed.iter().all(|s| s.state == RuntimeState::Running && s.image.as_deref() == Some("host")));
    let tasks: Vec<_> = ids
        .into_iter()
        .map(|id| {
            let provider = Arc::clone(&provider);
            tokio::spawn(async move { provider.destroy(&id).await })
        })
        .collect();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    host.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_goes_away_leaves_nothing_that_destroy_cannot_remove() {
    let host = Host::new();
    let provider = host.provider(1);
    for delay in 0..12 {
        let id = id(&format!("away{delay}"));
        let spec = SandboxSpec { memory_mb: 128, pids: 64, ..spec() };
        // Given up after a while that is sometimes too short and sometimes not.
        let _ = tokio::time::timeout(Duration::from_micros(delay * 300), provider.create(&id, &spec)).await;
        provider.destroy(&id).await.unwrap();
        assert_eq!(provider.status(&id).await.unwrap_err().kind(), ErrorKind::NotFound);
    }
    host.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_behind_our_back_is_seen() {
    let host = Host::new();
    let provider = Arc::new(host.provider(1));
    let id = id("ended");
    sandbox(&provider, &id, &spec()).await;
    let watch = {
        let (provider, id) = (Arc::clone(&provider), id.clone());
        tokio::spawn(async move { provider.ended(&id).await })
    };
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!watch.is_finished());
    kill(first_process(&host, &id));
    let reason = tokio::time::timeout(Duration::from_secs(10), watch).await.unwrap().unwrap();
    // With the signal where the kernel remembers it for everybody (6.15 and later).
    assert!(
        ["its agent was killed by signal 9", "its agent has ended"].contains(&reason.as_str()),
        "{reason}"
    );
    assert!(matches!(provider.status(&id).await.unwrap(), RuntimeState::Ended { .. }));
    assert_eq!(provider.connect(&id).await.err().unwrap().kind(), ErrorKind::Destroyed);
    assert_eq!(provider.stats(&id).await.unwrap_err().kind(), ErrorKind::Destroyed);
    assert!(matches!(provider.list().await.unwrap()[0].state, RuntimeState::Ended { .. }));
    // Made again under the same name, as recovery may do.
    sandbox(&provider, &id, &spec()).await;
    provider.destroy(&id).await.unwrap();
    host.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_server_adopts_what_runs() {
    let host = Host::new();
    let id = id("adopted");
    let old = host.provider(1);
    let guest = sandbox(&old, &id, &SandboxSpec { memory_mb: 128, ..spec() }).await;
    let count = "i=0; while [ $i -lt 100 ]; do echo $i; i=$((i+1)); sleep 0.01; done";
    let process = ProcessSpec {
        id: "p-count".to_owned(),
        argv: ["sh", "-c", count].map(str::to_owned).to_vec(),
        ..ProcessSpec::default()
    };
    guest.start(&process).await.unwrap();
    drop(guest);
    drop(old);

    let new = Arc::new(host.provider(2));
    let listed = new.list().await.unwrap();
    assert_eq!((listed.len(), &listed[0].state), (1, &RuntimeState::Running));
    let guest = new.connect(&id).await.unwrap();
    let counted = collect(guest.as_ref(), "p-count", 0).await.ok();
    let expected: String = (0..100).map(|n| format!("{n}\n")).collect();
    assert_eq!(counted, expected);
    assert_eq!(new.stats(&id).await.unwrap().memory_limit_bytes, 128 << 20);
    let watch = {
        let (new, id) = (Arc::clone(&new), id.clone());
        tokio::spawn(async move { new.ended(&id).await })
    };
    kill(first_process(&host, &id));
    tokio::time::timeout(Duration::from_secs(10), watch).await.unwrap().unwrap();
    new.destroy(&id).await.unwrap();
    host.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn half_made_sandboxes_are_listed_and_removed() {
    let host = Host::new();
    let provider = host.provider(1);
    let (bare, broken) = (id("bare"), id("broken"));
    let directory = |id: &stacyvm_provider::SandboxId| host.data_dir.join("sandboxes").join(id.as_str());
    fs::create_dir(directory(&bare)).unwrap();
    fs::create_dir_all(directory(&broken).join("upper/x")).unwrap();
    fs::write(directory(&broken).join("spec.json"), serde_json::to_vec(&spec()).unwrap()).unwrap();
    fs::write(directory(&broken).join("state.json"), "{\"process\":").unwrap();
    let listed = provider.list().await.unwrap();
    assert_eq!(listed.iter().map(|s| s.id.as_str()).collect::<Vec<_>>(), [bare.as_str(), broken.as_str()]);
    assert!(
        listed
            .iter()
            .all(|s| matches!(&s.state, RuntimeState::Ended { reason } if reason.contains("interrupted")))
    );
    assert_eq!(listed[1].image.as_deref(), Some("host"));
    // Finished by a create, removed by a destroy.
    sandbox(&provider, &bare, &spec()).await;
    for id in [bare, broken] {
        provider.destroy(&id).await.unwrap();
    }
    host.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_data_directory_works() {
    let host = Host::beneath(&["a".repeat(120), "b".repeat(120)].join("/"));
    let provider = host.provider(1);
    let id = id("long");
    let guest = sandbox(&provider, &id, &spec()).await;
    assert_eq!(run(guest.as_ref(), &["echo", "hi"]).await.ok(), "hi\n");
    provider.destroy(&id).await.unwrap();
    host.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn two_installations_do_not_see_one_another() {
    let (one, two) = (Host::new(), Host::new());
    let (first, second) = (one.provider(1), two.provider(1));
    let id = id("same");
    let spec = SandboxSpec { pids: 64, ..spec() };
    let guest = sandbox(&first, &id, &spec).await;
    assert!(second.list().await.unwrap().is_empty());
    second.destroy(&id).await.unwrap();
    sandbox(&second, &id, &spec).await;
    second.destroy(&id).await.unwrap();
    two.assert_nothing_left();
    assert_eq!(sh(guest.as_ref(), "echo alive").await, "alive\n");
    first.destroy(&id).await.unwrap();
    one.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_does_not_start_leaves_nothing() {
    let host = Host::new();
    let mut config = host.config(1);
    config.agent = b"this is no program";
    let provider = stacyvm_provider_native::NativeProvider::start(config).unwrap();
    let error = provider.create(&id("broken"), &SandboxSpec { pids: 9, ..spec() }).await.unwrap_err();
    assert!(error.chain().contains("start the agent"), "{}", error.chain());
    assert!(provider.list().await.unwrap().is_empty());
    host.assert_nothing_left();
    let error = provider
        .create(&id("absent"), &SandboxSpec { image: "/var/tmp/no-such".into(), ..spec() })
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    let error =
        provider.create(&id("named"), &SandboxSpec { image: "alpine".into(), ..spec() }).await.unwrap_err();
    assert!(error.message().contains("host"), "{error}");
    host.assert_nothing_left();
}

/// Alone in its test program's turn: it looks for spawners among all children.
#[tokio::test(flavor = "multi_thread")]
async fn a_spawner_that_is_killed_is_replaced_and_no_sandbox_notices() {
    let host = Host::new();
    let before = spawners();
    let provider = host.provider(1);
    let (a, b) = (id("before"), id("after"));
    let guest = sandbox(&provider, &a, &spec()).await;
    let path = fs::read_to_string(format!("/proc/{}/status", first_process(&host, &a))).unwrap();
    let spawner: i32 = path.lines().find_map(|l| l.strip_prefix("PPid:\t")).unwrap().parse().unwrap();
    assert!(!before.contains(&spawner) && spawners().contains(&spawner));
    kill(spawner);
    let other = sandbox(&provider, &b, &spec()).await;
    assert_eq!(sh(guest.as_ref(), "echo unaffected").await, "unaffected\n");
    assert_eq!(sh(other.as_ref(), "hostname").await.trim(), b.as_str());
    for id in [a, b] {
        provider.destroy(&id).await.unwrap();
    }
    host.assert_nothing_left();
}
