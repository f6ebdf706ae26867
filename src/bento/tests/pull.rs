//! The pull path, from `bento deploy` over a real sshd to `bento status`.

// a test may unwrap: that is how it fails
#![allow(clippy::unwrap_used)]

mod common;

use common::Lab;

#[test]
fn a_fleet_is_deployed_pulled_and_reported() {
    let Some(lab) = Lab::new() else { return };
    lab.flake_host("web", "text = \"one\";");
    lab.non_flake("router", "");
    lab.flake("fleet/hosts/cellar", &[("db", ""), ("web2", "")]);
    let deployed = lab.bento(&["deploy"]).succeeds();
    for host in ["web", "router", "db", "web2"] {
        assert!(deployed.stderr.contains(&format!("{host}: published release 1")), "{}", deployed.stderr);
        assert_eq!(lab.state(host), "new-machine");
        lab.agent(host).succeeds();
        assert_eq!(lab.state(host), "up-to-date");
        assert_eq!(lab.running(host).unwrap(), lab.manifest(host)["toplevel"]);
        assert_eq!(lab.reports(host).len(), 1);
    }
    // an agent that finds nothing new does nothing and says nothing
    lab.agent("web").succeeds();
    assert_eq!(lab.reports("web").len(), 1);
    assert_eq!(lab.activations("web").len(), 2);
    lab.flake_host("web", "text = \"two\";");
    lab.bento(&["deploy"]).succeeds();
    assert_eq!(lab.manifest("web")["serial"], 2);
    assert_eq!(lab.manifest("db")["serial"], 1);
    assert_eq!(lab.state("web"), "rebuild-pending");
    lab.agent("web").succeeds();
    assert_eq!(lab.state("web"), "up-to-date");
    // with each poll a host says that it is there, and what it runs
    let said: serde_json::Value = serde_json::from_str(&lab.read("chroot/web/logs/seen.json")).unwrap();
    assert_eq!((&said["serial"], &said["running"]), (&2.into(), &lab.manifest("web")["toplevel"]));
    assert_eq!(lab.status("web")["stale"], false);
    let report = &lab.reports("web")[1];
    assert_eq!(report["outcome"], "success");
    assert!(lab.log("web", report).contains("switching (test)"));
}
