//! stop
use stacyvm_provider::*;
use stacyvm_provider_native::*;
use std::time::*;
fn main() {
    let rt = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    rt.block_on(async {
    let tmp = tempfile::tempdir_in("/var/tmp").unwrap();
    let p = NativeProvider::start(NativeConfig{data_dir: tmp.path().to_owned(), installation_id:"adhoc".into(), generation:1,
        spawner: SpawnerCommand{program: std::env::current_exe().unwrap().parent().unwrap().parent().unwrap().join("native-spawner"), args: vec![]}, agent: stacyvm_guest_binaries::AGENT, lock: None}).unwrap();
    let spec = SandboxSpec{image:"host".into(), memory_mb: 0, vcpus: 0, pids: 0, ephemeral:false, metadata: Default::default()};
    let id: SandboxId = "sb-a".parse().unwrap();
    p.create(&id,&spec).await.unwrap();
    println!("{:?}", std::process::Command::new("sh").args(["-c", &format!("for p in $(cat /proc/{}/task/*/children); do [ $(cat /proc/$p/comm) = native-spawner ] && kill -STOP $p; done", std::process::id())]).status());
    let t=Instant::now();
    let id2: SandboxId = "sb-b".parse().unwrap();
    println!("{:?} {:?}", p.create(&id2,&spec).await, t.elapsed());
    println!("{:?}", p.list().await);
    p.destroy(&id).await.unwrap(); p.destroy(&id2).await.unwrap();
    let mut h=vec![]; let p=std::sync::Arc::new(p);
    let t=Instant::now();
    for i in 0..100 { let p=p.clone(); let spec=SandboxSpec{memory_mb:128,pids:64,vcpus:1,..spec.clone()}; h.push(tokio::spawn(async move { let id: SandboxId=format!("sb-{i}").parse().unwrap(); p.create(&id,&spec).await.unwrap(); })); }
    for x in h { x.await.unwrap(); }
    println!("100 creates {:?}", t.elapsed());
    let t=Instant::now(); let mut h=vec![];
    for i in 0..100 { let p=p.clone(); h.push(tokio::spawn(async move { let id: SandboxId=format!("sb-{i}").parse().unwrap(); p.destroy(&id).await.unwrap(); })); }
    for x in h { x.await.unwrap(); }
    println!("100 destroys {:?}", t.elapsed());
});
}
