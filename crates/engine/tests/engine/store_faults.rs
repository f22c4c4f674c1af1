//! A store that refuses writes at the worst moments, made to by triggers put into its file behind the engine's back.

use crate::{
    assert_code, becomes, config, crash, eventually,
    fake::{Act, Fake, Op},
    is_gone, request, start_with,
};
use sqlx::{Connection, Executor, SqliteConnection};
use stacyvm_engine::{CreateRequest, Engine, EngineConfig, ListFilter, SandboxState, Store};
use stacyvm_provider::ErrorKind;
use stacyvm_types::ErrorCode;
use std::time::Duration;

struct Broken {
    engine: Engine,
    store: Store,
    fake: Fake,
    config: EngineConfig,
    back_door: SqliteConnection,
    _dir: tempfile::TempDir,
}

impl Broken {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.db");
        let (store, fake) = (Store::open(&path).await.unwrap(), Fake::new("fake"));
        let mut config = config();
        config.destroy_wait = Duration::from_millis(50);
        let engine = start_with(config.clone(), &store, &fake).await;
        let back_door = SqliteConnection::connect(&format!("sqlite://{}", path.display())).await.unwrap();
        Self { engine, store, fake, config, back_door, _dir: dir }
    }

    /// No row may become `state`.
    async fn refuse(&mut self, state: SandboxState) {
        let trigger = |event: &str| {
            format!(
                "CREATE TRIGGER refuse_{event}_{state} BEFORE {event} ON sandboxes WHEN NEW.state = '{state}' \
                 BEGIN SELECT RAISE(ABORT, 'refused'); END"
            )
        };
        for event in ["INSERT", "UPDATE"] {
            self.back_door.execute(sqlx::AssertSqlSafe(trigger(event))).await.unwrap();
        }
    }

    async fn allow(&mut self, state: SandboxState) {
        for event in ["INSERT", "UPDATE"] {
            let drop = format!("DROP TRIGGER refuse_{event}_{state}");
            self.back_door.execute(sqlx::AssertSqlSafe(drop)).await.unwrap();
        }
    }

    async fn restart(&mut self) {
        self.engine.halt();
        let engine = start_with(self.config.clone(), &self.store, &self.fake).await;
        crash(std::mem::replace(&mut self.engine, engine)).await;
    }

    async fn rows(&self) -> Vec<SandboxState> {
        self.store.live_sandboxes().await.unwrap().into_iter().map(|row| row.state).collect()
    }
}

#[tokio::test]
async fn the_row_says_destroying_before_the_runtime_is_asked() {
    let broken = Broken::new().await;
    let id = broken.engine.create(request()).await.unwrap().id;
    broken.fake.once(Op::Destroy, Act::Hang);
    assert_code(broken.engine.destroy(id.as_str()).await, ErrorCode::Unavailable);
    assert_eq!(broken.rows().await, [SandboxState::Destroying]);
}

#[tokio::test]
async fn one_that_cannot_be_stored_is_not_made() {
    let mut broken = Broken::new().await;
    broken.refuse(SandboxState::Creating).await;
    assert_code(broken.engine.create(request()).await, ErrorCode::InternalError);
    assert_eq!((broken.fake.count(Op::Create), broken.rows().await.len()), (0, 0));
    broken.allow(SandboxState::Creating).await;
    broken.engine.create(request()).await.unwrap();
}

#[tokio::test]
async fn one_that_cannot_be_stored_as_running_is_undone() {
    let mut broken = Broken::new().await;
    broken.refuse(SandboxState::Running).await;
    assert_code(broken.engine.create(request()).await, ErrorCode::InternalError);
    assert_eq!(
        (broken.fake.count(Op::Create), broken.fake.ids().len(), broken.rows().await.len()),
        (1, 0, 0)
    );
    assert!(broken.engine.list(ListFilter::default()).await.unwrap().is_empty());
}

#[tokio::test]
async fn an_undo_does_not_need_the_store() {
    let mut broken = Broken::new().await;
    broken.refuse(SandboxState::Error).await;
    broken.refuse(SandboxState::Destroyed).await;
    broken.fake.once(Op::Create, Act::Half(ErrorKind::Internal));
    let error = assert_code(broken.engine.create(request()).await, ErrorCode::InternalError);
    assert_eq!(error.message(), "scripted Create failure");
    assert_eq!((broken.fake.ids().len(), broken.rows().await), (0, vec![SandboxState::Creating]));
    broken.restart().await;
    broken.allow(SandboxState::Destroyed).await;
    eventually("undone", async || broken.store.live_sandboxes().await.unwrap().is_empty()).await;
}

#[tokio::test]
async fn a_store_that_does_not_take_the_intent_does_not_keep_a_sandbox_alive() {
    let mut broken = Broken::new().await;
    broken.refuse(SandboxState::Destroying).await;
    broken.refuse(SandboxState::Expired).await;
    let id = broken.engine.create(request()).await.unwrap().id;
    broken.engine.destroy(id.as_str()).await.unwrap();
    let ttl = Some(Duration::from_millis(20));
    let id = broken.engine.create(CreateRequest { ttl, ..request() }).await.unwrap().id;
    is_gone(&broken.engine, id.as_str()).await;
    assert_eq!((broken.fake.ids().len(), broken.rows().await.len()), (0, 0));
}

#[tokio::test]
async fn destroyed_is_said_only_when_it_is_stored() {
    let mut broken = Broken::new().await;
    let id = broken.engine.create(request()).await.unwrap().id;
    broken.refuse(SandboxState::Destroyed).await;
    assert_code(broken.engine.destroy(id.as_str()).await, ErrorCode::Unavailable);
    assert_eq!(broken.fake.ids(), Vec::<String>::new());
    assert_eq!(broken.engine.get(id.as_str()).await.unwrap().state, SandboxState::Destroying);
    broken.restart().await;
    becomes(&broken.engine, id.as_str(), SandboxState::Destroying).await;
    broken.allow(SandboxState::Destroyed).await;
    is_gone(&broken.engine, id.as_str()).await;
    assert_eq!(broken.rows().await, []);
}

#[tokio::test]
async fn liveness_is_the_runtimes_to_say_whatever_the_store_takes() {
    let mut broken = Broken::new().await;
    let id = broken.engine.create(request()).await.unwrap().id;
    broken.refuse(SandboxState::Unhealthy).await;
    broken.refuse(SandboxState::Error).await;
    broken.fake.always(Op::Ping, Act::Fail(ErrorKind::Unavailable));
    becomes(&broken.engine, id.as_str(), SandboxState::Unhealthy).await;
    broken.fake.heal();
    becomes(&broken.engine, id.as_str(), SandboxState::Running).await;
    broken.fake.kill(&id, "it broke");
    becomes(&broken.engine, id.as_str(), SandboxState::Error).await;
    broken.restart().await;
    becomes(&broken.engine, id.as_str(), SandboxState::Error).await;
}

#[tokio::test]
async fn events_wait_for_a_store_that_takes_them() {
    let mut broken = Broken::new().await;
    let refuse =
        "CREATE TRIGGER refuse_events BEFORE INSERT ON events BEGIN SELECT RAISE(ABORT, 'refused'); END";
    broken.back_door.execute(refuse).await.unwrap();
    let id = broken.engine.create(request()).await.unwrap().id;
    broken.engine.destroy(id.as_str()).await.unwrap();
    assert_eq!(broken.engine.events().total(), 0);
    broken.back_door.execute("DROP TRIGGER refuse_events").await.unwrap();
    eventually("stored", async || broken.engine.events().total() == 3).await;
}
