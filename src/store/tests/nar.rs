//! NARs are written, read and hashed as C++ Nix does, and a hostile one does no harm.

#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

use std::{
    ffi::OsStr,
    fs, io,
    io::{Read, Write},
    os::unix::{
        ffi::OsStrExt,
        fs::{PermissionsExt, symlink},
        net::UnixListener,
    },
    path::{Path, PathBuf},
};

use bento_store::{
    content_address::{ContentAddress, ContentAddressMethod},
    hash::{Hash, HashAlgo},
    nar::{self, FileType, Files, Metadata, NarError, OsFiles, keep_all},
    store_path::StoreDir,
};
use tempfile::TempDir;

const TREE: &[u8] = include_bytes!("golden/tree.nar");

/// The tree that `golden/generate` makes.
fn make_tree(root: &Path) {
    let write = |name: &[u8], contents: &str| fs::write(root.join(OsStr::from_bytes(name)), contents).unwrap();
    for dir in ["dir/empty", "keep/skip"] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    write(b"empty", "");
    write(b"eight", "eight888");
    write(b"text", "text");
    write(b"run", "#!/bin/sh\n");
    write(b"group", "x");
    // Only the owner's permission to execute counts.
    for (name, mode) in [("run", 0o755), ("group", 0o654)] {
        fs::set_permissions(root.join(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    symlink("../nowhere", root.join("link")).unwrap();
    symlink("text", root.join("dir/link")).unwrap();
    write(b"dir/B", "a");
    write(b"dir/a", "b");
    write(b"dir/a.b", "c");
    write(b"dir/a-b", "d");
    write(b"keep/skip/x", "e");
    write(b"keep/y", "f");
    write(b"dir/\xe4", "latin");
    write("dir/ä".as_bytes(), "ä");
}

fn dump(path: &Path) -> Vec<u8> {
    let mut out = Vec::new();
    nar::dump(&OsFiles, path, keep_all, &mut out).unwrap();
    out
}

#[test]
fn a_tree_is_dumped_as_nix_does() {
    let dir = TempDir::new().unwrap();
    make_tree(dir.path());
    assert!(dump(dir.path()) == TREE);
    let (hash, len) = nar::hash_path::<NarError>(dir.path(), keep_all, HashAlgo::Sha256).unwrap();
    assert_eq!((hash, len), (Hash::digest(HashAlgo::Sha256, TREE), TREE.len() as u64));
}

#[test]
fn a_filter_is_asked_about_each_path_and_refused_directories_are_not_entered() {
    let dir = TempDir::new().unwrap();
    make_tree(dir.path());
    let mut asked = Vec::new();
    let filter = |path: &Path, file_type: FileType| {
        let name = path.strip_prefix(dir.path()).unwrap().to_string_lossy().into_owned();
        asked.push(format!("{name} {file_type}"));
        Ok::<_, NarError>(path.file_name() != Some(OsStr::new("skip")) && file_type != FileType::Symlink)
    };
    let (hash, _) = nar::hash_path(dir.path(), filter, HashAlgo::Sha256).unwrap();
    let address = ContentAddress { method: ContentAddressMethod::NixArchive, hash };
    let store = StoreDir::default();
    let path = store.make_fixed_output_path("filtered", &address).unwrap();
    assert_eq!(store.print(&path), include_str!("golden/filtered.txt"));
    assert_eq!(asked.first().unwrap(), "dir directory");
    assert!(asked.contains(&"keep/skip directory".to_owned()) && asked.contains(&"link symlink".to_owned()));
    assert!(!asked.iter().any(|a| a.starts_with("keep/skip/")));
    // All but `keep/skip/x`.
    assert_eq!(asked.len(), 18);
}

#[test]
fn a_filter_can_fail_with_an_error_of_its_own() {
    #[derive(Debug)]
    enum Mine {
        Refused,
        Nar(NarError),
    }
    impl From<NarError> for Mine {
        fn from(e: NarError) -> Self {
            Self::Nar(e)
        }
    }
    let dir = TempDir::new().unwrap();
    make_tree(dir.path());
    let result = nar::hash_path(dir.path(), |_, _| Err(Mine::Refused), HashAlgo::Sha256);
    match result {
        Err(Mine::Refused) => {}
        Err(Mine::Nar(error)) => panic!("{error}"),
        Ok(hash) => panic!("{hash:?}"),
    }
}

#[test]
fn a_file_and_a_link_are_archives_too() {
    let dir = TempDir::new().unwrap();
    make_tree(dir.path());
    for name in ["text", "run", "empty", "link", "dir/link"] {
        let archive = dump(&dir.path().join(name));
        let copy = dir.path().join("copy");
        nar::unpack(archive.as_slice(), &copy).unwrap();
        assert!(dump(&copy) == archive);
        fs::remove_file(copy).unwrap();
    }
}

#[test]
fn unpacking_gives_the_tree_back_and_reads_no_further() {
    let dir = TempDir::new().unwrap();
    let copy = dir.path().join("copy");
    let stream = [TREE, b"next"].concat();
    let mut source = stream.as_slice();
    nar::unpack(&mut source, &copy).unwrap();
    assert_eq!(source, b"next");
    assert!(dump(&copy) == TREE);
    assert_eq!(fs::read_link(copy.join("dir/link")).unwrap(), PathBuf::from("text"));
    assert_eq!(fs::read(copy.join("eight")).unwrap(), b"eight888");
    let mode = |name: &str| fs::metadata(copy.join(name)).unwrap().permissions().mode() & 0o100;
    assert_eq!((mode("run"), mode("group")), (0o100, 0));
}

#[test]
fn what_exists_is_neither_replaced_nor_followed() {
    let dir = TempDir::new().unwrap();
    let outside = dir.path().join("outside");
    fs::write(&outside, "untouched").unwrap();
    let destination = dir.path().join("destination");
    symlink(&outside, &destination).unwrap();
    let mut file = Vec::new();
    nar::dump(&OsFiles, &outside, keep_all, &mut file).unwrap();
    for archive in [TREE, &file] {
        assert!(matches!(nar::unpack(archive, &destination), Err(NarError::File { .. })));
    }
    // Dangling, the link could be followed to make a file.
    fs::remove_file(&outside).unwrap();
    assert!(nar::unpack(file.as_slice(), &destination).is_err());
    assert!(!outside.exists());
}

#[test]
fn bad_archives_are_refused_with_the_errors_of_nix() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/bad-nars");
    let mut count = 0;
    for line in include_str!("golden/bad-nars.tsv").lines() {
        let (name, expected) = line.split_once('\t').unwrap();
        let archive = fs::read(folder.join(name)).unwrap();
        let error = match nar::parse(archive.as_slice(), &mut ()) {
            Err(NarError::Bad { reason, offset }) => {
                assert!(offset <= archive.len() as u64);
                reason.to_string().replace('\0', "")
            }
            other => panic!("{name}: {other:?}"),
        };
        assert_eq!(error, expected.strip_prefix("bad archive: ").unwrap_or(expected), "{name}");
        count += 1;
    }
    assert_eq!(count, fs::read_dir(folder).unwrap().count());
}

#[test]
fn a_cut_archive_never_looks_whole() {
    for len in 0..TREE.len() {
        assert!(nar::parse(&TREE[..len], &mut ()).is_err(), "cut after {len} bytes");
    }
}

#[test]
fn no_changed_byte_makes_an_archive_that_is_dumped_differently() {
    // Whatever is accepted is the one NAR of what it unpacks to.
    let dir = TempDir::new().unwrap();
    let archive = {
        let tree = dir.path().join("tree");
        fs::create_dir(&tree).unwrap();
        fs::write(tree.join("a"), "abc").unwrap();
        symlink("a", tree.join("b")).unwrap();
        dump(&tree)
    };
    let mut accepted = 0;
    for at in 0..archive.len() {
        for flip in [1u8, 0x20, 0x80] {
            let mut changed = archive.clone();
            changed[at] ^= flip;
            let copy = dir.path().join("copy");
            if nar::unpack(changed.as_slice(), &copy).is_ok() {
                assert!(dump(&copy) == changed, "byte {at} changed by {flip}");
                accepted += 1;
            }
            if copy.is_dir() {
                fs::remove_dir_all(copy).unwrap();
            }
        }
    }
    // Contents, names and targets.
    assert!(accepted > 0);
}

#[test]
fn sockets_cannot_be_archived_but_left_out() {
    let dir = TempDir::new().unwrap();
    let _socket = UnixListener::bind(dir.path().join("socket")).unwrap();
    let result = nar::dump(&OsFiles, dir.path(), keep_all, io::sink());
    assert!(matches!(result, Err(NarError::UnsupportedType(_))));
    let known = |_: &Path, t: FileType| Ok::<_, NarError>(t != FileType::Unknown);
    nar::dump(&OsFiles, dir.path(), known, io::sink()).unwrap();
}

#[test]
fn directories_nest_as_deep_as_nix_allows() {
    let dir = TempDir::new().unwrap();
    let deep = |n: usize| dir.path().join("d/".repeat(n));
    fs::create_dir_all(deep(63)).unwrap();
    assert!(nar::parse(dump(dir.path()).as_slice(), &mut ()).is_ok());
    fs::create_dir(deep(64)).unwrap();
    let result = nar::dump(&OsFiles, dir.path(), keep_all, io::sink());
    assert!(matches!(result, Err(NarError::PathTooDeep(_))));
}

#[test]
fn missing_files_and_failing_sinks_are_told_apart() {
    struct Full;
    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let dir = TempDir::new().unwrap();
    let missing = nar::dump(&OsFiles, &dir.path().join("missing"), keep_all, io::sink());
    assert!(matches!(missing, Err(NarError::File { .. })));
    fs::write(dir.path().join("large"), vec![0; 1 << 20]).unwrap();
    assert!(matches!(nar::dump(&OsFiles, dir.path(), keep_all, Full), Err(NarError::Write(_))));
}

/// One file whose length is not what was announced.
struct Lying {
    announced: u64,
    contents: &'static [u8],
}

impl Files for Lying {
    fn metadata(&self, _: &Path) -> io::Result<Metadata> {
        Ok(Metadata::Regular { executable: false, size: self.announced })
    }
    fn names(&self, _: &Path) -> io::Result<Vec<Vec<u8>>> {
        Ok(Vec::new())
    }
    fn contents(&self, _: &Path, sink: &mut dyn Write) -> io::Result<()> {
        sink.write_all(self.contents)
    }
    fn target(&self, _: &Path) -> io::Result<Vec<u8>> {
        Ok(Vec::new())
    }
}

#[test]
fn a_file_that_grows_or_shrinks_meanwhile_is_an_error() {
    for announced in [3, 5] {
        let files = Lying { announced, contents: b"four" };
        assert!(matches!(nar::dump(&files, Path::new("x"), keep_all, io::sink()), Err(NarError::Changed(_))));
    }
    let honest = Lying { announced: 4, contents: b"four" };
    nar::dump(&honest, Path::new("x"), keep_all, io::sink()).unwrap();
}

#[test]
fn a_visitor_need_not_read_contents() {
    struct Names(Vec<(PathBuf, u64)>);
    impl nar::Visitor for Names {
        fn directory(&mut self, _: &Path) -> io::Result<()> {
            Ok(())
        }
        fn regular(&mut self, path: &Path, _: bool, size: u64, contents: &mut dyn Read) -> io::Result<()> {
            // Half of it.
            let mut half = vec![0; size as usize / 2];
            contents.read_exact(&mut half)?;
            self.0.push((path.to_owned(), size));
            Ok(())
        }
        fn symlink(&mut self, _: &Path, _: &[u8]) -> io::Result<()> {
            Ok(())
        }
    }
    let mut names = Names(Vec::new());
    nar::parse(TREE, &mut names).unwrap();
    assert_eq!(names.0.len(), 13);
    assert!(names.0.contains(&("keep/skip/x".into(), 1)));
}
