//! Provisioning: what a machine says of itself, which disks are erased, the host's key, what nixos-anywhere is told. What happens on
//! machines is in `checks/machines/provision.py`.

// a test may unwrap: that is how it fails
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use bento::fleet::config::Config;
use bento::host::HostName;
use bento::provision::facts::Facts;
use bento::provision::installer::Installer;
use bento::provision::journal::{Held, Phase};
use bento::provision::key::{self, HostKey};
use bento::provision::outline::{Firmware, Layout};
use bento::provision::wipe;
use bento::push::target::{Destination, Target};
use serde_json::{Value, json};

const BENTO: &str = env!("CARGO_BIN_EXE_bento");

/// What a machine with Debian says, with two disks.
const DEBIAN: &str = "host\tbox\nkernel\tLinux 6.1.0-18-amd64\nmachine\tx86_64\nuser\troot\nuid\t0\nboot\tb1\nmemory\t4028676\nfirmware\tefi\n\
    os\tDebian GNU/Linux 12 (bookworm)\ncontainer\tnone\nkexec\t1\ntool\ttar\ntool\tcpio\ntool\tsetsid\n\
    disk\t/dev/sda\t1000215216\t0\tSamsung SSD 870  \tS5Y1NX0R1\t /dev/disk/by-id/ata-Samsung_S5Y1NX0R1 /dev/disk/by-path/pci-0\t/ /boot \n\
    disk\t/dev/sdb\t7814037168\t0\tWDC WD40\tWD-9\t /dev/disk/by-id/ata-WDC_WD-9\t\n";

fn facts(text: &str) -> Facts {
    Facts::parse(text).unwrap()
}

/// A layout with a disk of each name at its device.
fn layout(disks: &[(&str, &str)]) -> Layout {
    let node = |name: &str, device: &str, size: Value, purpose: Value, children: Vec<Value>| {
        json!({ "name": name, "type": "disk", "device": device, "format": null, "mountpoint": null, "member": null, "size": size,
                "purpose": purpose, "children": children })
    };
    let disks: Vec<Value> = disks
        .iter()
        .map(|(name, device)| {
            let boot = node("ESP", "", json!("512M"), json!("EF00"), Vec::new());
            node(name, device, Value::Null, Value::Null, vec![boot])
        })
        .collect();
    serde_json::from_value(json!({ "disks": disks, "volumes": [] })).unwrap()
}

#[test]
fn a_machine_is_understood() {
    let facts = facts(DEBIAN);
    assert_eq!((facts.host.as_str(), facts.memory, facts.firmware), ("box", 3934, Firmware::Efi));
    assert!(facts.root && facts.kexec && !facts.installer && !facts.mounted && facts.container.is_none());
    assert_eq!(facts.objections(true), Vec::<String>::new());
    let disk = &facts.disks[0];
    assert_eq!(disk.text(), "/dev/sda: Samsung SSD 870, serial S5Y1NX0R1, 512.1 GB");
    assert_eq!((disk.word(), disk.mounts.join(" ")), ("S5Y1NX0R1", "/ /boot".to_owned()));
    assert_eq!(facts.disks[1].text(), "/dev/sdb: WDC WD40, serial WD-9, 4.0 TB");
}

#[test]
fn this_very_machine_is_understood() {
    let script = include_str!("../src/provision/facts.rs");
    let (_, script) = script.split_once("const SCRIPT: &str = r#\"").unwrap();
    let (script, _) = script.split_once("\"#;").unwrap();
    for shell in ["sh", "bash"] {
        let output = Command::new(shell).args(["-c", script]).output().unwrap();
        let found = facts(&String::from_utf8(output.stdout).unwrap());
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
        assert_eq!((found.boot.as_str(), found.installer), (boot.trim(), false), "{shell}");
        assert!(found.memory > 0 && found.tools.iter().any(|tool| tool == "tar"), "{found:?}");
        for disk in &found.disks {
            assert!(Path::new(&disk.device).exists() && disk.size > 0, "{disk:?}");
        }
    }
}

#[test]
fn what_can_not_be_installed_is_told_why() {
    for (from, to, words) in [
        ("memory\t4028676", "memory\t500000", "the installer needs 1 GiB"),
        ("tool\tcpio\n", "", "lacks cpio"),
        ("kexec\t1\n", "", "can't start another one"),
        ("kexec\t1\n", "kexec\t1\nlockdown\t1\n", "locked down"),
        ("container\tnone", "container\tlxc", "is a container (lxc)"),
        ("user\troot\nuid\t0", "user\tadmin\nuid\t1000", "neither sudo nor doas"),
        ("kernel\tLinux 6.1.0-18-amd64", "kernel\tFreeBSD 14", "not Linux"),
    ] {
        let objections = facts(&DEBIAN.replace(from, to)).objections(true);
        assert!(objections.iter().any(|said| said.contains(words)), "{words:?} is not in {objections:?}");
    }
    // what runs the installer needs none of what starts it
    let installer = facts(&DEBIAN.replace("kexec\t1\ntool\ttar\ntool\tcpio\n", "installer\t1\n"));
    assert!(installer.installer);
    assert_eq!(installer.objections(true), Vec::<String>::new());
    for damaged in
        ["", "host\tbox\n", &DEBIAN.replace("\t4028676", "\tmuch"), &DEBIAN.replace("1000215216\t0", "1000215216")]
    {
        assert!(Facts::parse(damaged).is_err(), "{damaged}");
    }
}

#[test]
fn the_disks_that_are_erased_are_found_and_named() {
    let facts = facts(DEBIAN);
    let wipes = wipe::find(&layout(&[("main", "/dev/disk/by-id/ata-WDC_WD-9")]), &facts).unwrap();
    assert_eq!(wipes[0].disk.device, "/dev/sdb");
    assert_eq!(wipe::unnamed(&wipes, &[]).len(), 1);
    assert_eq!(wipe::unnamed(&wipes, &["S5Y1NX0R1".to_owned(), "/dev/sdb".to_owned()]).len(), 1);
    assert_eq!(wipe::unnamed(&wipes, &["WD-9".to_owned()]).len(), 0);
    let wipes = wipe::find(&layout(&[("main", "/dev/sda")]), &facts).unwrap();
    assert!(wipes[0].text().ends_with("(disko.devices.disk.main); now mounted at /, /boot"), "{}", wipes[0].text());
    // without a serial it is the device that is typed
    let bare = self::facts(&DEBIAN.replace("\tS5Y1NX0R1\t", "\t\t"));
    assert_eq!(wipe::find(&layout(&[("main", "/dev/sda")]), &bare).unwrap()[0].disk.word(), "/dev/sda");
    for (disks, words) in [
        (
            &[("main", "/dev/nvme0n1")][..],
            "has no disk /dev/nvme0n1 (disko.devices.disk.main.device); it has: /dev/disk/by-id/ata-Samsung_S5Y1NX0R1",
        ),
        (
            &[("one", "/dev/sda"), ("two", "/dev/disk/by-path/pci-0")],
            "disko.devices.disk.two and one are both /dev/sda",
        ),
    ] {
        let error = format!("{:#}", wipe::find(&layout(disks), &facts).unwrap_err());
        assert!(error.contains(words), "{error}");
    }
    let main = layout(&[("main", "/dev/sda")]);
    let error = wipe::find(&main, &self::facts(&DEBIAN.replace("1000215216\t0", "1000215216\t1"))).unwrap_err();
    assert!(error.to_string().contains("can't be written to"), "{error}");
    let error = wipe::find(&main, &self::facts(&DEBIAN.replace("1000215216", "2048"))).unwrap_err();
    assert!(error.to_string().contains("too small"), "{error}");
}

#[test]
fn a_disk_that_became_another_one_is_not_erased() {
    let main = layout(&[("main", "/dev/sda")]);
    let named = wipe::find(&main, &facts(DEBIAN)).unwrap();
    wipe::still(&named, &main, &facts(DEBIAN)).unwrap();
    // the installer's kernel found them the other way round
    let swapped =
        DEBIAN.replace("/dev/sda", "/dev/sdX").replace("/dev/sdb", "/dev/sda").replace("/dev/sdX", "/dev/sdb");
    let error = wipe::still(&named, &main, &facts(&swapped)).unwrap_err().to_string();
    assert!(error.contains("nothing was erased") && error.contains("WD-9") && error.contains("S5Y1NX0R1"), "{error}");
    // but the same disk under another name is fine where the layout says so
    let by_id = layout(&[("main", "/dev/disk/by-id/ata-Samsung_S5Y1NX0R1")]);
    wipe::still(&wipe::find(&by_id, &facts(DEBIAN)).unwrap(), &by_id, &facts(&swapped)).unwrap();
    let error = wipe::still(&named, &layout(&[("other", "/dev/sda")]), &facts(DEBIAN)).unwrap_err();
    assert!(error.to_string().contains("nobody said"), "{error}");
}

fn host(name: &str) -> HostName {
    name.parse().unwrap()
}

#[test]
fn the_key_is_made_once_and_the_settings_know_it() {
    let dir = tempfile::tempdir().unwrap();
    let key = HostKey::in_dir(dir.path(), &host("web")).unwrap();
    assert_eq!(fs::metadata(&key.private).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(key.public.starts_with("ssh-ed25519 ") && key.public.ends_with(" root@web"), "{}", key.public);
    assert_eq!(HostKey::in_dir(dir.path(), &host("web")).unwrap().public, key.public);

    let file = dir.path().join("bento.toml");
    let text = "# the hub\n[hub]\ndirectory = \"/srv/bento\"\n\n[hosts.web]\ntags = [\"a\"] # as it is\n";
    fs::write(&file, text).unwrap();
    assert!(key::record(dir.path(), &host("web"), &key.public, false).unwrap());
    let now = fs::read_to_string(&file).unwrap();
    assert!(now.starts_with(text), "{now}");
    assert_eq!(Config::read(dir.path()).unwrap().hosts[&host("web")].keys, std::slice::from_ref(&key.public));
    // nothing to do the second time, and a host that is not there yet
    assert!(!key::record(dir.path(), &host("web"), &key.public, false).unwrap());
    assert!(key::record(dir.path(), &host("db"), &key.public, false).unwrap());
    let config = Config::read(dir.path()).unwrap();
    assert!(config.hosts[&host("web")].tags.contains("a") && config.hosts[&host("db")].keys.len() == 1);
    // another key is only replaced by who says so
    let other =
        HostKey::in_dir(&fs::create_dir(dir.path().join("x")).map(|()| dir.path().join("x")).unwrap(), &host("web"))
            .unwrap();
    let error = key::record(dir.path(), &host("web"), &other.public, false).unwrap_err().to_string();
    assert!(error.contains("--new-key"), "{error}");
    assert!(key::record(dir.path(), &host("web"), &other.public, true).unwrap());
    assert_eq!(Config::read(dir.path()).unwrap().hosts[&host("web")].keys, [other.public]);
    // config.sh has no place for it
    fs::remove_file(&file).unwrap();
    fs::write(dir.path().join("config.sh"), "CHROOT_DIR=/srv/bento\n").unwrap();
    let error = key::record(dir.path(), &host("web"), &key.public, false).unwrap_err().to_string();
    assert!(error.contains("[hosts.web]") && error.contains(&key.public), "{error}");
}

#[test]
fn the_pinned_key_is_one_that_ssh_believes() {
    let dir = tempfile::tempdir().unwrap();
    let key = HostKey::in_dir(dir.path(), &host("web")).unwrap();
    let options = key.pin(&dir.path().join("known_hosts"), &host("web")).unwrap();
    let found =
        Command::new("ssh-keygen").args(["-F", "web", "-f"]).arg(dir.path().join("known_hosts")).output().unwrap();
    let line = String::from_utf8(found.stdout).unwrap();
    assert!(line.contains(key.public.split(' ').nth(1).unwrap()), "{line}");
    let resolved = Command::new("ssh").args(&options).args(["-G", "192.0.2.1"]).output().unwrap();
    let resolved = String::from_utf8(resolved.stdout).unwrap();
    for line in ["hostkeyalias web", "stricthostkeychecking true", "globalknownhostsfile /dev/null"] {
        assert!(resolved.lines().any(|found| found == line), "{line:?} is not in {resolved}");
    }
    key.lay_out(&dir.path().join("root")).unwrap();
    let private = dir.path().join("root/etc/ssh/ssh_host_ed25519_key");
    assert_eq!(fs::metadata(&private).unwrap().permissions().mode() & 0o777, 0o600);
    let public = Command::new("ssh-keygen").arg("-yf").arg(&private).output().unwrap();
    let (public, line) =
        (String::from_utf8(public.stdout).unwrap(), fs::read_to_string(private.with_extension("pub")).unwrap());
    assert_eq!(public.split(' ').nth(1).unwrap(), line.split(' ').nth(1).unwrap());
}

fn destination(text: &str) -> Destination {
    text.parse::<Target>().unwrap().destination
}

/// A program in nixos-anywhere's place that does this.
fn program(dir: &Path, text: &str) -> std::path::PathBuf {
    let file = dir.join("nixos-anywhere");
    fs::write(&file, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    file
}

#[test]
fn nixos_anywhere_is_told_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let program = program(dir.path(), "echo \"$@\"; echo more >&2; exit ${STATUS:-0}");
    let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let ssh = words("-o StrictHostKeyChecking=yes -i /k -J jump -p2222");
    let log = dir.path().join("log");
    let installer =
        Installer::new(&program, &words("--kexec /x.tar.gz --post-kexec-ssh-port 2200"), &ssh, &log).unwrap();
    assert_eq!(installer.value_of("--post-kexec-ssh-port"), Some("2200"));
    let system = words("--store-paths /nix/store/d /nix/store/s");
    let said = std::sync::Mutex::new(Vec::new());
    let command =
        installer.command(Phase::Install, &system, Some(Path::new("/extra")), &destination("nixos://root@box:22"));
    installer
        .run(command, Stdio::null(), Duration::from_secs(20), &|line| said.lock().unwrap().push(line.to_owned()))
        .unwrap();
    let said = said.into_inner().unwrap();
    let expected = "--phases install --store-paths /nix/store/d /nix/store/s --extra-files /extra --ssh-port 22 --ssh-option StrictHostKeyChecking=yes \
                    -i /k --ssh-option ProxyJump=jump --ssh-port 2222 --kexec /x.tar.gz --post-kexec-ssh-port 2200 --target-host root@box";
    assert!(said.contains(&expected.to_owned()) && said.contains(&"more".to_owned()), "{said:?}");
    let kept = fs::read_to_string(&log).unwrap();
    assert!(kept.contains(expected) && kept.starts_with("$ "), "{kept}");
    // its failure is one, with the end of what it said
    let mut command = installer.command(Phase::Kexec, &system, None, &destination("root@box"));
    command.env("STATUS", "3");
    let error = installer.run(command, Stdio::null(), Duration::from_secs(20), &|_| ()).unwrap_err().to_string();
    assert!(error.contains("exit status: 3") && error.contains("--phases kexec") && error.contains("more"), "{error}");
    // what bento says itself nobody else can
    for flag in ["--phases", "--extra-files", "--copy-host-keys", "--vm-test", "--generate-hardware-config"] {
        let error = Installer::new(&program, &words(flag), &[], &log).unwrap_err().to_string();
        assert!(error.contains(flag), "{error}");
    }
    for ssh in ["-F /config", "-o"] {
        assert!(Installer::new(&program, &[], &words(ssh), &log).is_err(), "{ssh}");
    }
}

#[test]
fn what_does_not_end_is_ended_with_all_that_it_started() {
    let dir = tempfile::tempdir().unwrap();
    let program = program(dir.path(), &format!("sleep 77 & echo $! > {}; wait", dir.path().join("child").display()));
    let installer = Installer::new(&program, &[], &[], &dir.path().join("log")).unwrap();
    let start = std::time::Instant::now();
    let command = installer.command(Phase::Disko, &[], None, &destination("root@box"));
    let error = installer.run(command, Stdio::null(), Duration::from_secs(1), &|_| ()).unwrap_err().to_string();
    assert!(error.contains("did not end within 1 s") && start.elapsed() < Duration::from_secs(20), "{error}");
    let child = fs::read_to_string(dir.path().join("child")).unwrap();
    let ended = || {
        let state = fs::read_to_string(format!("/proc/{}/stat", child.trim())).unwrap_or_default();
        state.is_empty() || state.contains(") Z ")
    };
    // it was killed; that it is gone may be seen a moment later
    while !ended() {
        assert!(start.elapsed() < Duration::from_secs(20), "{child} still runs");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn nixos_anywhere_can_end_what_it_started() {
    let dir = tempfile::tempdir().unwrap();
    // as it does with an ssh that gets no answer
    let program = program(dir.path(), "timeout 1 sleep 77; echo $?; kill -TERM $$; sleep 77");
    let installer = Installer::new(&program, &[], &[], &dir.path().join("log")).unwrap();
    let command = installer.command(Phase::Kexec, &[], None, &destination("root@box"));
    let said = std::sync::Mutex::new(Vec::new());
    let note = |line: &str| said.lock().unwrap().push(line.to_owned());
    let error = installer.run(command, Stdio::null(), Duration::from_secs(20), &note).unwrap_err().to_string();
    assert_eq!(said.into_inner().unwrap(), ["124"]);
    assert!(error.contains("signal: 15"), "{error}");
}

#[test]
fn a_program_that_is_not_there_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let installer = Installer::new(Path::new("/nowhere/nixos-anywhere"), &[], &[], &dir.path().join("log")).unwrap();
    let command = installer.command(Phase::Kexec, &[], None, &destination("root@box"));
    let error = format!("{:#}", installer.run(command, Stdio::null(), Duration::from_secs(1), &|_| ()).unwrap_err());
    assert!(error.contains("/nowhere/nixos-anywhere") && error.contains("installed"), "{error}");
}

/// A program that sees a fleet's directory, and these programs.
fn in_fleet(program: &str, fleet: &Path, path: &str) -> Command {
    let mut command = Command::new(program);
    command
        .env("BENTO_DIR", fleet)
        .env("HOME", fleet.parent().unwrap().join("home"))
        .env("PATH", path)
        .env_remove("NAME")
        .env_remove("NIX_PATH")
        .env_remove("XDG_STATE_HOME");
    command
}

/// Runs the program in a fleet's directory.
fn bento(fleet: &Path, path: &str, arguments: &[&str]) -> Output {
    in_fleet(BENTO, fleet, path).args(arguments).output().unwrap()
}

/// A fleet of one host, `web`, whose system has the revision of the pinned nixpkgs in its name.
fn small_fleet() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("fleet");
    for sub in ["home", "bin", "fleet/npins"] {
        fs::create_dir_all(dir.path().join(sub)).unwrap();
    }
    let settings = format!("[hub]\ndirectory = \"{}/hub\"\n[build]\nlocal = false\n", dir.path().display());
    fs::write(at.join("bento.toml"), settings).unwrap();
    let flake = r#"{ outputs = { self }:
        let revision = (builtins.fromJSON (builtins.readFile ./npins/sources.json)).pins.nixpkgs.revision;
        in { nixosConfigurations.web.config.system.build.toplevel =
            if revision == "bad" then throw "no luck" else derivation { name = "system-${revision}"; system = "x86_64-linux"; builder = "/bin/sh"; }; }; }"#;
    fs::write(at.join("flake.nix"), flake).unwrap();
    let pins = json!({ "version": 8, "pins": { "nixpkgs": { "type": "Git", "revision": "aaaa", "hash": "x" }, "disko": { "version": "v1" } } });
    fs::write(at.join("npins/sources.json"), pins.to_string()).unwrap();
    dir
}

/// `npins` that finds a newer nixpkgs: the one that the file `next` in the home names.
const NPINS: &str = r#"#!/bin/sh
set -eu
[ "$1" = -d ] && [ "$3" = update ]
echo "$*" >> "$HOME/called"
sed -i "s/aaaa/$(cat "$HOME/next")/" "$2/sources.json"
"#;

#[test]
fn updates_are_shown_and_deployed_or_taken_back() {
    let dir = small_fleet();
    let (at, home) = (dir.path().join("fleet"), dir.path().join("home"));
    let path = format!("{}/bin:/usr/bin:/bin", dir.path().display());
    let pins = || fs::read_to_string(at.join("npins/sources.json")).unwrap();
    let first = pins();
    let update = |arguments: &[&str]| {
        let output = bento(&at, &path, &[&["update"], arguments].concat());
        let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        (output.status.success(), said)
    };
    // without npins
    let (ok, said) = update(&[]);
    assert!(!ok && said.contains("npins") && said.contains("nix-shell") && said.contains("as they were"), "{said}");
    let npins = dir.path().join("bin/npins");
    fs::write(&npins, NPINS).unwrap();
    fs::set_permissions(&npins, fs::Permissions::from_mode(0o755)).unwrap();
    let output = bento(&at, &path, &["deploy"]);
    assert!(output.status.success(), "{output:?}");
    let serial = || {
        let manifest: Value =
            serde_json::from_slice(&fs::read(dir.path().join("hub/web/manifest.json")).unwrap()).unwrap();
        manifest["serial"].as_u64().unwrap()
    };
    fs::write(home.join("next"), "bbbb").unwrap();
    // nobody is there to agree
    let (ok, said) = update(&[]);
    assert!(!ok && said.contains("nixpkgs: aaaa -> bbbb") && said.contains("--yes"), "{said}");
    assert_eq!((pins(), serial()), (first.clone(), 1));
    // only looked at
    let (ok, said) = update(&["--dry-run", "--input", "nixpkgs"]);
    assert!(ok && said.contains("nixpkgs: aaaa -> bbbb") && said.contains("system-bbbb"), "{said}");
    assert_eq!((pins(), serial()), (first.clone(), 1));
    let called = fs::read_to_string(home.join("called")).unwrap();
    assert!(called.ends_with("update nixpkgs\n"), "{called}");
    // what has no such name
    let (ok, said) = update(&["--input", "nothing"]);
    assert!(!ok && said.contains("nothing that is pinned or locked is called nothing"), "{said}");
    // what can't be evaluated is taken back
    fs::write(home.join("next"), "bad").unwrap();
    let (ok, said) = update(&["--yes"]);
    assert!(!ok && said.contains("no luck") && said.contains("nothing was deployed"), "{said}");
    assert_eq!((pins(), serial()), (first.clone(), 1));
    // and what somebody agreed to is deployed
    fs::write(home.join("next"), "bbbb").unwrap();
    let (ok, said) = update(&["--yes", "web"]);
    assert!(ok && said.contains("published release 2"), "{said}");
    assert_eq!((pins(), serial()), (first.replace("aaaa", "bbbb"), 2));
    let (ok, said) = update(&["--yes"]);
    assert!(ok && said.contains("everything is up to date"), "{said}");
}

/// Runs the program in a fleet's directory on a terminal of its own; when it has printed `question`, `answer` is typed. Gives whether
/// it succeeded, and what was on the terminal.
fn on_terminal(fleet: &Path, path: &str, arguments: &[&str], question: &str, answer: &str) -> (bool, String) {
    // script(1) is where every Debian has it, and on NixOS; the status of the command is its own
    let mut terminal = in_fleet("script", fleet, path)
        .args(["--quiet", "--return", "--flush", "--command", &[&[BENTO], arguments].concat().join(" "), "/dev/null"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut keyboard, mut screen) = (terminal.stdin.take().unwrap(), terminal.stdout.take().unwrap());
    let (mut said, mut part, mut typed) = (Vec::new(), [0; 4096], false);
    while let Ok(length @ 1..) = screen.read(&mut part) {
        said.extend_from_slice(&part[..length]);
        if !typed && String::from_utf8_lossy(&said).contains(question) {
            keyboard.write_all(answer.as_bytes()).unwrap();
            keyboard.flush().unwrap();
            typed = true;
        }
    }
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(typed, "{question:?} was not asked: {said}");
    (terminal.wait().unwrap().success(), said)
}

/// What is typed to end the input, and to interrupt.
const END: &str = "\u{4}";
const INTERRUPT: &str = "\u{3}";

#[test]
fn an_update_is_agreed_to_on_a_terminal() {
    let dir = small_fleet();
    let (at, home) = (dir.path().join("fleet"), dir.path().join("home"));
    let path = format!("{}/bin:/usr/bin:/bin", dir.path().display());
    let npins = dir.path().join("bin/npins");
    let pins = || fs::read_to_string(at.join("npins/sources.json")).unwrap();
    let write_npins = |text: &str| {
        fs::write(&npins, text).unwrap();
        fs::set_permissions(&npins, fs::Permissions::from_mode(0o755)).unwrap();
    };
    write_npins(NPINS);
    fs::write(home.join("next"), "bbbb").unwrap();
    let first = pins();
    for (answer, ok, words) in [
        ("n\r", true, "[y/N] n"),
        ("\r", true, "[y/N]"),
        (END, true, "[y/N]"),
        (INTERRUPT, false, "interrupted"),
        ("Y\r", true, "published release 1"),
    ] {
        let (succeeded, said) = on_terminal(&at, &path, &["update"], "Deploy this? [y/N] ", answer);
        assert_eq!(succeeded, ok, "{answer:?}: {said}");
        assert!(said.contains("nixpkgs: aaaa -> bbbb") && said.contains(words), "{answer:?}: {said}");
        if answer != "Y\r" {
            assert_eq!(pins(), first, "{answer:?}");
            assert!(!dir.path().join("hub/web").exists(), "{answer:?}");
        }
    }
    assert_eq!(pins(), first.replace("aaaa", "bbbb"));
    // who interrupts it earlier ends npins, and has the pins as they were
    write_npins(&format!("{NPINS}echo $$ > \"$HOME/npins\"; echo at work; exec sleep 77\n"));
    fs::write(at.join("npins/sources.json"), &first).unwrap();
    let (succeeded, said) = on_terminal(&at, &path, &["update"], "at work", INTERRUPT);
    assert!(!succeeded && said.contains("interrupted") && said.contains("as they were"), "{said}");
    assert_eq!(pins(), first);
    let process = fs::read_to_string(home.join("npins")).unwrap();
    assert!(!Path::new("/proc").join(process.trim()).exists(), "npins still runs");
}

#[test]
fn a_lock_is_updated_by_who_agrees() {
    let dir = tempfile::tempdir().unwrap();
    let (at, library) = (dir.path().join("fleet"), dir.path().join("library"));
    for sub in ["home", "fleet", "library"] {
        fs::create_dir_all(dir.path().join(sub)).unwrap();
    }
    let git = |arguments: &[&str]| {
        let output = Command::new("git")
            .args(["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "init.defaultBranch=main"])
            .args(arguments)
            .current_dir(&library)
            .env("HOME", dir.path().join("home"))
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    let commit = |version: &str| {
        fs::write(library.join("flake.nix"), format!("{{ outputs = _: {{ version = \"{version}\"; }}; }}")).unwrap();
        git(&["add", "."]);
        git(&["commit", "--quiet", "--message", version]);
        git(&["rev-parse", "HEAD"])
    };
    git(&["init", "--quiet"]);
    let first = commit("one");
    let settings = format!("[hub]\ndirectory = \"{}/hub\"\n[build]\nlocal = false\n", dir.path().display());
    fs::write(at.join("bento.toml"), settings).unwrap();
    let flake = format!(
        r#"{{ inputs.library.url = "git+file://{}";
             outputs = {{ self, library }}: {{ nixosConfigurations.web.config.system.build.toplevel =
               derivation {{ name = "system-${{library.version}}"; system = "x86_64-linux"; builder = "/bin/sh"; }}; }}; }}"#,
        library.display()
    );
    fs::write(at.join("flake.nix"), flake).unwrap();
    let path = "/usr/bin:/bin";
    let output = bento(&at, path, &["flake-update"]);
    assert!(output.status.success(), "{output:?}");
    let output = bento(&at, path, &["deploy"]);
    assert!(output.status.success(), "{output:?}");
    let lock = || fs::read_to_string(at.join("flake.lock")).unwrap();
    let manifest = || fs::read_to_string(dir.path().join("hub/web/manifest.json")).unwrap();
    let (locked, published) = (lock(), manifest());
    assert!(locked.contains(&first), "{locked}");
    let second = commit("two");
    let (ok, said) = on_terminal(&at, path, &["update"], "Deploy this? [y/N] ", "no\r");
    assert!(ok && said.contains("system-two"), "{said}");
    assert_eq!((lock(), manifest()), (locked, published));
    let (ok, said) = on_terminal(&at, path, &["update"], "Deploy this? [y/N] ", "yes\r");
    assert!(ok && said.contains("published release 2"), "{said}");
    assert!(lock().contains(&second), "{}", lock());
    assert!(manifest().contains("-system-two"), "{}", manifest());
}

#[test]
fn a_machine_that_can_not_be_reached_is_told_as_such() {
    let dir = small_fleet();
    let fleet = dir.path().join("fleet");
    let output = bento(&fleet, "/usr/bin:/bin", &["provision", "web", "nixos://root@127.0.0.1:1", "--dry-run"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("127.0.0.1:1") && said.contains("does sshd run there"), "{said}");
    assert!(!dir.path().join("home/.local").exists(), "a plan writes nothing");
    let output = bento(&fleet, "/usr/bin:/bin", &["provision", "nobody", "root@127.0.0.1"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("nobody"), "{said}");
    for (limit, words) in
        [("install", "install=2h"), ("sleep=1h", "there is no phase sleep"), ("install=x", "90s, 5m or 1h")]
    {
        let output = bento(&fleet, "/usr/bin:/bin", &["provision", "web", "root@127.0.0.1", "--timeout", limit]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(words), "{said}");
    }
}

#[test]
fn what_is_done_is_on_record() {
    // the one test here that keeps journals
    let dir = tempfile::tempdir().unwrap();
    let child = std::env::var_os("BENTO_TEST_JOURNAL");
    if child.is_none() {
        let test = Command::new(std::env::current_exe().unwrap())
            .args(["what_is_done_is_on_record", "--exact"])
            .env("BENTO_TEST_JOURNAL", "1")
            .env("XDG_STATE_HOME", dir.path())
            .output()
            .unwrap();
        assert!(test.status.success(), "{test:?}");
        return;
    }
    let (web, there) = (host("web"), destination("root@box"));
    let (mut held, resumed) = Held::open(&web, &there, false).unwrap();
    assert!(!resumed && !held.is_done(Phase::Look));
    held.did(Phase::Look).unwrap();
    held.did(Phase::Kexec).unwrap();
    let busy = format!("{:#}", Held::open(&web, &there, false).unwrap_err());
    assert!(busy.contains("by another process"), "{busy}");
    drop(held);
    let (mut held, resumed) = Held::open(&web, &there, false).unwrap();
    assert!(resumed && held.is_done(Phase::Look) && held.is_done(Phase::Kexec));
    held.undo(&[Phase::Kexec]).unwrap();
    let file = held.dir.join("journal.json");
    assert_eq!(fs::metadata(&held.dir).unwrap().permissions().mode() & 0o777, 0o700);
    drop(held);
    let error = format!("{:#}", Held::open(&web, &destination("root@other"), false).unwrap_err());
    assert!(error.contains("root@box") && error.contains("--start-over"), "{error}");
    fs::write(&file, "{}").unwrap();
    let error = format!("{:#}", Held::open(&web, &there, false).unwrap_err());
    assert!(error.contains("journal.json") && error.contains("--start-over"), "{error}");
    let (held, resumed) = Held::open(&web, &there, true).unwrap();
    assert!(!resumed && !held.is_done(Phase::Look));
    let dir = held.dir.clone();
    held.forget().unwrap();
    assert!(!dir.exists());
}
