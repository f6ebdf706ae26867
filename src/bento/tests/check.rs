//! `bento check`: what is wrong with hosts before anything is deployed or installed.

// a test may unwrap: that is how it fails
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::Path;

use bento::provision::outline::{Firmware, Outline};
use common::{Lab, Ran};
use serde_json::{Value, json};

const FIXTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../checks/fixture");
const DISKO: &str = include_str!("disko/module.nix");

/// A disk with a partition to boot from and one for the rest, at a device.
const DISK: &str = r#"disko.devices.disk.main = { type = "disk"; device = "/dev/disk/by-id/ata-ONE"; content = { type = "gpt"; partitions = {
    ESP = { size = "512M"; type = "EF00"; content = { type = "filesystem"; format = "vfat"; mountpoint = "/boot"; }; };
    root = { size = "100%"; content = { type = "filesystem"; format = "ext4"; mountpoint = "/"; }; };
}; }; };"#;

/// Writes a host on the fixture distribution, with disko's stand-in and these lines.
fn host(lab: &Lab, name: &str, lines: &str) {
    lab.write(&format!("fleet/hosts/{name}/disko.nix"), DISKO);
    let loader = if lines.contains("systemd-boot") { "" } else { "boot.loader.systemd-boot.enable = true;" };
    let text = format!(
        "{{ lib, pkgs, ... }}: {{ imports = [ ./disko.nix ]; networking.hostName = \"{name}\"; {loader}\n{lines}\n}}\n"
    );
    lab.write(&format!("fleet/hosts/{name}/configuration.nix"), &text);
}

/// Runs the command on the fixture distribution.
fn check(lab: &Lab, arguments: &[&str]) -> Ran {
    let fixture = fs::canonicalize(FIXTURE).unwrap();
    let nixpkgs = format!("nixpkgs={}", fixture.display());
    lab.bento(&[&["check", "-I", &nixpkgs], arguments].concat())
}

/// What is found of one host.
#[track_caller]
fn finding(lab: &Lab, name: &str, arguments: &[&str]) -> Value {
    let ran = check(lab, &[&["--json", name], arguments].concat());
    let found: Value = serde_json::from_str(&ran.stdout).unwrap_or_else(|_| panic!("{ran:?}"));
    let bad = |key: &str| found[0][key].as_array().is_some_and(|said| !said.is_empty());
    let needed = found[0]["error"].is_string() || bad("assertions") || bad("layout");
    if arguments.contains(&"--no-build") {
        assert_eq!(ran.ok, !needed, "{found}");
    }
    found[0].clone()
}

#[test]
fn a_sound_host_is_in_order_and_its_disko_script_is_built() {
    let Some(lab) = Lab::new() else { return };
    host(&lab, "web", DISK);
    let ran = check(&lab, &["web", "--no-vm-test"]).succeeds();
    let found =
        &serde_json::from_str::<Value>(&check(&lab, &["web", "--no-vm-test", "--json"]).succeeds().stdout).unwrap()[0];
    assert!(ran.stdout.starts_with("web: in order, /nix/store/"), "{}", ran.stdout);
    assert_eq!(found["disks"], json!([{ "name": "main", "device": "/dev/disk/by-id/ata-ONE" }]));
    let script = found["disko_script"]["built"].as_str().unwrap();
    let text = lab.shell(&format!("cat {script}")).succeeds().stdout;
    assert!(text.contains("would erase /dev/disk/by-id/ata-ONE"), "{text}");
    assert!(found.get("vm_test").is_none(), "{found}");
    // the test needs a virtual machine; where there can't be one, that is said and is no failure
    let found = finding(&lab, "web", &[]);
    match Path::new("/dev/kvm").exists() {
        true => assert!(found["vm_test"]["built"].as_str().unwrap().contains("vm-test-run-web-disko"), "{found}"),
        false => assert!(found["vm_test"]["not-here"].as_str().unwrap().contains("KVM"), "{found}"),
    }
    check(&lab, &["web"]).succeeds();
}

#[test]
fn assertions_and_warnings_are_listed_each() {
    let Some(lab) = Lab::new() else { return };
    let lines = r#"warnings = [ "old option" ]; assertions = [
        { assertion = 1 == 2; message = "one is not two"; }
        { assertion = throw "never"; message = "can't be worked out"; }
        { assertion = true; message = "fine"; }
    ];"#;
    host(&lab, "web", &format!("{DISK}{lines}"));
    host(&lab, "db", &format!("{DISK} warnings = [ \"old option\" ];"));
    let found = finding(&lab, "web", &["--no-build"]);
    assert_eq!(found["assertions"], json!(["one is not two", "can't be worked out"]));
    assert_eq!(found["warnings"], json!(["old option"]));
    assert!(found.get("error").is_none(), "{found}");
    // a warning is no failure
    let found = finding(&lab, "db", &["--no-build"]);
    assert_eq!((&found["warnings"], &found["assertions"]), (&json!(["old option"]), &json!([])));
    // what is wrong with one host is said with the others
    let ran = check(&lab, &["--no-build"]);
    let parts = [
        "db: in order, /nix/store/",
        "web: not in order\n",
        "    assertion: one is not two\n",
        "    warning: old option\n",
    ];
    assert!(!ran.ok && parts.iter().all(|part| ran.stdout.contains(part)), "{ran:?}");
}

#[test]
fn what_can_not_be_evaluated_names_the_file_and_the_place() {
    let Some(lab) = Lab::new() else { return };
    host(&lab, "web", "environment.etc.motd.text = 1 + \"x\";");
    host(&lab, "db", DISK);
    let ran = check(&lab, &["--no-build"]);
    assert!(!ran.ok && ran.stdout.contains("db: in order"), "{ran:?}");
    let place = format!("{}/hosts/web/configuration.nix:2", lab.path("fleet").display());
    assert!(ran.stdout.contains("web: not in order\n    error: ") && ran.stdout.contains(&place), "{}", ran.stdout);
}

#[test]
fn a_disko_script_that_can_not_be_built_fails() {
    let Some(lab) = Lab::new() else { return };
    let script = "system.build.diskoScript = lib.mkForce (pkgs.runCommand \"disko\" { } \"echo no luck; exit 3\");";
    host(&lab, "web", &format!("{DISK}{script}"));
    let ran = check(&lab, &["web", "--no-vm-test"]);
    assert!(!ran.ok && ran.stdout.contains("disko script: failed: ") && ran.stdout.contains("no luck"), "{ran:?}");
    // one for another kind of machine is not this machine's business
    let script = "system.build.diskoScript = lib.mkForce (derivation { name = \"disko\"; builder = \"/bin/sh\"; system = \"riscv64-linux\"; });";
    host(&lab, "web", &format!("{DISK}{script}"));
    let ran = check(&lab, &["web", "--no-vm-test"]).succeeds();
    assert!(
        ran.stdout.contains("disko script: can't be built here: ") && ran.stdout.contains("riscv64-linux"),
        "{ran:?}"
    );
}

/// What is wrong with a layout.
#[track_caller]
fn objections(lab: &Lab, lines: &str) -> Vec<String> {
    host(lab, "web", lines);
    let found = finding(lab, "web", &["--no-build"]);
    assert!(found["layout"].is_array() && found.get("error").is_none(), "{found}");
    found["layout"].as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect()
}

#[test]
fn layouts_that_can_not_work_are_refused() {
    let Some(lab) = Lab::new() else { return };
    assert_eq!(objections(&lab, DISK), Vec::<String>::new());
    let without_root = DISK.replace("mountpoint = \"/\"", "mountpoint = \"/data\"");
    let second =
        DISK.replace("disk.main", "disk.second").replace("\"/boot\"", "\"/boot2\"").replace("\"/\"", "\"/data\"");
    for (lines, words) in [
        (without_root, "nothing is mounted at /:"),
        (DISK.replace("mountpoint = \"/boot\"", "mountpoint = \"/efi\""), "the boot loader lies at /boot"),
        (DISK.replace("vfat", "ext4"), "no vfat"),
        (DISK.replace("/dev/disk/by-id/ata-ONE", "sda"), "device is \"sda\""),
        (DISK.replace("device = \"/dev/disk/by-id/ata-ONE\";", ""), "disko.devices.disk.main has no device"),
        (DISK.replace("512M", "100%"), "2 partitions of disko.devices.disk.main want all that is left"),
        (format!("{DISK}{second}"), "both /dev/disk/by-id/ata-ONE"),
        (DISK.replace("\"/boot\"", "\"/\""), "both mounted at /"),
        (
            DISK.replace(
                "type = \"filesystem\"; format = \"ext4\"; mountpoint = \"/\"",
                "type = \"lvm_pv\"; vg = \"pool\"",
            ) + "fileSystems.\"/\".device = \"/dev/pool/root\";",
            "part of pool, which disko.devices does not have",
        ),
        (format!("{DISK} disko.devices.zpool.tank = {{ type = \"zpool\"; }};"), "no disk is part of tank"),
        (format!("{DISK} boot.loader.systemd-boot.enable = false;"), "there is no boot loader"),
        (
            format!(
                "{DISK} boot.loader.systemd-boot.enable = false; boot.loader.grub = {{ enable = true; devices = [ \"/dev/sda\" ]; }};"
            ),
            "no partition of type EF02",
        ),
    ] {
        let found = objections(&lab, &lines);
        assert!(found.iter().any(|said| said.contains(words)), "{words:?} is not in {found:?}");
    }
    // volumes over the disks, with a file system in them
    let lvm = DISK.replace(
        "type = \"filesystem\"; format = \"ext4\"; mountpoint = \"/\"",
        "type = \"luks\"; content = { type = \"lvm_pv\"; vg = \"pool\"; }",
    );
    let volumes = "disko.devices.lvm_vg.pool = { type = \"lvm_vg\"; lvs.root = { size = \"100%FREE\"; content = { type = \"filesystem\"; format = \"ext4\"; mountpoint = \"/\"; }; }; };
        fileSystems.\"/\".device = \"/dev/pool/root\";";
    assert_eq!(objections(&lab, &format!("{lvm}{volumes}")), Vec::<String>::new());
    // a name that may stand for another disk tomorrow is a matter of advice
    host(&lab, "web", &DISK.replace("/dev/disk/by-id/ata-ONE", "/dev/sda"));
    let found = finding(&lab, "web", &["--no-build"]);
    assert!(found["advice"][0].as_str().unwrap().contains("/dev/disk/by-id"), "{found}");
    // and a host without disko is none of its business
    host(&lab, "web", "fileSystems.\"/\" = { device = \"/dev/vda1\"; fsType = \"ext4\"; };");
    let found = finding(&lab, "web", &[]);
    assert!(
        found.get("disks").is_none() && found.get("disko_script").is_none() && found["layout"] == json!([]),
        "{found}"
    );
}

#[test]
fn a_boot_loader_has_to_fit_the_firmware() {
    let outline = |boot: Value| {
        let outline = json!({ "failed": [], "warnings": [], "layout": null, "scripts": [], "boot": boot, "fileSystems": {}, "ports": [22],
            "agent": false, "identity": null });
        Outline::parse(&outline.to_string()).unwrap()
    };
    let efi = outline(json!({ "efi": true, "bios": false, "efiMountpoint": "/boot" }));
    let bios = outline(json!({ "efi": false, "bios": true, "efiMountpoint": "/boot" }));
    assert_eq!((efi.misfit(Firmware::Efi), bios.misfit(Firmware::Bios)), (None, None));
    assert!(efi.misfit(Firmware::Bios).unwrap().contains("boot.loader.grub"));
    assert!(bios.misfit(Firmware::Efi).unwrap().contains("systemd-boot"));
}
