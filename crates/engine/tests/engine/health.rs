//! Sandboxes that end or go out of reach by themselves, and the health of providers.

use crate::{
    assert_code, becomes, command, config, crash, eventually,
    fake::{Act, Cell, Fake, Op},
    fresh, history, is_gone, kinds, request, start_with,
};
use stacyvm_engine::{CreateRequest, Engine, SandboxState, Store};
use stacyvm_provider::ErrorKind;
use stacyvm_types::{ErrorCode, EventType};
use std::time::Duration;

#[tokio::test]
async fn one_that_ends_by_itself_is_an_error_with_its_reason_and_leaves_nothing_in_the_runtime() {
    let (engine, store, fake) = fresh(config()).await;
    let id = engine.create(request()).await.unwrap().id;
    fake.kill(&id, "out of memory");
    becomes(&engine, id.as_str(), SandboxState::Error).await;
    assert_eq!(engine.get(id.as_str()).await.unwrap().reason, "out of memory");
    eventually("released", async || fake.ids().is_empty()).await;
    let error = assert_code(engine.exec(id.as_str(), command(&["echo", "x"])).await, ErrorCode::Conflict);
    assert!(error.message().contains("out of memory"), "{error}");
    assert!(kinds(&history(&engine, &store).await, id.as_str()).contains(&EventType::SandboxError));
    engine.destroy(id.as_str()).await.unwrap();
    is_gone(&engine, id.as_str()).await;
}

#[tokio::test]
async fn one_that_failed_still_expires() {
    let (engine, _store, fake) = fresh(config()).await;
    let ttl = Some(Duration::from_millis(200));
    let id = engine.create(CreateRequest { ttl, ..request() }).await.unwrap().id;
    fake.kill(&id, "it broke");
    becomes(&engine, id.as_str(), SandboxState::Error).await;
    is_gone(&engine, id.as_str()).await;
}

#[tokio::test]
async fn out_of_reach_is_unhealthy_until_it_is_found_again() {
    let (engine, store, fake) = fresh(config()).await;
    let id = engine.create(request()).await.unwrap().id;
    for op in [Op::Ping, Op::Connect, Op::Status] {
        fake.always(op, Act::Fail(ErrorKind::Unavailable));
        becomes(&engine, id.as_str(), SandboxState::Unhealthy).await;
        assert_eq!(engine.get(id.as_str()).await.unwrap().reason, format!("scripted {op:?} failure"));
        assert_code(engine.guest(id.as_str()).await.map(drop), ErrorCode::Unavailable);
        fake.heal();
        becomes(&engine, id.as_str(), SandboxState::Running).await;
        assert_eq!(engine.get(id.as_str()).await.unwrap().reason, "");
    }
    let kinds = kinds(&history(&engine, &store).await, id.as_str());
    assert_eq!(kinds.iter().filter(|kind| **kind == EventType::SandboxUnhealthy).count(), 3);
    assert_eq!(kinds.iter().filter(|kind| **kind == EventType::SandboxRunning).count(), 4);
}

#[tokio::test]
async fn one_missed_answer_is_not_a_verdict() {
    let (engine, store, fake) = fresh(config()).await;
    let id = engine.create(request()).await.unwrap().id;
    fake.once(Op::Ping, Act::Fail(ErrorKind::Unavailable));
    eventually("asked twice more", async || fake.count(Op::Ping) >= 3).await;
    assert!(!kinds(&history(&engine, &store).await, id.as_str()).contains(&EventType::SandboxUnhealthy));
}

#[tokio::test]
async fn whoever_asks_for_one_out_of_reach_has_it_looked_at_again_before_being_refused() {
    let mut config = config();
    // Nobody but a caller makes it look again in the time of this test.
    config.retry = (Duration::from_millis(50), Duration::from_secs(3600));
    let (engine, _store, fake) = fresh(config).await;
    let id = engine.create(request()).await.unwrap().id;
    fake.always(Op::Ping, Act::Fail(ErrorKind::Unavailable));
    becomes(&engine, id.as_str(), SandboxState::Unhealthy).await;
    for _ in 0..20 {
        assert_code(engine.guest(id.as_str()).await.map(drop), ErrorCode::Unavailable);
    }
    fake.heal();
    engine.exec(id.as_str(), command(&["echo", "x"])).await.unwrap();
}

#[tokio::test]
async fn a_runtime_that_cries_wolf_costs_no_sandbox() {
    /// Says that every sandbox ended, at once, while its status says otherwise.
    struct Wolf(Fake);
    #[async_trait::async_trait]
    impl stacyvm_provider::Provider for Wolf {
        fn name(&self) -> &str {
            "fake"
        }
        fn capabilities(&self) -> stacyvm_provider::Capabilities {
            self.0.capabilities()
        }
        async fn health(&self) -> stacyvm_provider::Health {
            self.0.health().await
        }
        async fn create(
            &self,
            id: &stacyvm_provider::SandboxId,
            spec: &stacyvm_provider::SandboxSpec,
        ) -> stacyvm_provider::Result<stacyvm_provider::Created> {
            self.0.create(id, spec).await
        }
        async fn connect(
            &self,
            id: &stacyvm_provider::SandboxId,
        ) -> stacyvm_provider::Result<std::sync::Arc<dyn stacyvm_provider::Guest>> {
            self.0.connect(id).await
        }
        async fn destroy(&self, id: &stacyvm_provider::SandboxId) -> stacyvm_provider::Result<()> {
            self.0.destroy(id).await
        }
        async fn status(
            &self,
            id: &stacyvm_provider::SandboxId,
        ) -> stacyvm_provider::Result<stacyvm_provider::RuntimeState> {
            self.0.status(id).await
        }
        async fn ended(&self, _: &stacyvm_provider::SandboxId) -> String {
            "wolf".into()
        }
        async fn list(&self) -> stacyvm_provider::Result<Vec<stacyvm_provider::RuntimeSandbox>> {
            self.0.list().await
        }
        async fn stats(
            &self,
            id: &stacyvm_provider::SandboxId,
        ) -> stacyvm_provider::Result<stacyvm_provider::RuntimeStats> {
            self.0.stats(id).await
        }
    }
    let (store, fake) = (Store::in_memory().await.unwrap(), Fake::new("fake"));
    let engine = Engine::start(config(), store, vec![std::sync::Arc::new(Wolf(fake.clone()))]).await.unwrap();
    let id = engine.create(request()).await.unwrap().id;
    eventually("several false alarms", async || fake.count(Op::Status) >= 5).await;
    assert_eq!(engine.get(id.as_str()).await.unwrap().state, SandboxState::Running);
}

#[tokio::test]
async fn frozen_is_paused() {
    let (engine, _store, fake) = fresh(config()).await;
    let id = engine.create(request()).await.unwrap().id;
    fake.world().held.get_mut(&id).unwrap().cell = Cell::Paused;
    becomes(&engine, id.as_str(), SandboxState::Paused).await;
    assert_code(engine.guest(id.as_str()).await.map(drop), ErrorCode::Conflict);
    fake.world().held.get_mut(&id).unwrap().cell = Cell::Running;
    becomes(&engine, id.as_str(), SandboxState::Running).await;
}

#[tokio::test]
async fn provider_health_is_looked_at_in_the_background() {
    let (engine, _store, fake) = fresh(config()).await;
    let id = engine.create(request()).await.unwrap().id;
    let status = &engine.provider_status().await[0];
    assert_eq!((status.name.as_str(), status.healthy, status.default), ("fake", true, true));
    eventually("counted", async || engine.provider_status().await[0].runtime_count == Some(1)).await;
    fake.world().down = true;
    eventually("seen down", async || !engine.provider_status().await[0].healthy).await;
    let status = &engine.provider_status().await[0];
    assert_eq!(status.problem.as_deref(), Some("the scripted runtime is down"));
    becomes(&engine, id.as_str(), SandboxState::Unhealthy).await;
    fake.heal();
    becomes(&engine, id.as_str(), SandboxState::Running).await;
}

#[tokio::test]
async fn a_provider_that_comes_back_is_not_kept_waiting() {
    let (engine, store, fake) = fresh(config()).await;
    let id = engine.create(request()).await.unwrap().id;
    crash(engine).await;
    fake.world().down = true;
    let mut config = config();
    // Without the news of its recovery, the next attempt would be an hour away.
    config.retry = (Duration::from_secs(3600), Duration::from_secs(3600));
    let engine = start_with(config, &store, &fake).await;
    becomes(&engine, id.as_str(), SandboxState::Unhealthy).await;
    eventually("seen down", async || !engine.provider_status().await[0].healthy).await;
    fake.heal();
    becomes(&engine, id.as_str(), SandboxState::Running).await;
}

#[tokio::test]
async fn two_providers_cannot_have_one_name() {
    let store = Store::in_memory().await.unwrap();
    let twins = vec![Fake::new("a").provider(), Fake::new("a").provider()];
    assert_code(Engine::start(config(), store, twins).await, ErrorCode::Conflict);
}
