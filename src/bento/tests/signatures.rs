//! Signed releases: who may say what a host runs, and everything that a host refuses.

// a test may unwrap: that is how it fails
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use bento::manifest::{Manifest, Policy};
use bento::secrets::{Access, Secret};
use bento::sign::{NAMESPACE, Signer, allowed_signers_line, verify};
use common::Lab;
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use tempfile::TempDir;

/// A key pair, as `ssh-keygen` makes it; gives the private key's file.
fn key(dir: &TempDir, kind: &str, passphrase: &str) -> std::path::PathBuf {
    let file = dir.path().join(kind);
    let made = Command::new("ssh-keygen")
        .args(["-q", "-t", kind, "-N", passphrase, "-C", "admin@example.org", "-f"])
        .arg(&file)
        .status()
        .unwrap();
    assert!(made.success());
    file
}

/// An ssh agent that holds a key and ends with the test.
struct SshAgent {
    process: Child,
    dir: TempDir,
}

impl SshAgent {
    fn with(key: &Path) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("socket");
        let process = Command::new("ssh-agent").arg("-D").arg("-a").arg(&socket).stdout(Stdio::null()).spawn().unwrap();
        let agent = Self { process, dir };
        let start = std::time::Instant::now();
        // its socket is there before it listens
        let add = || Command::new("ssh-add").arg("-q").arg(key).env("SSH_AUTH_SOCK", agent.socket()).status().unwrap();
        while !add().success() {
            assert!(start.elapsed().as_secs() < 20);
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        agent
    }

    fn socket(&self) -> std::path::PathBuf {
        self.dir.path().join("socket")
    }
}

impl Drop for SshAgent {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Whether the real `ssh-keygen` accepts a signature of a message by the signer's key.
fn ssh_keygen_accepts(signer: &Signer, message: &[u8], signature: &str) -> bool {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &[u8]| {
        let file = dir.path().join(name);
        fs::write(&file, content).unwrap();
        file
    };
    Command::new("ssh-keygen")
        .args(["-Y", "verify", "-I", "bento", "-n", NAMESPACE, "-f"])
        .arg(file("allowed_signers", allowed_signers_line(signer.public_key()).unwrap().as_bytes()))
        .arg("-s")
        .arg(file("signature", signature.as_bytes()))
        .stdin(fs::File::open(file("message", message)).unwrap())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap()
        .success()
}

#[test]
fn ssh_keygen_accepts_what_a_key_in_a_file_signs() {
    for kind in ["ed25519", "ecdsa"] {
        let dir = tempfile::tempdir().unwrap();
        let signer = Signer::open(&key(&dir, kind, ""), None).unwrap();
        let signature = signer.sign(b"a manifest").unwrap();
        assert!(ssh_keygen_accepts(&signer, b"a manifest", &signature), "{kind}");
        assert!(!ssh_keygen_accepts(&signer, b"another", &signature), "{kind}");
        verify(b"a manifest", signature.as_bytes(), &[signer.public_key().into()]).unwrap();
    }
}

#[test]
fn ssh_keygen_accepts_what_a_key_in_an_agent_signs() {
    for kind in ["ed25519", "ecdsa", "rsa"] {
        let dir = tempfile::tempdir().unwrap();
        let private = key(&dir, kind, "open sesame");
        // the agent is given the key without its passphrase, as `ssh-add` does once it has asked for that
        let open = dir.path().join("open");
        fs::copy(&private, &open).unwrap();
        let opened =
            Command::new("ssh-keygen").args(["-q", "-p", "-P", "open sesame", "-N", "", "-f"]).arg(&open).status();
        assert!(opened.unwrap().success());
        let agent = SshAgent::with(&open);
        for file in [private.clone(), private.with_extension("pub")] {
            let signer = Signer::open(&file, Some(&agent.socket())).unwrap();
            let signature = signer.sign(b"a manifest").unwrap();
            assert!(ssh_keygen_accepts(&signer, b"a manifest", &signature), "{kind}");
            verify(b"a manifest", signature.as_bytes(), &[signer.public_key().into()]).unwrap();
        }
    }
}

#[test]
fn a_key_that_cannot_be_used_is_said_with_the_way_out() {
    let dir = tempfile::tempdir().unwrap();
    let with_passphrase = key(&dir, "ed25519", "open sesame");
    let refused = |key: &Path, agent: Option<&Path>| format!("{:#}", Signer::open(key, agent).unwrap_err());
    let said = refused(&with_passphrase, None);
    assert!(said.contains("SSH_AUTH_SOCK is not set") && said.contains("ssh-add"), "{said}");
    let said = refused(&with_passphrase, Some(Path::new("/nonexistent")));
    assert!(said.contains("cannot talk to the ssh agent at /nonexistent"), "{said}");
    let agent = SshAgent::with(&key(&dir, "ecdsa", ""));
    let said = refused(&with_passphrase, Some(&agent.socket()));
    assert!(said.contains("does not hold SHA256:") && said.contains("ssh-add"), "{said}");
    let nonsense = dir.path().join("nonsense");
    fs::write(&nonsense, "not a key").unwrap();
    assert!(refused(&nonsense, None).contains("neither an OpenSSH private key nor a public one"));
    assert!(refused(&dir.path().join("missing"), None).contains("cannot read the signing key"));
}

/// A host `web` with two releases, of which it runs the second; and a host `db`.
fn lab() -> Option<Lab> {
    let lab = Lab::new()?;
    lab.flake_host("db", "");
    for text in ["one", "two"] {
        lab.flake_host("web", &format!("text = \"{text}\";"));
        lab.bento(&["deploy"]).succeeds();
        lab.agent("web").succeeds();
    }
    Some(lab)
}

#[test]
fn what_is_published_is_signed_so_that_ssh_keygen_accepts_it() {
    let Some(lab) = lab() else { return };
    let signer = Signer::open(&lab.path("keys/admin"), None).unwrap();
    let signature = lab.read("chroot/web/manifest.json.sig");
    assert_eq!(signature, lab.read("chroot/web/releases/2.sig"));
    assert!(ssh_keygen_accepts(&signer, lab.read("chroot/web/manifest.json").as_bytes(), &signature));
    // publishing the same again makes no new signature; signing with another key makes a new release
    let before = common::fingerprint(&lab.path("chroot/web"));
    lab.bento(&["deploy"]).succeeds();
    assert_eq!(common::fingerprint(&lab.path("chroot/web")), before);
    lab.bento(&["deploy", "web", "--signing-key", lab.path("keys/web2").to_str().unwrap()]).succeeds();
    assert_eq!(lab.manifest("web")["serial"], 3);
    lab.agent("web").fails_with(&["signed by", "none of the keys"]);
}

/// A manifest that has something in each of its fields: the compiler sees to it that none is forgotten.
fn full_manifest(lab: &Lab) -> Manifest {
    let current = Manifest::parse(lab.read("chroot/web/manifest.json").as_bytes()).unwrap();
    let Manifest { schema, serial, created, host, mode, kind, toplevel, drv_path, files, .. } = current;
    Manifest {
        schema,
        serial,
        created,
        expires: Some(Timestamp::now().checked_add(SignedDuration::from_hours(1)).unwrap()),
        host,
        mode,
        kind,
        toplevel,
        drv_path,
        search_path: vec!["nixpkgs=channel:nixos-26.11".to_owned()],
        substituters: vec!["https://cache.example.org".to_owned()],
        trusted_public_keys: vec!["cache.example.org:AAAA".to_owned()],
        policy: Policy { reboot: false, self_update: false },
        secrets: vec![Secret {
            path: "password".to_owned(),
            access: Access::default(),
            size: 100,
            blake3: "0".repeat(64),
            digest: "1".repeat(64),
        }],
        files,
    }
}

/// The places of all values in a JSON text, those of lists and tables too.
fn places(value: &Value, at: &str, found: &mut Vec<String>) {
    found.push(at.to_owned());
    match value {
        Value::Object(object) => object.iter().for_each(|(key, inner)| places(inner, &format!("{at}/{key}"), found)),
        Value::Array(array) => {
            array.iter().enumerate().for_each(|(index, inner)| places(inner, &format!("{at}/{index}"), found));
        }
        _ => {}
    }
}

#[test]
fn a_manifest_that_was_changed_in_any_field_is_refused() {
    let Some(lab) = lab() else { return };
    let (current, running) = (lab.read("chroot/web/manifest.json"), lab.running("web"));
    let manifest = Manifest { serial: 3, ..full_manifest(&lab) };
    let full = serde_json::to_value(&manifest).unwrap();
    let sound = String::from_utf8(manifest.to_json().unwrap()).unwrap();
    lab.write("chroot/web/manifest.json", &sound);
    lab.sign("web", "keys/admin", "bento-release");
    let signature = fs::read(lab.path("chroot/web/releases/3.sig")).unwrap();
    // beside every serial that may be claimed: it is not enough that there is a signature
    for serial in [2, 4] {
        fs::write(lab.path(&format!("chroot/web/releases/{serial}.sig")), &signature).unwrap();
    }
    std::os::unix::fs::chown(lab.path("chroot/web/releases/4.sig"), None, Some(61000)).unwrap();
    let mut found = Vec::new();
    places(&full, "", &mut found);
    assert!(found.iter().any(|at| at == "/secrets/0/access/mode") && found.len() > 35, "{found:?}");
    for at in found {
        let mut changed = full.clone();
        let value = changed.pointer_mut(&at).unwrap();
        *value = match &*value {
            Value::Number(number) => (number.as_u64().unwrap() + 1).into(),
            Value::String(text) => format!("{text}x").into(),
            Value::Bool(value) => (!value).into(),
            Value::Array(_) => serde_json::json!([]),
            Value::Object(object) => {
                let mut object = object.clone();
                object.insert("surprise".to_owned(), true.into());
                object.into()
            }
            Value::Null => panic!("{at} has nothing in it"),
        };
        lab.write("chroot/web/manifest.json", &changed.to_string());
        lab.agent("web").fails_with(&["the manifest is refused", "it was changed after it was signed"]);
        assert_eq!(lab.running("web"), running, "{at}");
    }
    // a byte that changes no field
    lab.write("chroot/web/manifest.json", &format!("{sound} "));
    lab.agent("web").fails_with(&["it was changed after it was signed"]);
    // and as it was signed, it is believed: only its files are not there
    lab.write("chroot/web/manifest.json", &sound);
    lab.agent("web").fails_with(&["cannot fetch release 3"]);
    assert_eq!(lab.activations("web").len(), 4);
    // what was seen can't be taken back
    lab.write("chroot/web/manifest.json", &current);
    lab.sign("web", "keys/admin", "bento-release");
    lab.agent("web").fails_with(&["serial 2, but 3 was already seen"]);
}

#[test]
fn a_release_that_is_replayed_or_another_hosts_is_refused() {
    let Some(lab) = lab() else { return };
    // an old one of this host, with its own good signature, which was kept from then
    lab.republish("web", |manifest| manifest["serial"] = 1.into());
    lab.agent("web").fails_with(&["serial 1, but 2 was already seen", "old release"]);
    // the current one of another host
    fs::copy(lab.path("chroot/db/manifest.json"), lab.path("chroot/web/manifest.json")).unwrap();
    fs::copy(lab.path("chroot/db/releases/1.sig"), lab.path("chroot/web/releases/1.sig")).unwrap();
    lab.agent("web").fails_with(&["for the host db, but this is web"]);
    // one that was good until yesterday
    lab.bento(&["deploy", "web"]).succeeds();
    lab.republish("web", |manifest| {
        manifest["serial"] = 3.into();
        manifest["expires"] = "2024-01-01T00:00:00Z".into();
    });
    lab.agent("web").fails_with(&["release 3 expired at 2024-01-01", "publish again"]);
    assert_eq!(lab.activations("web").len(), 4);
}

#[test]
fn a_signature_that_is_missing_cut_or_for_something_else_is_refused() {
    let Some(lab) = lab() else { return };
    let signature = lab.path("chroot/web/releases/2.sig");
    let sound = fs::read(&signature).unwrap();
    fs::remove_file(&signature).unwrap();
    lab.agent("web").fails_with(&["the manifest is not signed", "releases/2.sig"]);
    for length in [0, 1, 60, sound.len() / 2, sound.len() - 30] {
        fs::write(&signature, &sound[..length]).unwrap();
        lab.agent("web").fails_with(&["the signature is not one"]);
    }
    fs::write(&signature, vec![b'A'; 1 << 20]).unwrap();
    lab.agent("web").fails_with(&["releases/2.sig on the hub is larger than 16384 bytes"]);
    lab.sign("web", "keys/web", "bento-release");
    lab.agent("web").fails_with(&["signed by SHA256:", "none of the keys that are trusted"]);
    lab.sign("web", "keys/admin", "file");
    lab.agent("web").fails_with(&["made for \"file\""]);
    lab.sign("web", "keys/admin", "bento-release");
    lab.agent("web").succeeds();
}

#[test]
fn a_manifest_that_is_cut_or_huge_is_refused() {
    let Some(lab) = lab() else { return };
    let sound = lab.read("chroot/web/manifest.json");
    for length in [0, 1, sound.len() / 2, sound.len() - 3] {
        lab.write("chroot/web/manifest.json", &sound[..length]);
        lab.agent("web").fails_with(&["the manifest is not one"]);
    }
    let file = fs::File::create(lab.path("chroot/web/manifest.json")).unwrap();
    file.set_len(64 << 30).unwrap();
    lab.agent("web").fails_with(&["manifest.json on the hub is larger than 33554432 bytes"]);
    // as large as it may be, and signed, but with nothing in it
    let nothing = format!("{{\"serial\": 2, \"x\": \"{}\"}}", "x".repeat(31 << 20));
    lab.write("chroot/web/manifest.json", &nothing);
    lab.sign("web", "keys/admin", "bento-release");
    lab.agent("web").fails_with(&["the manifest is not one"]);
    assert_eq!(lab.activations("web").len(), 4);
}

#[test]
fn a_hub_without_the_key_cannot_make_a_release() {
    let Some(lab) = lab() else { return };
    // whoever has the hub publishes with bento itself, but has no key
    let settings = lab.read("fleet/config.sh");
    lab.write("fleet/config.sh", &settings.replace("SIGNING_KEY=", "# "));
    lab.flake_host("web", "text = \"evil\";");
    let ran = lab.bento(&["deploy", "web"]).succeeds();
    assert!(ran.stderr.contains("the releases are not signed"), "{}", ran.stderr);
    lab.agent("web").fails_with(&["the manifest is not signed"]);
    assert_eq!(lab.activations("web").len(), 4);
    // a host that was told to do without takes it up
    let config = lab.read("hosts/web/agent.toml");
    let signers = config.lines().find(|line| line.starts_with("signers")).unwrap();
    lab.write("hosts/web/agent.toml", &config.replace(signers, "unsigned-releases = true"));
    lab.agent("web").succeeds();
}

#[test]
fn a_key_in_an_agent_signs_releases_that_hosts_take_up() {
    let Some(lab) = lab() else { return };
    let agent = SshAgent::with(&lab.path("keys/admin"));
    fs::rename(lab.path("keys/admin"), lab.path("keys/away")).unwrap();
    let settings = lab.read("fleet/config.sh");
    lab.write("fleet/config.sh", &settings.replace("keys/admin", "keys/admin.pub"));
    lab.flake_host("web", "text = \"three\";");
    let deployed = lab.command(&["deploy"]).env("SSH_AUTH_SOCK", agent.socket()).status().unwrap();
    assert!(deployed.success());
    lab.agent("web").succeeds();
    assert_eq!(lab.manifest("web")["serial"], 3);
    // without the agent nothing is published at all, but a plan needs no signature
    lab.flake_host("web", "text = \"four\";");
    let plan = lab.bento(&["deploy", "--dry-run", "web"]).succeeds();
    assert!(plan.stderr.contains("web: would publish release 4"), "{}", plan.stderr);
    lab.bento(&["deploy"]).fails_with(&["used through an ssh agent", "SSH_AUTH_SOCK is not set"]);
    assert_eq!(lab.manifest("web")["serial"], 3);
    // nor is there need of one where the private key lies beside the public one, as `ssh-keygen` leaves them
    fs::rename(lab.path("keys/away"), lab.path("keys/admin")).unwrap();
    lab.bento(&["deploy", "web"]).succeeds();
    assert_eq!(lab.manifest("web")["serial"], 4);
    lab.agent("web").succeeds();
}

#[test]
fn in_closure_mode_a_host_fetches_its_system_and_evaluates_nothing() {
    let Some(lab) = Lab::new() else { return };
    lab.non_flake("router", &format!("text = \"closure {}\";", lab.port));
    lab.write("fleet/hosts/router/REBOOT", "");
    let deploy = ["deploy", "--mode", "closure"];
    lab.bento(&deploy).succeeds();
    let manifest = lab.manifest("router");
    assert_eq!((&manifest["mode"], &manifest["files"]), (&"closure".into(), &serde_json::json!([])));
    assert_eq!(manifest["policy"]["reboot"], true);
    assert_eq!(lab.names("chroot/router/releases/1").len(), 0);
    // nobody has built it yet
    lab.agent("router").fails_with(&["could not be fetched", "binary cache"]);
    assert_eq!(lab.state("router"), "failing");
    // the host that is to build it is elsewhere: it leaves the system in a cache, and it is gone from here
    let toplevel = manifest["toplevel"].as_str().unwrap();
    let cache = lab.path("cache");
    let script = format!(
        "set -e; nix-store --generate-binary-cache-key cache.example.org {key} {key}.pub
         nix-build --no-out-link '<nixpkgs/nixos>' --arg configuration {fleet}/hosts/router/configuration.nix \
           -A config.system.build.toplevel
         nix --extra-experimental-features nix-command copy --to 'file://{cache}?secret-key={key}' {toplevel}
         nix-store --delete {toplevel}",
        key = lab.path("cache.key").display(),
        fleet = lab.path("fleet").display(),
        cache = cache.display(),
    );
    lab.shell(&script).succeeds();
    let toml = format!(
        "[hub]\ndirectory = \"{}\"\n[release]\nsigning-key = \"../keys/admin\"\nmode = \"closure\"\n\
         substituters = [\"file://{}\"]\ntrusted-public-keys = [\"{}\"]\n[build]\nlocal = false\n",
        lab.path("chroot").display(),
        cache.display(),
        lab.read("cache.key.pub"),
    );
    fs::remove_file(lab.path("fleet/config.sh")).unwrap();
    lab.write("fleet/bento.toml", &toml);
    lab.bento(&["deploy"]).succeeds();
    assert_eq!(lab.manifest("router")["serial"], 2);
    lab.agent("router").succeeds();
    assert_eq!(lab.running("router").unwrap(), toplevel);
    assert_eq!(lab.state("router"), "up-to-date");
    // what it can't do is said when it is asked for
    lab.write("fleet/hosts/router/SELF_UPDATE", "");
    lab.bento(&["deploy"]).fails_with(&["router: failed", "SELF_UPDATE", "source mode"]);
    assert_eq!(lab.manifest("router")["serial"], 2);
}
