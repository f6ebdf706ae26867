//! The NixOS module of the hub, evaluated with real nixpkgs: by C++ Nix, whose word it is, and by this program.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::Command;

use bento::fleet::config::Config;
use serde_json::{Value, json};

const HUBS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/hub-module.nix");

/// Evaluates the hubs, with a program that has the options of `nix-instantiate --eval`.
fn evaluate(mut program: Command, nixpkgs: &Path) -> Value {
    program.args(["--strict", "--json", "-I", &format!("nixpkgs={}", nixpkgs.display()), HUBS]);
    let output = program.env_remove("NIX_PATH").output().unwrap();
    assert!(output.status.success(), "{program:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// What becomes of the hubs with one of the corpora's nixpkgs, on which both programs agree; `None`, with the reason, if they
/// can't be asked here.
fn hubs(nixpkgs: &str) -> Option<Value> {
    let folder = |variable: &str| std::env::var_os(variable).map(std::path::PathBuf::from);
    let (Some(corpora), Some(programs)) = (folder("BENTO_CORPORA"), folder("BENTO_NIX")) else {
        println!("skipped: BENTO_CORPORA and BENTO_NIX do not name the folders with {nixpkgs} and with C++ Nix");
        return None;
    };
    let nixpkgs = corpora.join(nixpkgs);
    let mut theirs = Command::new(programs.join("nix-instantiate"));
    theirs.arg("--eval");
    let hubs = evaluate(theirs, &nixpkgs);
    let mut ours = Command::new(env!("CARGO_BIN_EXE_bento"));
    ours.arg("eval");
    assert_eq!(evaluate(ours, &nixpkgs), hubs);
    Some(hubs)
}

/// A text that a hub has.
#[track_caller]
fn text(hubs: &Value, hub: &str, part: &str) -> String {
    hubs[hub][part].as_str().unwrap_or_else(|| panic!("{hub} has no {part}: {hubs}")).to_owned()
}

/// Whether a text has these lines.
#[track_caller]
fn has_lines(text: &str, lines: &[&str]) {
    for line in lines {
        assert!(text.lines().any(|found| found == *line), "{line:?} is not in {text}");
    }
}

/// What every hub has, with whatever nixpkgs.
fn are_sound(hubs: &Value, names: &[&str]) {
    for hub in names {
        assert_eq!(hubs[hub]["failed"], json!([]), "{hub}");
        let toplevel = text(hubs, hub, "toplevel");
        assert!(toplevel.starts_with("/nix/store/") && toplevel.ends_with(".drv"), "{toplevel}");
        // bento reads the settings that its services get
        let settings = Config::parse_toml(&text(hubs, hub, "settings")).unwrap();
        let web = &settings.hosts[&"web".parse().unwrap()];
        assert!(web.keys.len() == 1 && web.tags.contains("home") && settings.hosts.len() >= 2, "{settings:?}");
    }
}

#[test]
fn the_module_makes_hubs_of_machines_of_some_years_ago() {
    let Some(hubs) = hubs("nixcon-2020/nixpkgs") else { return };
    are_sound(&hubs, &["plain", "large", "told", "embedded"]);
    let sshd = text(&hubs, "plain", "sshd");
    let (all, hosts) = sshd.split_once("Match Group sftp_users\n").unwrap();
    has_lines(all, &["MaxStartups 100"]);
    assert!(!all.contains("Match") && hosts.contains("DisableForwarding yes\n"), "{sshd}");
    has_lines(&text(&hubs, "large", "socket"), &["MaxConnections=2000", "TriggerLimitIntervalSec=0"]);
    let failed = hubs["full"]["failed"].to_string();
    assert!(failed.contains("needs a nixpkgs that has services.harmonia.cache"), "{failed}");
    assert!(
        failed.contains("sharedAddresses is about OpenSSH from 9.8 on, and the hub's server is OpenSSH 8."),
        "{failed}"
    );
}

#[test]
fn the_module_makes_hubs_of_nixos_machines() {
    let Some(hubs) = hubs("nixpkgs-26.11") else { return };
    are_sound(&hubs, &["plain", "full", "large", "told", "embedded"]);
    let text = |hub: &str, part: &str| text(&hubs, hub, part);
    // sshd, and nothing that was not asked for
    let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIONflBC9T+8vmVd5Z+SmsaCztzhob2zrqW0diR1nrbNS root@web";
    let plain = &hubs["plain"];
    assert_eq!(plain["users"], json!({ "db": [], "web": [key] }));
    for none in ["hub", "web", "quota", "cache"] {
        assert_eq!(plain[none], Value::Null, "{none}");
    }
    assert_eq!(plain["ports"], json!([22]));
    let sshd = text("plain", "sshd");
    for rule in [
        "Match Group sftp_users\n",
        "ChrootDirectory /home/chroot/%u\n",
        "ForceCommand internal-sftp -u 0027 -P symlink,hardlink,mkdir,rmdir,setstat\n",
        "DisableForwarding yes\n",
        "PermitTTY no\n",
        "Match all\n",
    ] {
        assert!(sshd.contains(rule), "{rule:?} is not in {sshd}");
    }
    let logs = json!("d /home/chroot/web/logs 0750 web sftp_users -");
    assert!(plain["directories"].as_array().unwrap().contains(&logs), "{plain}");
    // as many may log in at once as there are hosts, unless the administrator says otherwise
    let startups = |hub: &str| (&hubs[hub]["startups"], &hubs[hub]["exempt"]);
    assert_eq!(startups("plain"), (&json!("100"), &Value::Null));
    has_lines(&text("plain", "daemon"), &["LimitNOFILE=1424:524288", "TasksMax=infinity"]);
    assert_eq!(startups("large"), (&json!("2000"), &Value::Null));
    has_lines(&text("large", "socket"), &["MaxConnections=2000", "TriggerLimitIntervalSec=0"]);
    assert_eq!(hubs["large"]["daemon"], Value::Null);
    assert_eq!(startups("told"), (&json!("7"), &Value::Null));
    has_lines(&text("told", "daemon"), &["TasksMax=500"]);
    // with all of it
    assert_eq!(startups("full"), (&json!("100"), &json!("203.0.113.7,2001:db8:1::/48")));
    let full = &hubs["full"];
    let (web, quota, cache) = (text("full", "web"), text("full", "quota"), text("full", "cache"));
    assert!(web.contains("/bin/bento hub web --listen [::]:8022 --token %d/token\n"), "{web}");
    let lines = [
        "DynamicUser=true",
        "SupplementaryGroups=sftp_users",
        "LoadCredential=token:/run/secrets/hub",
        "ProtectSystem=strict",
    ];
    has_lines(&web, &lines);
    assert!(quota.contains("Type=oneshot"), "{quota}");
    assert!(cache.contains("/run/secrets/cache"), "{cache}");
    assert_eq!(full["ports"], json!([22, 5000]));
    assert_eq!(full["scrape"][0]["static_configs"][0]["targets"], json!(["[::]:8022"]));
    assert_eq!(full["scrape"][0]["bearer_token_file"], "/run/secrets/hub");
    // bento itself in sshd's place
    let embedded = &hubs["embedded"];
    assert_eq!(embedded["users"], json!({ "bento-hub": [] }));
    let hub = text("embedded", "hub");
    let line = "/bin/bento hub serve --listen [::]:2222 --host-key /var/lib/bento-hub/host_key --per-address 1000 --per-host 16 --quota 256 --web=127.0.0.1:8022\n";
    assert!(hub.contains(line), "{hub}");
    let lines = ["User=bento-hub", "ReadWritePaths=/srv/hub", "CapabilityBoundingSet=", "LimitNOFILE=1424:524288"];
    has_lines(&hub, &lines);
    has_lines(&hub, &["RestrictSUIDSGID=false"]);
    assert_eq!(startups("embedded"), (&Value::Null, &Value::Null));
    assert_eq!((&embedded["web"], &embedded["ports"], &embedded["sshd"]), (&Value::Null, &json!([2222]), &json!("")));
    assert_eq!(embedded["directories"], json!(["d /srv/hub 0750 bento-hub sftp_users -"]));
    // what would be a mistake
    let failed = hubs["wrong"]["failed"].to_string();
    assert!(failed.contains("the page needs a tokenFile") && failed.contains("signingKeyFiles is empty"), "{failed}");
    assert!(failed.contains("the hub's server is bento's own: leave it empty"), "{failed}");
}
