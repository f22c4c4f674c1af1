//! Bytes in and out.

use crate::{
    context::{Context, Provider, Target},
    measure::{rate, settle, succeed},
    rivals,
    samples::{Comparison, NotRun, OURS, Samples},
    server::scratch,
};
use anyhow::{Context as _, Result, ensure};
use futures::{StreamExt, stream as streams};
use stacyvm_client::Upload;
use std::{path::Path, time::Instant};

/// How much is moved.
const BULK: usize = 256 << 20;
/// Writes that much: lines of 4,096 bytes, all but the last of each a `Z`, which stands in no key of a record.
const WRITER: &str =
    "s=Z; i=0; while [ $i -lt 12 ]; do s=$s$s; i=$((i+1)); done; yes ${s%Z} | head -c 268435456";
/// Marks among them.
const MARKS: usize = BULK / 4096 * 4095;
/// Where files are put.
const INSIDE: &str = "/tmp/bulk";

/// Output of a command: ours in records, theirs through a pipe.
pub(super) async fn stream(context: &Context, target: &Target) -> Result<Vec<Comparison>> {
    let (rivals, not_run) = rivals::beside(context, target);
    let mut ours = Samples::new(OURS);
    let mut theirs: Vec<_> = rivals.iter().map(|rival| Samples::new(rival.exec_name())).collect();
    context
        .with_server(target, &[], async |server| {
            let id = server.create().await?;
            let warm = rivals.iter().map(|rival| rival.warm()).collect::<Result<Vec<_>>>()?;
            for _ in 0..context.rounds(8, 10) {
                settle().await;
                let start = Instant::now();
                let mut reply = server.raw_exec(&id, WRITER).await?;
                let mut marks = 0;
                while let Some(chunk) = reply.chunk().await? {
                    marks += chunk.iter().filter(|byte| **byte == b'Z').count();
                }
                ours.values.push(rate(BULK, start));
                ensure!(marks == MARKS, "{marks} of {MARKS} marks arrived");
                for (warm, samples) in warm.iter().zip(&mut theirs) {
                    settle().await;
                    let mut command = warm.exec(&["/bin/sh", "-c", WRITER])?;
                    let start = Instant::now();
                    let mut child = command.spawn()?;
                    let mut out = child.stdout.take().context("no pipe")?;
                    let total = std::io::copy(&mut out, &mut std::io::sink())?;
                    let status = child.wait()?;
                    samples.values.push(rate(BULK, start));
                    ensure!(status.success() && total == BULK as u64, "{command:?}: {status}, {total} bytes");
                }
            }
            Ok(())
        })
        .await?;
    let sides = std::iter::once(ours).chain(theirs).collect();
    Ok(vec![Comparison::more("exec output 256 MiB", "MiB/s", sides, not_run)])
}

/// One file in and out again.
pub(super) async fn files(context: &Context, target: &Target) -> Result<Vec<Comparison>> {
    let (rivals, mut not_run) = rivals::beside(context, target);
    let scratch = scratch()?;
    let (from, to) = (scratch.path().join("from"), scratch.path().join("to"));
    std::fs::write(&from, vec![0x5a; BULK])?;
    let (mut up, mut down) = (vec![Samples::new(OURS)], vec![Samples::new(OURS)]);
    // What a copy costs where there is no sandbox at all.
    let floor = target.provider == Provider::Native && context.foreign.is_none();
    context
        .with_server(target, &[], async |server| {
            let id = server.create().await?;
            let mut warm = Vec::new();
            for rival in &rivals {
                let (sandbox, name) = (rival.warm()?, rival.exec_name());
                let tool = name.split([' ', ',']).next().unwrap_or(name);
                if sandbox.copy(&from, INSIDE, false).is_none() {
                    let why = "it has no command to copy files".to_owned();
                    not_run.push(NotRun { side: tool.to_owned(), why });
                    continue;
                }
                warm.push(sandbox);
                for sides in [&mut up, &mut down] {
                    sides.push(Samples::new(&format!("{tool} cp")));
                }
            }
            if floor {
                for sides in [&mut up, &mut down] {
                    sides.push(Samples::new("cp on the host"));
                }
            }
            for _ in 0..context.rounds(8, 10) {
                settle().await;
                let content = streams::repeat(bytes::Bytes::from_static(&[0x5a; 64 << 10]));
                let content = content.take(BULK >> 16).map(std::io::Result::Ok);
                let file = Upload { path: INSIDE.to_owned(), ..Upload::default() };
                let start = Instant::now();
                server.client().upload(&id, &file, content).await?;
                up[0].values.push(rate(BULK, start));
                let start = Instant::now();
                let mut reply = server.client().download(&id, INSIDE, 0).await?;
                let mut total = 0;
                while let Some(chunk) = reply.next().await? {
                    total += chunk.len();
                }
                ensure!(total == BULK, "download of {total} bytes");
                down[0].values.push(rate(BULK, start));
                for (place, warm) in warm.iter().enumerate() {
                    settle().await;
                    let copy = |host: &Path, out: bool, sides: &mut Vec<Samples>| -> Result<()> {
                        let command = warm.copy(host, INSIDE, out).context("it copies no files")?;
                        let start = Instant::now();
                        succeed(command)?;
                        sides[place + 1].values.push(rate(BULK, start));
                        Ok(())
                    };
                    copy(&from, false, &mut up)?;
                    copy(&to, true, &mut down)?;
                }
                for sides in [&mut up, &mut down].into_iter().filter(|_| floor) {
                    let mut copy = rivals::command("cp");
                    copy.args([&from, &to]);
                    let start = Instant::now();
                    succeed(copy)?;
                    if let Some(last) = sides.last_mut() {
                        last.values.push(rate(BULK, start));
                    }
                }
            }
            Ok(())
        })
        .await?;
    Ok(vec![
        Comparison::more("upload 256 MiB", "MiB/s", up, not_run.clone()),
        Comparison::more("download 256 MiB", "MiB/s", down, not_run),
    ])
}
