//! Pushing: targets, who would be locked out, and what is said where nothing can be reached. What happens on machines is in
//! `checks/machines/push.py`.

// a test may unwrap: that is how it fails
#![allow(clippy::unwrap_used)]

use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use bento::process::converse;
use bento::push::facts::Facts;
use bento::push::lockout::Access;
use bento::push::root::Typist;
use bento::push::target::Target;
use tempfile::TempDir;

fn target(text: &str) -> Target {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error:#}"))
}

#[test]
fn targets_are_read_and_written() {
    let full = target("nixos://admin@db.example.org:2222/db-primary");
    assert_eq!(full.destination.user.as_deref(), Some("admin"));
    assert_eq!(full.destination.host, "db.example.org");
    assert_eq!(full.destination.port, Some(2222));
    assert_eq!(full.config.as_ref().unwrap().as_str(), "db-primary");
    assert_eq!(full.label(), "db.example.org/db-primary");
    let six = target("nixos://[2001:db8::1]:22/web");
    assert_eq!(six.destination.host, "2001:db8::1");
    assert_eq!(target("root@[fe80::1%eth0]").destination.host, "fe80::1%eth0");
    assert_eq!(target("root@web1").destination.user.as_deref(), Some("root"));
    assert_eq!(target("nixos://web1/").config, None);
    assert_eq!(target("nixos://web1/web1").label(), "web1");
    for text in [
        "nixos://admin@db.example.org:2222/db-primary",
        "nixos://[2001:db8::1]:22/web",
        "nixos://[fe80::1%eth0]",
        "nixos://web1",
    ] {
        assert_eq!(target(text).to_string(), text);
    }
}

#[test]
fn what_is_no_target_is_refused() {
    for (text, reason) in [
        ("http://web1", "http:// is not nixos://"),
        ("nixos://", "is no host"),
        ("nixos://web1:0", "a port is from 1 to 65535"),
        ("nixos://web1:99999", "a port is from 1 to 65535"),
        ("nixos://web1:", "a port is from 1 to 65535"),
        ("nixos://-oProxyCommand=x", "is no host"),
        ("-l@web1", "is no user"),
        ("root@$(reboot)", "is no host"),
        ("nixos://web1/../../x", "is no host name"),
        ("nixos://[web1]", "is no address of IPv6"),
        ("nixos://[fe80::1%;reboot]", "is no network interface"),
        ("nixos://[::1", "the bracket is not closed"),
        ("root@web1/web", "a configuration can only follow in a URL"),
    ] {
        let error = format!("{:#}", text.parse::<Target>().unwrap_err());
        assert!(error.contains(reason) && error.contains("nixos://[USER@]HOST"), "{text}: {error}");
    }
}

/// Two keys of ed25519, and their fingerprints as `ssh-keygen -l` prints them.
const KEYS: [(&str, &str); 2] = [
    (
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIERCtWVpinMHCXqKYbqyc+wjlu4NdXDTAPjR6KUrn5xo",
        "SHA256:lt67X26ou2tql7kcgPYM+ANMzLAWN/AZLiMZ2EoMn0c",
    ),
    (
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEhzVOnfAa19fADcZR/HgLRQneWniOGYErBMZWKWLFZR",
        "SHA256:WnT0gD70mn/HjyyAPKGzijMely4ZcH8IzUAGvCX1hR4",
    ),
];

fn facts(user: &str) -> Facts {
    Facts {
        host: "web".to_owned(),
        machine: "x86_64".to_owned(),
        user: user.to_owned(),
        root: user == "root",
        boot: String::new(),
        running: None,
        booted: None,
        profile: None,
        reboot_needed: false,
        agent: false,
        state: "running".to_owned(),
        failed_units: Vec::new(),
        port: Some(22),
        interface: Some("eth0".to_owned()),
        own_keys: Vec::new(),
        tools: Vec::new(),
        free: None,
    }
}

/// A configuration with sshd on, the firewall open for it, and the first key let in for root and admin; `change` changes it.
fn access(change: impl FnOnce(&mut serde_json::Value)) -> Access {
    let mut found = serde_json::json!({
        "sshd": true,
        "ports": [22],
        "keysFiles": ["/etc/ssh/authorized_keys.d/%u"],
        "keysCommand": false,
        "root": "prohibit-password",
        "allowUsers": null,
        "users": { "root": [KEYS[0].0], "admin": [format!("restrict,pty {} admin@desk", KEYS[0].0)] },
        "mutableUsers": false,
        "firewall": { "enable": true, "all": { "ports": [22], "ranges": [] }, "trusted": [], "interfaces": {} },
    });
    change(&mut found);
    Access::parse(&found.to_string()).unwrap()
}

#[test]
fn who_would_be_locked_out_is_told_so() {
    let key = Some(KEYS[0].1);
    for user in ["root", "admin"] {
        assert_eq!(access(|_| ()).objections(&facts(user), key), Vec::<String>::new());
    }
    let objection = |user: &str, change: &dyn Fn(&mut serde_json::Value)| {
        let objections = access(change).objections(&facts(user), key);
        assert_eq!(objections.len(), 1, "{objections:?}");
        objections[0].clone()
    };
    assert!(objection("root", &|c| c["sshd"] = false.into()).contains("services.openssh.enable is false"));
    assert!(objection("root", &|c| c["ports"] = [2222].into()).contains("listen on 2222"));
    assert!(objection("root", &|c| c["firewall"]["all"]["ports"] = [80].into()).contains("firewall would be closed"));
    assert!(objection("root", &|c| c["root"] = "no".into()).contains("PermitRootLogin"));
    assert!(objection("root", &|c| c["users"]["root"] = [KEYS[1].0].into()).contains("would not be let in any more"));
    assert!(objection("root", &|c| c["allowUsers"] = ["admin"].into()).contains("AllowUsers"));
    let gone = access(|c| drop(c["users"].as_object_mut().unwrap().remove("admin"))).objections(&facts("admin"), key);
    assert!(gone.iter().any(|objection| objection.contains("there would be no user admin any more")), "{gone:?}");
}

#[test]
fn what_lets_in_in_another_way_counts() {
    let key = Some(KEYS[0].1);
    let fine = |change: &dyn Fn(&mut serde_json::Value), facts: &Facts| {
        assert_eq!(access(change).objections(facts, key), Vec::<String>::new());
    };
    let root = facts("root");
    fine(&|c| c["firewall"]["enable"] = false.into(), &root);
    fine(&|c| c["firewall"]["all"] = serde_json::json!({ "ports": [], "ranges": [[20, 30]] }), &root);
    let closed = serde_json::json!({ "ports": [], "ranges": [] });
    fine(
        &|c| {
            c["firewall"] = serde_json::json!({ "enable": true, "all": closed, "trusted": ["eth0"], "interfaces": {} });
        },
        &root,
    );
    let open = serde_json::json!({ "eth0": { "ports": [22], "ranges": [] } });
    fine(
        &|c| {
            c["firewall"] = serde_json::json!({ "enable": true, "all": closed, "trusted": [], "interfaces": open });
        },
        &root,
    );
    // a key of the user's own file, where the configuration leaves that in force
    let own = Facts { own_keys: vec![format!("{} me", KEYS[0].0)], ..facts("root") };
    let moved = |c: &mut serde_json::Value| {
        c["users"]["root"] = serde_json::json!([]);
        c["keysFiles"] = ["%h/.ssh/authorized_keys"].into();
    };
    fine(&moved, &own);
    assert_eq!(access(moved).objections(&root, key).len(), 1);
    // the fingerprints are those of these keys and of no others
    assert_eq!(access(|_| ()).objections(&root, Some(KEYS[1].1)).len(), 1);
    // who came in without a key, or who asks elsewhere for keys
    assert_eq!(access(|c| c["users"]["root"] = [KEYS[1].0].into()).objections(&root, None), Vec::<String>::new());
    fine(
        &|c| {
            c["users"]["root"] = serde_json::json!([]);
            c["keysCommand"] = true.into();
        },
        &root,
    );
    // a configuration without these options says nothing
    fine(&|c| c["sshd"] = serde_json::Value::Null, &root);
}

fn bento(fleet: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bento"));
    command
        .args(arguments)
        .env("BENTO_DIR", fleet)
        .env("HOME", fleet)
        .env_remove("XDG_STATE_HOME")
        .stdin(Stdio::null());
    command.output().unwrap()
}

#[test]
fn no_destination_is_no_success() {
    let fleet = TempDir::new().unwrap();
    let output = bento(fleet.path(), &["deploy"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("a fleet's directory?"), "{said}");
}

#[test]
fn a_machine_that_cannot_be_reached_fails_alone() {
    if Command::new("ssh").arg("-V").output().is_err() {
        eprintln!("skipped: ssh is missing");
        return;
    }
    let fleet = TempDir::new().unwrap();
    // nobody listens there any more
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let address = format!("nixos://127.0.0.1:{port}/web");
    let output = bento(fleet.path(), &["deploy", &address]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("Connection refused") && said.contains("does sshd run there"), "{said}");
    // an address with colons is no name of another hop
    let output = bento(fleet.path(), &["deploy", &format!("nixos://[::1]:{port}/web")]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("[::1]") && !said.contains("jump host"), "{said}");
    let output = bento(fleet.path(), &["deploy", "--skip-unreachable", "--json", &address]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let events: Vec<serde_json::Value> =
        String::from_utf8(output.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let kinds: Vec<&str> = events.iter().map(|event| event["event"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["step", "ended", "summary"]);
    assert_eq!(events[1]["outcome"], "unreachable");
    assert_eq!(events[2]["skipped"], 1);
}

#[test]
fn nothing_interrupted_is_nothing_to_resume() {
    let fleet = TempDir::new().unwrap();
    let output = bento(fleet.path(), &["deploy", "--resume"]);
    assert!(output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("no push was interrupted"));
}

/// What a script says that asks for the password `secret`, without what the terminal showed of it.
fn asked(script: &str) -> String {
    let mut typist = Typist::new("secret");
    let mut command = Command::new("bash");
    let spoken =
        converse(command.args(["-c", script]), b"", Some(&mut |said| typist.answer(said)), Duration::from_secs(30));
    typist.unechoed(&spoken.unwrap().stdout.replace('\r', ""))
}

#[test]
fn a_password_that_the_terminal_throws_away_is_typed_again_and_not_shown() {
    // what is typed too early is shown, and lost
    let lost =
        "printf 'Password: '; read -r lost; printf '%s\\r\\n' \"$lost\"; read -r got; printf '\\ngot %s\\n' ${#got}";
    assert_eq!(asked(lost), "Password: \ngot 6\n");
    // a terminal that is told something about colours after the question
    let coloured = "printf 'Password: \\033[0m'; read -r got; printf '\\ngot %s\\n' ${#got}";
    assert_eq!(asked(coloured), "Password: \u{1b}[0m\ngot 6\n");
}

#[test]
fn a_password_that_was_read_is_typed_once() {
    let slow =
        "printf 'Password:'; sleep 0.2; printf ' '; read -r got; echo; read -r -t 3 more; echo \"${#got} ${#more}\"";
    assert_eq!(asked(slow), "Password: \n6 0\n");
    // a wrong one is no answer to the next question, and what is no question has none
    let wrong = "echo 'the password is:'; printf 'Password: '; read -r got; printf '\\nPassword: '; read -r -t 3 more; echo \"${#more}\"";
    assert_eq!(asked(wrong), "the password is:\nPassword: \nPassword: 0\n");
}
