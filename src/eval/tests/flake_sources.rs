//! Sources with known hashes: what they come to needs no C++ Nix to compare with.

#![allow(clippy::unwrap_used)]

use bento_eval::flake::fetch::{Fetcher, SourceInfo, SourceTree};
use bento_eval::flake::reference::{FlakeRef, ParseOptions};
use bento_eval::flake::{FetchSettings, FlakeError};
use bento_eval::fs::{FileSystem, OverlayFs, RealFs};
use bento_store::store_path::StoreDir;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::rc::Rc;

fn fetcher() -> Fetcher {
    let overlay = Rc::new(OverlayFs::new(Rc::new(RealFs), Path::new("/nix/store")));
    Fetcher::new(overlay, Rc::new(RealFs), StoreDir::default(), FetchSettings::default(), Rc::new(|_: &str| {}))
}

fn fetch(fetcher: &Fetcher, url: &str) -> Result<Rc<SourceTree>, FlakeError> {
    fetcher.fetch(&FlakeRef::parse(url, ParseOptions::default()).unwrap().input)
}

/// A tree whose hash C++ Nix 2.34.8 worked out.
fn write_tree(root: &Path) {
    fs::create_dir_all(root.join("a/empty")).unwrap();
    fs::write(root.join("flake.nix"), "{ outputs = _: { }; }\n").unwrap();
    fs::write(root.join("a/run"), "#!/bin/sh\n").unwrap();
    fs::write(root.join("a.txt"), "").unwrap();
    fs::set_permissions(root.join("a/run"), fs::Permissions::from_mode(0o755)).unwrap();
    symlink("a/run", root.join("link")).unwrap();
}

const TREE_HASH: &str = "sha256-+B+9FlUzkD1orJqZeRcMeanE4VJj4XYBHWRm7tnhHOA=";
const TREE_PATH: &str = "/nix/store/4qhh9c9iys4krw0hzp2lv78qn4gs49zf-source";
/// The same tree as Git sees it: without the empty directory.
const GIT_HASH: &str = "sha256-gNv3xUSoJqHOHvKDi7wi87hXajnzro+vbixKKGRsZ1s=";
const GIT_PATH: &str = "/nix/store/1xyvqam6psma7631hmlhlgmd3rld1iw1-source";
const GIT_REV: &str = "080539d1cac57c0c4ffed673183e159ff959b32c";

fn write_repository(root: &Path) {
    let repository =
        git2::Repository::init_opts(root, git2::RepositoryInitOptions::new().initial_head("main").mkdir(true)).unwrap();
    write_tree(root);
    let mut index = repository.index().unwrap();
    for path in ["flake.nix", "a/run", "a.txt", "link"] {
        index.add_path(Path::new(path)).unwrap();
    }
    index.write().unwrap();
    let tree = repository.find_tree(index.write_tree().unwrap()).unwrap();
    let signature = git2::Signature::new("A", "a@example.org", &git2::Time::new(1_500_000_000, 60)).unwrap();
    repository.commit(Some("HEAD"), &signature, &signature, "message", &tree, &[]).unwrap();
}

#[test]
fn a_directory_is_named_by_its_nar() {
    let dir = tempfile::tempdir().unwrap();
    write_tree(dir.path());
    let fetcher = fetcher();
    let tree = fetch(&fetcher, &format!("path:{}?lastModified=1", dir.path().display())).unwrap();
    let info = SourceInfo::of(&tree.input).unwrap();
    assert_eq!(info.nar_hash.as_deref(), Some(TREE_HASH));
    assert_eq!(info.last_modified_date().as_deref(), Some("19700101000001"));
    assert_eq!(fetcher.store().print(&tree.store_path), TREE_PATH);
    let read = fetcher.overlay().read_file(&Path::new(TREE_PATH).join("a/run")).unwrap();
    assert_eq!(read, b"#!/bin/sh\n");
}

#[test]
fn the_newest_file_dates_a_directory() {
    let dir = tempfile::tempdir().unwrap();
    write_tree(dir.path());
    let future = std::time::UNIX_EPOCH + std::time::Duration::from_secs(4_000_000_000);
    let file = fs::File::options().write(true).open(dir.path().join("a/run")).unwrap();
    file.set_modified(future).unwrap();
    let tree = fetch(&fetcher(), &format!("path:{}", dir.path().display())).unwrap();
    assert_eq!(tree.input.last_modified().unwrap(), Some(4_000_000_000));
}

#[test]
fn a_repository_is_named_by_what_it_tracks() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("r");
    write_repository(&root);
    for query in ["", "?ref=main", "?rev=080539d1cac57c0c4ffed673183e159ff959b32c"] {
        let fetcher = fetcher();
        let tree = fetch(&fetcher, &format!("git+file://{}{query}", root.display())).unwrap();
        let info = SourceInfo::of(&tree.input).unwrap();
        assert_eq!(info.nar_hash.as_deref(), Some(GIT_HASH), "{query}");
        assert_eq!(info.rev.as_deref(), Some(GIT_REV));
        assert_eq!(info.short_rev(), Some(&GIT_REV[..7]));
        assert_eq!((info.rev_count, info.last_modified), (Some(1), Some(1_500_000_000)));
        assert_eq!(fetcher.store().print(&tree.store_path), GIT_PATH);
        assert!(!fetcher.overlay().exists(&Path::new(GIT_PATH).join("a/empty")).unwrap());
        let names: Vec<_> =
            fetcher.overlay().read_dir(Path::new(GIT_PATH)).unwrap().into_iter().map(|entry| entry.name).collect();
        assert_eq!(names, ["a", "a.txt", "flake.nix", "link"]);
    }
    fs::write(root.join("a.txt"), "changed").unwrap();
    let tree = fetch(&fetcher(), &format!("git+file://{}", root.display())).unwrap();
    let info = SourceInfo::of(&tree.input).unwrap();
    assert_eq!(info.rev, None);
    assert_eq!(info.dirty_rev, Some(format!("{GIT_REV}-dirty")));
    assert_eq!(info.dirty_short_rev, Some(format!("{}-dirty", &GIT_REV[..7])));
}

#[test]
fn a_locked_hash_is_verified_by_the_first_read() {
    let dir = tempfile::tempdir().unwrap();
    write_tree(dir.path());
    let url = format!("path:{}?narHash={}", dir.path().display(), TREE_HASH.replace('+', "%2B"));
    let input = FlakeRef::parse(&url, ParseOptions::default()).unwrap().input;
    let file = PathBuf::from(TREE_PATH).join("flake.nix");
    let first = fetcher();
    first.fetch_locked(&input).unwrap();
    assert!(first.overlay().read_file(&file).is_ok());
    fs::write(dir.path().join("a.txt"), "changed").unwrap();
    // what was verified stays so for one evaluation
    assert!(first.overlay().read_file(&file).is_ok());
    let second = fetcher();
    let tree = second.fetch_locked(&input).unwrap();
    assert_eq!(second.store().print(&tree.store_path), TREE_PATH);
    let error = second.overlay().read_file(&file).unwrap_err().to_string();
    assert!(error.contains("NAR hash mismatch") && error.contains(&format!("expected '{TREE_HASH}'")), "{error}");
}

#[test]
fn what_cannot_be_had_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().canonicalize().unwrap();
    let path = root.display();
    fs::write(root.join("file"), "").unwrap();
    fs::create_dir(root.join("plain")).unwrap();
    for (url, expected) in [
        (format!("path:{path}/nothing"), format!("path '{path}/nothing' does not exist")),
        ("path:./relative".to_owned(), "because it uses a relative path".to_owned()),
        (format!("git+file://{path}/nothing"), format!("Git repository \"{path}/nothing\" does not exist")),
        (format!("git+file://{path}/plain"), format!("opening the repository in Git repository \"{path}/plain\"")),
        ("git+file:relative".to_owned(), "uses a path relative to the current directory".to_owned()),
        ("github:a/b".to_owned(), "input 'github:a/b' cannot be had: ".to_owned()),
    ] {
        let options = ParseOptions { preserve_relative_paths: true, ..ParseOptions::default() };
        let input = FlakeRef::parse(&url, options).unwrap().input;
        let error = fetcher().fetch(&input).unwrap_err().to_string();
        assert!(error.contains(&expected), "{url}: {error}");
    }
    make_socket(&root.join("plain/socket"));
    let error = fetch(&fetcher(), &format!("path:{path}/plain")).unwrap_err().to_string();
    assert!(error.contains("has an unsupported type"), "{error}");
}

/// A file of a type that no NAR can hold.
fn make_socket(path: &Path) {
    drop(std::os::unix::net::UnixListener::bind(path).unwrap());
}
