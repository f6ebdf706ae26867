//! The file systems that an evaluation reads through.

#![allow(clippy::unwrap_used)]

use bento_eval::fs::{
    FileSet, FileSystem, FileType, LazyMount, Mount, OverlayFs, RealFs, Resolve, SymlinkResolver, canonical,
};
use std::cell::Cell;
use std::error::Error;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::rc::Rc;

const STORE_PATH: &str = "/nix/store/0123456789abcdfghijklmnpqrsvwxyz-source";

fn tree() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    std::fs::create_dir(root.join("sub")).unwrap();
    std::fs::create_dir(root.join("empty")).unwrap();
    std::fs::write(root.join("a"), "contents").unwrap();
    std::fs::write(root.join("sub/b"), "").unwrap();
    std::fs::write(root.join("sub/untracked"), "").unwrap();
    std::fs::set_permissions(root.join("a"), std::fs::Permissions::from_mode(0o755)).unwrap();
    symlink("sub/b", root.join("link")).unwrap();
    dir
}

fn overlay() -> OverlayFs {
    OverlayFs::new(Rc::new(RealFs), Path::new("/nix/store"))
}

fn names(fs: &dyn FileSystem, path: &Path) -> Vec<String> {
    fs.read_dir(path).unwrap().into_iter().map(|entry| entry.name.into_string().unwrap()).collect()
}

#[test]
fn real_files_are_told_apart_and_sorted() {
    let dir = tree();
    let entries = RealFs.read_dir(dir.path()).unwrap();
    let found: Vec<_> = entries.iter().map(|entry| (entry.name.to_str().unwrap(), entry.file_type)).collect();
    assert_eq!(
        found,
        [
            ("a", FileType::Regular),
            ("empty", FileType::Directory),
            ("link", FileType::Symlink),
            ("sub", FileType::Directory)
        ]
    );
    let a = RealFs.metadata(&dir.path().join("a")).unwrap();
    assert!(a.executable);
    assert_eq!(a.size, 8);
    assert!(!RealFs.metadata(&dir.path().join("sub/b")).unwrap().executable);
    assert_eq!(RealFs.metadata(Path::new("/dev/null")).unwrap().file_type, FileType::Unknown);
}

#[test]
fn errors_read_as_nix_words_them() {
    let dir = tree();
    let missing = dir.path().join("missing");
    let a = dir.path().join("a");
    assert_eq!(RealFs.lstat(&a.join("below")).unwrap(), None);
    assert_eq!(
        RealFs.read_file(&missing).unwrap_err().to_string(),
        format!("path '{}' does not exist", missing.display())
    );
    assert_eq!(
        RealFs.read_dir(&a).unwrap_err().to_string(),
        format!("cannot read directory \"{}\": Not a directory", a.display())
    );
    for below in [RealFs.read_file(&a.join("below")).map(drop), RealFs.read_dir(&a.join("below")).map(drop)] {
        assert_eq!(below.unwrap_err().to_string(), format!("path '{}/below' does not exist", a.display()));
    }
    // a directory's size is the file system's affair
    let size = std::fs::symlink_metadata(dir.path()).unwrap().len();
    assert_eq!(RealFs.read_file(dir.path()).unwrap_err().to_string(), format!("read of {size} bytes: Is a directory"));
    assert!(RealFs.read_file(&dir.path().join("link")).is_err(), "the last link is not followed");
}

#[test]
fn no_more_is_read_of_a_file_than_its_size_says() {
    assert_eq!(RealFs.read_file(Path::new("/proc/version")).unwrap(), b"", "as C++ Nix 2.34 reads it");
}

#[test]
fn a_mounted_tree_is_served_from_its_place_under_the_store_path() {
    let dir = tree();
    let fs = overlay();
    let store_path = Path::new(STORE_PATH);
    assert!(fs.mount(store_path, Mount::real(dir.path())));
    assert_eq!(fs.read_file(&store_path.join("a")).unwrap(), b"contents");
    assert_eq!(fs.read_link(&store_path.join("link")).unwrap(), "sub/b");
    assert_eq!(names(&fs, store_path), ["a", "empty", "link", "sub"]);
    assert_eq!(fs.origin(&store_path.join("sub/b")), Some(dir.path().join("sub/b")));
    let error = fs.read_file(&store_path.join("missing")).unwrap_err();
    assert_eq!(error.to_string(), format!("path '{STORE_PATH}/missing' does not exist"));
    // what is beside the mount is the base's
    assert!(!fs.exists(Path::new("/nix/store/0123456789abcdfghijklmnpqrsvwxyz-sourc")).unwrap());
    assert!(fs.exists(&dir.path().join("a")).unwrap());
}

#[test]
fn only_a_direct_child_of_the_store_directory_can_be_mounted() {
    let fs = overlay();
    for path in ["/nix/store", "/nix/store/", "/nix/store/a/b", "/etc", "/nix/storeys/a"] {
        assert!(!fs.mount(Path::new(path), Mount::real("/")), "{path}");
    }
}

#[test]
fn a_filter_hides_what_it_does_not_name() {
    let dir = tree();
    let fs = overlay();
    let store_path = Path::new(STORE_PATH);
    let filter = Some(Rc::new(FileSet::from_files(["sub/b", "link"])));
    fs.mount(store_path, Mount::Tree { fs: Rc::new(RealFs), root: dir.path().into(), filter });
    assert_eq!(names(&fs, store_path), ["link", "sub"]);
    assert_eq!(names(&fs, &store_path.join("sub")), ["b"]);
    assert!(!fs.exists(&store_path.join("a")).unwrap());
    assert!(fs.read_file(&store_path.join("sub/untracked")).unwrap_err().is_not_found());
    assert!(fs.read_dir(&store_path.join("empty")).unwrap_err().is_not_found());
}

#[test]
fn a_text_file_lives_in_memory() {
    let fs = overlay();
    let store_path = Path::new(STORE_PATH);
    fs.mount(store_path, Mount::File { contents: Rc::from(*b"text"), executable: false });
    assert_eq!(fs.read_file(store_path).unwrap(), b"text");
    let metadata = fs.metadata(store_path).unwrap();
    assert_eq!((metadata.file_type, metadata.size, metadata.executable), (FileType::Regular, 4, false));
    assert_eq!(fs.lstat(&store_path.join("below")).unwrap(), None);
    assert!(fs.read_dir(store_path).unwrap_err().to_string().ends_with("Not a directory"));
}

struct Counting {
    root: Option<PathBuf>,
    asked: Cell<usize>,
}

impl LazyMount for Counting {
    fn realise(&self) -> Result<Mount, Box<dyn Error + Send + Sync>> {
        self.asked.set(self.asked.get() + 1);
        match &self.root {
            Some(root) => Ok(Mount::real(root)),
            None => Err("input 'nixpkgs' cannot be had".into()),
        }
    }
}

#[test]
fn a_lazy_mount_is_realised_by_the_first_read_and_only_once() {
    let dir = tree();
    let fs = overlay();
    let store_path = Path::new(STORE_PATH);
    let lazy = Rc::new(Counting { root: Some(dir.path().into()), asked: Cell::new(0) });
    fs.mount(store_path, Mount::Lazy(lazy.clone()));
    assert!(fs.is_mounted(&store_path.join("a")));
    assert_eq!(lazy.asked.get(), 0);
    assert_eq!(fs.read_file(&store_path.join("a")).unwrap(), b"contents");
    assert!(fs.exists(&store_path.join("sub")).unwrap());
    assert_eq!(lazy.asked.get(), 1);
}

#[test]
fn a_lazy_mount_that_fails_says_why() {
    let fs = overlay();
    let store_path = Path::new(STORE_PATH);
    fs.mount(store_path, Mount::Lazy(Rc::new(Counting { root: None, asked: Cell::new(0) })));
    assert_eq!(fs.read_file(&store_path.join("a")).unwrap_err().to_string(), "input 'nixpkgs' cannot be had");
}

#[test]
fn links_are_resolved_through_mounts() {
    let dir = tree();
    symlink(format!("{STORE_PATH}/sub"), dir.path().join("into")).unwrap();
    symlink("round", dir.path().join("round")).unwrap();
    let fs = overlay();
    let store_path = Path::new(STORE_PATH);
    fs.mount(store_path, Mount::real(dir.path()));
    let resolver = SymlinkResolver::default();
    // twice: the second time from what it remembers
    for _ in 0..2 {
        let resolve = |path: PathBuf, mode| resolver.resolve(&fs, &path, mode);
        assert_eq!(resolve(store_path.join("into/b"), Resolve::Full).unwrap(), store_path.join("sub/b"));
        assert_eq!(resolve(store_path.join("link"), Resolve::Full).unwrap(), store_path.join("sub/b"));
        assert_eq!(resolve(store_path.join("link"), Resolve::Ancestors).unwrap(), store_path.join("link"));
        assert_eq!(resolve(store_path.join("into/../a"), Resolve::Full).unwrap(), store_path.join("a"));
        assert_eq!(resolve(store_path.join("no/such"), Resolve::Full).unwrap(), store_path.join("no/such"));
        let error = resolve(store_path.join("round/x"), Resolve::Full).unwrap_err();
        assert_eq!(error.to_string(), format!("infinite symlink recursion in path '{STORE_PATH}/round/x'"));
    }
}

#[test]
fn canonical_paths_follow_the_text() {
    for (given, expected) in [("/a//b/./c/", "/a/b/c"), ("/a/../../b", "/b"), ("/", "/"), ("", "/"), ("/..", "/")] {
        assert_eq!(canonical(given.as_bytes()), Path::new(expected), "{given}");
    }
}
