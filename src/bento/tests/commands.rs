//! The commands around a fleet: beginning one, holding hosts, taking them off, reading logs, keys, the manual.

// a test may unwrap: that is how it fails
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};

use common::{Lab, fingerprint};
use tempfile::TempDir;

/// Runs the program in a fleet's directory, as somebody with this home.
fn bento(fleet: &Path, home: &Path, arguments: &[&str]) -> (bool, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_bento"))
        .args(arguments)
        .env("BENTO_DIR", fleet)
        .env("HOME", home)
        .env_remove("NAME")
        .env_remove("NIX_PATH")
        .output()
        .unwrap();
    (output.status.success(), String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
}

/// A home with a key of the usual name; gives its public half too.
fn home() -> (TempDir, String) {
    let home = tempfile::tempdir().unwrap();
    fs::create_dir(home.path().join(".ssh")).unwrap();
    let key = home.path().join(".ssh/id_ed25519");
    let made = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key).status().unwrap();
    assert!(made.success());
    let public = fs::read_to_string(key.with_extension("pub")).unwrap().trim().to_owned();
    (home, public)
}

/// All files and links below a directory, relative to it.
fn files(dir: &Path) -> Vec<String> {
    let lines = fingerprint(dir);
    let prefix = format!("{}/", dir.display());
    let mut names: Vec<String> = lines
        .iter()
        .map(|line| line.split(' ').next().unwrap().trim_start_matches(&prefix).to_owned())
        .filter(|name| !dir.join(name).is_dir() || dir.join(name).is_symlink())
        .collect();
    names.sort();
    names
}

/// The fixture distribution, in nixpkgs' place.
fn fixture() -> String {
    format!(
        "nixpkgs={}",
        fs::canonicalize(concat!(env!("CARGO_MANIFEST_DIR"), "/../../checks/fixture")).unwrap().display()
    )
}

#[test]
fn a_fleet_is_begun_from_nothing_and_can_be_deployed() {
    let (home, key) = home();
    let fleet = tempfile::tempdir().unwrap();
    let (ok, said, _) = bento(fleet.path(), home.path(), &["init"]);
    assert!(ok && said.contains("created config.sh") && said.contains("What is next:"), "{said}");
    assert_eq!(
        files(fleet.path()),
        [
            "config.sh",
            "hosts/example/configuration.nix",
            "hosts/example/utils",
            "utils/agent.nix",
            "utils/bento.nix",
            "utils/bootstrap.sh",
            "utils/fleet.nix",
            "utils/hub.nix"
        ]
    );
    let host = fs::read_to_string(fleet.path().join("utils/bento.nix")).unwrap();
    assert!(host.contains(&format!("signers = [ \"{key}\" ]")), "{host}");
    let settings = fs::read_to_string(fleet.path().join("config.sh")).unwrap();
    assert!(settings.contains(&format!("SIGNING_KEY='{}'", home.path().join(".ssh/id_ed25519.pub").display())));
    // what it says is sound, and the example evaluates
    assert!(bento(fleet.path(), home.path(), &["config", "check"]).0);
    let private = home.path().join(".ssh/id_ed25519");
    let chroot = fleet.path().join("chroot");
    let settings = settings.replace("/home/chroot", chroot.to_str().unwrap()).replace("id_ed25519.pub", "id_ed25519");
    fs::write(fleet.path().join("config.sh"), settings).unwrap();
    assert!(private.exists());
    // without the hub's key the host would talk to nobody: its own module says so
    let host = host.lines().map(|line| match line.trim_start().starts_with("hostKeys") {
        true => format!("hostKeys = [ \"{key}\" ];"),
        false => line.to_owned(),
    });
    fs::write(fleet.path().join("utils/bento.nix"), host.collect::<Vec<_>>().join("\n")).unwrap();
    let (ok, _, said) = bento(fleet.path(), home.path(), &["deploy", "--no-build", "-I", &fixture()]);
    assert!(ok && said.contains("example: published release 1"), "{said}");
}

#[test]
fn a_fleet_is_begun_around_what_is_there() {
    let (home, _) = home();
    let fleet = tempfile::tempdir().unwrap();
    for (file, text) in [("hosts/web/configuration.nix", "{ }"), ("utils/bento.nix", "mine"), ("config.sh", "# mine")] {
        let file = fleet.path().join(file);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
    }
    let before = fingerprint(&fleet.path().join("hosts"));
    let (ok, said, _) = bento(fleet.path(), home.path(), &["init"]);
    assert!(ok && said.contains("kept    utils/bento.nix, which was there"), "{said}");
    assert_eq!(fs::read_to_string(fleet.path().join("utils/bento.nix")).unwrap(), "mine");
    assert_eq!(fs::read_to_string(fleet.path().join("config.sh")).unwrap(), "# mine");
    // hosts are there, so there is no example
    assert_eq!(fingerprint(&fleet.path().join("hosts")), before);
    assert!(fleet.path().join("utils/agent.nix").exists());
    // again, and nothing changes at all
    let before = fingerprint(fleet.path());
    assert!(bento(fleet.path(), home.path(), &["init"]).0);
    assert_eq!(fingerprint(fleet.path()), before);
    // a link that leads nowhere is there too
    let other = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink("/nonexistent/config.sh", other.path().join("config.sh")).unwrap();
    let (ok, said, _) = bento(other.path(), home.path(), &["init", "--flake"]);
    assert!(ok && said.contains("kept    config.sh"), "{said}");
    assert!(!Path::new("/nonexistent").exists());
}

#[test]
fn a_fleet_of_one_flake_is_begun() {
    let empty = tempfile::tempdir().unwrap();
    let fleet = tempfile::tempdir().unwrap();
    let (ok, said, _) = bento(fleet.path(), empty.path(), &["init", "--flake"]);
    // nobody to sign: that is the next step
    assert!(ok && said.contains("created flake.nix") && said.contains("make a key to sign with"), "{said}");
    assert!(fs::read_to_string(fleet.path().join("utils/bento.nix")).unwrap().contains("signers = [ ]"));
    assert!(!fleet.path().join("hosts/example/utils").exists());
    let nix = fs::read_to_string(fleet.path().join("hosts/example/configuration.nix")).unwrap();
    assert!(nix.contains("../../utils/bento.nix"), "{nix}");
}

#[test]
fn a_plan_says_what_changes_and_why() {
    let Some(lab) = Lab::new() else { return };
    lab.flake_host("web", "");
    lab.flake_host("db", "");
    let plan = || lab.bento(&["deploy", "--dry-run"]).succeeds().stderr;
    assert!(plan().contains("there is no release yet"), "{}", plan());
    lab.bento(&["deploy"]).succeeds();
    let old = lab.manifest("web")["toplevel"].as_str().unwrap().to_owned();
    lab.flake_host("web", "text = \"new\";");
    lab.write("fleet/hosts/web/README", "about this host");
    lab.write("fleet/hosts/web/REBOOT", "");
    let said = plan();
    for words in [
        "web: would publish release 2: /nix/store/",
        &format!("\n    another system than {old}\n"),
        "\n    README added, REBOOT added, flake.nix changed\n",
        "\n    another policy\n",
        "db: unchanged, release 1",
    ] {
        assert!(said.contains(words), "{words:?} in {said}");
    }
    fs::write(lab.path("chroot/db/releases/1/flake.nix"), "damaged").unwrap();
    fs::remove_file(lab.path("chroot/db/releases/1.sig")).unwrap();
    let said = plan();
    assert!(said.contains("files are damaged") && said.contains("not signed with this key"), "{said}");
    let ran = lab.bento(&["deploy", "--dry-run", "--json", "web"]).succeeds();
    let lines: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!((&lines[0]["outcome"], lines[0]["why"].as_array().unwrap().len()), (&"would-publish".into(), 3));
}

#[test]
fn held_hosts_get_nothing_new_until_they_are_released() {
    let Some(lab) = Lab::new() else { return };
    lab.flake_host("web", "text = \"one\";");
    lab.flake_host("db", "text = \"one\";");
    lab.bento(&["deploy"]).succeeds();
    lab.agent("web").succeeds();
    lab.bento(&["hold", "web", "--reason", "an audit"]).succeeds();
    assert_eq!(lab.state("web"), "held");
    for host in ["web", "db"] {
        lab.flake_host(host, "text = \"two\";");
    }
    let before = fingerprint(&lab.path("chroot/web"));
    let ran = lab.bento(&["deploy"]).succeeds();
    assert!(ran.stderr.contains("web: held, since 20") && ran.stderr.contains(": an audit"), "{}", ran.stderr);
    assert_eq!(fingerprint(&lab.path("chroot/web")), before);
    assert_eq!(lab.manifest("db")["serial"], 2);
    lab.bento(&["release", "web"]).succeeds();
    lab.bento(&["deploy"]).succeeds();
    assert_eq!(lab.manifest("web")["serial"], 2);
    assert_eq!(lab.state("web"), "rebuild-pending");
    lab.bento(&["release", "web"]).fails_with(&["web is not held"]);
    lab.bento(&["hold", "attic"]).fails_with(&["the hub has no host attic"]);
}

#[test]
fn hosts_that_are_gone_are_taken_off_the_hub() {
    let Some(lab) = Lab::new() else { return };
    for host in ["web", "db"] {
        lab.flake_host(host, "");
    }
    lab.bento(&["deploy"]).succeeds();
    lab.bento(&["hold", "db"]).succeeds();
    assert!(lab.bento(&["prune"]).succeeds().stdout.contains("every host on the hub belongs to the fleet"));
    fs::remove_dir_all(lab.path("fleet/hosts/db")).unwrap();
    let before = fingerprint(&lab.path("chroot"));
    assert!(lab.bento(&["prune", "--dry-run"]).succeeds().stdout.contains("would remove db"));
    lab.bento(&["prune"]).fails_with(&["remove db from", "nothing was removed"]);
    assert_eq!(fingerprint(&lab.path("chroot")), before);
    // a flake that can't be read may have the host
    lab.write("fleet/hosts/attic/flake.nix", "{");
    lab.bento(&["prune", "--yes"]).fails_with(&["hosts/attic", "nobody knows which hosts are gone"]);
    assert!(lab.path("chroot/db").exists());
    fs::remove_dir_all(lab.path("fleet/hosts/attic")).unwrap();
    assert!(lab.bento(&["prune", "--yes"]).succeeds().stdout.contains("removed db"));
    assert!(!lab.path("chroot/db").exists() && lab.path("chroot/web").exists());
    let all = lab.bento(&["status", "--json"]).succeeds().stdout;
    assert!(!all.contains("\"db\""), "{all}");
}

#[test]
fn logs_are_shown_listed_and_followed() {
    let Some(lab) = Lab::new() else { return };
    lab.flake_host("web", "build = \"echo the first fails; false\";");
    lab.bento(&["deploy"]).succeeds();
    lab.bento(&["log", "web"]).fails_with(&["web has left no log"]);
    lab.agent("web").fails_with(&["the build failed"]);
    lab.flake_host("web", "");
    lab.bento(&["deploy"]).succeeds();
    lab.agent("web").succeeds();
    let last = lab.bento(&["log", "web"]).succeeds().stdout;
    assert!(last.contains("switching (test)") && !last.contains("the first fails"), "{last}");
    let failure = lab.bento(&["log", "web", "--failure"]).succeeds().stdout;
    assert!(failure.contains("the first fails"), "{failure}");
    let list = lab.bento(&["log", "web", "--list"]).succeeds().stdout;
    let lines: Vec<&str> = list.lines().collect();
    assert!(
        lines.len() == 2 && lines[0].ends_with("_failure.log.gz") && lines[1].ends_with("_success.log.gz"),
        "{list}"
    );
    lab.bento(&["log", "attic"]).fails_with(&["the hub has no host attic"]);
    // what arrives while somebody looks
    let mut follow = lab.command(&["log", "web", "--follow"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut shown = String::new();
    let mut pipe = follow.stdout.take().unwrap();
    let mut read_until = |text: &str| {
        let mut buffer = [0; 4096];
        while !shown.contains(text) {
            let count = pipe.read(&mut buffer).unwrap();
            assert!(count > 0, "no {text:?} in {shown}");
            shown += &String::from_utf8_lossy(&buffer[..count]);
        }
    };
    read_until("switching (test)");
    lab.flake_host("web", "text = \"new\"; onTest = \"echo a new thing happens\";");
    lab.bento(&["deploy"]).succeeds();
    lab.agent("web").succeeds();
    read_until("a new thing happens");
    follow.kill().unwrap();
    follow.wait().unwrap();
    // a host may not steer the administrator's terminal, nor fill it
    let hostile = "\u{1b}]0;owned\u{7}\u{1b}[2Jharmless\r\n";
    let name = "29991231-2359_00000000000000000000000000000000-x_success.log.gz";
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    std::io::Write::write_all(&mut gz, hostile.as_bytes()).unwrap();
    let file = lab.path(&format!("chroot/web/logs/{name}"));
    fs::write(&file, gz.finish().unwrap()).unwrap();
    assert_eq!(lab.bento(&["log", "web"]).succeeds().stdout, "]0;owned[2Jharmless\n");
    fs::write(&file, "not packed").unwrap();
    lab.bento(&["log", "web"]).fails_with(&["is damaged"]);
}

#[test]
fn what_the_hub_serves_is_compared_with_what_nix_comes_to() {
    let Some(lab) = Lab::new() else { return };
    lab.flake_host("web", "");
    lab.non_flake("router", "");
    lab.bento(&["verify"]).fails_with(&["web: nothing was published", "router: nothing was published"]);
    lab.bento(&["deploy"]).succeeds();
    let said = lab.bento(&["verify"]).succeeds().stdout;
    assert!(said.contains("web: release 1 is /nix/store/") && said.contains("router: release 1 is"), "{said}");
    let verify = |words: &[&str]| lab.bento(&["verify", "web"]).fails_with(words);
    let sound = lab.read("chroot/web/releases/1/flake.nix");
    lab.write("chroot/web/releases/1/flake.nix", &format!("{sound} "));
    verify(&["web: the release's files are not those of its manifest"]);
    lab.write("chroot/web/releases/1/flake.nix", &sound);
    lab.tamper("web", |manifest| manifest["created"] = "2024-01-01T00:00:00Z".into());
    verify(&["web: the manifest", "changed after it was signed"]);
    lab.republish("web", |manifest| {
        manifest["toplevel"] = "/nix/store/00000000000000000000000000000000-nixos-system-web".into();
    });
    verify(&["release 1 is /nix/store/0000", "but C++ Nix comes to /nix/store/"]);
    lab.flake_host("web", "text = \"new\";");
    verify(&["were changed since release 1: deploy"]);
}

#[test]
fn keys_are_shown() {
    let Some(lab) = Lab::new() else { return };
    let key = lab.read("keys/admin.pub");
    assert!(lab.bento(&["keys"]).succeeds().stdout.contains(key.trim()));
    let line = lab.bento(&["keys", "--allowed-signers"]).succeeds().stdout;
    assert_eq!(line, format!("bento namespaces=\"bento-release\" {key}"));
    let host = lab.read("keys/web.pub");
    fs::remove_file(lab.path("fleet/config.sh")).unwrap();
    let settings = |key: &str| format!("[hub]\ndirectory = \"/c\"\n[hosts.web]\nkeys = [\"{key}\"]\n");
    lab.write("fleet/bento.toml", &settings(host.trim()));
    let said = lab.bento(&["keys"]).succeeds().stdout;
    assert!(said.contains("releases are not signed") && said.contains(&format!("web\n    {}", host.trim())), "{said}");
    lab.bento(&["keys", "--allowed-signers"]).fails_with(&["set SIGNING_KEY"]);
    lab.write("fleet/bento.toml", &settings("ssh-ed25519 nonsense"));
    lab.bento(&["keys"]).fails_with(&["bento.toml", "the keys of web", "no public key"]);
}

#[test]
fn completions_and_the_manual_come_from_the_command_line_itself() {
    let (fleet, home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let run = |arguments: &[&str]| bento(fleet.path(), home.path(), arguments);
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let (ok, text, _) = run(&["completions", shell]);
        assert!(ok && text.contains("flake") | text.contains("deploy"), "{shell}");
    }
    let (_, script, _) = run(&["completions", "bash"]);
    let script =
        format!("{script}\nCOMP_WORDS=(bento de); COMP_CWORD=1; _bento bento de bento; echo \"${{COMPREPLY[@]}}\"");
    let output = Command::new("bash").args(["-c", &script]).output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap().trim(), "deploy");
    let dir = home.path().join("share/man/man1");
    assert!(run(&["man", dir.to_str().unwrap()]).0);
    for page in ["bento.1", "bento-deploy.1", "bento-agent-run.1", "bento-config-check.1"] {
        assert!(fs::read_to_string(dir.join(page)).unwrap().starts_with(".ie"), "{page}");
    }
}
