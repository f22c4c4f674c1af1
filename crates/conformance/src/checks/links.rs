//! Symbolic links and `..`: nothing leads out of the sandbox's root.

use crate::{
    check::{During, Failure, Verdict, checks, ensure, refused},
    context::{Context, Sandbox},
    observe::same,
    outside::Outside,
};
use stacyvm_provider::{ErrorKind, FileKind, ReadRange};
use std::fs;

checks! {
    "links.read_outside" "a link to a file of the host does not read it" [] 30 read_outside;
    "links.write_outside" "a link to a file or directory of the host does not let anything be written there" [] 30 write_outside;
    "links.remove_outside" "removing, moving or changing what a link points to leaves the host alone" [] 30 remove_outside;
    "links.dot_dot" "no number of .. leads out of the root" [] 30 dot_dot;
    "links.inside" "links within the root are followed, relative and absolute ones" [] 30 inside;
    "links.stat" "stat shows the link, or with follow its target" [] 30 stat;
    "links.remove" "a link is removed, not what it points to" [] 30 remove;
    "links.loop" "a loop of links is an error, not a hang" [] 30 looped;
}

/// Makes links to the secret and to its directory, each absolute and by way of many `..`.
async fn link_outside(cx: &Context, sandbox: &Sandbox, outside: &Outside) -> Verdict<Vec<(String, String)>> {
    let up = "../".repeat(20);
    let mut links = Vec::new();
    for (name, prefix) in [("absolute", "/".to_owned()), ("upward", up)] {
        for (kind, target) in [("file", outside.text("secret")), ("directory", outside.text(""))] {
            let link = format!("{name}_{kind}");
            let target = format!("{prefix}{}", target.trim_matches('/'));
            sandbox.probe_ok(&["symlink", &target, &cx.relative(&link)]).await?;
            links.push((kind.to_owned(), cx.path(&link)));
        }
    }
    Ok(links)
}

async fn read_outside(cx: Context) -> Verdict {
    let (sandbox, outside) = (cx.shared().await?, Outside::new(&cx)?);
    for (kind, link) in link_outside(&cx, &sandbox, &outside).await? {
        let file = if kind == "file" { link.clone() } else { format!("{link}/secret") };
        let read = sandbox.read_range(&file, ReadRange::default()).await;
        ensure!(read.is_err(), "{file} reads a file of the host");
        ensure!(sandbox.guest.stat(&file, true).await.is_err(), "{file} shows a file of the host");
        let listed = sandbox.guest.list_dir(&link).await;
        ensure!(listed.is_err(), "{link} lists a directory of the host");
        let found = sandbox.guest.glob(&format!("{link}/**")).await.unwrap_or_default();
        ensure!(found.iter().all(|entry| !entry.path.ends_with("secret")), "{link} is entered by glob");
    }
    outside.untouched()
}

async fn write_outside(cx: Context) -> Verdict {
    let (sandbox, outside) = (cx.shared().await?, Outside::new(&cx)?);
    for (kind, link) in link_outside(&cx, &sandbox, &outside).await? {
        // Each may fail, or take place inside: only the host must not see it.
        if kind == "file" {
            let _ = sandbox.write_mode(&link, b"overwritten", 0o644).await;
        } else {
            let _ = sandbox.write_mode(&format!("{link}/secret"), b"overwritten", 0o644).await;
            let _ = sandbox.write_mode(&format!("{link}/new"), b"new", 0o644).await;
            let _ = sandbox.guest.mkdir(&format!("{link}/made"), 0o755, true).await;
            sandbox.write(&cx.path("moved"), b"moved").await?;
            let _ = sandbox.guest.move_file(&cx.path("moved"), &format!("{link}/moved")).await;
        }
        outside.untouched().during(&link)?;
    }
    Ok(())
}

async fn remove_outside(cx: Context) -> Verdict {
    let (sandbox, outside) = (cx.shared().await?, Outside::new(&cx)?);
    let before = fs::metadata(outside.secret())?.permissions();
    for (kind, link) in link_outside(&cx, &sandbox, &outside).await? {
        let file = if kind == "file" { link.clone() } else { format!("{link}/secret") };
        let _ = sandbox.guest.chmod(&file, 0o777).await;
        if kind == "directory" {
            let _ = sandbox.guest.remove(&file, false).await;
            let _ = sandbox.guest.move_file(&file, &cx.path("stolen")).await;
            let stolen = sandbox.read_range(&cx.path("stolen"), ReadRange::default()).await;
            ensure!(stolen.is_err(), "a file of the host was moved into the sandbox");
        }
        let _ = sandbox.guest.remove(&link, true).await;
        outside.untouched().during(&link)?;
        let after = fs::metadata(outside.secret())?.permissions();
        ensure!(before == after, "the mode of a file of the host was changed through {link}");
    }
    Ok(())
}

async fn dot_dot(cx: Context) -> Verdict {
    let (sandbox, outside) = (cx.shared().await?, Outside::new(&cx)?);
    let up = "../".repeat(20);
    for prefix in [format!("/{up}"), format!("{}/{up}", cx.dir()), format!("/workspace/./{up}./")] {
        let path = format!("{prefix}{}", outside.text("secret").trim_start_matches('/'));
        let read = sandbox.read_range(&path, ReadRange::default()).await;
        refused(&path, read, &[ErrorKind::NotFound, ErrorKind::InvalidArgument])?;
        let _ = sandbox.write_mode(&path, b"overwritten", 0o644).await;
        let _ = sandbox.guest.remove(&path, true).await;
        outside.untouched().during(&path)?;
    }
    Ok(())
}

async fn inside(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    sandbox.write(&cx.path("real/file"), b"content").await?;
    for (target, link) in
        [("real/file", "relative"), ("real", "directory"), ("../links.inside/real/file", "by_parent")]
    {
        sandbox.probe_ok(&["symlink", target, &cx.relative(link)]).await?;
    }
    sandbox.probe_ok(&["symlink", &cx.path("real/file"), &cx.relative("absolute")]).await?;
    for link in ["relative", "directory/file", "by_parent", "absolute"] {
        same(link, &sandbox.read(&cx.path(link)).await?, b"content")?;
    }
    sandbox.write(&cx.path("directory/new"), b"through").await?;
    same("a file written through a link", &sandbox.read(&cx.path("real/new")).await?, b"through")
}

async fn stat(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    sandbox.write(&cx.path("target"), b"12345").await?;
    sandbox.probe_ok(&["symlink", "target", &cx.relative("link")]).await?;
    sandbox.probe_ok(&["symlink", "nowhere", &cx.relative("dangling")]).await?;
    let link = sandbox.guest.stat(&cx.path("link"), false).await.during("stat")?;
    ensure!(link.kind == FileKind::Symlink, "the link is {:?}", link.kind);
    ensure!(link.link_target.as_deref() == Some("target"), "it points to {:?}", link.link_target);
    let target = sandbox.guest.stat(&cx.path("link"), true).await.during("stat")?;
    ensure!(target.kind == FileKind::File && target.size == 5, "its target is {target:?}");
    let dangling = sandbox.guest.stat(&cx.path("dangling"), false).await.during("stat of a dangling link")?;
    ensure!(dangling.kind == FileKind::Symlink, "a dangling link is {:?}", dangling.kind);
    refused("its target", sandbox.guest.stat(&cx.path("dangling"), true).await, &[ErrorKind::NotFound])
}

async fn remove(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    sandbox.write(&cx.path("kept/file"), b"kept").await?;
    for (target, link) in [("kept/file", "to_file"), ("kept", "to_directory")] {
        sandbox.probe_ok(&["symlink", target, &cx.relative(link)]).await?;
        sandbox.guest.remove(&cx.path(link), true).await.during("remove of a link")?;
        refused("the link", sandbox.guest.stat(&cx.path(link), false).await, &[ErrorKind::NotFound])?;
    }
    sandbox.guest.mkdir(&cx.path("tree"), 0o777, false).await.during("mkdir")?;
    sandbox.guest.chmod(&cx.path("tree"), 0o777).await.during("chmod")?;
    sandbox.probe_ok(&["symlink", "../kept", &cx.relative("tree/link")]).await?;
    sandbox.guest.remove(&cx.path("tree"), true).await.during("remove of a tree with a link")?;
    same("what the links pointed to", &sandbox.read(&cx.path("kept/file")).await?, b"kept")
}

async fn looped(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    sandbox.probe_ok(&["symlink", "two", &cx.relative("one")]).await?;
    sandbox.probe_ok(&["symlink", "one", &cx.relative("two")]).await?;
    let read = cx.prompt("read", sandbox.read_range(&cx.path("one"), ReadRange::default())).await?;
    let Err(error) = read else { return Err(Failure("a loop of links was read".to_owned())) };
    let expected = [ErrorKind::InvalidArgument, ErrorKind::NotFound];
    refused::<()>("read of a loop", Err(error), &expected)?;
    sandbox.guest.stat(&cx.path("one"), false).await.during("stat of a link of the loop").map(drop)
}
