//! `modules/agent.nix` on a real NixOS: what it makes of its options, in both evaluators, and how far its units are shut in.

// a test may unwrap: that is how it fails
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use std::process::Command;

use bento::agent::config::AgentConfig;
use serde_json::Value;

const BENTO: &str = env!("CARGO_BIN_EXE_bento");
const MODULE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../modules/agent.nix");
const BOOK: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/src/agent.md");
/// What `systemd-analyze security` may say more than the book, as each version of systemd counts a little differently.
const TOLERANCE: f64 = 0.3;

/// A host with the module, and what is asked of it.
const HOST: &str = r#"
let
  key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAINMGpvl749fhz472rhZ/kKyEDe8hffM32aw8MS5CO2hG";
  os = import <nixpkgs/nixos/lib/eval-config.nix> {
    system = "x86_64-linux";
    modules = [
      MODULE
      ({ pkgs, ... }: {
        documentation.enable = false;
        boot.loader.grub.enable = false;
        fileSystems."/" = { device = "/dev/disk/by-label/root"; fsType = "ext4"; };
        networking.hostName = "web";
        system.stateVersion = "26.05";
        services.bento.agent = {
          enable = true;
          package = pkgs.hello;
          hub = { address = "hub.example.org"; hostKeys = [ key ]; };
          signers = [ key ];
          evaluator = "builtin";
          before = { free = 64; program = "check"; };
          confirm = { tries = 4; checks = [ { name = "page"; http = "http://localhost/"; } ]; };
          reboot = { policy = "window"; window = "03:00-05:00"; };
          page.logGroups = [ "users" ];
          notify.command = [ "/bin/true" ];
        };
      })
    ];
  };
  inherit (os.pkgs) lib;
  units = lib.getAttrs [ "bento-upgrade.service" "bento-upgrade.timer" "bento-boot.timer" "bento-window.timer" "bento-page.service" "bento-page.socket" ] os.config.systemd.units;
in
{
  units = lib.mapAttrs (_: unit: unit.text) units;
  wanted = lib.mapAttrs (_: unit: unit.wantedBy) units;
  config = os.config.environment.etc."bento/agent.toml".text;
  failed = map (assertion: assertion.message) (lib.filter (assertion: !assertion.assertion && lib.hasInfix "bento" assertion.message) os.config.assertions);
  undocumented = map (option: option.name) (lib.filter (option: !(option ? description) || option.type == "unspecified") (lib.optionAttrSetToDocList os.options.services.bento.agent));
}
"#;

/// What an evaluator says of that; `None`, with the reason, if it can't be asked here.
fn evaluated(program: &str, words: &[&str]) -> Option<Value> {
    let Some(corpora) = std::env::var_os("BENTO_CORPORA") else {
        eprintln!("skipped: BENTO_CORPORA does not name a folder with nixpkgs-26.11");
        return None;
    };
    let nixpkgs = Path::new(&corpora).join("nixpkgs-26.11");
    let output = Command::new(program)
        .args(words)
        .args(["--strict", "--json", "-I", &format!("nixpkgs={}", nixpkgs.display()), "-E"])
        .arg(HOST.replace("MODULE", MODULE))
        .env("NIX_REMOTE", "dummy://")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(serde_json::from_slice(&output.stdout).unwrap())
}

#[test]
fn both_evaluators_make_the_same_of_it() {
    let Some(programs) = std::env::var_os("BENTO_NIX") else {
        eprintln!("skipped: BENTO_NIX, the folder of Nix's programs, is not set");
        return;
    };
    let program = Path::new(&programs).join("nix-instantiate");
    let Some(expected) = evaluated(program.to_str().unwrap(), &["--eval"]) else { return };
    assert_eq!(evaluated(BENTO, &["eval"]).unwrap(), expected);
}

/// What `systemd-analyze security` says of a unit: from 0, all is shut in, to 10.
fn exposure(dir: &Path, unit: &str, text: &str) -> f64 {
    let file = dir.join(unit);
    fs::write(&file, text).unwrap();
    let output =
        Command::new("systemd-analyze").args(["security", "--offline=true", "--no-pager"]).arg(&file).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = said.lines().find(|line| line.contains("Overall exposure level"));
    let figure = line.and_then(|line| line.rsplit_once(": ")).unwrap_or_else(|| panic!("{output:?}")).1;
    figure.split(' ').next().unwrap().parse().unwrap()
}

#[test]
fn its_units_its_configuration_and_its_options_are_sound() {
    let Some(made) = evaluated(BENTO, &["eval"]) else { return };
    assert_eq!(made["failed"], serde_json::json!([]));
    assert_eq!(made["undocumented"], serde_json::json!([]));
    let dir = tempfile::tempdir().unwrap();

    // the agent reads what the module writes
    let file = dir.path().join("agent.toml");
    fs::write(&file, made["config"].as_str().unwrap()).unwrap();
    let config = AgentConfig::read(&file).unwrap();
    assert_eq!((config.host.as_str(), config.before.free, config.confirm.tries), ("web", 64, 4));
    assert_eq!(config.page.log_groups, ["users"]);
    assert_eq!(config.notify.command, ["/bin/true"]);
    assert_eq!(config.confirm.checks.len(), 1);

    // an activation neither stops nor restarts the agent that has started it, and outlives it
    let unit = |name: &str| made["units"][name].as_str().unwrap();
    let upgrade = unit("bento-upgrade.service");
    for line in ["X-RestartIfChanged=false", "X-StopOnRemoval=false", "KillMode=process", "Type=oneshot"] {
        assert!(upgrade.contains(line), "{upgrade}");
    }
    let timer = unit("bento-upgrade.timer");
    for line in ["Persistent=true", "FixedRandomDelay=true", "RandomizedDelaySec=10min", "OnCalendar=*:0/15"] {
        assert!(timer.contains(line), "{timer}");
    }
    // in the window the agent runs whenever else it does
    let window = unit("bento-window.timer");
    assert!(window.contains("OnCalendar=03:00\n") && window.contains("Unit=bento-upgrade.service"), "{window}");
    assert_eq!(made["wanted"]["bento-window.timer"], serde_json::json!(["timers.target"]));
    // the page is for loopback and a unix socket, and nothing else
    let socket = unit("bento-page.socket");
    let streams: Vec<&str> = socket.lines().filter_map(|line| line.strip_prefix("ListenStream=")).collect();
    assert_eq!(streams, ["127.0.0.1:51337", "[::1]:51337", "/run/bento/page.sock"]);
    assert_eq!(made["wanted"]["bento-page.socket"], serde_json::json!(["sockets.target"]));
    assert_eq!(made["wanted"]["bento-page.service"], serde_json::json!([]));

    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        eprintln!("skipped: there is no systemd-analyze");
        return;
    }
    let book = fs::read_to_string(BOOK).unwrap();
    for name in ["bento-upgrade.service", "bento-page.service"] {
        let found = exposure(dir.path(), name, unit(name));
        let row = format!("| `{name}` | ");
        let said =
            book.split_once(&row).and_then(|(_, rest)| rest.split(' ').next()).and_then(|said| said.parse().ok());
        let said: f64 = said.unwrap_or_else(|| panic!("the book has no figure for {name}, which is {found}"));
        assert!((found - said).abs() <= TOLERANCE, "{name}: {found}, but the book says {said}");
    }
}
