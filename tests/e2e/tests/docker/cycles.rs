//! Many sandboxes, one after another and side by side: nothing is left.

use crate::host;
use anyhow::{Result, ensure};
use futures::{StreamExt, stream};

const CYCLES: usize = 200;
const AT_ONCE: usize = 4;

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_leave_nothing() -> Result<()> {
    let host = host::server(&[]).await?;
    let results: Vec<Result<()>> = stream::iter(0..CYCLES)
        .map(|n| {
            let host = &host;
            async move {
                let sandbox = host.spawn().await?;
                ensure!(sandbox.stdout(&format!("echo {n}")).await? == format!("{n}\n"));
                sandbox.destroy().await
            }
        })
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    let failures: Vec<_> = results.into_iter().filter_map(Result::err).collect();
    ensure!(failures.is_empty(), "{} of {CYCLES} failed, the first with {:#}", failures.len(), failures[0]);
    ensure!(host::containers(&host::installation(&host)?)?.is_empty());
    host::finish(host).await
}
