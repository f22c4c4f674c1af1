//! Every kind of archive, found by its content.

use super::*;

#[test]
fn the_same_image_is_the_same_whichever_way_it_came() {
    let saved = Saved::here("one");
    let mut plain = BTreeMap::new();
    let descriptor = saved.blobs(&mut plain, "tar", <[u8]>::to_vec);
    let plain = layout(plain, &[named(descriptor, "org.opencontainers.image.ref.name", "app:1")]);
    let mut zipped = BTreeMap::new();
    let descriptor = saved.blobs(&mut zipped, "tar+gzip", gzip);
    let zipped = layout(zipped, &[named(descriptor, "io.containerd.image.name", "docker.io/library/app:1")]);
    let mut squeezed = BTreeMap::new();
    let descriptor = saved.blobs(&mut squeezed, "tar+zstd", |l| zstd::encode_all(l, 1).unwrap());
    let squeezed = layout(
        squeezed,
        &[named(descriptor, "org.opencontainers.image.ref.name", "docker.io/library/app:1")],
    );
    // As `docker save` does now: a layout, and a manifest.json that names its blobs.
    let mut both = plain.clone();
    let blob = |digest: &Digest| format!("blobs/sha256/{}", digest.hex());
    let layers: Vec<_> = saved.diff_ids().iter().map(blob).collect();
    let manifest = json!([{ "Config": blob(&saved.id()), "RepoTags": ["app:1"], "Layers": layers }]);
    both.insert("manifest.json".to_owned(), manifest.to_string().into_bytes());

    let old = Saved::old_docker(&[(&saved, &["app:1"])]).end();
    let mut all = Vec::new();
    for archive in [
        old.clone(),
        gzip(&old),
        zstd::encode_all(old.as_slice(), 1).unwrap(),
        archived(&plain),
        archived(&zipped),
        gzip(&archived(&squeezed)),
        archived(&both),
    ] {
        let (_tmp, store) = store();
        let images = import(&store, &archive).unwrap();
        assert_eq!(images.len(), 1);
        let image = store.find("app:1").unwrap().unwrap();
        assert_eq!((&image.id, &image.config.diff_ids), (&saved.id(), &saved.diff_ids()));
        assert_eq!(image.config.cmd, ["/bin/sh"]);
        all.push(seen(&image));
    }
    let (tmp, store) = store();
    for (number, files) in [plain, zipped, squeezed].iter().enumerate() {
        let directory = tmp.path().join(number.to_string());
        written(files, &directory);
        store.import(Source::Path(&directory), &Import::default()).unwrap();
        all.push(seen(&store.find("app:1").unwrap().unwrap()));
    }
    // All of that is one image of two layers.
    assert_eq!(store.list().unwrap().len(), 1);
    assert_eq!(fs::read_dir(store.root().join("layers")).unwrap().count(), 2);
    let names: Vec<_> = all[0].keys().map(|p| p.to_str().unwrap()).collect();
    assert_eq!(names, ["bin", "bin/sh", "word"]);
    assert!(all.iter().all(|one| *one == all[0]));
}

#[test]
fn an_archive_of_several_images_has_them_all() {
    let (one, two) = (Saved::here("one"), Saved::here("two"));
    let (_tmp, store) = store();
    let archive = Saved::old_docker(&[(&one, &["one:1", "one:2"]), (&two, &[])]).end();
    let images = import(&store, &archive).unwrap();
    assert_eq!(images.iter().map(|i| &i.id).collect::<Vec<_>>(), [&one.id(), &two.id()]);
    assert_eq!((images[0].names.len(), images[1].names.len()), (2, 0));
    assert_eq!(fs::read_dir(store.root().join("layers")).unwrap().count(), 3, "they share one");
    let wanted = Import { names: vec!["mine".parse().unwrap()], ..Import::default() };
    let error = store.import(Source::Stream(Box::new(archive.as_slice())), &wanted).unwrap_err();
    assert!(error.message().contains("2 images") && error.message().contains("without a name"), "{error}");
    let archive = Saved::old_docker(&[(&two, &["other"])]).end();
    let images = store.import(Source::Stream(Box::new(archive.as_slice())), &wanted).unwrap();
    assert_eq!(images[0].names, wanted.names);
    assert!(store.find("other").unwrap().is_none());

    let mut blobs = BTreeMap::new();
    let manifests = [("a:1", &one), ("b:1", &two)].map(|(name, image)| {
        named(image.blobs(&mut blobs, "tar", <[u8]>::to_vec), "org.opencontainers.image.ref.name", name)
    });
    import(&store, &archived(&layout(blobs, &manifests))).unwrap();
    assert_eq!(store.find("a:1").unwrap().unwrap().id, one.id());
    assert_eq!(store.find("b:1").unwrap().unwrap().id, two.id());
}

#[test]
fn of_several_platforms_the_wanted_one_is_taken() {
    let (arm, amd) = (Saved::new("arm", "linux/arm64"), Saved::new("amd", "linux/amd64"));
    let mut blobs = BTreeMap::new();
    let mut manifests = vec![
        on(arm.blobs(&mut blobs, "tar", <[u8]>::to_vec), "linux/arm64"),
        on(amd.blobs(&mut blobs, "tar+gzip", gzip), "linux/amd64"),
    ];
    manifests.push(on(
        Saved::new("x", "linux/riscv64").blobs(&mut BTreeMap::new(), "tar", <[u8]>::to_vec),
        "linux/riscv64",
    ));
    // As builders write it: an index in the index.
    let nested =
        json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": manifests }).to_string().into_bytes();
    let digest = Digest::of(&nested);
    let descriptor = json!({ "mediaType": INDEX, "digest": digest, "size": nested.len() });
    blobs.insert(format!("blobs/sha256/{}", digest.hex()), nested);
    let archive =
        archived(&layout(blobs, &[named(descriptor, "org.opencontainers.image.ref.name", "latest")]));
    let (_tmp, store) = store();
    for (platform, image) in [("linux/arm64", &arm), ("linux/amd64", &amd)] {
        let wanted = Import { platform: platform.parse().unwrap(), ..Import::default() };
        let images = store.import(Source::Stream(Box::new(archive.as_slice())), &wanted).unwrap();
        assert_eq!((&images[0].id, images[0].platform.to_string().as_str()), (&image.id(), platform));
        assert!(images[0].names.is_empty(), "a tag alone is no name");
    }
    let wanted = |platform: &str| Import { platform: platform.parse().unwrap(), ..Import::default() };
    let error =
        store.import(Source::Stream(Box::new(archive.as_slice())), &wanted("linux/s390x")).unwrap_err();
    assert!(error.message().contains("linux/arm64"), "{error}");
    // What the index lists and the archive does not have.
    let error =
        store.import(Source::Stream(Box::new(archive.as_slice())), &wanted("linux/riscv64")).unwrap_err();
    assert!(error.message().contains("is not in it"), "{error}");
    let docker = Saved::old_docker(&[(&arm, &["app"])]).end();
    let error =
        store.import(Source::Stream(Box::new(docker.as_slice())), &wanted("linux/amd64")).unwrap_err();
    assert!(error.message().contains("linux/arm64") && error.message().contains("linux/amd64"), "{error}");
}

#[test]
fn a_root_filesystem_becomes_an_image_of_one_layer() {
    let archive =
        Archive::default().directory("bin").file("bin/sh", b"shell").file("manifest.json", b"{}").end();
    let (tmp, store) = store();
    let wanted = Import { names: vec!["rootfs".parse().unwrap()], ..Import::default() };
    let mut ids = Vec::new();
    for bytes in [archive.clone(), gzip(&archive), zstd::encode_all(archive.as_slice(), 1).unwrap()] {
        let path = tmp.path().join("archive");
        fs::write(&path, bytes).unwrap();
        let images = store.import(Source::Path(&path), &wanted).unwrap();
        assert_eq!(images[0].config.diff_ids, [Digest::of(&archive)]);
        assert_eq!((&images[0].names, &images[0].platform), (&wanted.names, &Platform::host()));
        ids.push(images[0].id.clone());
    }
    ids.dedup();
    assert_eq!(ids.len(), 1);
    // What begins like an archive of images is one if it is said to be.
    let archive = Archive::default().file("manifest.json", b"{}").file("bin/sh", b"shell").end();
    assert!(import(&store, &archive).unwrap_err().message().contains("manifest.json cannot be read"));
    let forced = Import { kind: Some(Kind::Rootfs), ..Import::default() };
    let images = store.import(Source::Stream(Box::new(archive.as_slice())), &forced).unwrap();
    assert!(seen(&images[0]).contains_key(Path::new("manifest.json")));
    let forced = Import { kind: Some(Kind::Images), ..Import::default() };
    let archive = Archive::default().file("bin/sh", b"shell").end();
    let error = store.import(Source::Stream(Box::new(archive.as_slice())), &forced).unwrap_err();
    assert!(error.message().contains("no archive of images"), "{error}");
}

#[test]
fn a_pipe_is_read_like_a_file() {
    let saved = Saved::here("pipe");
    let archive = Saved::old_docker(&[(&saved, &["piped"])]).end();
    let (tmp, store) = store();
    let path = tmp.path().join("pipe");
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0)
        .unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| fs::write(&path, &archive).unwrap());
        store.import(Source::Path(&path), &Import::default()).unwrap();
    });
    assert_eq!(store.find("piped").unwrap().unwrap().id, saved.id());
    assert_eq!(fs::read_dir(store.root().join("staging")).unwrap().count(), 0);
}
