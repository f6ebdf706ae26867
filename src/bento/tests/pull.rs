//! The pull path, from `bento deploy` over a real sshd to `bento status`.

// a test may unwrap: that is how it fails
#![allow(clippy::unwrap_used)]

mod common;

use std::io;
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

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

#[test]
fn a_hub_from_a_backup_does_not_publish_what_a_host_refuses() {
    let Some(lab) = Lab::new() else { return };
    for text in ["one", "two", "three"] {
        lab.flake_host("web", &format!("text = \"{text}\";"));
        lab.bento(&["deploy"]).succeeds();
        lab.agent("web").succeeds();
    }
    // one that knows of nothing
    for lost in ["releases", "manifest.json", "logs/seen.json"] {
        let path = lab.path(&format!("chroot/web/{lost}"));
        std::fs::remove_dir_all(&path).or_else(|_| std::fs::remove_file(&path)).unwrap();
    }
    lab.bento(&["deploy"]).succeeds();
    assert_eq!(lab.manifest("web")["serial"], 1);
    lab.agent("web").fails_with(&["the hub serves an old release"]);
    // now the host has been heard of
    let planned = lab.bento(&["deploy", "--dry-run"]).succeeds().stderr;
    assert!(planned.contains("the host has had release 3 already"), "{planned}");
    lab.bento(&["deploy"]).succeeds();
    assert_eq!(lab.manifest("web")["serial"], 4);
    lab.agent("web").succeeds();
    assert_eq!(lab.state("web"), "up-to-date");
}

/// A way to the hub at `port` on which the first connection gets no answer, as if the hub had too much to do; gives the port, and how
/// many connections there were.
fn busy_at_first(port: u16) -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let own = listener.local_addr().unwrap().port();
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    std::thread::spawn(move || {
        let mut unanswered = Vec::new();
        for stream in listener.incoming() {
            let stream = stream.unwrap();
            if counted.fetch_add(1, Ordering::Relaxed) == 0 {
                unanswered.push(stream);
                continue;
            }
            let hub = TcpStream::connect(("127.0.0.1", port)).unwrap();
            for (mut from, mut to) in [(stream.try_clone().unwrap(), hub.try_clone().unwrap()), (hub, stream)] {
                std::thread::spawn(move || {
                    // whoever goes first ends it for both
                    let _ = io::copy(&mut from, &mut to);
                    let _ = to.shutdown(std::net::Shutdown::Both);
                });
            }
        }
    });
    (own, count)
}

#[test]
fn a_hub_that_has_too_much_to_do_is_asked_once_more() {
    let Some(lab) = Lab::new() else { return };
    lab.flake_host("web", "text = \"one\";");
    lab.bento(&["deploy"]).succeeds();
    let (port, connections) = busy_at_first(lab.port);
    let config = lab.read("hosts/web/agent.toml");
    let through = config
        .replace(&format!("port = {}", lab.port), &format!("port = {port}"))
        .replace("timeout = 10", "timeout = 3");
    lab.write("hosts/web/agent.toml", &through);
    lab.agent("web").succeeds();
    assert_eq!(lab.state("web"), "up-to-date");
    assert!(connections.load(Ordering::Relaxed) > 1);
}
