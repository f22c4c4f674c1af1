//! lat
use stacyvm_provider::*;
use stacyvm_provider_native::*;
fn now()->i64{ let t=rustix::time::clock_gettime(rustix::time::ClockId::Monotonic); t.tv_sec*1_000_000_000+t.tv_nsec as i64 }
fn main() { let rt=tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap(); rt.block_on(async {
    let agent: &'static [u8] = Box::leak(std::fs::read("/tmp/nat/lat").unwrap().into_boxed_slice());
    let tmp = tempfile::tempdir_in("/var/tmp").unwrap();
    let p = NativeProvider::start(NativeConfig{data_dir: tmp.path().to_owned(), installation_id:"adhoc".into(), generation:1,
        spawner: SpawnerCommand{program: "/work/main/target/debug/native-spawner".into(), args: vec![]}, agent, lock: None}).unwrap();
    p.health().await;
    for lim in [0,64,0,64] { let mut v=vec![]; let mut d=vec![];
     for i in 0..30 {
      let id: SandboxId = format!("sb-l{i}").parse().unwrap();
      let spec = SandboxSpec{image:"host".into(), memory_mb: lim, vcpus: lim.min(1), pids: lim, ephemeral:false, metadata: Default::default()};
      let keep=tmp.path().join("keep"); let log=tmp.path().join(format!("sandboxes/{id}/agent.log"));
      let _=std::fs::remove_file(&keep);
      let t0=now();
      let h=std::thread::spawn(move || { loop { if std::fs::hard_link(&log,&keep).is_ok() {break} std::thread::sleep(std::time::Duration::from_micros(300)); } });
      let e=p.create(&id,&spec).await.unwrap_err();
      let t1=now();
      h.join().unwrap();
      let s=std::fs::read_to_string(tmp.path().join("keep")).unwrap();
      match s.trim().parse::<i64>() { Ok(t)=>{v.push((t-t0)/1000); d.push((t1-t)/1000)}, Err(_)=>println!("{s:?} {}", e.chain()) }
     }
     v.sort(); d.sort(); println!("lim {lim}: create->agent main us min {} median {} max {}; then destroy+error {}", v[0], v[v.len()/2], v[v.len()-1], d[d.len()/2]);
    }
})}
