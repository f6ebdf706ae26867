//! A laboratory: a fleet, a hub behind a real sshd, and hosts that are folders, in a mount namespace of its own.
//!
//! The namespace has the hosts as system users and a Nix store that is not the machine's, so nothing of a test is seen
//! outside of it, and nothing is left when its one process ends. What it needs (root, sshd, Nix) is looked for first; a
//! test that can't run says so.

// each file of tests uses a part of it
#![allow(dead_code, unreachable_pub, missing_docs, clippy::unwrap_used)]

use std::fs;
use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use bento::evaluation::Evaluation;
use bento::host::Host;
use bento::manifest::ReleaseMode;
use bento::package::Package;
use bento::publish::Candidate;
use bento::source::SourceTree;
use bento::store_path::StorePath;
use serde_json::Value;
use tempfile::TempDir;

/// The names that hosts of a laboratory can have.
pub const HOSTS: [&str; 6] = ["web", "web2", "db", "router", "a_failure_b", "rollback"];
/// The user id of the first of them.
const FIRST_UID: u32 = 61000;
/// The folder with the tests' own Nix code.
const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tiny");
/// The NixOS module of a hub.
const HUB_MODULE: &str = include_str!("../../../../modules/hub.nix");
/// The program.
const BENTO: &str = env!("CARGO_BIN_EXE_bento");

/// A port on which a server can be started later: of those that the system gives to no connection by itself.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    const PORTS: u16 = 10_000;
    // other processes of tests begin elsewhere
    let first = u16::try_from(std::process::id() % u32::from(PORTS)).unwrap();
    let ports = std::iter::repeat_with(|| 20_000 + (first + NEXT.fetch_add(1, Ordering::Relaxed) % PORTS) % PORTS);
    ports.take(PORTS.into()).find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()).unwrap()
}

/// Runs in the namespace until its standard input ends, that is, until the test process is gone.
const HOLD: &str = r#"
set -e
mount --make-rprivate /
mount --bind "$LAB/passwd" /etc/passwd
mount --bind "$LAB/group" /etc/group
mount --bind "$LAB/shadow" /etc/shadow
mount -t tmpfs -o mode=755 lab /run
mkdir /run/sshd /run/chroot
mount --bind "$LAB/chroot" /run/chroot
mount --bind "$STORE" /nix
echo ready
read end || true
"#;

/// What one run of the program came to.
#[derive(Debug)]
pub struct Ran {
    pub ok: bool,
    /// `None` if a signal ended it.
    pub status: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    /// What came of a command.
    pub fn new(output: Output) -> Self {
        Self {
            ok: output.status.success(),
            status: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// It must have ended with status 0.
    #[track_caller]
    pub fn succeeds(self) -> Self {
        assert!(self.ok, "failed:\n{}\n{}", self.stdout, self.stderr);
        self
    }

    /// It must have ended with another status, and said all of these; and it must not have panicked.
    #[track_caller]
    pub fn fails_with(self, words: &[&str]) -> Self {
        assert!(!self.ok, "succeeded:\n{}\n{}", self.stdout, self.stderr);
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
        for word in words {
            assert!(self.stderr.contains(word), "says nothing of {word:?}:\n{}", self.stderr);
        }
        self
    }
}

pub struct Lab {
    pub dir: TempDir,
    holder: Child,
    sshd: Option<Child>,
    pub port: u16,
}

/// Whether laboratories can be set up here; if not, the reason is printed and the test ends as skipped. Where
/// `BENTO_REQUIRE_LAB` is set, it fails instead: so that nobody takes skipped tests for passed ones.
pub fn available() -> bool {
    let missing = |program: &str| {
        !Command::new("sh").args(["-c", &format!("command -v {program} >/dev/null")]).status().unwrap().success()
    };
    let root = fs::metadata("/proc/self").is_ok_and(|m| std::os::unix::fs::MetadataExt::uid(&m) == 0);
    let reason = if !root {
        Some("not root".to_owned())
    } else if let Some(program) =
        ["/usr/sbin/sshd", "ssh-keygen", "nix", "nix-build", "unshare", "nsenter"].into_iter().find(|p| missing(p))
    {
        Some(format!("{program} is missing"))
    } else if !Command::new("unshare").args(["--mount", "true"]).status().unwrap().success() {
        Some("mount namespaces are not allowed".to_owned())
    } else {
        None
    };
    if let Some(reason) = &reason {
        assert!(std::env::var_os("BENTO_REQUIRE_LAB").is_none(), "no laboratory here: {reason}");
        eprintln!("skipped: {reason}");
    }
    reason.is_none()
}

impl Lab {
    /// A laboratory with a running hub; `None` if there can't be one here.
    pub fn new() -> Option<Self> {
        if !available() {
            return None;
        }
        let dir = tempfile::Builder::new().prefix("bento-lab-").tempdir().unwrap();
        let at = dir.path();
        for sub in ["chroot", "fleet", "fleet/hosts", "keys", "home", "tmp"] {
            fs::create_dir(at.join(sub)).unwrap();
        }
        fs::set_permissions(at, fs::Permissions::from_mode(0o755)).unwrap();
        fs::set_permissions(at.join("chroot"), fs::Permissions::from_mode(0o755)).unwrap();
        for file in ["passwd", "group", "shadow"] {
            let mut text = fs::read_to_string(format!("/etc/{file}")).unwrap();
            for (uid, host) in (FIRST_UID..).zip(HOSTS) {
                text += &match file {
                    "passwd" => format!("{host}:x:{uid}:{uid}::/:/usr/sbin/nologin\n"),
                    "group" => format!("{host}:x:{uid}:\n"),
                    _ => format!("{host}:*:19000:0:99999:7:::\n"),
                };
            }
            fs::write(at.join(file), text).unwrap();
        }
        fs::set_permissions(at.join("shadow"), fs::Permissions::from_mode(0o600)).unwrap();
        for key in
            HOSTS.iter().map(|host| format!("keys/{host}")).chain(["hub".into(), "other".into(), "keys/admin".into()])
        {
            keygen(&at.join(key));
        }
        let settings =
            format!("CHROOT_DIR={at}/chroot\nSIGNING_KEY={at}/keys/admin\nNOLOCALBUILD=1\n", at = at.display());
        fs::write(at.join("fleet/config.sh"), settings).unwrap();
        // one store for all tests: what one of them built need not be built again
        let store = Path::new(env!("CARGO_TARGET_TMPDIR")).join("nix");
        fs::create_dir_all(&store).unwrap();
        fs::create_dir_all("/nix").unwrap();
        let mut holder = Command::new("unshare")
            .args(["--mount", "sh", "-c", HOLD])
            .env("LAB", at)
            .env("STORE", &store)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut ready = [0; 6];
        holder.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
        let port = free_port();
        let mut lab = Self { dir, holder, sshd: None, port };
        lab.start_hub("hub");
        for host in HOSTS {
            lab.configure_agent(host, "");
        }
        Some(lab)
    }

    /// A path in the laboratory.
    pub fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    /// Copies the program to `bento`, as it may lie where others can't go. Another process does it: a file that this one has open to
    /// write can't be started as long as what a test beside this one started has it open, too.
    pub fn copy_program(&self) {
        assert!(Command::new("cp").arg(BENTO).arg(self.path("bento")).status().unwrap().success());
    }

    /// A command in the namespace.
    fn inside(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--mount=/proc/{}/ns/mnt", self.holder.id())).arg(program);
        command
    }

    /// Starts sshd with one of the two host keys.
    pub fn start_hub(&mut self, key: &str) {
        let config = format!(
            "ListenAddress 127.0.0.1:{}\nHostKey {}\nPidFile {}\nUsePAM no\nPasswordAuthentication no\n\
             KbdInteractiveAuthentication no\nStrictModes no\nMaxStartups 100\nSubsystem sftp internal-sftp\n{}",
            self.port,
            self.path(key).display(),
            self.path("sshd.pid").display(),
            self.rules(),
        );
        fs::write(self.path("sshd_config"), config).unwrap();
        let pid = self.path("sshd.pid");
        let _ = fs::remove_file(&pid);
        let log = fs::OpenOptions::new().create(true).append(true).open(self.path("sshd.log")).unwrap();
        let sshd = self
            .inside("/usr/sbin/sshd")
            .args(["-D", "-e", "-f"])
            .arg(self.path("sshd_config"))
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.sshd = Some(sshd);
        let start = Instant::now();
        // it writes its process id after it began to listen
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() || !pid.exists() {
            assert!(start.elapsed() < Duration::from_secs(20), "{}", self.read("sshd.log"));
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The rules that `modules/hub.nix` gives to sshd, for this laboratory's directories.
    fn rules(&self) -> String {
        let (_, rules) = HUB_MODULE.split_once("Match Group ${cfg.group}\n").unwrap();
        let (rules, _) = rules.split_once("Match all\n").unwrap();
        let keys = format!("{}/%u.pub", self.path("keys").display());
        let rules = rules.replace("${cfg.chrootDir}", "/run/chroot").replace("/etc/ssh/authorized_keys.d/%u", &keys);
        assert!(
            rules.contains("ChrootDirectory /run/chroot/%u\n") && rules.contains(&keys) && !rules.contains('$'),
            "{rules}"
        );
        format!("Match all\n{rules}")
    }

    /// Stops sshd and serves the hosts with bento's own hub instead, under the same key and on the same port.
    pub fn serve_hub(&mut self, more: &[&str]) {
        self.stop_hub();
        let (listen, key, keys) = (format!("127.0.0.1:{}", self.port), self.path("hub"), self.path("keys"));
        let arguments = [
            "hub",
            "serve",
            "--listen",
            &listen,
            "--host-key",
            key.to_str().unwrap(),
            "--keys",
            keys.to_str().unwrap(),
        ];
        let log = fs::OpenOptions::new().create(true).append(true).open(self.path("sshd.log")).unwrap();
        // with fewer files than systemd gives it to begin with
        let mut command = self.prepared("/usr/sbin:/usr/bin:/sbin:/bin");
        command.args(["sh", "-c", "ulimit -Sn 256; exec \"$0\" \"$@\"", BENTO]).args(arguments).args(more);
        let mut hub = command.stdout(Stdio::piped()).stderr(log).spawn().unwrap();
        let mut ready = [0; 9];
        hub.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap_or_else(|_| panic!("{}", self.read("sshd.log")));
        assert_eq!(&ready, b"listening");
        self.sshd = Some(hub);
    }

    /// Stops the hub.
    pub fn stop_hub(&mut self) {
        if let Some(mut sshd) = self.sshd.take() {
            let _ = sshd.kill();
            sshd.wait().unwrap();
        }
    }

    /// Writes a file in the laboratory, and the directories that it is in.
    pub fn write(&self, path: &str, text: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// Reads a file in the laboratory.
    #[track_caller]
    pub fn read(&self, path: &str) -> String {
        fs::read_to_string(self.path(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
    }

    /// Writes a host without a flake; `system` are the attributes of its tiny system but for the name.
    pub fn non_flake(&self, name: &str, system: &str) {
        self.write(&format!("fleet/hosts/{name}/configuration.nix"), &format!("{{ name = \"{name}\"; {system} }}\n"));
    }

    /// Writes a flake with hosts, each with the attributes of its tiny system but for the name.
    pub fn flake(&self, dir: &str, hosts: &[(&str, &str)]) {
        let mut text = String::from("{ outputs = { self }: { nixosConfigurations = {\n");
        for (name, system) in hosts {
            text += &format!(
                "{name}.config.system.build.toplevel = import ./system.nix {{ name = \"{name}\"; {system} }};\n"
            );
        }
        text += "}; }; }\n";
        self.write(&format!("{dir}/flake.nix"), &text);
        fs::copy(format!("{TINY}/system.nix"), self.path(dir).join("system.nix")).unwrap();
    }

    /// A flake below `hosts/` with one host of the directory's name.
    pub fn flake_host(&self, name: &str, system: &str) {
        self.flake(&format!("fleet/hosts/{name}"), &[(name, system)]);
    }

    /// Writes the configuration of a host's agent; `more` are lines after the table `[system]`.
    pub fn configure_agent(&self, host: &str, more: &str) {
        let key = fs::read_to_string(self.path("hub.pub")).unwrap();
        let signer = fs::read_to_string(self.path("keys/admin.pub")).unwrap();
        self.write(
            &format!("hosts/{host}/agent.toml"),
            &format!(
                "host = \"{host}\"\nstate-dir = \"{root}/state\"\nsigners = [\"{signer}\"]\n[hub]\naddress = \"127.0.0.1\"\nport = {port}\n\
                 user = \"{host}\"\nhost-keys = [\"{key}\"]\nidentity = \"{keys}/{host}\"\ntimeout = 10\n\
                 [nix]\nsearch-path = [\"nixpkgs={TINY}\"]\n[confirm]\ntries = 3\npause = 1\n\
                 [system]\nroot = \"{root}\"\nenvironment = {{ TINY_ROOT = \"{root}\" }}\n{more}\n",
                root = self.path(&format!("hosts/{host}")).display(),
                port = self.port,
                key = key.trim(),
                signer = signer.trim(),
                keys = self.path("keys").display(),
            ),
        );
    }

    /// The program with these arguments, in the namespace.
    pub fn command(&self, arguments: &[&str]) -> Command {
        self.command_with_path("/usr/sbin:/usr/bin:/sbin:/bin", arguments)
    }

    /// As [`Lab::command`], for a machine that has no programs but those in `path`.
    pub fn command_with_path(&self, path: &str, arguments: &[&str]) -> Command {
        let mut command = self.prepared(path);
        command.arg(BENTO).args(arguments);
        command
    }

    /// Runs a script in the namespace, with the environment that the program has.
    pub fn shell(&self, script: &str) -> Ran {
        let mut command = self.prepared("/usr/sbin:/usr/bin:/sbin:/bin");
        Ran::new(command.args(["sh", "-c", script]).output().unwrap())
    }

    /// Starts a script in the namespace, with the environment that the program has, and does not wait for it.
    pub fn start(&self, script: &str) -> Child {
        self.prepared("/usr/sbin:/usr/bin:/sbin:/bin").args(["sh", "-c", script]).spawn().unwrap()
    }

    /// A command in the namespace that lacks only its own words.
    fn prepared(&self, path: &str) -> Command {
        let mut command = self.inside("env");
        command
            .arg(format!("PATH={path}"))
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", self.path("home"))
            .env("TMPDIR", self.path("tmp"))
            .env("BENTO_DIR", self.path("fleet"))
            .env("NIX_PATH", format!("nixpkgs={TINY}"))
            .env("NIX_CONFIG", "substituters =\nbuild-users-group =\nsandbox = false\nflake-registry =\n")
            .env("NIX_REMOTE", "local")
            .stdin(Stdio::null());
        command
    }

    /// Runs the program.
    pub fn bento(&self, arguments: &[&str]) -> Ran {
        Ran::new(self.command(arguments).output().unwrap())
    }

    /// Runs a host's agent once.
    pub fn agent(&self, host: &str) -> Ran {
        let config = self.path(&format!("hosts/{host}/agent.toml"));
        self.bento(&["agent", "run", "--now", "--config", config.to_str().unwrap()])
    }

    /// Runs a host's agent and kills it while it tries out a system that makes the file `testing` then.
    pub fn agent_killed_while_testing(&self, host: &str) {
        let config = self.path(&format!("hosts/{host}/agent.toml"));
        let mut command = self.command(&["agent", "run", "--config", config.to_str().unwrap()]);
        let mut agent = command.stderr(Stdio::null()).spawn().unwrap();
        let start = Instant::now();
        while !self.path(&format!("hosts/{host}/testing")).exists() {
            assert!(start.elapsed() < Duration::from_secs(60));
            std::thread::sleep(Duration::from_millis(50));
        }
        agent.kill().unwrap();
        agent.wait().unwrap();
    }

    /// What `bento status --json` says of a host.
    #[track_caller]
    pub fn status(&self, host: &str) -> Value {
        let all: Value = serde_json::from_str(&self.bento(&["status", "--json"]).succeeds().stdout).unwrap();
        let found = all.as_array().unwrap().iter().find(|status| status["machine"] == host);
        found.unwrap_or_else(|| panic!("no status of {host}: {all}")).clone()
    }

    /// A host's state.
    #[track_caller]
    pub fn state(&self, host: &str) -> String {
        self.status(host)["state"].as_str().unwrap().to_owned()
    }

    /// A host's manifest on the hub.
    #[track_caller]
    pub fn manifest(&self, host: &str) -> Value {
        serde_json::from_str(&self.read(&format!("chroot/{host}/manifest.json"))).unwrap()
    }

    /// Signs a host's manifest, as it is on the hub, with the real `ssh-keygen`.
    pub fn sign(&self, host: &str, key: &str, namespace: &str) {
        let manifest = self.path(&format!("chroot/{host}/manifest.json"));
        let output = Command::new("ssh-keygen")
            .args(["-q", "-Y", "sign", "-n", namespace, "-f"])
            .arg(self.path(key))
            .stdin(fs::File::open(&manifest).unwrap())
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let serial = self.manifest(host)["serial"].as_u64().unwrap();
        fs::write(self.path(&format!("chroot/{host}/releases/{serial}.sig")), output.stdout).unwrap();
    }

    /// Changes a host's manifest on the hub, and signs it as the administrator: what he says may be wrong too.
    pub fn republish(&self, host: &str, change: impl FnOnce(&mut Value)) {
        self.tamper(host, change);
        self.sign(host, "keys/admin", "bento-release");
    }

    /// Changes a host's manifest on the hub, as nobody should.
    pub fn tamper(&self, host: &str, change: impl FnOnce(&mut Value)) {
        let mut manifest = self.manifest(host);
        change(&mut manifest);
        self.write(&format!("chroot/{host}/manifest.json"), &manifest.to_string());
    }

    /// The names in a directory, sorted.
    pub fn names(&self, dir: &str) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.path(dir)) else { return Vec::new() };
        let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// The reports that a host delivered, in order.
    pub fn reports(&self, host: &str) -> Vec<Value> {
        let names = self.names(&format!("chroot/{host}/logs"));
        let reports = names.iter().filter(|name| name.starts_with("report-") && name.ends_with(".json"));
        reports.map(|name| serde_json::from_str(&self.read(&format!("chroot/{host}/logs/{name}"))).unwrap()).collect()
    }

    /// The text of the log that a report names.
    pub fn log(&self, host: &str, report: &Value) -> String {
        let file = self.path(&format!("chroot/{host}/logs/{}", report["log"].as_str().unwrap()));
        let mut text = String::new();
        flate2::read::GzDecoder::new(fs::File::open(file).unwrap()).read_to_string(&mut text).unwrap();
        text
    }

    /// The system that a host runs.
    pub fn running(&self, host: &str) -> Option<String> {
        let link = fs::read_link(self.path(&format!("hosts/{host}/run/current-system"))).ok()?;
        Some(link.to_str().unwrap().to_owned())
    }

    /// The system that a host's profile names.
    pub fn profile(&self, host: &str) -> String {
        let link = self.path(&format!("hosts/{host}/nix/var/nix/profiles/system"));
        let output = self.inside("readlink").arg("-f").arg(link).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// Every call of a host's `switch-to-configuration`: the action and the system.
    pub fn activations(&self, host: &str) -> Vec<String> {
        let text = fs::read_to_string(self.path(&format!("hosts/{host}/activations"))).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.stop_hub();
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// Makes a key pair without a passphrase.
fn keygen(file: &Path) {
    let made = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(file).status().unwrap();
    assert!(made.success());
}

/// Sorts out everything about a file that a reader could notice: content, modification time, mode, owner.
pub fn fingerprint(dir: &Path) -> Vec<String> {
    use std::os::unix::fs::MetadataExt;
    let mut lines = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            let m = fs::symlink_metadata(&path).unwrap();
            lines.push(format!(
                "{} {} {} {} {} {}",
                path.display(),
                m.ino(),
                m.mode(),
                m.uid(),
                m.mtime_nsec(),
                m.mtime()
            ));
            if m.is_dir() {
                dirs.push(path);
            }
        }
    }
    lines.sort();
    lines
}

/// A candidate for a host's release that is its files and nothing else; `version` tells systems apart.
pub fn candidate<'a>(host: &'a Host, tree: &'a SourceTree, version: char) -> Candidate<'a> {
    let path =
        |end: &str| StorePath::new(format!("/nix/store/{}-system{end}", version.to_string().repeat(32))).unwrap();
    Candidate {
        host,
        package: Package::of(&tree.path()).unwrap(),
        tree,
        secrets: Vec::new(),
        evaluation: Evaluation { drv_path: path(".drv"), toplevel: path("") },
        search_path: Vec::new(),
        mode: ReleaseMode::Source,
        substituters: Vec::new(),
        trusted_public_keys: Vec::new(),
        expires: None,
    }
}
