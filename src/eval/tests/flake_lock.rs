//! Lock files: what is read from them, what is refused, and that they are written as Nix writes them.

#![allow(clippy::unwrap_used)]

use bento_eval::flake::FlakeError;
use bento_eval::flake::lock::{Edge, LockFile, ROOT, parse_input_path};

/// In Nix's form and order; that Nix writes the like is shown by the tests that compare with it.
const WRITTEN: &str = r#"{
  "nodes": {
    "a": {
      "inputs": {
        "b": "b",
        "nixpkgs": [
          "nixpkgs"
        ]
      },
      "locked": {
        "lastModified": 1700000000,
        "narHash": "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=",
        "path": "/somewhere/a \"quoted\" ü",
        "type": "path"
      },
      "original": {
        "path": "/somewhere/a \"quoted\" ü",
        "type": "path"
      }
    },
    "b": {
      "locked": {
        "path": "./b",
        "type": "path"
      },
      "original": {
        "path": "./b",
        "type": "path"
      },
      "parent": [
        "a"
      ]
    },
    "b_2": {
      "flake": false,
      "locked": {
        "lastModified": 1700000000,
        "narHash": "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=",
        "ref": "refs/heads/main",
        "rev": "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        "revCount": 3,
        "shallow": true,
        "type": "git",
        "url": "file:///somewhere/b"
      },
      "original": {
        "type": "git",
        "url": "file:///somewhere/b"
      }
    },
    "nixpkgs": {
      "locked": {
        "lastModified": 1700000000,
        "narHash": "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=",
        "owner": "NixOS",
        "repo": "nixpkgs",
        "rev": "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        "type": "github"
      },
      "original": {
        "id": "nixpkgs",
        "type": "indirect"
      }
    },
    "root": {
      "inputs": {
        "a": "a",
        "b": "b_2",
        "nixpkgs": "nixpkgs"
      }
    }
  },
  "root": "root",
  "version": 7
}
"#;

fn parse(text: &str) -> Result<LockFile, String> {
    LockFile::parse(text.as_bytes(), "flake.lock").map_err(|error| error.to_string())
}

/// A lock file with the given nodes besides the root, which has the input `a`.
fn with_nodes(nodes: &str) -> Result<LockFile, String> {
    parse(&format!(r#"{{"version": 7, "root": "root", "nodes": {{"root": {{"inputs": {{"a": "a"}}}}, {nodes}}}}}"#))
}

const LOCKED: &str = r#""locked": {"type": "path", "path": "/a",
    "narHash": "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="}, "original": {"type": "path", "path": "/a"}"#;

#[test]
fn a_lock_file_is_written_as_it_was_read() {
    assert_eq!(parse(WRITTEN).unwrap().to_text(), WRITTEN);
}

#[test]
fn follows_lead_from_the_root() {
    let lock = parse(WRITTEN).unwrap();
    let find = |path: &str| lock.find(&parse_input_path(path).unwrap()).unwrap();
    assert_eq!(find(""), Some(ROOT));
    assert_eq!(find("a/nixpkgs"), find("nixpkgs"));
    assert_ne!(find("a/b"), find("b"));
    assert_eq!(find("a/c"), None);
    let a = &lock.nodes[find("a").unwrap()];
    assert_eq!(a.inputs["nixpkgs"], Edge::Follows(vec!["nixpkgs".to_owned()]));
    let inner = lock.nodes[find("a/b").unwrap()].lock.as_ref().unwrap();
    assert_eq!(inner.parent.as_deref(), Some(&["a".to_owned()][..]));
    assert_eq!(inner.locked.input.relative_path(), Some("./b"));
    assert!(!lock.nodes[find("b").unwrap()].lock.as_ref().unwrap().is_flake);
    lock.check().unwrap();
}

#[test]
fn follows_in_a_circle_are_an_error() {
    let lock =
        parse(r#"{"version": 7, "root": "root", "nodes": {"root": {"inputs": {"a": ["b"], "b": ["a"]}}}}"#).unwrap();
    let error = lock.check().unwrap_err();
    assert!(matches!(error, FlakeError::Follows(_)));
    assert_eq!(error.to_string(), "follow cycle detected: [b -> a -> b]");
}

#[test]
fn follows_that_lead_nowhere_are_an_error() {
    let lock = parse(r#"{"version": 7, "root": "root", "nodes": {"root": {"inputs": {"a": ["b", "c"]}}}}"#).unwrap();
    assert_eq!(lock.check().unwrap_err().to_string(), "input 'a' follows a non-existent input 'b/c'");
}

#[test]
fn version_5_keeps_the_hash_apart() {
    let lock = parse(
        r#"{"version": 5, "root": "n1", "nodes": {"n1": {"inputs": {"a": "n2"}}, "n2": {"inputs": {},
            "info": {"lastModified": 5, "narHash": "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="},
            "locked": {"type": "path", "path": "/a"}, "original": {"type": "path", "path": "/a"}}}}"#,
    )
    .unwrap();
    let input = &lock.nodes[1].lock.as_ref().unwrap().locked.input;
    assert_eq!(input.last_modified().unwrap(), Some(5));
    assert!(input.nar_hash().unwrap().is_some());
    assert!(lock.to_text().ends_with("\"version\": 7\n}\n"));
}

#[test]
fn malformed_lock_files_are_refused_and_the_node_is_named() {
    for (text, expected) in [
        ("{", "could not parse it"),
        ("[]", "it is not a JSON object"),
        (r#"{"version": 4}"#, "it has unsupported version 4"),
        (r#"{"version": 8}"#, "it has unsupported version 8"),
        ("{}", "it has unsupported version 0"),
        (r#"{"version": "7"}"#, "its version is not a number"),
        (r#"{"version": 7, "nodes": {}}"#, "attribute 'root' is missing"),
        (r#"{"version": 7, "root": "root"}"#, "attribute 'nodes' is missing"),
        (r#"{"version": 7, "root": "root", "nodes": {}}"#, "it has no node 'root'"),
        (
            r#"{"version": 7, "root": "root", "nodes": {"root": {"inputs": {"a": "a"}}}}"#,
            "lock file references missing node 'a' (it is the input 'a' of node 'root')",
        ),
        (r#"{"version": 7, "root": "root", "nodes": {"root": {"inputs": {"a": 1}}}}"#, "input 'a' of node 'root'"),
        (
            r#"{"version": 7, "root": "root", "nodes": {"root": {"inputs": {"a": "root"}}}}"#,
            "lock file contains cycle to root node",
        ),
    ] {
        let error = parse(text).unwrap_err();
        assert!(error.starts_with("lock file 'flake.lock': ") && error.contains(expected), "{text}: {error}");
    }
}

#[test]
fn malformed_nodes_are_refused_and_named() {
    let original = r#""original": {"type": "path", "path": "/a"}"#;
    for (node, expected) in [
        ("{}".to_owned(), "attribute 'locked' missing in node 'a'"),
        (format!("{{{original}, \"locked\": 1}}"), "attribute 'locked' of node 'a'"),
        (format!("{{{original}, \"locked\": {{\"type\": \"path\"}}}}"), "input attribute 'path' is missing"),
        (format!("{{{original}, \"locked\": {{\"type\": \"path\", \"path\": [], \"x\": 1}}}}"), "node 'a'"),
        (
            format!("{{{original}, \"locked\": {{\"type\": \"path\", \"path\": \"/a\"}}}}"),
            "node 'a': Lock file contains unlocked input '{\"path\":\"/a\",\"type\":\"path\"}'",
        ),
        (format!("{{{LOCKED}, \"flake\": 1}}"), "attribute 'flake' of node 'a' is not a Boolean"),
        (format!("{{{LOCKED}, \"parent\": \"x\"}}"), "attribute 'parent' of node 'a'"),
        (format!("{{{LOCKED}, \"inputs\": {{\"a\": \"a\"}}}}"), "node 'a' is an input of itself"),
        (format!("{{{LOCKED}, \"inputs\": []}}"), "attribute 'inputs' of node 'a' is not an object"),
        (format!("{{{}}}", LOCKED.replace("sha256-47", "sha256-4")), "node 'a'"),
    ] {
        let error = with_nodes(&format!("\"a\": {node}")).unwrap_err();
        assert!(error.contains(expected), "{node}: {error}");
    }
}

#[test]
fn a_dirty_lock_with_a_hash_is_let_through_with_a_warning() {
    let lock = with_nodes(
        r#""a": {"locked": {"type": "git", "url": "file:///a", "lastModified": 1,
            "narHash": "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="},
            "original": {"type": "git", "url": "file:///a"}}"#,
    )
    .unwrap();
    assert_eq!(lock.warnings.len(), 1);
    assert!(lock.warnings[0].contains("is unlocked (e.g. lacks a Git revision) but is checked by NAR hash"));
}

#[test]
fn names_that_no_input_can_have_are_refused() {
    assert_eq!(parse_input_path("a//b-1/c_d").unwrap(), ["a", "b-1", "c_d"]);
    assert_eq!(parse_input_path("a/1b").unwrap_err().to_string(), "invalid flake input attribute path element '1b'");
}

#[test]
fn a_chain_of_nodes_of_any_length_is_read() {
    let mut nodes = Vec::new();
    for number in 0..10_000 {
        let next = number + 1;
        nodes.push(format!("\"n{number}\": {{{LOCKED}, \"inputs\": {{\"x\": \"n{next}\"}}}}"));
    }
    nodes.push(format!("\"n10000\": {{{LOCKED}}}"));
    let lock = with_nodes(&format!("\"a\": {{{LOCKED}, \"inputs\": {{\"x\": \"n0\"}}}}, {}", nodes.join(","))).unwrap();
    assert_eq!(lock.nodes.len(), 10_003);
}
