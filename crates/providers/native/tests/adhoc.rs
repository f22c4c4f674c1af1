//! adhoc
use stacyvm_provider::*;
use stacyvm_provider_native::*;
#[tokio::test(flavor="multi_thread")]
async fn adhoc() {
    let agent: &'static [u8] = Box::leak(std::fs::read("/tmp/nat/agent").unwrap().into_boxed_slice());
    let tmp = tempfile::tempdir_in("/var/tmp").unwrap();
    let p = std::sync::Arc::new(NativeProvider::start(NativeConfig{data_dir: tmp.path().to_owned(), installation_id:"adhoc".into(), generation:1,
        spawner: SpawnerCommand{program: env!("CARGO_BIN_EXE_native-spawner").into(), args: vec![]}, agent, lock: None}).unwrap());
    println!("{:?} {:?}", p.capabilities(), p.health().await);
    let id: SandboxId = "sb-adhoc".parse().unwrap();
    let lim: u32 = std::env::var("LIM").ok().and_then(|v| v.parse().ok()).unwrap_or(0);
    let spec = SandboxSpec{image: std::env::var("IMG").unwrap_or("host".into()), memory_mb: lim, vcpus: lim.min(1), pids: lim, ephemeral:false, metadata: Default::default()};
    let p2=p.clone(); let id2=id.clone();
    let t=tokio::spawn(async move { p2.create(&id2,&spec).await });
    tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
    println!("{}", std::fs::read_to_string(tmp.path().join("sandboxes/sb-adhoc/agent.log")).unwrap_or_default());
    std::process::Command::new("sh").args(["-c","cat /sys/fs/cgroup/*/stacyvm-adhoc/sb-adhoc/*/cgroup.procs"]).status().unwrap();
    println!("{}", std::fs::read_to_string(tmp.path().join("sandboxes/sb-adhoc/state.json")).unwrap_or_default());
    println!("{:?}", p.list().await);
    println!("{:?}", p.stats(&id).await);
    if t.is_finished() { println!("{:?}", t.await); }
    else { std::process::Command::new("sh").args(["-c","kill -9 $(cat /proc/$(pgrep -x native-spawner)/task/*/children)"]).status().unwrap(); println!("{:?}", t.await); }
    println!("{:?}", p.list().await);
}
