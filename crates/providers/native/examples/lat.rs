//! lat
use futures::StreamExt;
use stacyvm_provider::*;
use stacyvm_provider_native::*;
use std::time::*;
fn main() {
    let rt = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    rt.block_on(async {
        let tmp = tempfile::tempdir_in("/var/tmp").unwrap();
        let p = NativeProvider::start(NativeConfig {
            data_dir: tmp.path().to_owned(),
            installation_id: "adhoc".into(),
            generation: 1,
            spawner: SpawnerCommand {
                program: std::env::current_exe()
                    .unwrap()
                    .parent()
                    .unwrap()
                    .parent()
                    .unwrap()
                    .join("native-spawner"),
                args: vec![],
            },
            agent: stacyvm_guest_binaries::AGENT,
            lock: None,
        })
        .unwrap();
        p.health().await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        for lim in [0u32, 256, 0, 256] {
            let (mut c, mut o, mut d) = (vec![], vec![], vec![]);
            for i in 0..std::env::var("N").ok().and_then(|v| v.parse().ok()).unwrap_or(40u32) {
                let id: SandboxId = format!("sb-l{i}").parse().unwrap();
                let spec = SandboxSpec {
                    image: "host".into(),
                    memory_mb: lim,
                    vcpus: lim.min(1),
                    pids: lim,
                    ephemeral: false,
                    metadata: Default::default(),
                };
                let t0 = Instant::now();
                p.create(&id, &spec).await.unwrap();
                c.push(t0.elapsed().as_micros());
                let g = p.connect(&id).await.unwrap();
                g.start(&ProcessSpec {
                    id: "p-1".into(),
                    argv: vec!["/bin/echo".into(), "hi".into()],
                    ..Default::default()
                })
                .await
                .unwrap();
                let mut s = g.attach("p-1", 0, true, true).await.unwrap();
                loop {
                    match s.next().await.unwrap().unwrap() {
                        OutputEvent::Chunk { .. } => break,
                        _ => {}
                    }
                }
                o.push(t0.elapsed().as_micros());
                let t0 = Instant::now();
                p.destroy(&id).await.unwrap();
                d.push(t0.elapsed().as_micros());
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            for v in [&mut c, &mut o, &mut d] {
                v.sort();
            }
            println!(
                "limits {}: create min/median {}/{}  first output {}/{}  destroy {}/{} us",
                lim > 0,
                c[0],
                c[c.len() / 2],
                o[0],
                o[o.len() / 2],
                d[0],
                d[d.len() / 2]
            );
        }
    })
}
