//! Secrets, from the administrator's directory to a host's `/run/bento/secrets`, with a real hub and a real agent.

// a test may unwrap: that is how it fails
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use common::{Lab, fingerprint};

/// What nobody but the host may find anywhere.
const PASSWORD: &str = "correct horse battery staple";

/// A host `web` with a secret, whose `/run/bento` is in memory, and settings that know its key.
fn lab() -> Option<Lab> {
    let lab = Lab::new()?;
    configure(&lab, &["keys/web.pub"]);
    lab.flake_host("web", "");
    lab.write("fleet/hosts/web/secrets/db/password", PASSWORD);
    mount_memory(&lab, "web");
    Some(lab)
}

/// Writes the settings, with these public keys for the host `web`.
fn configure(lab: &Lab, keys: &[&str]) {
    let keys: Vec<String> = keys.iter().map(|key| format!("{:?}", lab.read(key).trim())).collect();
    let _ = fs::remove_file(lab.path("fleet/config.sh"));
    lab.write(
        "fleet/bento.toml",
        &format!(
            "[hub]\ndirectory = \"{}\"\n[release]\nsigning-key = \"../keys/admin\"\n[build]\nlocal = false\n\
             [hosts.web]\nkeys = [{}]\n",
            lab.path("chroot").display(),
            keys.join(", ")
        ),
    );
}

/// Gives a host the memory that `/run` is on a real one.
fn mount_memory(lab: &Lab, host: &str) {
    let run = lab.path(&format!("hosts/{host}/run/bento"));
    lab.shell(&format!("mkdir -p {0} && mount -t tmpfs -o mode=751 memory {0}", run.display())).succeeds();
}

/// What a host sees at a path below `/run/bento/secrets`, with its owner, group and mode.
#[track_caller]
fn secret(lab: &Lab, path: &str) -> (String, String) {
    let file = lab.path(&format!("hosts/web/run/bento/secrets/{path}"));
    let content = lab.shell(&format!("cat {}", file.display())).succeeds().stdout;
    (content, lab.shell(&format!("stat -c '%u:%g %a' {}", file.display())).succeeds().stdout.trim().to_owned())
}

/// The names of all files below `/run/bento` of `web`, sorted, as it sees them itself.
fn placed(lab: &Lab) -> Vec<String> {
    let run = lab.path("hosts/web/run/bento");
    let found = lab.shell(&format!("cd {} && find -L secrets secrets.d -type f 2>/dev/null | sort", run.display()));
    let names = found.stdout.lines().filter(|name| name.starts_with("secrets/"));
    names.map(|name| name.trim_start_matches("secrets/").to_owned()).collect()
}

/// The files below these directories of a laboratory that have a text in them.
fn mentions(lab: &Lab, dirs: &[&str], text: &str) -> Vec<String> {
    let dirs: Vec<String> = dirs.iter().map(|dir| lab.path(dir).display().to_string()).collect();
    let found = lab.shell(&format!("grep -rlF '{text}' {} || true", dirs.join(" "))).succeeds().stdout;
    found.lines().map(str::to_owned).collect()
}

#[test]
fn a_secret_reaches_its_host_before_the_activation_and_is_in_clear_nowhere_else() {
    let Some(lab) = lab() else { return };
    lab.flake_host("web", "onTest = \"cat \\$TINY_ROOT/run/bento/secrets/db/password > \\$TINY_ROOT/seen\";");
    lab.write("fleet/hosts/web/secrets/api-token", "token");
    lab.write("fleet/hosts/web/secrets/tls.key", "-----BEGIN PRIVATE KEY-----");
    lab.write(
        "fleet/hosts/web/secrets/secrets.toml",
        "[api-token]\nowner = \"db\"\ngroup = \"web2\"\nmode = \"0440\"\n[\"tls.key\"]\nowner = \"61000\"\nmode = \"600\"\n",
    );
    lab.bento(&["deploy"]).succeeds();
    let manifest = lab.manifest("web");
    let files: Vec<&str> = manifest["files"].as_array().unwrap().iter().map(|f| f["path"].as_str().unwrap()).collect();
    assert_eq!(files, ["flake.nix", "system.nix"]);
    let secrets: Vec<&str> =
        manifest["secrets"].as_array().unwrap().iter().map(|f| f["path"].as_str().unwrap()).collect();
    assert_eq!(secrets, ["api-token", "db/password", "tls.key"]);
    lab.agent("web").succeeds();
    assert_eq!(lab.read("hosts/web/seen"), PASSWORD);
    fs::remove_file(lab.path("hosts/web/seen")).unwrap();
    assert_eq!(secret(&lab, "db/password"), (PASSWORD.to_owned(), "0:0 400".to_owned()));
    assert_eq!(secret(&lab, "api-token"), ("token".to_owned(), "61002:61001 440".to_owned()));
    assert_eq!(secret(&lab, "tls.key").1, "61000:0 600");
    assert_eq!(placed(&lab), ["api-token", "db/password", "tls.key"]);
    // neither the hub, nor the host's disk, nor the store that both use, nor anybody's temporary files
    assert_eq!(mentions(&lab, &["chroot", "hosts/web/state", "tmp", "home"], PASSWORD), Vec::<String>::new());
    assert_eq!(lab.shell(&format!("grep -rlF '{PASSWORD}' /nix/store || true")).stdout, "");
    // others may walk through the directories, to what is theirs, but not list them
    let run = lab.path("hosts/web/run/bento");
    let listed =
        lab.shell(&format!("setpriv --reuid=61002 --regid=61002 --clear-groups ls {}/secrets/", run.display()));
    assert!(!listed.ok);
    lab.shell(&format!("setpriv --reuid=61002 --regid=61002 --clear-groups cat {}/secrets/api-token", run.display()))
        .succeeds();
    assert_eq!(lab.state("web"), "up-to-date");
}

#[test]
fn publishing_the_same_secrets_again_changes_nothing() {
    let Some(lab) = lab() else { return };
    lab.bento(&["deploy"]).succeeds();
    let key = lab.path("home/.local/state/bento/secrets.key");
    let before = (fingerprint(&lab.path("chroot")), fs::read(&key).unwrap());
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&key).unwrap().permissions()) & 0o777, 0o600);
    lab.bento(&["deploy"]).succeeds();
    assert_eq!((fingerprint(&lab.path("chroot")), fs::read(&key).unwrap()), before);
    let sealed =
        |serial: u32| fs::read(lab.path(&format!("chroot/web/releases/{serial}.secrets/db/password"))).unwrap();
    let first = sealed(1);
    // what else is new leaves the encrypted file as it was
    lab.flake_host("web", "text = \"new\";");
    lab.bento(&["deploy"]).succeeds();
    assert_eq!(sealed(2), first);
    lab.write("fleet/hosts/web/secrets/secrets.toml", "[\"db/password\"]\nmode = \"0440\"\n");
    let plan = lab.bento(&["deploy", "--dry-run"]).succeeds();
    assert!(plan.stderr.contains("the secret db/password changed"), "{}", plan.stderr);
    lab.bento(&["deploy"]).succeeds();
    assert_eq!(sealed(3), first);
    // another secret, or other keys, make another one
    lab.write("fleet/hosts/web/secrets/db/password", "another");
    lab.bento(&["deploy"]).succeeds();
    let fourth = sealed(4);
    assert_ne!(fourth, first);
    configure(&lab, &["keys/web.pub", "keys/web2.pub"]);
    lab.bento(&["deploy"]).succeeds();
    assert_ne!(sealed(5), fourth);
    // a file that was damaged on the hub is replaced
    lab.bento(&["verify", "web"]).succeeds();
    lab.write("chroot/web/releases/5.secrets/db/password", "damaged");
    lab.bento(&["verify", "web"]).fails_with(&["the release's secret db/password is not that of its manifest"]);
    lab.bento(&["deploy"]).succeeds();
    assert_eq!(lab.manifest("web")["serial"], 6);
    // the digest tells nothing without the key: with another one it is another
    let digest = lab.manifest("web")["secrets"][0]["digest"].clone();
    fs::remove_file(&key).unwrap();
    lab.bento(&["deploy", "--dry-run"]).succeeds();
    assert!(!key.exists());
    lab.bento(&["deploy"]).succeeds();
    assert_ne!(lab.manifest("web")["secrets"][0]["digest"], digest);
    fs::write(&key, "short").unwrap();
    lab.bento(&["deploy"]).fails_with(&["secrets.key is damaged", "remove it"]);
}

#[test]
fn a_secret_alone_is_changed_added_and_removed() {
    let Some(lab) = lab() else { return };
    lab.bento(&["deploy"]).succeeds();
    lab.agent("web").succeeds();
    let activations = lab.activations("web").len();
    lab.write("fleet/hosts/web/secrets/db/password", "another");
    lab.write("fleet/hosts/web/secrets/more", "more");
    lab.bento(&["deploy"]).succeeds();
    assert_eq!(lab.state("web"), "sync-pending");
    lab.agent("web").succeeds();
    assert_eq!(secret(&lab, "db/password").0, "another");
    assert_eq!(placed(&lab), ["db/password", "more"]);
    fs::remove_file(lab.path("fleet/hosts/web/secrets/db/password")).unwrap();
    lab.bento(&["deploy"]).succeeds();
    lab.agent("web").succeeds();
    assert_eq!(placed(&lab), ["more"]);
    fs::remove_file(lab.path("fleet/hosts/web/secrets/more")).unwrap();
    lab.bento(&["deploy"]).succeeds();
    lab.agent("web").succeeds();
    assert_eq!(placed(&lab), Vec::<String>::new());
    assert_eq!(lab.activations("web").len(), activations);
    assert_eq!(lab.state("web"), "up-to-date");
}

#[test]
fn what_reads_a_secret_is_restarted_when_it_changes() {
    let Some(lab) = lab() else { return };
    let access =
        "[\"db/password\"]\nunits = [\"db.service\", \"backup@home.service\"]\n[other]\nunits = [\"other.service\"]\n";
    lab.write("fleet/hosts/web/secrets/other", "other");
    lab.write("fleet/hosts/web/secrets/secrets.toml", access);
    let restarted = || {
        let log = lab.log("web", lab.reports("web").last().unwrap());
        let line = log.lines().find_map(|line| line.split_once("restarting what reads secrets that have changed: "));
        line.map(|(_, units)| units.to_owned())
    };
    let taken_up = || {
        lab.bento(&["deploy"]).succeeds();
        lab.agent("web").succeeds();
        restarted()
    };
    // they come for the first time: who ran before did without
    assert_eq!(taken_up().as_deref(), Some("backup@home.service, db.service, other.service"));
    lab.write("fleet/hosts/web/secrets/db/password", "another");
    assert_eq!(taken_up().as_deref(), Some("backup@home.service, db.service"));
    // a system that is activated with it restarts only what has changed itself
    lab.write("fleet/hosts/web/secrets/other", "changed");
    lab.flake_host("web", "text = \"new\";");
    assert_eq!(taken_up().as_deref(), Some("other.service"));
    lab.flake_host("web", "text = \"newer\";");
    assert_eq!(taken_up(), None);
    // one that is tried out with another secret, and given up, leaves those behind that read the first
    lab.write("fleet/hosts/web/secrets/other", "of the broken one");
    lab.flake_host("web", "text = \"broken\"; onTest = \"exit 1\";");
    lab.bento(&["deploy"]).succeeds();
    lab.agent("web").fails_with(&["the activation failed"]);
    assert_eq!(secret(&lab, "other").0, "changed");
    assert_eq!(restarted().as_deref(), Some("other.service"));
    // and one that is gone
    lab.flake_host("web", "text = \"newer\";");
    fs::remove_file(lab.path("fleet/hosts/web/secrets/other")).unwrap();
    lab.write("fleet/hosts/web/secrets/secrets.toml", "[\"db/password\"]\nunits = [\"db.service\"]\n");
    assert_eq!(taken_up().as_deref(), Some("backup@home.service, db.service, other.service"));
    // after a boot everything has started with what there is
    let run = lab.path("hosts/web/run/bento");
    lab.shell(&format!("rm -r {0}/secrets {0}/secrets.d", run.display())).succeeds();
    let config = lab.path("hosts/web/agent.toml");
    lab.bento(&["agent", "secrets", "--config", config.to_str().unwrap()]).succeeds();
    lab.flake_host("web", "text = \"newest\";");
    assert_eq!(taken_up(), None);
}

#[test]
fn a_fleet_with_config_sh_has_its_hosts_keys_in_files() {
    let Some(lab) = Lab::new() else { return };
    lab.flake_host("web", "");
    lab.write("fleet/hosts/web/secrets/password", PASSWORD);
    mount_memory(&lab, "web");
    lab.bento(&["deploy"])
        .fails_with(&["web.pub into the directory that hub.keys there, or HOST_KEYS in config.sh, names"]);
    let settings = lab.read("fleet/config.sh");
    lab.write("fleet/config.sh", &format!("{settings}HOST_KEYS=hosts.d\n"));
    lab.bento(&["deploy"]).fails_with(&["cannot read the directory of the hosts' keys", "hosts.d"]);
    lab.write("fleet/hosts.d/web.pub", &format!("# this one\n\n{}", lab.read("keys/web.pub")));
    lab.write("fleet/hosts.d/README", "the hosts' keys");
    lab.bento(&["deploy"]).succeeds();
    lab.agent("web").succeeds();
    assert_eq!(secret(&lab, "password").0, PASSWORD);
    // the hub believes what is signed with them, and nothing else
    assert_eq!(lab.status("web")["verified"], true);
    lab.write("fleet/hosts.d/web.pub", &lab.read("keys/db.pub"));
    assert_eq!(lab.state("web"), "forged-report");
    assert!(lab.bento(&["keys"]).succeeds().stdout.contains(lab.read("keys/db.pub").trim()));
    lab.write("fleet/hosts.d/web.pub", "\nssh-rsa x\n");
    lab.bento(&["status"]).fails_with(&["web.pub: line 2", "is no public key"]);
    lab.write("fleet/hosts.d/web.pub", "");
    lab.write("fleet/hosts.d/not a host.pub", "");
    lab.bento(&["status"]).fails_with(&["not a host.pub", "is no host name"]);
}

#[test]
fn secrets_that_cannot_be_decrypted_fail_before_anything_is_touched() {
    let Some(lab) = lab() else { return };
    lab.bento(&["deploy"]).succeeds();
    lab.agent("web").succeeds();
    let (running, activations) = (lab.running("web"), lab.activations("web"));
    configure(&lab, &["keys/db.pub"]);
    lab.flake_host("web", "text = \"new\";");
    lab.bento(&["deploy"]).succeeds();
    let own = lab.read("keys/web.pub");
    let own: Vec<&str> = own.split_whitespace().take(2).collect();
    lab.agent("web").fails_with(&["the secret db/password can't be decrypted", "other keys", &own.join(" ")]);
    assert_eq!((lab.running("web"), lab.activations("web")), (running, activations));
    assert_eq!(secret(&lab, "db/password").0, PASSWORD);
    let report = lab.reports("web").pop().unwrap();
    assert_eq!((&report["outcome"], &report["stage"]), (&"failure".into(), &"check".into()));
    // by the keys in the settings it was not this host that signed the report
    assert_eq!(lab.state("web"), "forged-report");
    // with the right key it is encrypted anew, and taken up
    configure(&lab, &["keys/db.pub", "keys/web.pub"]);
    lab.bento(&["deploy"]).succeeds();
    lab.agent("web").succeeds();
    assert_eq!(lab.state("web"), "up-to-date");
    // cut short on the hub, it does not even get that far
    lab.write("fleet/hosts/web/secrets/db/password", "another");
    lab.bento(&["deploy"]).succeeds();
    lab.write("chroot/web/releases/4.secrets/db/password", "age-encryption.org/v1\n");
    lab.agent("web").fails_with(&["releases/4.secrets/db/password is damaged"]);
    assert_eq!(secret(&lab, "db/password").0, PASSWORD);
}

#[test]
fn a_secret_is_never_decrypted_onto_a_disk() {
    let Some(lab) = lab() else { return };
    lab.bento(&["deploy"]).succeeds();
    lab.shell(&format!("umount {}", lab.path("hosts/web/run/bento").display())).succeeds();
    lab.agent("web").fails_with(&["not in memory (tmpfs)"]);
    assert!(lab.activations("web").is_empty());
    mount_memory(&lab, "web");
    lab.write("fleet/hosts/web/README", "");
    lab.bento(&["deploy"]).succeeds();
    lab.agent("web").succeeds();
    assert_eq!(lab.state("web"), "up-to-date");
}

#[test]
fn a_system_that_does_not_work_leaves_the_secrets_of_the_one_before() {
    let Some(lab) = lab() else { return };
    lab.bento(&["deploy"]).succeeds();
    lab.agent("web").succeeds();
    // both activations say what they find
    lab.flake_host(
        "web",
        "text = \"bad\"; onTest = \"cat \\$TINY_ROOT/run/bento/secrets/db/password >> \\$TINY_ROOT/seen; exit 1\";",
    );
    lab.write("fleet/hosts/web/secrets/db/password", "another");
    lab.write("fleet/hosts/web/secrets/more", "more");
    lab.bento(&["deploy"]).succeeds();
    lab.agent("web").fails_with(&["the activation failed"]);
    assert_eq!(lab.read("hosts/web/seen"), "another");
    assert_eq!(secret(&lab, "db/password").0, PASSWORD);
    assert_eq!(placed(&lab), ["db/password"]);
    assert_eq!(lab.state("web"), "rollbacked");
    // one that names an owner whom not even the new system has, does not work either
    lab.flake_host("web", "text = \"good\";");
    lab.write("fleet/hosts/web/secrets/secrets.toml", "[more]\nowner = \"nobody-knows\"\n");
    lab.bento(&["deploy"]).succeeds();
    lab.agent("web").fails_with(&["the secret more", "no user nobody-knows"]);
    assert_eq!(placed(&lab), ["db/password"]);
    // one that brings the owner does
    let passwd = lab.path("passwd");
    lab.flake_host(
        "web",
        &format!("onTest = \"echo nobody-knows:x:61999:61999::/:/bin/false >> {}\";", passwd.display()),
    );
    lab.bento(&["deploy"]).succeeds();
    lab.agent("web").succeeds();
    assert_eq!(secret(&lab, "more"), ("more".to_owned(), "61999:0 400".to_owned()));
    assert_eq!(secret(&lab, "db/password").0, "another");
}

#[test]
fn an_agent_that_was_killed_brings_the_secrets_of_the_system_before_back() {
    let Some(lab) = lab() else { return };
    lab.bento(&["deploy"]).succeeds();
    lab.agent("web").succeeds();
    lab.flake_host("web", "text = \"new\"; onTest = \"touch \\$TINY_ROOT/testing; sleep 2\";");
    lab.write("fleet/hosts/web/secrets/db/password", "another");
    lab.bento(&["deploy"]).succeeds();
    lab.agent_killed_while_testing("web");
    assert_eq!(secret(&lab, "db/password").0, "another");
    lab.agent("web").fails_with(&["release 2 failed here before"]);
    assert_eq!(secret(&lab, "db/password").0, PASSWORD);
    assert_eq!(lab.state("web"), "rollbacked");
}

#[test]
fn after_a_boot_the_secrets_are_those_of_the_system_that_came_up() {
    let Some(lab) = lab() else { return };
    lab.write("fleet/hosts/web/secrets/secrets.toml", "[\"db/password\"]\nowner = \"db\"\n");
    lab.bento(&["deploy"]).succeeds();
    lab.agent("web").succeeds();
    let good = lab.running("web").unwrap();
    let config = lab.path("hosts/web/agent.toml");
    // the power is cut: nothing in memory is left
    let boot = || {
        lab.shell(&format!("umount {}", lab.path("hosts/web/run/bento").display())).succeeds();
        mount_memory(&lab, "web");
        lab.bento(&["agent", "secrets", "--config", config.to_str().unwrap()]).succeeds();
    };
    boot();
    assert_eq!(secret(&lab, "db/password"), (PASSWORD.to_owned(), "61002:0 400".to_owned()));
    // once more, and nothing changes
    lab.bento(&["agent", "secrets", "--config", config.to_str().unwrap()]).succeeds();
    assert_eq!(secret(&lab, "db/password").0, PASSWORD);
    // while a new system is tried out
    lab.flake_host("web", "text = \"new\"; onTest = \"touch \\$TINY_ROOT/testing; sleep 2\";");
    lab.write("fleet/hosts/web/secrets/db/password", "another");
    lab.bento(&["deploy"]).succeeds();
    lab.agent_killed_while_testing("web");
    std::thread::sleep(Duration::from_secs(3));
    let new = lab.running("web").unwrap();
    assert_ne!(new, good);
    let link = lab.path("hosts/web/run/current-system");
    // it comes up in the one or in the other
    boot();
    assert_eq!(secret(&lab, "db/password").0, "another");
    fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink(&good, &link).unwrap();
    boot();
    assert_eq!(secret(&lab, "db/password").0, PASSWORD);
}

#[test]
fn an_rsa_host_key_does_as_well() {
    let Some(lab) = lab() else { return };
    let key = lab.path("keys/web");
    fs::remove_file(&key).unwrap();
    let made = Command::new("ssh-keygen").args(["-q", "-t", "rsa", "-b", "2048", "-N", "", "-f"]).arg(&key).status();
    assert!(made.unwrap().success());
    configure(&lab, &["keys/web.pub"]);
    lab.bento(&["deploy"]).succeeds();
    lab.agent("web").succeeds();
    assert_eq!(secret(&lab, "db/password").0, PASSWORD);
    // but it signs nothing, and whoever looks is told what to do about it
    assert_eq!((lab.state("web").as_str(), &lab.status("web")["verified"]), ("up-to-date", &serde_json::Value::Null));
    let config = lab.path("hosts/web/agent.toml");
    for (arguments, words) in [
        (&["agent", "status", "--config", config.to_str().unwrap()][..], ["is an RSA key", "ssh-keygen -t ed25519"]),
        (&["status"], ["web: has RSA keys only", "ed25519"]),
        (&["config", "check"], ["warning: web has RSA keys only", "ed25519"]),
    ] {
        let said = lab.bento(arguments).succeeds();
        assert!(
            words.iter().all(|word| said.stdout.contains(word) || said.stderr.contains(word)),
            "{}{}",
            said.stdout,
            said.stderr
        );
    }
    // an ECDSA key can log in, but nothing can be encrypted to it
    fs::remove_file(&key).unwrap();
    let made = Command::new("ssh-keygen").args(["-q", "-t", "ecdsa", "-N", "", "-f"]).arg(&key).status();
    assert!(made.unwrap().success());
    configure(&lab, &["keys/web.pub"]);
    lab.bento(&["deploy"]).fails_with(&["web: failed", "[hosts.web]", "ed25519 and RSA keys do"]);
    configure(&lab, &["keys/web2.pub"]);
    lab.flake_host("web", "text = \"new\";");
    lab.bento(&["deploy"]).succeeds();
    lab.agent("web").fails_with(&["can't be decrypted", "neither ed25519 nor RSA"]);
}

#[test]
fn what_agenix_and_sops_nix_have_encrypted_stays_part_of_the_configuration() {
    let Some(lab) = lab() else { return };
    let recipient: age::ssh::Recipient = lab.read("keys/web.pub").parse().unwrap();
    let sealed = age::encrypt(&recipient, b"for agenix").unwrap();
    fs::write(lab.path("fleet/hosts/web/secrets/agenix.age"), &sealed).unwrap();
    let rules = "{ \"agenix.age\".publicKeys = [ \"ssh-ed25519 AAAA\" ]; }";
    lab.write("fleet/hosts/web/secrets/secrets.nix", rules);
    let armored = "-----BEGIN AGE ENCRYPTED FILE-----\nYWdl\n-----END AGE ENCRYPTED FILE-----\n";
    lab.write("fleet/hosts/web/secrets/armored.age", armored);
    // as sops 3.9 writes them
    let code = "ENC[AES256_GCM,data:Zm9v,iv:YmFy,tag:YmF6,type:str]";
    let sops = [
        (
            "sops.yaml",
            format!(
                "password: {code}\nsops:\n    lastmodified: \"2026-01-01T00:00:00Z\"\n    mac: {code}\n    version: 3.9.0\n"
            ),
        ),
        (
            "sops.json",
            format!(
                "{{\n\t\"password\": \"{code}\",\n\t\"sops\": {{\n\t\t\"mac\": \"{code}\",\n\t\t\"version\": \"3.9.0\"\n\t}}\n}}\n"
            ),
        ),
        ("sops.env", format!("PASSWORD={code}\nsops_mac={code}\nsops_version=3.9.0\n")),
        ("sops.ini", format!("[db]\npassword = {code}\n\n[sops]\nmac     = {code}\nversion = 3.9.0\n")),
    ];
    for (name, text) in &sops {
        lab.write(&format!("fleet/hosts/web/secrets/{name}"), text);
    }
    lab.write("fleet/hosts/web/secrets/.sops.yaml", "creation_rules: []\n");
    // the configuration refers to all of them, as the modules of both have it
    let names = ["agenix.age", "armored.age", "secrets.nix", "sops.env", "sops.ini", "sops.json", "sops.yaml"];
    let refers: String = names.iter().map(|name| format!("${{./secrets/{name}}} ")).collect();
    lab.flake_host("web", &format!("text = \"{refers}\";"));
    lab.bento(&["deploy"]).succeeds();
    let manifest = lab.manifest("web");
    let files: Vec<&str> = manifest["files"].as_array().unwrap().iter().map(|f| f["path"].as_str().unwrap()).collect();
    let mut expected: Vec<String> = names.iter().map(|name| format!("secrets/{name}")).collect();
    expected.splice(0..0, ["flake.nix".to_owned()]);
    expected.push("system.nix".to_owned());
    assert_eq!(files, expected);
    assert_eq!(manifest["secrets"].as_array().unwrap().len(), 1);
    lab.agent("web").succeeds();
    let fetched = lab.path("hosts/web/state/releases/1/config/secrets");
    assert_eq!(fs::read(fetched.join("agenix.age")).unwrap(), sealed);
    assert_eq!(fs::read_to_string(fetched.join("sops.yaml")).unwrap(), sops[0].1);
    assert_eq!(placed(&lab), ["db/password"]);
}

#[test]
fn hosts_of_one_flake_have_secrets_of_their_own_and_may_share_one() {
    let Some(lab) = Lab::new() else { return };
    configure(&lab, &["keys/web.pub"]);
    let settings = lab.read("fleet/bento.toml");
    lab.write("fleet/bento.toml", &format!("{settings}[hosts.db]\nkeys = [{:?}]\n", lab.read("keys/db.pub").trim()));
    lab.flake("fleet", &[("web", ""), ("db", "")]);
    lab.write("fleet/hosts/web/secrets/own", PASSWORD);
    lab.write("fleet/shared/token", "a shared token");
    fs::create_dir_all(lab.path("fleet/hosts/db/secrets")).unwrap();
    for host in ["web", "db"] {
        let link = lab.path(&format!("fleet/hosts/{host}/secrets/token"));
        std::os::unix::fs::symlink("../../../shared/token", link).unwrap();
    }
    lab.write("fleet/secrets/agenix.age", "age-encryption.org/v1\n");
    lab.write("fleet/secrets/whatever", "this folder is the flake's");
    lab.bento(&["deploy"]).succeeds();
    for (host, secrets) in [("web", vec!["own", "token"]), ("db", vec!["token"])] {
        let manifest = lab.manifest(host);
        let names: Vec<&str> =
            manifest["secrets"].as_array().unwrap().iter().map(|f| f["path"].as_str().unwrap()).collect();
        assert_eq!(names, secrets);
        let files: Vec<&str> =
            manifest["files"].as_array().unwrap().iter().map(|f| f["path"].as_str().unwrap()).collect();
        assert!(files.contains(&"secrets/whatever") && files.contains(&"secrets/agenix.age"), "{files:?}");
        assert!(!files.iter().any(|file| file.contains("token") || file.contains("own")), "{files:?}");
        mount_memory(&lab, host);
        lab.agent(host).succeeds();
    }
    assert_eq!(secret(&lab, "token").0, "a shared token");
    assert_eq!(
        mentions(&lab, &["chroot", "hosts/web/state", "hosts/db/state"], "a shared token"),
        Vec::<String>::new()
    );
    // the encrypted text of one is none of the other's
    assert_ne!(lab.manifest("web")["secrets"][1]["digest"], lab.manifest("db")["secrets"][0]["digest"]);
    // below hosts/, the folder of a flake with several hosts would be everybody's
    for file in ["flake.nix", "hosts"] {
        let path = lab.path("fleet").join(file);
        if path.is_dir() { fs::remove_dir_all(path).unwrap() } else { fs::remove_file(path).unwrap() }
    }
    lab.flake("fleet/hosts/cellar", &[("web", ""), ("db", "")]);
    lab.write("fleet/hosts/cellar/secrets/own", PASSWORD);
    lab.bento(&["deploy"]).fails_with(&["cellar/secrets belongs to no host", "hosts/NAME/secrets"]);
    fs::remove_dir_all(lab.path("fleet/hosts/cellar/secrets")).unwrap();
    lab.write("fleet/hosts/cellar/hosts/web/secrets/own", PASSWORD);
    lab.bento(&["deploy"]).succeeds();
    assert_eq!(lab.manifest("web")["secrets"].as_array().unwrap().len(), 1);
    assert_eq!(lab.manifest("db").get("secrets"), None);
}

#[test]
fn what_is_wrong_with_secrets_is_said_with_the_way_out() {
    let Some(lab) = lab() else { return };
    let folder = "fleet/hosts/web/secrets";
    let path = |name: &str| lab.path(&format!("{folder}/{name}"));
    let refused = |words: &[&str]| {
        lab.bento(&["deploy"]).fails_with(words);
        assert!(!lab.path("chroot/web/manifest.json").exists());
    };
    for (text, words) in [
        ("[nothing]\n", vec!["secrets.toml", "there is no secret \"nothing\""]),
        ("[\"db/password\"]\nuser = \"db\"\n", vec!["secrets.toml", "unknown field `user`", "owner"]),
        ("[\"db/password\"]\nmode = \"777\"\n", vec!["secrets.toml", "\"777\" is no mode of a secret", "octal"]),
        ("[\"db/password\"]\nmode = 400\n", vec!["secrets.toml", "mode"]),
        ("[\"db/password\"]\nowner = \"a b\"\n", vec!["secrets.toml", "db/password", "\"a b\" can't be the owner"]),
        ("[\"db/password\"]\nunits = [\"db\"]\n", vec!["secrets.toml", "\"db\" can't be a unit", "ends with .service"]),
        ("[\"db/password\"]\nunits = [\"-f.service\"]\n", vec!["secrets.toml", "\"-f.service\" can't be a unit"]),
        ("[\"db/password\"]\nunits = [\"bento-upgrade.service\"]\n", vec!["secrets.toml", "is bento's own"]),
        ("[", vec!["secrets.toml"]),
    ] {
        lab.write(&format!("{folder}/secrets.toml"), text);
        refused(&words);
    }
    fs::remove_file(path("secrets.toml")).unwrap();
    lab.write(&format!("{folder}/module.nix"), "{ }");
    refused(&["secrets/module.nix is Nix code", "Move it to another directory"]);
    fs::remove_file(path("module.nix")).unwrap();
    fs::write(path("large"), vec![b'x'; (1 << 20) + 1]).unwrap();
    refused(&["secrets/large is larger than a secret can be"]);
    fs::write(path("large"), b"\0GITCRYPT\0more").unwrap();
    refused(&["secrets/large is locked", "git-crypt unlock"]);
    fs::remove_file(path("large")).unwrap();
    std::os::unix::fs::symlink("nowhere", path("link")).unwrap();
    refused(&["secrets/link"]);
    fs::remove_file(path("link")).unwrap();
    std::os::unix::fs::symlink(".", path("loop")).unwrap();
    refused(&["secrets", "does a link in it lead back?"]);
    fs::remove_file(path("loop")).unwrap();
    // the configuration must not have one by another name
    std::os::unix::fs::symlink("secrets/db/password", lab.path("fleet/hosts/web/password")).unwrap();
    refused(&["hosts/web/password is a link to", "a secret", "/run/bento/secrets"]);
    fs::remove_file(lab.path("fleet/hosts/web/password")).unwrap();
    let settings = lab.read("fleet/bento.toml");
    lab.write("fleet/bento.toml", settings.split("[hosts.web]").next().unwrap());
    refused(&["web: failed", "ssh_host_ed25519_key.pub", "[hosts.web]"]);
    lab.write("fleet/bento.toml", &settings);
    lab.bento(&["deploy"]).succeeds();
    // a manifest that would write elsewhere, although the administrator signed it
    for wrong in ["../password", "/etc/password", "a//b", "db/password/more"] {
        lab.republish("web", |manifest| {
            let mut more = manifest["secrets"][0].clone();
            more["path"] = wrong.into();
            let secrets = manifest["secrets"].as_array_mut().unwrap();
            secrets.truncate(1);
            secrets.push(more);
        });
        lab.agent("web").fails_with(&["the manifest", wrong.trim_end_matches("/more")]);
    }
    assert!(lab.activations("web").is_empty());
    assert!(!Path::new("/etc/password").exists());
}
