//! Directories as root filesystems.

use super::*;
use rustix::fs::{CWD, FileType, Mode, XattrFlags};
use std::os::unix::{
    fs::{FileExt, MetadataExt, PermissionsExt, chown, symlink},
    net::UnixListener,
};

fn tree(top: &Path) {
    let attribute = |path: &Path, name: &str, value: &[u8]| {
        rustix::fs::lsetxattr(path, name, value, XattrFlags::empty()).unwrap();
    };
    fs::create_dir_all(top.join("usr/bin")).unwrap();
    fs::create_dir(top.join("dev")).unwrap();
    rustix::fs::mknodat(
        CWD,
        top.join("dev/null"),
        FileType::CharacterDevice,
        Mode::RWXU,
        rustix::fs::makedev(1, 3),
    )
    .unwrap();
    fs::write(top.join("usr/bin/su"), vec![7; 70_000]).unwrap();
    chown(top.join("usr/bin/su"), Some(1), Some(2)).unwrap();
    fs::set_permissions(top.join("usr/bin/su"), fs::Permissions::from_mode(0o4711)).unwrap();
    attribute(&top.join("usr/bin/su"), "user.x", b"a\n=\0b");
    attribute(&top.join("usr/bin/su"), "user.overlay.opaque", b"y");
    attribute(
        &top.join("usr"),
        "security.capability",
        &[1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    );
    fs::hard_link(top.join("usr/bin/su"), top.join("also")).unwrap();
    symlink("x".repeat(300), top.join("link")).unwrap();
    fs::write(top.join("n".repeat(200)), "a long name").unwrap();
    let sparse = fs::File::create(top.join("sparse")).unwrap();
    sparse.write_all_at(b"middle", 1 << 30).unwrap();
    sparse.set_len((1 << 30) + (1 << 20)).unwrap();
    rustix::fs::mknodat(CWD, top.join("fifo"), FileType::Fifo, Mode::RWXU, 0).unwrap();
    fs::write(top.join("early"), "").unwrap();
    let early = std::time::UNIX_EPOCH - std::time::Duration::from_nanos(1_250_000_000);
    fs::File::open(top.join("early")).unwrap().set_modified(early).unwrap();
}

#[test]
fn a_directory_is_the_same_inside() {
    let (tmp, store) = store();
    let top = tmp.path().join("rootfs");
    fs::create_dir(&top).unwrap();
    tree(&top);
    let socket = UnixListener::bind(top.join("socket")).unwrap();
    let wanted = Import { names: vec!["rootfs".parse().unwrap()], ..Import::default() };
    let image = store.import(Source::Path(&top), &wanted).unwrap().remove(0);
    let layer = &image.layers[0];
    let sparse = fs::metadata(layer.join("sparse")).unwrap();
    assert_eq!(sparse.len(), (1 << 30) + (1 << 20));
    assert!(sparse.blocks() < 100);
    fs::remove_file(layer.join("sparse")).unwrap();
    fs::remove_file(top.join("sparse")).unwrap();
    drop(socket);
    fs::remove_file(top.join("socket")).unwrap();
    fs::remove_file(top.join("dev/null")).unwrap();
    rustix::fs::removexattr(top.join("usr/bin/su"), "user.overlay.opaque").unwrap();
    let (mut expected, mut found) = (things(&top), things(layer));
    // What was removed above changed their times.
    for things in [&mut expected, &mut found] {
        things.get_mut(Path::new("dev")).unwrap().mtime = (0, 0);
    }
    assert_eq!(found[Path::new("early")].mtime, (-2, 750_000_000));
    assert_eq!(found, expected);
}

#[test]
fn the_same_directory_is_the_same_image_each_time() {
    let (tmp, store) = store();
    let top = tmp.path().join("rootfs");
    fs::create_dir(&top).unwrap();
    tree(&top);
    let ids: Vec<_> =
        (0..2).map(|_| store.import(Source::Path(&top), &Import::default()).unwrap().remove(0).id).collect();
    assert_eq!(ids[0], ids[1]);
    fs::write(top.join("more"), "").unwrap();
    assert_ne!(store.import(Source::Path(&top), &Import::default()).unwrap()[0].id, ids[0]);
}

#[test]
fn what_is_mounted_inside_is_left_out() {
    let (tmp, store) = store();
    let top = tmp.path().join("rootfs");
    fs::create_dir(&top).unwrap();
    let mounted = crate::unpack::tests::overlay::Mounted::new(&top, "tmpfs", "");
    fs::write(mounted.path().join("secret"), "").unwrap();
    let image = store.import(Source::Path(&top), &Import::default()).unwrap().remove(0);
    assert_eq!(things(&image.layers[0]).into_keys().collect::<Vec<_>>(), [PathBuf::from("mnt")]);
}

#[test]
fn what_no_layer_can_hold_is_refused_with_its_path() {
    type Make = fn(&Path);
    let cases: [(&str, Make); 3] = [
        ("\"sub/.wh.x\" of the directory would be taken for a whiteout", |top| {
            fs::write(top.join("sub/.wh.x"), "").unwrap();
        }),
        ("\"sub/sda\" is a device outside of /dev", |top| {
            rustix::fs::mknodat(
                CWD,
                top.join("sub/sda"),
                FileType::BlockDevice,
                Mode::RWXU,
                rustix::fs::makedev(8, 0),
            )
            .unwrap();
        }),
        ("\"sub/f\" belongs to the user 70000", |top| {
            fs::write(top.join("sub/f"), "").unwrap();
            chown(top.join("sub/f"), Some(70_000), None).unwrap();
        }),
    ];
    for (message, make) in cases {
        let (tmp, store) = store();
        let top = tmp.path().join("rootfs");
        fs::create_dir_all(top.join("sub")).unwrap();
        make(&top);
        // More than a pipe holds, behind it.
        fs::write(top.join("zzz"), vec![1; 1 << 20]).unwrap();
        let error = store.import(Source::Path(&top), &Import::default()).unwrap_err();
        assert!(error.message().contains(message), "{error}");
        assert_eq!(fs::read_dir(store.root().join("staging")).unwrap().count(), 0);
    }
}
