//! The format: what is written is read again, by us in any pieces and by others.

use super::*;
use crate::{Event, Reader};
use proptest::prelude::*;

/// Entries with the data of files.
fn read(archive: &[u8], size: usize) -> crate::Result<Vec<(Entry, Vec<u8>)>> {
    let mut reader = Reader::new();
    let mut all: Vec<(Entry, Vec<u8>)> = Vec::new();
    for mut piece in archive.chunks(size) {
        while let Some(event) = reader.next(&mut piece)? {
            match event {
                Event::Entry(entry) => all.push((entry, Vec::new())),
                Event::Data(data) => all.last_mut().unwrap().1.extend_from_slice(data),
                Event::FileEnd | Event::End => {}
            }
        }
        assert!(piece.is_empty());
    }
    reader.finish()?;
    Ok(all)
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![Just(b'/'), Just(b' '), Just(b'='), Just(b'\n'), 1..=255_u8];
    prop_oneof![proptest::collection::vec(byte.clone(), 1..20), proptest::collection::vec(byte, 95..300),]
}

fn entry() -> impl Strategy<Value = (Entry, Vec<u8>)> {
    let kind = prop_oneof![
        Just(Kind::File),
        Just(Kind::Directory),
        Just(Kind::Symlink),
        Just(Kind::HardLink),
        Just(Kind::Other(b'6'))
    ];
    let data = proptest::collection::vec(any::<u8>(), 0..2000);
    let id = prop_oneof![0..70_000_u32, any::<u32>()];
    let time = (
        prop_oneof![0..2_000_000_000_i64, -1_000_000..1_i64 << 40],
        prop_oneof![Just(0), 0..1_000_000_000_u32],
    );
    (kind, name(), name(), 0..=0o7777_u32, id, time, data).prop_map(
        |(kind, mut path, link, mode, id, mtime, data)| {
            let data = if kind == Kind::File { data } else { Vec::new() };
            // A slash at the end is what makes a directory.
            while path.last() == Some(&b'/') {
                path.pop();
            }
            path.push(if kind == Kind::Directory { b'/' } else { b'x' });
            let link = if matches!(kind, Kind::Symlink | Kind::HardLink) { link } else { Vec::new() };
            let size = data.len() as u64;
            (Entry { kind, path, link, mode, uid: id, gid: id, mtime, size }, data)
        },
    )
}

proptest! {
    #[test]
    fn what_is_written_is_read_in_any_pieces(
        entries in proptest::collection::vec(entry(), 0..6), size in 1..1500_usize,
    ) {
        let mut archive = Vec::new();
        for (entry, data) in &entries {
            encode(entry, &mut archive);
            archive.extend_from_slice(data);
            archive.resize(archive.len().next_multiple_of(512), 0);
        }
        archive.extend_from_slice(&END);
        prop_assert_eq!(read(&archive, size).unwrap(), entries);
        // Nothing that is cut is taken for whole.
        let cut = archive.len() - END.len() - (size % 512).min(archive.len() - END.len());
        prop_assert!(read(&archive[..cut], size).is_err());
    }

    #[test]
    fn no_bytes_do_harm(bytes in proptest::collection::vec(any::<u8>(), 0..2000), size in 1..600_usize) {
        let _ = read(&bytes, size);
    }

    #[test]
    fn no_damage_does_harm(at in 0..4000_usize, byte: u8, size in 1..600_usize) {
        let long = "d/".repeat(80);
        let archive = Archive::default().directory(&long).file("f", &[7; 700]).symlink("l", &long);
        let mut archive = archive.hard_link("h", "f").end();
        let at = at % archive.len();
        archive[at] = byte;
        let directory = tempfile::tempdir().unwrap();
        let _ = unpacked(&archive, directory.path(), size, OPTIONS);
    }
}

#[test]
fn other_programs_read_it() {
    let long = format!("{}/{}", "d".repeat(120), "f".repeat(200));
    let archive = Archive::default().file(&long, b"content").symlink("link", &long).end();
    let mut archive = tar::Archive::new(&*archive);
    let mut entries = archive.entries().unwrap();
    let mut first = entries.next().unwrap().unwrap();
    assert_eq!(first.path_bytes(), long.as_bytes());
    let mut content = String::new();
    std::io::Read::read_to_string(&mut first, &mut content).unwrap();
    assert_eq!(content, "content");
    let second = entries.next().unwrap().unwrap();
    assert_eq!(second.link_name_bytes().unwrap(), long.as_bytes());
    assert!(entries.next().is_none());
}

#[test]
fn what_other_programs_write_is_read() {
    let mut builder = tar::Builder::new(Vec::new());
    let long = "x".repeat(150);
    let mut header = tar::Header::new_gnu();
    header.set_size(3);
    header.set_mode(0o640);
    builder.append_data(&mut header, &long, &b"abc"[..]).unwrap();
    let mut link = tar::Header::new_gnu();
    link.set_entry_type(tar::EntryType::Symlink);
    link.set_size(0);
    builder.append_link(&mut link, "l", &long).unwrap();
    let entries = read(&builder.into_inner().unwrap(), 700).unwrap();
    assert_eq!(
        (&*entries[0].0.path, entries[0].0.mode, &*entries[0].1),
        (long.as_bytes(), 0o640, &b"abc"[..])
    );
    assert_eq!((entries[1].0.kind, &*entries[1].0.link), (Kind::Symlink, long.as_bytes()));
}

#[test]
fn a_header_that_never_ends_takes_no_memory() {
    let mut archive = Vec::new();
    let huge = Entry {
        kind: Kind::Other(b'x'),
        path: b"././@PaxHeader".to_vec(),
        link: Vec::new(),
        mode: 0,
        uid: 0,
        gid: 0,
        mtime: (0, 0),
        size: 1 << 30,
    };
    encode(&huge, &mut archive);
    let error = read(&archive, 512).unwrap_err();
    assert!(error.to_string().contains("256 KiB"), "{error}");
}
