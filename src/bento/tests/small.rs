//! Small hosts: what the agent takes of the machine, measured by a control group.

// a test may unwrap: that is how it fails
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use common::Lab;

const MIB: u64 = 1 << 20;

/// A control group with a limit of memory; what is in it and goes beyond is killed.
struct Group {
    dir: PathBuf,
    peak: &'static str,
}

impl Group {
    /// `None`, with the reason, where there can't be one.
    fn new(name: &str, limit: u64) -> Option<Self> {
        let name = format!("bento-test-{name}-{}", std::process::id());
        for (root, file, peak) in [
            ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.max_usage_in_bytes"),
            ("/sys/fs/cgroup", "memory.max", "memory.peak"),
        ] {
            let dir = Path::new(root).join(&name);
            if fs::create_dir(&dir).is_err() {
                continue;
            }
            let group = Self { dir, peak };
            // no swap, where that can be said
            let _ = fs::write(group.dir.join("memory.swappiness"), "0");
            let _ = fs::write(group.dir.join("memory.swap.max"), "0");
            if fs::write(group.dir.join(file), limit.to_string()).is_ok() && group.dir.join(peak).exists() {
                return Some(group);
            }
        }
        eprintln!("skipped: no control group for memory can be made here");
        None
    }

    /// Runs a command in it, and everything that it starts.
    fn run(&self, command: &Command) -> Output {
        let mut inside = Command::new("sh");
        inside.args(["-c", "echo $$ > \"$0/cgroup.procs\"; exec \"$@\""]).arg(&self.dir);
        inside.arg(command.get_program()).args(command.get_args()).env_clear();
        inside.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?)))).output().unwrap()
    }

    /// The most memory that was used in it, in bytes: the kernel's cache of files counts too.
    fn peak(&self) -> u64 {
        fs::read_to_string(self.dir.join(self.peak)).unwrap().trim().parse().unwrap()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.dir);
    }
}

/// Counts what goes through it to a port and back.
fn count(to: u16) -> (u16, Arc<[AtomicU64; 2]>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let counters = Arc::new([AtomicU64::new(0), AtomicU64::new(0)]);
    let counted = counters.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let hub = TcpStream::connect(("127.0.0.1", to)).unwrap();
            let ways = [(stream.try_clone().unwrap(), hub.try_clone().unwrap()), (hub, stream)];
            for (index, (mut from, mut to)) in ways.into_iter().enumerate() {
                let counted = counted.clone();
                std::thread::spawn(move || {
                    let mut part = [0; 4096];
                    while let Ok(length @ 1..) = from.read(&mut part) {
                        counted[index].fetch_add(length as u64, Ordering::SeqCst);
                        if to.write_all(&part[..length]).is_err() {
                            break;
                        }
                    }
                    let _ = to.shutdown(std::net::Shutdown::Both);
                });
            }
        }
    });
    (port, counters)
}

/// The command that runs the host's agent.
fn agent(lab: &Lab) -> Command {
    let config = lab.path("hosts/web/agent.toml");
    lab.command(&["agent", "run", "--now", "--config", config.to_str().unwrap()])
}

#[test]
fn a_poll_takes_little_memory_and_less_than_6_kb_each_way() {
    let Some(lab) = Lab::new() else { return };
    // with as many files as a real host has
    for number in 0..40 {
        lab.write(&format!("fleet/hosts/web/modules/part-{number}.nix"), "{ }\n");
    }
    lab.flake_host("web", "text = \"one\";");
    lab.bento(&["deploy"]).succeeds();
    lab.agent("web").succeeds();
    let (port, counters) = count(lab.port);
    let config = lab.read("hosts/web/agent.toml").replace(&format!("port = {}", lab.port), &format!("port = {port}"));
    lab.write("hosts/web/agent.toml", &config);
    let Some(group) = Group::new("poll", 64 * MIB) else { return };
    let said = group.run(&agent(&lab));
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    let [sent, got] = [0, 1].map(|index| counters[index].load(Ordering::SeqCst));
    println!("a poll: {} KiB of memory, {sent} bytes to the hub, {got} from it", group.peak() >> 10);
    assert!(sent > 500 && got > 500, "nothing was counted");
    assert!(sent < 6000 && got < 6000, "{sent} bytes to the hub, {got} from it");
}

#[test]
fn a_system_that_was_built_elsewhere_is_taken_up_within_64_mib() {
    let Some(lab) = Lab::new() else { return };
    lab.flake_host("web", "text = \"one\";");
    lab.bento(&["deploy", "--mode", "closure"]).succeeds();
    assert_eq!(lab.manifest("web")["mode"], "closure");
    // it is there already, as if a cache had it: what Nix takes to fetch is Nix's
    let installable =
        format!("path:{}#nixosConfigurations.web.config.system.build.toplevel", lab.path("fleet/hosts/web").display());
    lab.shell(&format!("nix --extra-experimental-features 'nix-command flakes' build --no-link '{installable}'"))
        .succeeds();
    let Some(group) = Group::new("closure", 64 * MIB) else { return };
    let said = group.run(&agent(&lab));
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    println!("a release in closure mode: {} KiB of memory", group.peak() >> 10);
    assert_eq!(lab.running("web").unwrap(), lab.manifest("web")["toplevel"]);
}

#[test]
fn a_real_nixos_is_evaluated_within_1_gib() {
    let Some(corpora) = std::env::var_os("BENTO_CORPORA") else {
        eprintln!("skipped: BENTO_CORPORA does not name a folder with nixpkgs-26.11");
        return;
    };
    let Some(lab) = Lab::new() else { return };
    let nixpkgs = format!("nixpkgs={}", Path::new(&corpora).join("nixpkgs-26.11").display());
    // three large generated files are absent from the tree: what would read them is replaced
    lab.write(
        "fleet/hosts/web/configuration.nix",
        "{ lib, ... }: {
          nixpkgs.hostPlatform = \"x86_64-linux\";
          nixpkgs.overlays = [ (final: prev: {
            shellcheck-minimal = final.hello // { compiler = final.hello // { bootstrapAvailable = true; }; };
            shellcheck = final.hello;
            pandoc = final.hello;
          }) ];
          networking.hostName = \"web\";
          boot.loader.systemd-boot.enable = true;
          fileSystems.\"/\" = { device = \"/dev/disk/by-label/root\"; fsType = \"ext4\"; };
          services.openssh.enable = true;
          documentation.enable = false;
          system.stateVersion = \"26.05\";
        }\n",
    );
    lab.bento(&["deploy", "-I", &nixpkgs]).succeeds();
    let config = lab.read("hosts/web/agent.toml");
    let (before, after) = config.split_once("[nix]\nsearch-path = ").unwrap();
    let (_, after) = after.split_once('\n').unwrap();
    lab.write(
        "hosts/web/agent.toml",
        &format!("{before}[nix]\nevaluator = \"builtin\"\nbuild-options = [\"--dry-run\"]\nsearch-path = [\"{nixpkgs}\"]\n{after}"),
    );
    let Some(group) = Group::new("source", 1024 * MIB) else { return };
    let said = group.run(&agent(&lab));
    let said = String::from_utf8_lossy(&said.stderr).into_owned();
    println!("evaluated on the host: {} MiB of memory", group.peak() >> 20);
    // the same as the hub's; there is no network here to build it with
    let derivation = lab.manifest("web")["drv_path"].as_str().unwrap().to_owned();
    assert!(said.contains(&format!("evaluated: {derivation}")), "{said}");
}
