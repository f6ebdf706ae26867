//! Staging and publishing, through the library.

// an assertion may unwrap
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use bento::evaluation::SearchPath;
use bento::host::{Host, HostKind, HostName};
use bento::hub::Hub;
use bento::nix_conf::split_nix_path;
use bento::package::Package;
use bento::publish::{Candidate, Published, publish};
use bento::secrets::folder::Folders;
use bento::source::SourceTree;
use common::{candidate, fingerprint};
use jiff::{Span, Timestamp};
use tempfile::TempDir;

fn write(dir: &Path, path: &str, text: &str) {
    let path = dir.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

/// Stages a directory that is no fleet's.
fn stage(dir: &Path) -> SourceTree {
    SourceTree::stage(dir, &Folders::default()).unwrap()
}

fn paths(package: &Package) -> Vec<&str> {
    package.files.iter().map(|file| file.path.as_str()).collect()
}

/// A hub and a host's directory.
struct Bench {
    hub: TempDir,
    source: TempDir,
}

impl Bench {
    fn new() -> Self {
        let bench = Self { hub: tempfile::tempdir().unwrap(), source: tempfile::tempdir().unwrap() };
        write(bench.source.path(), "configuration.nix", "{ }");
        write(bench.source.path(), "sub/program", "#!/bin/sh\n");
        bench
    }

    /// Publishes what is in the directory; `version` tells systems apart.
    fn publish(&self, version: char) -> Published {
        self.publish_until(version, None)
    }

    /// The same, for hosts to accept so many hours from now.
    fn publish_until(&self, version: char, hours: Option<i64>) -> Published {
        let now = Timestamp::now();
        let host = Host { name: HostName::new("bench-host").unwrap(), kind: HostKind::Flake };
        let tree = stage(self.source.path());
        let candidate = Candidate {
            expires: hours.map(|hours| now.checked_add(Span::new().hours(hours)).unwrap()),
            ..candidate(&host, &tree, version)
        };
        publish(&Hub::new(self.hub.path()), &candidate, None, now).unwrap().published
    }

    fn host(&self) -> std::path::PathBuf {
        self.hub.path().join("bench-host")
    }

    fn manifest(&self) -> serde_json::Value {
        serde_json::from_slice(&fs::read(self.host().join("manifest.json")).unwrap()).unwrap()
    }

    /// A reader finds a whole release: every file that the manifest lists is there, as it says.
    #[track_caller]
    fn assert_whole(&self, serial: u64) {
        let manifest = self.manifest();
        assert_eq!(manifest["serial"], serial);
        for file in manifest["files"].as_array().unwrap() {
            let path = self.host().join(format!("releases/{serial}/{}", file["path"].as_str().unwrap()));
            assert_eq!(blake3::hash(&fs::read(path).unwrap()).to_hex().as_str(), file["blake3"]);
        }
    }
}

#[test]
fn links_are_followed_and_what_is_no_part_of_a_host_stays_out() {
    let fleet = tempfile::tempdir().unwrap();
    write(fleet.path(), "utils/bento.nix", "{ }");
    write(fleet.path(), "hosts/web/configuration.nix", "{ }");
    write(fleet.path(), "hosts/web/.git/HEAD", "ref");
    write(fleet.path(), "hosts/web/sub/.git", "gitdir: elsewhere");
    fs::create_dir(fleet.path().join("hosts/web/empty")).unwrap();
    symlink("../../utils", fleet.path().join("hosts/web/utils")).unwrap();
    symlink("configuration.nix", fleet.path().join("hosts/web/other.nix")).unwrap();
    symlink("/nix/store/00000000000000000000000000000000-system", fleet.path().join("hosts/web/result")).unwrap();
    let tree = stage(&fleet.path().join("hosts/web"));
    assert_eq!(paths(&Package::of(&tree.path()).unwrap()), ["configuration.nix", "other.nix", "utils/bento.nix"]);
    assert!(!tree.path().join("empty").exists());
    assert!(!tree.path().join("sub").exists());
    assert!(!fs::symlink_metadata(tree.path().join("utils")).unwrap().is_symlink());
    let staged = tree.path();
    drop(tree);
    assert!(!staged.exists());
}

#[test]
fn the_same_directory_linked_twice_is_no_loop() {
    let fleet = tempfile::tempdir().unwrap();
    write(fleet.path(), "utils/bento.nix", "{ }");
    for name in ["one", "two"] {
        fs::create_dir_all(fleet.path().join("host")).unwrap();
        symlink("../utils", fleet.path().join("host").join(name)).unwrap();
    }
    let tree = stage(&fleet.path().join("host"));
    assert_eq!(paths(&Package::of(&tree.path()).unwrap()), ["one/bento.nix", "two/bento.nix"]);
}

#[test]
fn modes_become_one_of_four_and_private_files_stay_private() {
    let dir = tempfile::tempdir().unwrap();
    for (name, mode) in [("plain", 0o664), ("program", 0o775), ("secret", 0o600), ("tool", 0o750)] {
        write(dir.path(), name, name);
        fs::set_permissions(dir.path().join(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    let tree = stage(dir.path());
    let package = Package::of(&tree.path()).unwrap();
    let modes: Vec<u32> = package.files.iter().map(|file| file.mode.bits()).collect();
    assert_eq!(modes, [0o644, 0o755, 0o600, 0o700]);
    // nobody else can reach the copy
    assert_eq!(fs::metadata(tree.path().parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o700);
}

#[test]
fn a_digest_depends_on_paths_modes_and_content_only() {
    let digest = |change: fn(&Path)| {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "a/file", "text");
        write(dir.path(), "b", "more");
        change(dir.path());
        Package::of(&stage(dir.path()).path()).unwrap().digest()
    };
    let plain = digest(|_| ());
    assert_eq!(digest(|_| std::thread::sleep(std::time::Duration::from_millis(5))), plain);
    assert_ne!(digest(|dir| write(dir, "b", "mose")), plain);
    assert_ne!(digest(|dir| fs::rename(dir.join("b"), dir.join("c")).unwrap()), plain);
    assert_ne!(digest(|dir| fs::set_permissions(dir.join("b"), fs::Permissions::from_mode(0o755)).unwrap()), plain);
}

#[test]
fn the_same_content_again_changes_nothing_not_even_a_time() {
    let bench = Bench::new();
    assert_eq!(bench.publish('1'), Published::New { serial: 1 });
    let before = fingerprint(bench.hub.path());
    assert_eq!(bench.publish('1'), Published::Unchanged { serial: 1 });
    assert_eq!(fingerprint(bench.hub.path()), before);
}

#[test]
fn everything_that_a_host_would_do_differently_makes_a_release() {
    let bench = Bench::new();
    bench.publish('1');
    assert_eq!(bench.publish('2'), Published::New { serial: 2 });
    write(bench.source.path(), "REBOOT", "");
    assert_eq!(bench.publish('2'), Published::New { serial: 3 });
    assert_eq!(bench.manifest()["policy"]["reboot"], true);
    assert_eq!(bench.manifest()["policy"]["self_update"], false);
    fs::set_permissions(bench.source.path().join("sub/program"), fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(bench.publish('2'), Published::New { serial: 4 });
    fs::remove_file(bench.source.path().join("REBOOT")).unwrap();
    assert_eq!(bench.publish('2'), Published::New { serial: 5 });
    bench.assert_whole(5);
}

#[test]
fn a_release_is_renewed_before_it_expires() {
    let bench = Bench::new();
    assert_eq!(bench.publish_until('1', Some(10)), Published::New { serial: 1 });
    assert_eq!(bench.publish_until('1', Some(10)), Published::Unchanged { serial: 1 });
    assert_eq!(bench.publish_until('1', Some(19)), Published::Unchanged { serial: 1 });
    assert_eq!(bench.publish_until('1', Some(21)), Published::New { serial: 2 });
    assert_eq!(bench.publish('1'), Published::New { serial: 3 });
    assert_eq!(bench.publish('1'), Published::Unchanged { serial: 3 });
    assert_eq!(bench.publish_until('1', Some(1)), Published::New { serial: 4 });
}

#[test]
fn a_few_old_releases_are_kept() {
    let bench = Bench::new();
    for version in "0123456789".chars() {
        bench.publish(version);
    }
    let mut kept: Vec<String> = fs::read_dir(bench.host().join("releases"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    kept.sort_unstable();
    let with_manifests = ["10", "10.json", "6", "6.json", "7", "7.json", "8", "8.json", "9", "9.json"];
    assert_eq!(kept, with_manifests);
    bench.assert_whole(10);
}

#[test]
fn a_file_that_has_not_changed_is_kept_once() {
    use std::os::unix::fs::MetadataExt;
    let bench = Bench::new();
    let served = |serial: u64, path: &str| bench.host().join(format!("releases/{serial}/{path}"));
    let inode = |serial: u64, path: &str| fs::metadata(served(serial, path)).unwrap().ino();
    let same = |one: u64, other: u64, path: &str| inode(one, path) == inode(other, path);
    bench.publish('1');
    write(bench.source.path(), "configuration.nix", "{ changed = true; }");
    bench.publish('1');
    assert!(same(1, 2, "sub/program") && !same(1, 2, "configuration.nix"));
    assert_eq!(fs::read_to_string(served(1, "configuration.nix")).unwrap(), "{ }");
    // also under another name, but not with another mode
    fs::rename(bench.source.path().join("sub/program"), bench.source.path().join("moved")).unwrap();
    bench.publish('1');
    assert_eq!(inode(3, "moved"), inode(1, "sub/program"));
    fs::set_permissions(bench.source.path().join("moved"), fs::Permissions::from_mode(0o755)).unwrap();
    bench.publish('1');
    assert!(!same(3, 4, "moved") && same(3, 4, "configuration.nix"));
    assert_eq!(fs::metadata(served(4, "moved")).unwrap().mode() & 0o777, 0o750);
    // nothing is taken from a release that is damaged
    fs::write(served(4, "moved"), "damaged").unwrap();
    assert_eq!(bench.publish('1'), Published::New { serial: 5 });
    assert!(!same(4, 5, "moved") && !same(4, 5, "configuration.nix"));
    assert_eq!(fs::read_to_string(served(5, "moved")).unwrap(), "#!/bin/sh\n");
}

#[test]
fn the_date_of_the_last_change_is_that_of_the_release() {
    let bench = Bench::new();
    let date = bench.host().join("last_change_date");
    let modified = |path: &Path| fs::metadata(path).unwrap().modified().unwrap();
    for (version, before) in [('1', None), ('2', None), ('3', Some("absent")), ('4', Some("link")), ('5', None)] {
        if let Some(before) = before {
            fs::remove_file(&date).unwrap();
            if before == "link" {
                symlink("/nonexistent/date", &date).unwrap();
            }
        }
        let start = std::time::SystemTime::now();
        bench.publish(version);
        assert!(modified(&date) >= modified(&bench.host().join("manifest.json")), "{version}");
        // kernels tell files the time of their last tick
        assert!(modified(&date) + std::time::Duration::from_millis(20) >= start, "{version}");
        assert!(fs::symlink_metadata(&date).unwrap().is_file(), "{version}");
    }
}

#[test]
fn a_crash_before_the_manifest_leaves_the_old_release_and_is_cleared() {
    let bench = Bench::new();
    bench.publish('1');
    // files under a temporary name, then a release that no manifest names, then a half-written manifest
    write(&bench.host(), "releases/.tmp-2/configuration.nix", "{");
    write(&bench.host(), "releases/2/configuration.nix", "{");
    write(&bench.host(), ".tmp-abc", "{");
    bench.assert_whole(1);
    assert_eq!(bench.publish('1'), Published::Unchanged { serial: 1 });
    assert!(!bench.host().join("releases/.tmp-2").exists());
    assert!(!bench.host().join("releases/2").exists());
    assert!(!bench.host().join(".tmp-abc").exists());
    assert_eq!(bench.publish('2'), Published::New { serial: 2 });
    bench.assert_whole(2);
}

#[test]
fn a_crash_after_the_manifest_leaves_the_new_release_and_is_mended() {
    let bench = Bench::new();
    bench.publish('1');
    let old = fs::metadata(bench.host().join("last_change_date")).unwrap().modified().unwrap();
    bench.publish('2');
    // as it was before the link and the date were changed
    fs::remove_file(bench.host().join("config")).unwrap();
    symlink("releases/1", bench.host().join("config")).unwrap();
    fs::File::options().write(true).open(bench.host().join("last_change_date")).unwrap().set_modified(old).unwrap();
    bench.assert_whole(2);
    assert_eq!(bench.publish('2'), Published::Unchanged { serial: 2 });
    assert_eq!(fs::read_link(bench.host().join("config")).unwrap(), Path::new("releases/2"));
    assert!(fs::metadata(bench.host().join("last_change_date")).unwrap().modified().unwrap() > old);
}

#[test]
fn a_serial_never_shrinks_even_if_the_manifest_is_lost() {
    let bench = Bench::new();
    for version in "123".chars() {
        bench.publish(version);
    }
    fs::write(bench.host().join("manifest.json"), "{").unwrap();
    assert_eq!(bench.publish('4'), Published::New { serial: 4 });
    fs::remove_file(bench.host().join("manifest.json")).unwrap();
    assert_eq!(bench.publish('5'), Published::New { serial: 5 });
    bench.assert_whole(5);
}

#[test]
fn a_directory_of_the_original_bento_is_taken_over() {
    let bench = Bench::new();
    write(&bench.host(), "config/update.sh", "#!/bin/sh\n");
    write(&bench.host(), "logs/20240101-0000_00000000000000000000000000000000-system_success.log.gz", "");
    assert_eq!(bench.publish('1'), Published::New { serial: 1 });
    assert_eq!(fs::read_link(bench.host().join("config")).unwrap(), Path::new("releases/1"));
    assert!(bench.host().join("logs/20240101-0000_00000000000000000000000000000000-system_success.log.gz").exists());
}

#[test]
fn search_paths_split_at_colons_but_not_in_urls() {
    let path = |text: &str| SearchPath::new(&[], &split_nix_path(text), Path::new("/here")).unwrap();
    let text = "nixpkgs=/a/b:/c:x=https://example.org/n.tar.gz:channel:nixos-25.05:relative:y=channel:nixos";
    assert_eq!(
        path(text).entries(),
        [
            "nixpkgs=/a/b",
            "/c",
            "x=https://example.org/n.tar.gz",
            "channel:nixos-25.05",
            "/here/relative",
            "y=channel:nixos"
        ]
    );
    assert_eq!(path(text).portable(), ["x=https://example.org/n.tar.gz", "channel:nixos-25.05", "y=channel:nixos"]);
    let options = ["nixpkgs=/first".to_owned()];
    let both = SearchPath::new(&options, &["nixpkgs=/second".to_owned()], Path::new("/")).unwrap();
    assert_eq!(both.entries(), ["nixpkgs=/first", "nixpkgs=/second"]);
    assert!(SearchPath::new(&["nixpkgs=".to_owned()], &[], Path::new("/")).is_err());
}
