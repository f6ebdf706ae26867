//! What the original bento gets wrong, each as a test of the same situation.

// a test may unwrap: that is how it fails
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::process::Command;

use common::{Lab, fingerprint};

#[test]
fn a_failing_configuration_is_not_published_and_the_exit_status_says_so() {
    let Some(lab) = Lab::new() else { return };
    lab.flake_host("web", "text = undefined;");
    lab.non_flake("router", "text = throw \"no router today\";");
    lab.flake_host("db", "");
    lab.bento(&["deploy"]).fails_with(&["web: failed", "undefined", "router: failed", "no router today"]);
    assert!(!lab.path("chroot/web").exists());
    assert!(!lab.path("chroot/router").exists());
    // the sound one is published all the same
    assert_eq!(lab.manifest("db")["serial"], 1);
}

#[test]
fn a_failing_configuration_leaves_the_old_release_alone() {
    let Some(lab) = Lab::new() else { return };
    lab.flake_host("web", "");
    lab.bento(&["deploy"]).succeeds();
    let before = fingerprint(&lab.path("chroot/web"));
    lab.flake_host("web", "text = undefined;");
    lab.bento(&["deploy"]).fails_with(&["web: failed"]);
    assert_eq!(fingerprint(&lab.path("chroot/web")), before);
}

#[test]
fn the_uploaded_log_contains_the_build() {
    let Some(lab) = Lab::new() else { return };
    lab.flake_host("web", "build = \"echo here is compiler output; false\";");
    lab.non_flake("router", "build = \"echo here is compiler output; false\";");
    lab.bento(&["deploy"]).succeeds();
    for host in ["web", "router"] {
        lab.agent(host).fails_with(&["the build failed"]);
        let report = &lab.reports(host)[0];
        assert!(lab.log(host, report).contains("here is compiler output"), "{}", lab.log(host, report));
        assert_eq!((&report["outcome"], &report["stage"]), (&"failure".into(), &"build".into()));
        assert_eq!(lab.state(host), "failing");
        assert!(lab.activations(host).is_empty());
    }
}

#[test]
fn a_failed_activation_is_reported_and_the_previous_system_restored() {
    let Some(lab) = Lab::new() else { return };
    lab.flake_host("web", "text = \"good\";");
    lab.bento(&["deploy"]).succeeds();
    lab.agent("web").succeeds();
    let good = lab.running("web").unwrap();
    lab.flake_host("web", "text = \"bad\"; onTest = \"exit 4\";");
    lab.bento(&["deploy"]).succeeds();
    lab.agent("web").fails_with(&["the activation failed"]);
    assert_eq!(lab.running("web").unwrap(), good);
    assert_eq!(lab.read("hosts/web/boot").trim(), good);
    let report = &lab.reports("web")[1];
    assert_eq!(report["outcome"], "rollback");
    assert_eq!(report["running"], good.as_str());
    assert_eq!(lab.state("web"), "rollbacked");
    assert_eq!(format!("/nix/store/{}", lab.status("web")["remote_version"].as_str().unwrap()), good);
}

#[test]
fn a_failed_download_is_no_success_with_a_stale_result() {
    let Some(lab) = Lab::new() else { return };
    lab.flake_host("web", "");
    lab.bento(&["deploy"]).succeeds();
    lab.agent("web").succeeds();
    let good = lab.running("web").unwrap();
    let stale = lab.path("hosts/web/state/result");
    std::os::unix::fs::symlink(&good, stale).unwrap();
    lab.flake_host("web", "text = \"new\";");
    lab.bento(&["deploy"]).succeeds();
    fs::remove_file(lab.path("chroot/web/releases/2/flake.nix")).unwrap();
    lab.agent("web").fails_with(&["cannot fetch release 2", "flake.nix"]);
    assert_eq!(lab.activations("web").len(), 2);
    assert_eq!(lab.state("web"), "failing");
}

#[test]
fn a_cut_transfer_is_not_built_and_keeps_the_configuration_that_was_there() {
    let Some(lab) = Lab::new() else { return };
    lab.flake_host("web", "");
    lab.bento(&["deploy"]).succeeds();
    lab.agent("web").succeeds();
    lab.flake_host("web", "text = \"new\";");
    lab.bento(&["deploy"]).succeeds();
    let file = lab.path("chroot/web/releases/2/system.nix");
    let whole = fs::read(&file).unwrap();
    fs::write(&file, &whole[..whole.len() / 2]).unwrap();
    lab.agent("web").fails_with(&["system.nix is damaged"]);
    assert_eq!(lab.names("hosts/web/state/releases"), [".tmp-2", "1"]);
    assert!(lab.path("hosts/web/state/releases/1/config/flake.nix").exists());
    // once it is whole, it is taken up: nothing is left of the cut one
    fs::write(&file, &whole).unwrap();
    lab.agent("web").succeeds();
    assert_eq!(lab.names("hosts/web/state/releases"), ["1", "2"]);
    assert_eq!(lab.state("web"), "up-to-date");
}

/// Lines for an activation that takes the agent's key away, so that the hub can't be reached.
fn lose_key(then: &str) -> String {
    format!("onTest = \"mv \\$TINY_ROOT/key \\$TINY_ROOT/key.away; {then}\";")
}

/// Lets a host's agent use a key that an activation can take away.
fn with_own_key(lab: &Lab, host: &str) {
    let config = format!("hosts/{host}/agent.toml");
    let key = format!("hosts/{host}/key");
    fs::copy(lab.path(&format!("keys/{host}")), lab.path(&key)).unwrap();
    let text = lab.read(&config).replace(
        &format!("{}/{host}\"\ntimeout", lab.path("keys").display()),
        &format!("{}\"\ntimeout", lab.path(&key).display()),
    );
    lab.write(&config, &text);
}

#[test]
fn one_lost_probe_does_not_roll_back() {
    let Some(lab) = Lab::new() else { return };
    with_own_key(&lab, "web");
    lab.flake_host("web", "");
    lab.bento(&["deploy"]).succeeds();
    lab.agent("web").succeeds();
    lab.flake_host("web", &lose_key("(sleep 0.5; mv \\$TINY_ROOT/key.away \\$TINY_ROOT/key) &"));
    lab.bento(&["deploy"]).succeeds();
    let ran = lab.agent("web").succeeds();
    assert!(ran.stderr.contains("try 1 of 3"), "{}", ran.stderr);
    assert_eq!(lab.state("web"), "up-to-date");
}

#[test]
fn nothing_is_probed_or_rolled_back_when_nothing_was_switched() {
    let Some(lab) = Lab::new() else { return };
    lab.flake_host("web", "");
    lab.bento(&["deploy"]).succeeds();
    lab.agent("web").succeeds();
    // other files, the same system
    lab.write("fleet/hosts/web/README", "about this host");
    lab.bento(&["deploy"]).succeeds();
    assert_eq!(lab.state("web"), "sync-pending");
    lab.agent("web").succeeds();
    assert_eq!(lab.activations("web").len(), 2);
    assert_eq!(lab.state("web"), "up-to-date");
}

#[test]
fn a_system_that_loses_the_hub_is_rolled_back_and_says_so() {
    let Some(lab) = Lab::new() else { return };
    with_own_key(&lab, "web");
    lab.flake_host("web", "onTest = \"mv \\$TINY_ROOT/key.away \\$TINY_ROOT/key 2>/dev/null || true\";");
    lab.bento(&["deploy"]).succeeds();
    lab.agent("web").succeeds();
    let good = lab.running("web").unwrap();
    lab.flake_host("web", &lose_key(""));
    lab.bento(&["deploy"]).succeeds();
    lab.agent("web").fails_with(&["the hub could not be reached"]);
    assert_eq!(lab.running("web").unwrap(), good);
    assert_eq!(lab.state("web"), "rollbacked");
    // the network is fine in the old system, so it was the release
    let before = lab.activations("web");
    lab.agent("web").fails_with(&["failed here before"]);
    assert_eq!(lab.activations("web"), before);
}

#[test]
fn a_failed_release_is_tried_again_only_when_the_serial_grows() {
    let Some(lab) = Lab::new() else { return };
    lab.flake_host("web", "build = \"false\";");
    lab.bento(&["deploy"]).succeeds();
    lab.agent("web").fails_with(&["the build failed"]);
    lab.agent("web").fails_with(&["release 1 failed here before"]);
    assert_eq!(lab.reports("web").len(), 1);
    lab.flake_host("web", "");
    lab.bento(&["deploy"]).succeeds();
    lab.agent("web").succeeds();
    assert_eq!(lab.state("web"), "up-to-date");
}

#[test]
fn trouble_before_the_activation_is_reported_once_and_tried_again() {
    let Some(lab) = Lab::new() else { return };
    lab.flake_host("web", "");
    lab.bento(&["deploy"]).succeeds();
    lab.agent("web").succeeds();
    let good = lab.running("web").unwrap();
    lab.flake_host("web", "text = \"new\";");
    lab.bento(&["deploy"]).succeeds();
    // the old system can't be protected from collection, so nothing is begun
    for program in ["nix", "nix-env"] {
        fs::create_dir_all(lab.path("bin")).unwrap();
        std::os::unix::fs::symlink(format!("/usr/bin/{program}"), lab.path("bin").join(program)).unwrap();
    }
    std::os::unix::fs::symlink("/bin/false", lab.path("bin/nix-store")).unwrap();
    let config = lab.read("hosts/web/agent.toml");
    let bin_dir = format!("[nix]\nbin-dir = \"{}\"", lab.path("bin").display());
    lab.write("hosts/web/agent.toml", &config.replace("[nix]", &bin_dir));
    for _ in 0..3 {
        lab.agent("web").fails_with(&["nix-store ended with"]);
        assert_eq!(lab.running("web").unwrap(), good);
        assert_eq!(lab.reports("web").len(), 2);
        assert_eq!(lab.state("web"), "failing");
    }
    lab.write("hosts/web/agent.toml", &config);
    lab.agent("web").succeeds();
    assert_eq!(lab.state("web"), "up-to-date");
}

#[test]
fn a_hub_that_was_down_is_tried_again() {
    let Some(mut lab) = Lab::new() else { return };
    lab.flake_host("web", "");
    lab.bento(&["deploy"]).succeeds();
    lab.stop_hub();
    lab.agent("web").fails_with(&["cannot reach the hub"]);
    lab.start_hub("hub");
    lab.agent("web").succeeds();
    assert_eq!(lab.state("web"), "up-to-date");
}

#[test]
fn a_report_that_could_not_be_delivered_is_delivered_later() {
    let Some(mut lab) = Lab::new() else { return };
    lab.flake_host("web", "text = \"good\";");
    lab.bento(&["deploy"]).succeeds();
    lab.agent("web").succeeds();
    // the hub goes down while the release is tried out, and stays down: that is not the release's fault
    lab.flake_host("web", &format!("onTest = \"kill \\$(cat {}); sleep 0.2\";", lab.path("sshd.pid").display()));
    lab.bento(&["deploy"]).succeeds();
    lab.agent("web").fails_with(&["out of reach from the old system too"]);
    assert_eq!(lab.reports("web").len(), 1);
    lab.stop_hub();
    lab.start_hub("hub");
    fs::write(lab.path("sshd.pid"), "999999999").unwrap();
    lab.agent("web").succeeds();
    let outcomes: Vec<String> = lab.reports("web").iter().map(|r| r["outcome"].as_str().unwrap().to_owned()).collect();
    assert_eq!(outcomes, ["success", "rollback", "success"]);
    assert_eq!(lab.state("web"), "up-to-date");
    assert!(lab.names("hosts/web/state/outbox").is_empty());
}

#[test]
fn two_changes_within_a_minute_are_both_seen() {
    let Some(lab) = Lab::new() else { return };
    for text in ["one", "two", "three"] {
        lab.flake_host("web", &format!("text = \"{text}\";"));
        lab.bento(&["deploy"]).succeeds();
        lab.agent("web").succeeds();
        assert_eq!(lab.running("web").unwrap(), lab.manifest("web")["toplevel"]);
    }
    // and none of their logs was lost, though all have the same minute or two
    let logs = lab.names("chroot/web/logs").into_iter().filter(|name| name.ends_with(".log.gz")).count();
    assert_eq!(logs, 3);
}

#[test]
fn logs_of_the_same_minute_and_system_do_not_overwrite_each_other() {
    let Some(lab) = Lab::new() else { return };
    lab.flake_host("web", "text = \"good\";");
    lab.bento(&["deploy"]).succeeds();
    lab.agent("web").succeeds();
    for text in ["bad", "worse", "worst"] {
        lab.flake_host("web", &format!("text = \"{text}\"; build = \"echo {text}; false\";"));
        lab.bento(&["deploy"]).succeeds();
        lab.agent("web").fails_with(&["the build failed"]);
    }
    for (report, word) in lab.reports("web")[1..].iter().zip(["bad", "worse", "worst"]) {
        assert!(lab.log("web", report).contains(word), "{report}");
    }
}

#[test]
fn a_new_host_reports_once_and_is_up_to_date() {
    let Some(lab) = Lab::new() else { return };
    lab.flake_host("web", "");
    lab.bento(&["deploy"]).succeeds();
    lab.agent("web").succeeds();
    lab.agent("web").succeeds();
    assert_eq!(lab.reports("web").len(), 1);
    assert_eq!(lab.state("web"), "up-to-date");
}

#[test]
fn a_host_that_runs_another_system_than_it_should_is_not_up_to_date() {
    let Some(lab) = Lab::new() else { return };
    lab.flake_host("web", "");
    lab.bento(&["deploy"]).succeeds();
    lab.agent("web").succeeds();
    let report = lab.reports("web").remove(0);
    let other = "/nix/store/00000000000000000000000000000000-nixos-system-other";
    let text = report.to_string().replace(report["running"].as_str().unwrap(), other);
    lab.write("chroot/web/logs/report-1-1.json", &text);
    assert_eq!(lab.state("web"), "diverged");
}

#[test]
fn a_build_that_gives_another_system_than_the_hub_worked_out_is_refused() {
    let Some(lab) = Lab::new() else { return };
    lab.flake_host("web", "");
    lab.bento(&["deploy"]).succeeds();
    lab.republish("web", |m| m["toplevel"] = "/nix/store/00000000000000000000000000000000-nixos-system-web".into());
    lab.agent("web").fails_with(&["but the release asks for"]);
    assert!(lab.activations("web").is_empty());
    assert_eq!(lab.state("web"), "failing");
}

#[test]
fn without_a_local_build_the_release_still_names_the_system_that_the_host_arrives_at() {
    let Some(lab) = Lab::new() else { return };
    assert!(lab.read("fleet/config.sh").contains("NOLOCALBUILD=1"));
    lab.flake_host("web", "");
    lab.bento(&["deploy"]).succeeds();
    let wanted = lab.manifest("web")["toplevel"].as_str().unwrap().to_owned();
    lab.agent("web").succeeds();
    assert_eq!(lab.running("web").unwrap(), wanted);
    let status = lab.status("web");
    assert_eq!(status["local_version"], status["remote_version"]);
}

#[test]
fn deploying_web_leaves_web2_alone() {
    let Some(lab) = Lab::new() else { return };
    lab.flake_host("web", "");
    lab.flake_host("web2", "");
    lab.non_flake("router", "");
    lab.bento(&["deploy"]).succeeds();
    let before = fingerprint(&lab.path("chroot/web2"));
    for host in ["web", "web2"] {
        lab.flake_host(host, "text = \"new\";");
    }
    lab.bento(&["deploy", "web"]).succeeds();
    assert_eq!(lab.manifest("web")["serial"], 2);
    assert_eq!(fingerprint(&lab.path("chroot/web2")), before);
    // neither does the name in the environment match by its beginning, nor only flakes
    lab.non_flake("router", "text = \"new\";");
    let ran = lab.command(&["deploy"]).env("NAME", "router").status().unwrap();
    assert!(ran.success());
    assert_eq!(lab.manifest("router")["serial"], 2);
    assert_eq!(fingerprint(&lab.path("chroot/web2")), before);
    lab.bento(&["deploy", "we"]).fails_with(&["no host we"]);
}

#[test]
fn underscores_and_outcomes_in_host_names_do_no_harm() {
    let Some(lab) = Lab::new() else { return };
    for host in ["a_failure_b", "rollback"] {
        lab.flake_host(host, "");
    }
    lab.bento(&["deploy"]).succeeds();
    for host in ["a_failure_b", "rollback"] {
        lab.agent(host).succeeds();
        assert_eq!(lab.state(host), "up-to-date");
        // the same from the log's name alone, as for an agent of the original bento
        fs::remove_file(lab.path(&format!("chroot/{host}/logs/report-1-1.json"))).unwrap();
        assert_eq!(lab.state(host), "up-to-date");
    }
}

#[test]
fn removed_hosts_are_marked() {
    let Some(lab) = Lab::new() else { return };
    lab.flake_host("web", "");
    lab.flake_host("db", "");
    lab.bento(&["deploy"]).succeeds();
    fs::remove_dir_all(lab.path("fleet/hosts/db")).unwrap();
    lab.bento(&["deploy", "web"]).succeeds();
    assert_eq!(lab.state("db"), "new-machine");
    lab.bento(&["deploy"]).succeeds();
    assert_eq!(lab.state("db"), "removed");
    assert_eq!(lab.state("web"), "new-machine");
}

#[test]
fn what_a_reader_is_at_stays_while_the_next_release_is_published() {
    let Some(lab) = Lab::new() else { return };
    lab.flake_host("web", "text = \"one\";");
    lab.bento(&["deploy"]).succeeds();
    let before = fingerprint(&lab.path("chroot/web/releases/1"));
    lab.flake_host("web", "text = \"two\";");
    lab.bento(&["deploy"]).succeeds();
    assert_eq!(fingerprint(&lab.path("chroot/web/releases/1")), before);
    assert_eq!(fs::read_link(lab.path("chroot/web/config")).unwrap().to_str(), Some("releases/2"));
}

#[test]
fn two_deploys_and_two_agents_keep_apart() {
    let Some(lab) = Lab::new() else { return };
    lab.flake_host("web", "");
    lab.bento(&["deploy"]).succeeds();
    let hold = |file: &str| {
        let mut child =
            Command::new("flock").arg("--no-fork").arg(lab.path(file)).args(["sleep", "60"]).spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(300));
        assert!(child.try_wait().unwrap().is_none());
        child
    };
    let mut deploy = hold("chroot/.bento.lock");
    lab.bento(&["deploy"]).fails_with(&["another deploy is at work"]);
    fs::create_dir_all(lab.path("hosts/web/state")).unwrap();
    let mut agent = hold("hosts/web/state/lock");
    let second = lab.agent("web");
    // which is no failure of the unit
    assert_eq!(second.status, Some(75));
    second.fails_with(&["another run of the agent is at work"]);
    let config = lab.path("hosts/web/agent.toml");
    let back = lab.bento(&["agent", "rollback", "--config", config.to_str().unwrap()]);
    assert_eq!(back.status, Some(75));
    back.fails_with(&["another run of the agent is at work"]);
    for child in [&mut deploy, &mut agent] {
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

#[test]
fn an_unpinned_host_key_is_refused_on_first_contact_and_later() {
    let Some(mut lab) = Lab::new() else { return };
    lab.flake_host("web", "");
    lab.bento(&["deploy"]).succeeds();
    lab.stop_hub();
    lab.start_hub("other");
    let config = lab.read("hosts/web/agent.toml");
    lab.agent("web").fails_with(&["host key that is not pinned", "SHA256:"]);
    assert_eq!(lab.read("hosts/web/agent.toml"), config);
    lab.agent("web").fails_with(&["host key that is not pinned"]);
    assert!(lab.activations("web").is_empty());
}

#[test]
fn nothing_of_a_host_is_readable_to_the_world_or_writable_to_the_host() {
    use std::os::unix::fs::MetadataExt;
    let Some(lab) = Lab::new() else { return };
    lab.flake_host("web", "");
    lab.bento(&["deploy"]).succeeds();
    let mut paths = vec![lab.path("chroot/web")];
    while let Some(path) = paths.pop() {
        let m = fs::symlink_metadata(&path).unwrap();
        if m.is_symlink() {
            continue;
        }
        assert_eq!(m.mode() & 0o027, 0, "{} has mode {:o}", path.display(), m.mode());
        let logs = path == lab.path("chroot/web/logs");
        assert_eq!((m.uid(), m.gid()), (if logs { 61000 } else { 0 }, 61000), "{}", path.display());
        if m.is_dir() {
            paths.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
}

#[test]
fn a_release_does_not_become_new_by_its_age() {
    let Some(lab) = Lab::new() else { return };
    lab.flake_host("web", "");
    lab.bento(&["deploy"]).succeeds();
    lab.agent("web").succeeds();
    let activations = lab.activations("web");
    // `ls -l` writes a time differently once it is half a year old
    let files = ["last_change_date", "manifest.json", "releases/1", "releases/1/flake.nix"];
    for file in files.map(|file| lab.path(&format!("chroot/web/{file}"))) {
        assert!(Command::new("touch").args(["-d", "7 months ago"]).arg(file).status().unwrap().success());
    }
    let ran = lab.agent("web").succeeds();
    assert!(ran.stdout.contains("release 1 is current"), "{}", ran.stdout);
    assert_eq!(lab.activations("web"), activations);
    assert_eq!(lab.reports("web").len(), 1);
}

#[test]
fn name_selects_a_host_without_a_flake() {
    let Some(lab) = Lab::new() else { return };
    lab.non_flake("router", "");
    lab.flake_host("web", "");
    for command in ["deploy", "versions"] {
        let ran = lab.command(&[command]).env("NAME", "router").output().unwrap();
        let said = String::from_utf8_lossy(&[ran.stdout, ran.stderr].concat()).into_owned();
        assert!(ran.status.success() && said.contains("router") && !said.contains("web"), "{said}");
    }
    assert!(lab.path("chroot/router/manifest.json").exists() && !lab.path("chroot/web").exists());
}

#[test]
fn what_a_host_works_with_is_not_overwritten_by_the_next_release() {
    let Some(lab) = Lab::new() else { return };
    lab.flake_host("web", "text = \"one\";");
    lab.bento(&["deploy"]).succeeds();
    // no program of bento's is among what a host gets: the one that runs comes with the system
    assert_eq!(lab.names("chroot/web/config"), ["flake.nix", "system.nix"]);
    lab.agent("web").succeeds();
    let first = lab.path("hosts/web/state/releases/1");
    let before = fingerprint(&first);
    lab.flake_host("web", "text = \"two\";");
    lab.bento(&["deploy"]).succeeds();
    lab.agent("web").succeeds();
    assert_eq!(fingerprint(&first), before);
}

#[test]
fn a_host_speaks_for_nobody_else() {
    let Some(lab) = Lab::new() else { return };
    for host in ["web", "db"] {
        lab.flake_host(host, "");
    }
    lab.bento(&["deploy"]).succeeds();
    lab.agent("web").succeeds();
    // what it says of another in its own place is no report, and in the other's place it can't say anything: see isolation.rs
    let report = lab.read("chroot/web/logs/report-1-1.json").replace("\"web\"", "\"db\"");
    lab.write("chroot/web/logs/report-1-1.json", &report);
    assert_eq!((lab.state("web").as_str(), lab.state("db").as_str()), ("corrupt-report", "new-machine"));
    // and a system that it was never told to run does not become right by its saying so
    let other = "/nix/store/00000000000000000000000000000000-nixos-system-other";
    let report = report.replace("\"db\"", "\"web\"").replace(lab.running("web").unwrap().as_str(), other);
    lab.write("chroot/web/logs/report-1-1.json", &report);
    assert_eq!(lab.state("web"), "diverged");
}

/// What an attribute of a host with the agent's module comes to, as JSON.
fn of_a_host_with_the_agent(attribute: &str) -> serde_json::Value {
    let checkout = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
    let expression = format!(
        "let system = import {checkout}/checks/fixture/nixos {{ configuration = {{ pkgs, ... }}: {{
           imports = [ {checkout}/modules/agent.nix ];
           services.bento.agent = {{
             enable = true;
             package = pkgs.hello;
             hub = {{ address = \"hub.example.org\"; hostKeys = [ \"ssh-ed25519 AAAA\" ]; }};
             signers = [ \"ssh-ed25519 AAAA\" ];
           }};
         }}; }}; in system.config.{attribute}"
    );
    let ran = Command::new(env!("CARGO_BIN_EXE_bento"))
        .args(["eval", "--strict", "--json", "-E", &expression])
        .env_remove("NIX_PATH")
        .output()
        .unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    serde_json::from_slice(&ran.stdout).unwrap()
}

#[test]
fn no_port_is_open_on_a_host() {
    assert_eq!(of_a_host_with_the_agent("networking.firewall.allowedTCPPorts"), serde_json::json!([]));
    let units = of_a_host_with_the_agent("systemd.services").as_object().unwrap().clone();
    let ours: Vec<&String> = units.keys().filter(|unit| unit.starts_with("bento")).collect();
    assert_eq!(ours, ["bento-booted", "bento-page", "bento-secrets", "bento-upgrade"]);
    let sockets = of_a_host_with_the_agent("systemd.sockets").as_object().unwrap().clone();
    let ours: Vec<&String> = sockets.keys().filter(|unit| unit.contains("bento")).collect();
    assert_eq!(ours, ["bento-page"]);
    // the page is for those who sit at the machine
    let listens = sockets["bento-page"]["listenStreams"].to_string();
    let stream = |place: &serde_json::Value| {
        let place = place.as_str().unwrap();
        place.starts_with('/') || place.starts_with("127.0.0.1:") || place.starts_with("[::1]:")
    };
    assert!(sockets["bento-page"]["listenStreams"].as_array().unwrap().iter().all(stream), "{listens}");
}

#[test]
fn hosts_do_not_poll_all_at_once() {
    let timer = of_a_host_with_the_agent("systemd.timers.bento-upgrade.timerConfig");
    assert_eq!((&timer["RandomizedDelaySec"], &timer["FixedRandomDelay"]), (&"10min".into(), &true.into()));
}
