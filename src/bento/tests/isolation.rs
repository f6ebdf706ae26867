//! What a host's key can do on the hub, tried with a real `sftp`.

// a test may unwrap: that is how it fails
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use bento::ssh::{HostKey, HubAddress};
use common::{Lab, free_port};

/// Runs one command of `sftp` as a host. Gives whether it worked, and what was said.
fn sftp(lab: &Lab, host: &str, command: &str) -> (bool, String) {
    sftp_as(lab, host, host, command)
}

/// The same, with a key that may be another host's.
fn sftp_as(lab: &Lab, host: &str, key: &str, command: &str) -> (bool, String) {
    sftp_from(lab, "127.0.0.1", host, key, command)
}

/// The same, from another address of this machine.
fn sftp_from(lab: &Lab, address: &str, host: &str, key: &str, command: &str) -> (bool, String) {
    let batch = lab.path("batch");
    fs::write(&batch, format!("{command}\n")).unwrap();
    let output = Command::new("sftp")
        .args([
            // what the hub says when it hangs up is an error
            "-o",
            "LogLevel=ERROR",
            "-o",
            "StrictHostKeyChecking=no",
            "-o",
            "UserKnownHostsFile=/dev/null",
            "-o",
            "IdentitiesOnly=yes",
            "-o",
            "BatchMode=yes",
            "-o",
            &format!("BindAddress={address}"),
        ])
        .arg("-i")
        .arg(lab.path(&format!("keys/{key}")))
        .args(["-P", &lab.port.to_string(), "-b"])
        .arg(&batch)
        .arg(format!("{host}@127.0.0.1"))
        .current_dir(lab.path("home"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.success(), said)
}

/// The two hubs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    OpenSsh,
    Embedded,
}

/// A laboratory with a release for `web` and one for `db`, behind one of the hubs.
fn lab(kind: Kind) -> Option<Lab> {
    let mut lab = Lab::new()?;
    lab.flake_host("web", "");
    lab.flake_host("db", "text = \"of db\";");
    lab.bento(&["deploy"]).succeeds();
    if kind == Kind::Embedded {
        lab.serve_hub(&["--quota", "1"]);
    }
    Some(lab)
}

/// Everything that a host has no right to.
fn reads_its_own_release_and_nothing_else(kind: Kind) {
    let Some(lab) = lab(kind) else { return };
    for file in ["manifest.json", "manifest.json.sig", "config/flake.nix", "releases/1/flake.nix", "last_change_date"] {
        let (worked, said) = sftp(&lab, "web", &format!("get {file} got"));
        assert!(worked, "{kind:?} {file}: {said}");
    }
    let (worked, said) = sftp(&lab, "web", "ls -l");
    assert!(worked && said.contains("manifest.json") && said.contains("releases"), "{kind:?}: {said}");
    lab.write("home/mine", "mine");
    lab.write("home/directory/file", "mine");
    // the way out that a link of the host's own offers ends in its own directory too
    let links =
        [("../../db/manifest.json", "link"), ("/etc/passwd", "passwd"), ("/proc/self/root", "proc"), ("..", "up")];
    for (target, name) in links {
        // nobody makes links here, but they may be there from a time with other rules
        assert!(!sftp(&lab, "web", &format!("symlink {target} logs/{name}")).0, "{kind:?} {target}");
        std::os::unix::fs::symlink(target, lab.path(&format!("chroot/web/logs/{name}"))).unwrap();
    }
    let commands = [
        "get ../db/manifest.json got",
        "get ../../chroot/db/manifest.json got",
        "get logs/../../db/manifest.json got",
        "get /db/manifest.json got",
        "get /etc/passwd got",
        "get logs/link got",
        "get logs/passwd got",
        "get logs/proc/etc/passwd got",
        "get logs/up/../db/manifest.json got",
        "get ../.fleet.json got",
        "ls ../db",
        "ls /etc",
        "cd ../db",
        "put mine manifest.json",
        "put mine mine",
        "put mine config/flake.nix",
        "put mine releases/1/mine",
        "put mine releases/1/flake.nix",
        "put mine last_change_date",
        "put mine logs/link",
        "put mine logs/../mine",
        "put mine ../db/logs/mine",
        "put mine logs/up/mine",
        "reput mine releases/1/flake.nix",
        "rm manifest.json",
        "rm config",
        "rm releases/1.sig",
        "rm ../db/logs/x",
        "rename manifest.json logs/manifest.json",
        "rename logs other",
        "rename releases/1 logs/1",
        "rename logs/passwd manifest.json",
        "rmdir logs",
        "rmdir releases",
        "mkdir releases/2",
        "mkdir ../x",
        "chmod 777 manifest.json",
        "chmod 777 .",
        "chown 0 config/flake.nix",
        "symlink logs config2",
        "ln manifest.json hard",
        "ln manifest.json logs/hard",
        "symlink ../manifest.json logs/own",
        "mkdir logs/deeper",
        "put -r directory logs",
    ];
    let before = common::fingerprint(&lab.path("chroot"));
    for command in commands {
        let (worked, said) = sftp(&lab, "web", command);
        assert!(!worked, "{kind:?} {command}: {said}");
    }
    assert_eq!(common::fingerprint(&lab.path("chroot")), before, "{kind:?}");
    // what it has a right to
    for command in ["put mine logs/mine", "rename logs/mine logs/other", "get logs/other got", "rm logs/other"] {
        let (worked, said) = sftp(&lab, "web", command);
        assert!(worked, "{kind:?} {command}: {said}");
    }
    // one key is not another's, and none is nobody's
    let (worked, _) = sftp_as(&lab, "web", "db", "get manifest.json got");
    assert!(!worked, "{kind:?}");
    let (worked, _) = sftp_as(&lab, "root", "web", "ls");
    assert!(!worked, "{kind:?}");
}

#[test]
fn behind_openssh_a_host_reads_its_own_release_and_nothing_else() {
    reads_its_own_release_and_nothing_else(Kind::OpenSsh);
}

#[test]
fn behind_the_embedded_hub_a_host_reads_its_own_release_and_nothing_else() {
    reads_its_own_release_and_nothing_else(Kind::Embedded);
}

#[test]
fn the_embedded_hub_renames_with_care_where_the_file_system_cannot() {
    let Some(mut lab) = Lab::new() else { return };
    // a file system in user space that knows no renaming with flags
    let chroot = lab.path("chroot");
    if !lab.shell(&format!("bindfs {0} {0}", chroot.display())).ok {
        println!("skipped: there is no bindfs, or this machine allows no file systems in user space");
        return;
    }
    lab.flake_host("web", "");
    lab.bento(&["deploy"]).succeeds();
    lab.serve_hub(&[]);
    lab.agent("web").succeeds();
    assert_eq!(lab.state("web"), "up-to-date");
    for (from, content) in [("one", "1"), ("two", "2")] {
        fs::write(lab.path(&format!("home/{from}")), content).unwrap();
    }
    for (command, works) in [
        ("put one logs/part", true),
        ("rename logs/part logs/whole", true),
        ("put two logs/part", true),
        ("rename logs/part logs/whole", false),
        ("rm logs/part", true),
    ] {
        let (worked, said) = sftp(&lab, "web", command);
        assert_eq!(worked, works, "{command}: {said}");
    }
    assert_eq!(lab.read("chroot/web/logs/whole"), "1");
    lab.stop_hub();
    lab.shell(&format!("umount {}", chroot.display())).succeeds();
}

/// A host has files, and no shell, no command and no tunnel.
fn gets_no_shell_and_no_tunnel(kind: Kind) {
    let Some(lab) = lab(kind) else { return };
    let ssh = |arguments: &[&str]| {
        Command::new("timeout")
            .args(["20", "ssh", "-q", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"])
            .args(["-o", "ExitOnForwardFailure=yes", "-o", "BatchMode=yes", "-i"])
            .arg(lab.path("keys/web"))
            .args(["-p", &lab.port.to_string(), "web@127.0.0.1"])
            .args(arguments)
            .stdin(std::process::Stdio::null())
            .output()
            .unwrap()
    };
    for arguments in [&["echo", "a shell"][..], &["-tt"], &["-s", "netconf"], &["-X", "echo", "a shell"]] {
        let output = ssh(arguments);
        assert!(!output.status.success() && output.status.code() != Some(124), "{kind:?} {arguments:?}: {output:?}");
        assert!(!String::from_utf8_lossy(&output.stdout).contains("a shell"), "{kind:?}");
    }
    let port = lab.port.to_string();
    let tunnel = ssh(&["-W", &format!("127.0.0.1:{port}")]);
    assert!(!tunnel.status.success() && !String::from_utf8_lossy(&tunnel.stdout).contains("SSH-"), "{kind:?}");
    let free = free_port();
    let reverse = ssh(&["-N", "-R", &format!("{free}:127.0.0.1:{port}")]);
    assert!(!reverse.status.success() && reverse.status.code() != Some(124), "{kind:?} {reverse:?}");
}

#[test]
fn behind_openssh_a_host_gets_no_shell_and_no_tunnel() {
    gets_no_shell_and_no_tunnel(Kind::OpenSsh);
}

#[test]
fn behind_the_embedded_hub_a_host_gets_no_shell_and_no_tunnel() {
    gets_no_shell_and_no_tunnel(Kind::Embedded);
}

/// Puts a file system of a test's own where the hosts' directories are, with all that is in there; `None` if this machine
/// has none of that kind.
fn mounted(lab: &Lab, options: &str) -> Option<()> {
    let chroot = lab.path("chroot");
    let script = format!(
        "set -e; cp -a {0} {0}.copy; mount -t tmpfs -o mode=755,{options} hub {0}; cp -a {0}.copy/. {0}; \
         mount --bind {0} /run/chroot",
        chroot.display()
    );
    let ran = lab.shell(&script);
    if !ran.ok {
        println!(
            "skipped: no tmpfs with {options} here (checks/machines/quota brings a kernel): {}",
            ran.stderr.trim()
        );
    }
    ran.ok.then_some(())
}

/// What a file in a host's logs holds, as it is in the laboratory's own mounts.
fn size(lab: &Lab, host: &str, name: &str) -> u64 {
    let ran = lab.shell(&format!("stat -c %s /run/chroot/{host}/logs/{name} 2> /dev/null || echo 0"));
    ran.stdout.trim().parse().unwrap()
}

/// A host that fills the file system gets an error for it, and has broken nothing: others read on, and it makes room itself.
fn is_told_when_the_disk_is_full(kind: Kind) {
    let Some(mut lab) = Lab::new() else { return };
    lab.flake_host("web", "");
    lab.flake_host("db", "");
    lab.bento(&["deploy"]).succeeds();
    if mounted(&lab, "size=2m").is_none() {
        return;
    }
    if kind == Kind::Embedded {
        lab.serve_hub(&[]);
    }
    fs::write(lab.path("home/large"), vec![b'x'; 4 << 20]).unwrap();
    let (worked, said) = sftp(&lab, "web", "put large logs/large");
    assert!(!worked && said.contains("Failure"), "{kind:?}: {said}");
    for host in ["web", "db"] {
        assert!(sftp(&lab, host, "get manifest.json got").0, "{kind:?} {host}");
        let manifest = lab.shell(&format!("cat /run/chroot/{host}/manifest.json")).stdout;
        assert_eq!(lab.read("home/got"), manifest, "{kind:?} {host}");
    }
    fs::write(lab.path("home/small"), vec![b'x'; 256 << 10]).unwrap();
    assert!(!sftp(&lab, "db", "put small logs/small").0, "{kind:?}");
    assert!(sftp(&lab, "web", "rm logs/large").0, "{kind:?}");
    assert!(sftp(&lab, "db", "put small logs/small").0, "{kind:?}");
    assert_eq!(size(&lab, "db", "small"), 256 << 10, "{kind:?}");
}

#[test]
fn behind_openssh_a_host_is_told_when_the_disk_is_full() {
    is_told_when_the_disk_is_full(Kind::OpenSsh);
}

#[test]
fn behind_the_embedded_hub_a_host_is_told_when_the_disk_is_full() {
    is_told_when_the_disk_is_full(Kind::Embedded);
}

/// A host leaves so much and no more, and that concerns no other.
fn cannot_leave_more_than_its_quota(kind: Kind) {
    let Some(mut lab) = Lab::new() else { return };
    lab.flake_host("web", "");
    lab.flake_host("db", "");
    lab.bento(&["deploy"]).succeeds();
    // OpenSSH leaves it to the file system to count what a host's user owns, as the module has it
    let quota = if kind == Kind::OpenSsh { "size=64m,usrquota,usrquota_block_hardlimit=1m" } else { "size=64m" };
    if mounted(&lab, quota).is_none() {
        return;
    }
    if kind == Kind::Embedded {
        lab.serve_hub(&["--quota", "1"]);
    }
    fs::write(lab.path("home/large"), vec![b'x'; 700 << 10]).unwrap();
    assert!(sftp(&lab, "web", "put large logs/one").0, "{kind:?}");
    let (worked, said) = sftp(&lab, "web", "put large logs/two");
    assert!(!worked && said.contains("Failure"), "{kind:?}: {said}");
    // nor by going on with a file that is there
    fs::write(lab.path("home/larger"), vec![b'x'; 1400 << 10]).unwrap();
    let (worked, said) = sftp(&lab, "web", "reput larger logs/one");
    assert!(!worked, "{kind:?}: {said}");
    // what was written of it stays below the limit, and others are not concerned
    assert!(size(&lab, "web", "one") + size(&lab, "web", "two") <= 1 << 20, "{kind:?}");
    assert!(sftp(&lab, "db", "put large logs/one").0, "{kind:?}");
    // it makes room by itself
    assert!(sftp(&lab, "web", "rm logs/one").0, "{kind:?}");
    assert!(sftp(&lab, "web", "put large logs/two").0, "{kind:?}");
    assert_eq!(size(&lab, "web", "two"), 700 << 10, "{kind:?}");
}

#[test]
fn behind_openssh_a_host_cannot_leave_more_than_its_quota() {
    cannot_leave_more_than_its_quota(Kind::OpenSsh);
}

#[test]
fn behind_the_embedded_hub_a_host_cannot_leave_more_than_its_quota() {
    cannot_leave_more_than_its_quota(Kind::Embedded);
}

#[test]
fn behind_the_embedded_hub_files_that_are_open_at_a_time_count_together() {
    let Some(lab) = lab(Kind::Embedded) else { return };
    let sessions: Vec<ssh2::Sftp> = (0..2)
        .map(|_| {
            let mut session = ssh2::Session::new().unwrap();
            session.set_tcp_stream(TcpStream::connect(("127.0.0.1", lab.port)).unwrap());
            session.handshake().unwrap();
            session.userauth_pubkey_file("web", None, &lab.path("keys/web"), None).unwrap();
            session.sftp().unwrap()
        })
        .collect();
    let part = vec![b'x'; 300 << 10];
    let create = |number: usize| sessions[number % 2].create(Path::new(&format!("logs/{number}"))).unwrap();
    let mut files: Vec<ssh2::File> = (0..6).map(create).collect();
    let written = files.iter_mut().filter_map(|file| file.write_all(&part).ok()).count();
    assert_eq!(written, 3);
    assert!((0..6).map(|number| size(&lab, "web", &number.to_string())).sum::<u64>() <= 1 << 20);
    // a name that is gone makes no room while the file is open, and does when it is closed
    (0..6).for_each(|number| sessions[0].unlink(Path::new(&format!("logs/{number}"))).unwrap());
    assert!(create(6).write_all(&part).is_err());
    drop(files);
    create(7).write_all(&part).unwrap();
    assert_eq!(size(&lab, "web", "7"), 300 << 10);
}

#[test]
fn the_embedded_hub_serves_the_agents() {
    let Some(mut lab) = Lab::new() else { return };
    lab.flake_host("web", "text = \"one\";");
    lab.bento(&["deploy"]).succeeds();
    lab.serve_hub(&[]);
    for text in ["one", "two"] {
        lab.flake_host("web", &format!("text = \"{text}\";"));
        lab.bento(&["deploy"]).succeeds();
        lab.agent("web").succeeds();
        assert_eq!(lab.state("web"), "up-to-date");
    }
    lab.flake_host("web", "build = \"false\";");
    lab.bento(&["deploy"]).succeeds();
    lab.agent("web").fails_with(&["the build failed"]);
    assert_eq!((lab.state("web").as_str(), lab.reports("web").len()), ("failing", 3));
    // a host without keys can't log in, and one whose key is in the settings can, at once
    fs::rename(lab.path("keys/web.pub"), lab.path("web.pub")).unwrap();
    lab.agent("web").fails_with(&["cannot log in"]);
    let key = lab.read("web.pub");
    fs::remove_file(lab.path("fleet/config.sh")).unwrap();
    let settings =
        format!("[hub]\ndirectory = \"{}\"\n[hosts.web]\nkeys = [\"{}\"]\n", lab.path("chroot").display(), key.trim());
    lab.write("fleet/bento.toml", &settings);
    lab.agent("web").fails_with(&["release 3 failed here before"]);
}

#[test]
fn the_embedded_hub_needs_no_root_and_makes_its_own_key() {
    let Some(lab) = Lab::new() else { return };
    lab.flake_host("web", "");
    let hub = lab.path("nobody");
    fs::create_dir(&hub).unwrap();
    std::os::unix::fs::chown(&hub, Some(65534), Some(65534)).unwrap();
    let key = lab.read("keys/web.pub");
    fs::remove_file(lab.path("fleet/config.sh")).unwrap();
    lab.write(
        "fleet/bento.toml",
        &format!("[hub]\ndirectory = \"{}\"\n[hosts.web]\nkeys = [\"{}\"]\n", hub.display(), key.trim()),
    );
    lab.copy_program();
    let nobody = |arguments: &[&str]| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(lab.path("bento")).args(arguments);
        command.env("BENTO_DIR", lab.path("fleet")).env("HOME", &hub).env_remove("NIX_PATH");
        command
    };
    let deployed = nobody(&["deploy", "--no-build"]).output().unwrap();
    assert!(deployed.status.success(), "{}", String::from_utf8_lossy(&deployed.stderr));
    let mut server = nobody(&["hub", "serve", "--listen", "127.0.0.1:0"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut said = String::new();
    let mut out = std::io::BufReader::new(server.stdout.take().unwrap());
    for _ in 0..2 {
        std::io::BufRead::read_line(&mut out, &mut said).unwrap();
    }
    let port: u16 = said.lines().next().unwrap().rsplit(':').next().unwrap().parse().unwrap();
    let line = said.lines().last().unwrap().split_once("pin this key: ").unwrap().1;
    let address = HubAddress {
        address: "127.0.0.1".to_owned(),
        port,
        user: "web".to_owned(),
        host_keys: vec![HostKey::try_from(line.to_owned()).unwrap()],
        identity: lab.path("keys/web"),
        timeout: 20,
    };
    let connection = address.connect().unwrap();
    assert!(connection.read("manifest.json", 1 << 20).unwrap().starts_with(b"{"));
    connection.replace("logs/x", b"one").unwrap();
    connection.replace("logs/x", b"two").unwrap();
    assert_eq!(fs::read(hub.join("web/logs/x")).unwrap(), b"two");
    server.kill().unwrap();
    server.wait().unwrap();
}

#[test]
fn nothing_is_served_where_hosts_cannot_be_kept_apart() {
    let Some(lab) = lab(Kind::OpenSsh) else { return };
    // as in a service of systemd's with RestrictSUIDSGID
    let ran = lab.shell(&format!(
        "timeout 60 strace -f -qq -o /dev/null -e trace=openat2 -e inject=openat2:error=ENOSYS {} hub serve --listen 127.0.0.1:0",
        env!("CARGO_BIN_EXE_bento")
    ));
    if ran.stderr.contains("strace: not found") {
        eprintln!("skipped: strace is missing");
        return;
    }
    assert!(ran.stdout.is_empty(), "{}", ran.stdout);
    ran.fails_with(&["can't keep hosts in their directories", "openat2", "RestrictSUIDSGID"]);
}

#[test]
fn the_embedded_hub_sends_those_away_who_do_not_log_in() {
    const GRACE: Duration = Duration::from_secs(2);
    let Some(mut lab) = Lab::new() else { return };
    lab.flake_host("web", "");
    lab.bento(&["deploy"]).succeeds();
    lab.serve_hub(&["--login-grace", "2"]);
    // how long the hub bears with somebody who says this, and then these one by one, and how that ends
    let bears = |first: &str, more: &str| {
        let start = Instant::now();
        let mut stream = TcpStream::connect(("127.0.0.1", lab.port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        stream.write_all(first.as_bytes()).unwrap();
        let mut more = more.bytes().cycle();
        let mut buffer = [0; 4096];
        while start.elapsed() < 10 * GRACE {
            match stream.read(&mut buffer) {
                Ok(0) => return (start.elapsed(), "closed".to_owned()),
                Ok(_) => {}
                // a read with a time limit is not begun again by itself (signal(7))
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if let Some(byte) = more.next()
                        && let Err(error) = stream.write_all(&[byte])
                    {
                        return (start.elapsed(), error.to_string());
                    }
                }
                Err(error) => return (start.elapsed(), error.to_string()),
            }
        }
        panic!("{first:?} is still there");
    };
    for (first, more) in [("", ""), ("SSH-2.0-", ""), ("SSH-2.0-", "x"), ("SSH-2.0-x\r\n", "")] {
        let (time, end) = bears(first, more);
        let in_time = time >= GRACE - Duration::from_millis(100) && time < 3 * GRACE;
        assert!(in_time, "{first:?} {more:?}: {end} after {time:?}\n{}", lab.read("sshd.log"));
    }
    // nonsense ends it sooner
    assert!(bears("SSH-2.0-x\r\n", "\0").0 < 3 * GRACE);
    assert!(lab.read("sshd.log").contains("it has not logged in in time"), "{}", lab.read("sshd.log"));
    // who has logged in may take longer
    let (worked, said) = sftp(&lab, "web", "get manifest.json one\n!sleep 3\nget manifest.json two");
    assert!(worked, "{said}");
    assert_eq!(lab.read("home/one"), lab.read("home/two"));
}

/// The hub as `web` has it in its settings.
fn address(lab: &Lab, timeout: u64) -> HubAddress {
    HubAddress {
        address: "127.0.0.1".to_owned(),
        port: lab.port,
        user: "web".to_owned(),
        host_keys: vec![HostKey::try_from(lab.read("hub.pub").trim().to_owned()).unwrap()],
        identity: lab.path("keys/web"),
        timeout,
    }
}

/// Connects to the hub, and says nothing.
fn silent(lab: &Lab) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", lab.port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream
}

const REFUSAL: &str = "too many connections from this address have not logged in";

#[test]
fn one_address_cannot_hold_the_places_of_all_others() {
    let Some(lab) = lab(Kind::Embedded) else { return };
    bento::serve::raise_limits().unwrap();
    let crowd: Vec<TcpStream> = (0..2000).map(|_| silent(&lab)).collect();
    // what the last one of them hears
    let mut said = String::new();
    crowd.last().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(said, format!("{REFUSAL}\r\n"));
    let (worked, said) = sftp(&lab, "web", "get manifest.json");
    assert!(!worked, "{said}");
    let start = Instant::now();
    let (worked, said) = sftp_from(&lab, "127.0.0.2", "web", "web", "get manifest.json");
    assert!(worked && start.elapsed() < Duration::from_secs(20), "{:?}: {said}", start.elapsed());
    let log = lab.read("sshd.log");
    assert_eq!(log.matches("127.0.0.1: 1000 connections have not logged in").count(), 1, "{log}");
    // when they have gone, the address is like any other
    drop(crowd);
    let deadline = Instant::now() + Duration::from_secs(20);
    while !lab.read("sshd.log").contains("127.0.0.1: 1001 connections were refused") {
        assert!(Instant::now() < deadline, "{}", lab.read("sshd.log"));
        std::thread::sleep(Duration::from_millis(100));
    }
    let (worked, said) = sftp(&lab, "web", "get manifest.json");
    assert!(worked, "{said}");
}

/// An agent that is refused tries again, and gets in when there is a place: when those who hold them are dropped.
fn gets_in_later<H>(address: &HubAddress, holders: H) {
    std::thread::scope(|scope| {
        let patient = scope.spawn(|| address.connect_patiently().map(|hub| hub.exists("manifest.json").unwrap()));
        std::thread::sleep(Duration::from_millis(300));
        drop(holders);
        assert!(patient.join().unwrap().unwrap());
    });
}

#[test]
fn who_has_logged_in_is_not_counted_and_who_is_refused_comes_back() {
    let Some(mut lab) = lab(Kind::Embedded) else { return };
    lab.serve_hub(&["--per-address", "2"]);
    let address = address(&lab, 20);
    let sessions: Vec<_> = (0..4).map(|_| address.connect().unwrap()).collect();
    let crowd = [silent(&lab), silent(&lab)];
    let mut said = String::new();
    silent(&lab).read_to_string(&mut said).unwrap();
    assert_eq!(said, format!("{REFUSAL}\r\n"));
    assert!(address.connect().is_err());
    // those who are in go on
    for session in &sessions {
        assert!(session.read("manifest.json", 1 << 20).unwrap().starts_with(b"{"));
    }
    gets_in_later(&address, crowd);
}

#[test]
fn a_host_that_has_logged_in_cannot_hold_the_places_of_all_others() {
    let Some(mut lab) = lab(Kind::Embedded) else { return };
    let address = address(&lab, 20);
    let sessions: Vec<_> = (0..16).map(|_| address.connect().unwrap()).collect();
    let refused = format!("{:#}", address.connect().err().unwrap());
    assert!(refused.contains("this host has too many connections there already"), "{refused}");
    let (worked, said) = sftp(&lab, "web", "get manifest.json");
    assert!(!worked && said.contains("this host has too many connections at the same time"), "{said}");
    // another host has places of its own, and those who are in go on
    let (worked, said) = sftp(&lab, "db", "get manifest.json");
    assert!(worked, "{said}");
    for session in &sessions {
        assert!(session.read("manifest.json", 1 << 20).unwrap().starts_with(b"{"));
    }
    gets_in_later(&address, sessions);
    let log = lab.read("sshd.log");
    assert_eq!(log.matches("web: 16 connections are logged in: no more of them for now").count(), 1, "{log}");
    lab.serve_hub(&["--per-host", "1"]);
    let address = self::address(&lab, 20);
    let only = address.connect().unwrap();
    assert!(address.connect().is_err() && only.exists("manifest.json").unwrap());
}

#[test]
fn a_connection_has_so_many_channels_and_no_more() {
    let Some(lab) = lab(Kind::Embedded) else { return };
    let mut session = ssh2::Session::new().unwrap();
    session.set_tcp_stream(TcpStream::connect(("127.0.0.1", lab.port)).unwrap());
    session.set_timeout(20_000);
    session.handshake().unwrap();
    session.userauth_pubkey_file("web", None, &lab.path("keys/web"), None).unwrap();
    let mut open: Vec<ssh2::Sftp> = (0..4).map(|_| session.sftp().unwrap()).collect();
    let refused = session.sftp().err().unwrap();
    assert_eq!(refused.code(), ssh2::ErrorCode::Session(-21), "{refused}");
    // those that it has go on, and where one is closed, there is a place again
    open[3].stat(Path::new("manifest.json")).unwrap();
    open[0].shutdown().unwrap();
    let again = session.sftp().unwrap();
    again.stat(Path::new("manifest.json")).unwrap();
    assert!(session.sftp().is_err());
}

#[test]
fn a_thousand_agents_poll_the_embedded_hub_at_once() {
    const AGENTS: usize = 1000;
    let Some(mut lab) = lab(Kind::Embedded) else { return };
    // they have one key between them
    lab.serve_hub(&["--per-host", "1000"]);
    let address = address(&lab, 300);
    let start = std::time::Instant::now();
    let failures: Vec<String> = std::thread::scope(|scope| {
        let polls: Vec<_> = (0..AGENTS)
            .map(|_| {
                let poll = || address.connect().and_then(|hub| hub.read("manifest.json", 1 << 20));
                std::thread::Builder::new().stack_size(256 << 10).spawn_scoped(scope, poll).unwrap()
            })
            .collect();
        polls.into_iter().filter_map(|poll| poll.join().unwrap().err()).map(|error| format!("{error:#}")).collect()
    });
    println!("{AGENTS} polls in {:?}", start.elapsed());
    assert!(failures.is_empty(), "{} failed, the first: {}", failures.len(), failures[0]);
}
