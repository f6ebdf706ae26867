//! A publish that is cut short at any of its steps, and hubs that are full, read-only or somebody else's.
//!
//! The steps are system calls: `strace` kills the process at each of those that change a file system, one run for each.

// a test may unwrap: that is how it fails
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use bento::host::{Host, HostKind, HostName};
use bento::hub::Hub;
use bento::manifest::{Manifest, signature_file};
use bento::publish::{Candidate, Published, publish};
use bento::secrets::draft::{DigestKey, Draft};
use bento::secrets::folder::Folders;
use bento::secrets::secrets_dir;
use bento::sign::{Signer, SigningKey, read_public_key, verify};
use bento::source::SourceTree;
use common::{Lab, candidate};
use jiff::Timestamp;
use tempfile::TempDir;

/// The calls that change what a reader sees or what outlives a crash.
const CALLS: [&str; 16] = [
    "openat",
    "write",
    "copy_file_range",
    "mkdir",
    "rename",
    "renameat2",
    "unlink",
    "unlinkat",
    "rmdir",
    "symlink",
    "linkat",
    "fchmod",
    "chmod",
    "lchown",
    "utimensat",
    "fsync",
];

/// What is in a file that does not change.
const SAME: &str = "same";

/// Where a publish happens.
struct Place {
    dir: PathBuf,
}

impl Place {
    /// A hub with one release, and another one that is to be published.
    fn new(dir: &Path) -> Self {
        let place = Self { dir: dir.to_owned() };
        let made = Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-f"])
            .arg(place.dir.join("key"))
            .status()
            .unwrap();
        assert!(made.success());
        fs::create_dir(place.dir.join("hub")).unwrap();
        place.source("old");
        assert_eq!(place.publish('1'), Published::New { serial: 1 });
        place.source("new");
        place
    }

    /// Writes the host's files.
    fn source(&self, text: &str) {
        for (file, text) in
            [("source/configuration.nix", text), ("source/sub/other.nix", text), ("source/sub/same.nix", SAME)]
        {
            let file = self.dir.join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        }
        fs::create_dir_all(self.dir.join("secrets/sub")).unwrap();
        fs::write(self.dir.join("secrets/sub/password"), text).unwrap();
    }

    /// Publishes them; `version` tells systems apart.
    fn publish(&self, version: char) -> Published {
        let host = Host { name: HostName::new("crash-host").unwrap(), kind: HostKind::Flake };
        let tree = SourceTree::stage(&self.dir.join("source"), &Folders::default()).unwrap();
        let key = fs::read_to_string(self.dir.join("key.pub")).unwrap();
        // as it is when the deploy that is cut short is the first that sees the key
        let secrets =
            Draft::of_folder(&host.name, &self.dir.join("secrets"), &[key], Some(&DigestKey::of_user(false).unwrap()));
        let candidate = Candidate { secrets: secrets.unwrap(), ..candidate(&host, &tree, version) };
        let signer = Signer::open(&self.dir.join("key"), None).unwrap();
        publish(&Hub::new(self.dir.join("hub")), &candidate, Some(&signer), Timestamp::now()).unwrap().published
    }

    /// What a reader sees: a whole release, signed. Gives its serial.
    #[track_caller]
    fn whole(&self) -> u64 {
        let host = self.dir.join("hub/crash-host");
        let text = fs::read(host.join("manifest.json")).unwrap();
        let manifest = Manifest::parse(&text).unwrap();
        let signature = fs::read(host.join(signature_file(manifest.serial))).unwrap();
        let (key, _) = read_public_key(&self.dir.join("key")).unwrap();
        verify(&text, &signature, &[SigningKey::from(&key)]).unwrap();
        assert!(manifest.files.len() == 3);
        for file in &manifest.files {
            let served = fs::read(host.join(format!("releases/{}/{}", manifest.serial, file.path))).unwrap();
            assert_eq!(blake3::hash(&served).to_hex().as_str(), file.blake3);
            let text = if manifest.serial == 1 { "old" } else { "new" };
            assert_eq!(served, if file.path.ends_with("same.nix") { SAME } else { text }.as_bytes());
        }
        let [secret] = manifest.secrets.as_slice() else { panic!("{manifest:?}") };
        let sealed = fs::read(host.join(secrets_dir(manifest.serial)).join(&secret.path)).unwrap();
        assert_eq!(blake3::hash(&sealed).to_hex().as_str(), secret.blake3);
        let key = fs::read(self.dir.join("key")).unwrap();
        let key = age::ssh::Identity::from_buffer(key.as_slice(), None).unwrap();
        assert_eq!(age::decrypt(&key, &sealed).unwrap(), if manifest.serial == 1 { b"old" } else { b"new" });
        manifest.serial
    }
}

/// What the tests below have `strace` run and kill. By itself it does nothing.
#[test]
fn publish_for_another_test() {
    if let Some(dir) = std::env::var_os("BENTO_CRASH_DIR") {
        Place { dir: dir.into() }.publish('2');
    }
}

/// Whether `strace` can be used here; if not, that is said.
fn has_strace() -> bool {
    let works =
        Command::new("strace").args(["-qq", "-o", "/dev/null", "true"]).status().is_ok_and(|status| status.success());
    if !works {
        eprintln!("skipped: strace is missing, or not allowed to look on");
    }
    works
}

/// Runs a publish under `strace` with these options.
fn traced(dir: &Path, options: &[&str]) -> std::process::Output {
    // one that is killed leaves what it had staged
    let temporary = dir.join("tmp");
    fs::create_dir_all(&temporary).unwrap();
    Command::new("strace")
        .env("TMPDIR", temporary)
        .args(["-f", "-qq"])
        .args(options)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "publish_for_another_test"])
        .env("BENTO_CRASH_DIR", dir)
        .env("XDG_STATE_HOME", dir.join("state"))
        .output()
        .unwrap()
}

/// A copy of a place.
fn copy(from: &Path) -> TempDir {
    let to = tempfile::tempdir().unwrap();
    assert!(Command::new("cp").arg("-a").arg(from.join(".")).arg(to.path()).status().unwrap().success());
    to
}

#[test]
fn killed_at_any_step_a_reader_sees_a_whole_release() {
    if !has_strace() {
        return;
    }
    let start = tempfile::tempdir().unwrap();
    Place::new(start.path());
    // one run to its end counts the calls that touch the hub; what comes before them is none of the publish
    let run = copy(start.path());
    let log = run.path().join("log");
    let names = format!("trace={}", CALLS.join(","));
    let output = traced(run.path(), &["-y", "-e", &names, "-o", log.to_str().unwrap()]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(Place { dir: run.path().to_owned() }.whole(), 2);
    let hub = run.path().join("hub").display().to_string();
    let mut seen: BTreeMap<(String, String), u32> = BTreeMap::new();
    let mut points = Vec::new();
    for line in fs::read_to_string(&log).unwrap().lines() {
        // "PID call(...": strace counts each thread's calls for itself
        let Some((thread, call)) = line.split_once(' ') else { continue };
        let Some((name, _)) = call.trim_start().split_once('(') else { continue };
        let count = seen.entry((thread.to_owned(), name.to_owned())).or_default();
        *count += 1;
        if call.contains(&hub) && !call.contains("O_RDONLY") {
            points.push((name.to_owned(), *count));
        }
    }
    assert!(points.len() > 35, "{points:?}");
    let (mut old, mut new) = (0, 0);
    for (name, count) in &points {
        let run = copy(start.path());
        let place = Place { dir: run.path().to_owned() };
        let inject = format!("inject={name}:signal=KILL:when={count}");
        let output = traced(run.path(), &["-e", &format!("trace={name}"), "-e", &inject]);
        let killed = output.status.signal() == Some(9) || output.status.code() == Some(137);
        assert!(killed, "{name} {count}: {}", output.status);
        match place.whole() {
            1 => old += 1,
            _ => new += 1,
        }
        // the next publish brings the new release, and leaves nothing of the cut one
        place.publish('2');
        let serial = place.whole();
        assert!(serial == 2 || serial == 3, "{name} {count}: release {serial}");
        let host = run.path().join("hub/crash-host");
        let left = |dir: &Path| {
            let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
            names.filter(|name| name.starts_with(".tmp-")).collect::<Vec<_>>()
        };
        assert!(left(&host).is_empty() && left(&host.join("releases")).is_empty(), "{name} {count}");
        assert_eq!(fs::read_link(host.join("config")).unwrap(), Path::new(&format!("releases/{serial}")));
        assert_eq!(fs::read_link(host.join("manifest.json.sig")).unwrap(), Path::new(&signature_file(serial)));
    }
    println!("{} points: {old} left the old release, {new} the new one", points.len());
    assert!(old > 15 && new > 3, "{old} {new}");
}

#[test]
fn a_file_system_without_hard_links_does_as_well() {
    if !has_strace() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let place = Place::new(dir.path());
    let output = traced(dir.path(), &["-e", "trace=linkat", "-e", "inject=linkat:error=EPERM"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stderr).contains("INJECTED"), "nothing was linked");
    assert_eq!(place.whole(), 2);
    let host = dir.path().join("hub/crash-host");
    assert_eq!(fs::read(host.join("releases/2.json")).unwrap(), fs::read(host.join("manifest.json")).unwrap());
    let inode = |file: &str| fs::metadata(host.join(file)).unwrap().ino();
    assert_ne!(inode("releases/1/sub/same.nix"), inode("releases/2/sub/same.nix"));
}

#[test]
fn a_disk_that_fails_is_told_and_the_next_publish_makes_all_of_it_durable() {
    if !has_strace() {
        return;
    }
    let start = tempfile::tempdir().unwrap();
    Place::new(start.path());
    // secrets are known again by this, so the next publish has nothing new
    fs::create_dir_all(start.path().join("state/bento")).unwrap();
    fs::write(start.path().join("state/bento/secrets.key"), [7; 32]).unwrap();
    // whether a publish succeeds, what it says, and what it syncs of the hub
    let publish = |dir: &Path, options: &[&str]| {
        let log = dir.join("log");
        let output = traced(dir, &[&["-y", "-e", "trace=fsync", "-o", log.to_str().unwrap()], options].concat());
        let synced: Vec<String> = fs::read_to_string(log).unwrap().lines().map(str::to_owned).collect();
        (
            output.status.success(),
            String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned(),
            synced,
        )
    };
    let whole = copy(start.path());
    let (succeeded, _, synced) = publish(whole.path(), &[]);
    assert!(succeeded && synced.len() > 6 && synced.iter().all(|line| line.contains("/hub/crash-host")), "{synced:?}");
    let mut mended = 0;
    for sync in 1..=synced.len() {
        let run = copy(start.path());
        let place = Place { dir: run.path().to_owned() };
        let (succeeded, said, _) = publish(run.path(), &["-e", &format!("inject=fsync:error=EIO:when={sync}")]);
        let serial = place.whole();
        // a date that can't be set is written anew; all else fails
        if succeeded {
            assert_eq!(serial, 2);
            continue;
        }
        assert!(said.contains("/hub/crash-host") && said.contains("Input/output error"), "{said}");
        let (succeeded, said, synced) = publish(run.path(), &[]);
        assert!(succeeded, "{said}");
        assert_eq!(place.whole(), 2);
        if serial == 2 {
            // nothing was left to do but to have the directory with the manifest durable
            assert!(synced.last().unwrap().contains("/hub/crash-host>"), "{synced:?}");
            mended += 1;
        }
    }
    assert!(mended > 0);
}

#[test]
fn a_hub_that_is_full_read_only_or_somebody_elses_keeps_its_release_and_says_why() {
    let Some(lab) = Lab::new() else { return };
    lab.flake_host("web", "");
    lab.bento(&["deploy"]).succeeds();
    let chroot = lab.path("chroot");
    let bento = env!("CARGO_BIN_EXE_bento");
    lab.flake_host("web", "text = \"new\";");
    lab.write("fleet/hosts/web/large", &"x".repeat(1 << 20));
    let before = common::fingerprint(&chroot.join("web"));
    // with a mount of its own over the hub
    let mounted = |mount: &str, after: &str| {
        lab.shell(&format!(
            "exec unshare --mount sh -c 'set -e; cp -a {0} {0}.copy; {mount}; cp -a {0}.copy/. {0}; {after} status=0; \
             {bento} deploy web || status=$?; \
             test \"$(sed -n s/.*serial...//p {0}/web/manifest.json)\" = 1, || exit 9; rm -rf {0}.copy; exit $status'",
            chroot.display()
        ))
    };
    let full = mounted(&format!("mount -t tmpfs -o size=512k,mode=755 hub {}", chroot.display()), "");
    full.fails_with(&["web: failed: cannot write", "releases/.tmp-2/large", "No space left on device"]);
    fs::remove_dir_all(lab.path("chroot.copy")).unwrap_or_default();
    let remount = format!("mount -o remount,ro {};", chroot.display());
    let mount = format!("mount -t tmpfs -o mode=755 hub {}", chroot.display());
    mounted(&mount, &remount).fails_with(&["cannot lock", ".bento.lock", "Read-only file system"]);
    fs::remove_dir_all(lab.path("chroot.copy")).unwrap_or_default();
    assert_eq!(common::fingerprint(&chroot.join("web")), before);
    // somebody who may not write there
    lab.copy_program();
    let nobody =
        format!("exec setpriv --reuid=65534 --regid=65534 --clear-groups {} deploy web", lab.path("bento").display());
    lab.shell(&nobody).fails_with(&["cannot read the signing key", "Permission denied"]);
    let settings = lab.read("fleet/config.sh");
    lab.write("fleet/config.sh", &settings.replace("SIGNING_KEY=", "# "));
    // everybody may write to where temporary files go
    fs::set_permissions(lab.path("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
    lab.shell(&nobody).fails_with(&["cannot lock", ".bento.lock", "Permission denied"]);
    assert_eq!(common::fingerprint(&chroot.join("web")), before);
}
