//! Flake references, against what C++ Nix 2.34.8 makes of them.

#![allow(clippy::unwrap_used)]

mod flake_oracle;

use bento_eval::flake::reference::{Attrs, FlakeRef, ParseOptions, attrs_from_json, attrs_to_json};
use flake_oracle::{Oracle, quote};
use serde_json::{Value, json};

const HASH: &str = "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=";
const REV: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

/// References, and what `builtins.parseFlakeRef` gives for them.
fn parsed() -> Vec<(&'static str, Value)> {
    vec![
        ("path:", json!({"path": "/", "type": "path"})),
        ("path:./a/b", json!({"path": "./a/b", "type": "path"})),
        ("path:/a/b/", json!({"path": "/a/b/", "type": "path"})),
        ("path:/a//b/../c", json!({"path": "/a/b/../c", "type": "path"})),
        ("/a//b/../c", json!({"path": "/a/b/../c", "type": "path"})),
        ("path:a%20b", json!({"path": "a b", "type": "path"})),
        ("/a%20b", json!({"path": "/a%20b", "type": "path"})),
        ("path:///foo/bar", json!({"path": "/foo/bar", "type": "path"})),
        ("path:/a?rev=x", json!({"path": "/a", "rev": "x", "type": "path"})),
        ("path:/a?rev=[b]", json!({"path": "/a", "rev": "[b]", "type": "path"})),
        ("/x?q", json!({"path": "/x", "type": "path"})),
        (
            "/a b/c?narHash=sha256-47DEQpj8HBSa",
            json!({"narHash": "sha256-47DEQpj8HBSa", "path": "/a b/c", "type": "path"}),
        ),
        ("git+file:///srv/x?dir=a&ref=m", json!({"dir": "a", "ref": "m", "type": "git", "url": "file:///srv/x"})),
        (
            "git+ssh://git@github.com/a/b?shallow=1",
            json!({"shallow": true, "type": "git", "url": "ssh://git@github.com/a/b"}),
        ),
        ("git:///a/b", json!({"type": "git", "url": "git:///a/b"})),
        ("git+file:/x/../y", json!({"type": "git", "url": "file:/x/../y"})),
        ("git+file:x/y", json!({"type": "git", "url": "file:x/y"})),
        ("git+https://h/a?x=[b]", json!({"type": "git", "url": "https://h/a?x=%5Bb%5D"})),
        (
            "git+https://u:p%40@h%41:80/a%20b?x=a+b&y=%2b&z=\"q q\"",
            json!({"type": "git", "url": "https://u:p%40@hA:80/a%20b?x=a%2Bb&y=%2B&z=%22q%20q%22"}),
        ),
        ("git+https://[::1]:8/a", json!({"type": "git", "url": "https://[::1]:8/a"})),
        ("git+https://h:/a", json!({"type": "git", "url": "https://h/a"})),
        (
            "git+https://x/y?submodules=1&allRefs=0&name=foo",
            json!({"allRefs": false, "submodules": true, "type": "git", "url": "https://x/y?name=foo"}),
        ),
        ("nixpkgs", json!({"id": "nixpkgs", "type": "indirect"})),
        ("nixpkgs#", json!({"id": "nixpkgs", "type": "indirect"})),
        ("nixpkgs/nixos-20.09", json!({"id": "nixpkgs", "ref": "nixos-20.09", "type": "indirect"})),
        (
            "nixpkgs/nixos-20.09/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
            json!({"id": "nixpkgs", "ref": "nixos-20.09", "rev": REV, "type": "indirect"}),
        ),
        ("flake:nixpkgs", json!({"id": "nixpkgs", "type": "indirect"})),
        ("flake:a?dir=x", json!({"dir": "x", "id": "a", "type": "indirect"})),
        ("github:a/b/c/d/e", json!({"owner": "a", "ref": "c/d/e", "repo": "b", "type": "github"})),
        (
            "github:a/b?host=ex.org&dir=x",
            json!({"dir": "x", "host": "ex.org", "owner": "a", "repo": "b", "type": "github"}),
        ),
        ("github:a/b?narHash=x", json!({"narHash": "x", "owner": "a", "repo": "b", "type": "github"})),
        ("gitlab:a%2Fb/c", json!({"owner": "a/b", "repo": "c", "type": "gitlab"})),
        ("sourcehut:~foo/bar", json!({"owner": "~foo", "repo": "bar", "type": "sourcehut"})),
        (
            "https://x.org/a.tar.gz?narHash=sha256-47DEQpj8HBSa%2B%2FTImW%2B5JCeuQeRkm5NMpJWZG3hSuFU%3D&x=1",
            json!({"narHash": HASH, "type": "tarball", "url": "https://x.org/a.tar.gz?x=1"}),
        ),
        (
            "tarball+https://x.org/a?revCount=3&lastModified=7&rev=abc&name=foo",
            json!({"lastModified": 7, "rev": "abc", "revCount": 3, "type": "tarball", "url": "https://x.org/a"}),
        ),
        ("https://x.org/a", json!({"type": "tarball", "url": "https://x.org/a"})),
        ("https://h", json!({"type": "tarball", "url": "https://h"})),
        ("file:///x/y", json!({"type": "tarball", "url": "file:///x/y"})),
        ("file+https://x.org/a", json!({"type": "file", "url": "https://x.org/a"})),
        ("hg+https://x/y?rev=z", json!({"rev": "z", "type": "hg", "url": "https://x/y"})),
    ]
}

/// References that `builtins.parseFlakeRef` refuses, and why.
const REFUSED: &[(&str, &str)] = &[
    ("", "flake reference '' is not an absolute path"),
    (".", "flake reference '.' is not an absolute path"),
    ("./x", "flake reference './x' is not an absolute path"),
    ("nix pkgs", "flake reference 'nix pkgs' is not an absolute path"),
    ("github:foo", "flake reference 'github:foo' is not an absolute path"),
    ("github:a/b/c?ref=d", "flake reference 'github:a/b/c?ref=d' is not an absolute path"),
    ("github:a/b?rev=123", "hash '123' has wrong length for hash algorithm 'sha1'"),
    ("git+https://x/y?ref=@", "flake reference 'git+https://x/y?ref=@' is not an absolute path"),
    ("git+https://x/y?ref=a^b", "invalid URI query 'ref=a^b': leftover"),
    ("git+https://x/é", "flake reference 'git+https://x/é' is not an absolute path"),
    ("git+https://h:99999/a", "flake reference 'git+https://h:99999/a' is not an absolute path"),
    ("git+file://h/y", "flake reference 'git+file://h/y' is not an absolute path"),
    ("git@github.com:a/b", "flake reference 'git@github.com:a/b' is not an absolute path"),
    (
        "git+https://x/y?publicKey=a",
        "experimental Nix feature 'verified-fetches' is disabled; add '--extra-experimental-features verified-fetches' \
         to enable it",
    ),
    ("path:/a%2Fb", "flake reference 'path:/a%2Fb' is not an absolute path"),
    ("path:/a?foo=1", "path URL 'path:/a?foo=1' has unsupported parameter 'foo'"),
    ("path:/a?lastModified=x", "path URL 'path:/a?lastModified=x' has invalid parameter 'lastModified'"),
    ("path://foo/bar", "path URL 'path://foo/bar' should not have an authority ('foo')"),
    ("flake:nixpkgs/a/b/c", "flake reference 'flake:nixpkgs/a/b/c' is not an absolute path"),
    ("a/b/c/d", "GitHub URL 'flake:a/b/c/d' is invalid"),
    ("/x#y", "unexpected fragment 'y' in flake reference '/x#y'"),
    ("x:y", "input 'x:y' is unsupported"),
    ("HTTP://x/y", "input 'HTTP://x/y' is unsupported"),
    ("file+git:///x", "input 'file+git:///x' is unsupported; did you mean 'git+file' instead of 'file+git'?"),
];

/// Attributes, and what `builtins.flakeRefToString` gives for them: a URL, or an error.
fn printed() -> Vec<(Value, Result<&'static str, &'static str>)> {
    vec![
        (
            json!({"type": "path", "path": "/a b/ü", "narHash": HASH, "lastModified": 3}),
            Ok("path:/a%20b/%C3%BC?lastModified=3&narHash=sha256-47DEQpj8HBSa%2B/TImW%2B5JCeuQeRkm5NMpJWZG3hSuFU%3D"),
        ),
        (json!({"type": "path", "path": "./a", "dir": "x/y"}), Ok("path:./a?dir=x/y")),
        (json!({"type": "path", "path": "//a"}), Ok("path://a")),
        (json!({"type": "path", "path": ""}), Ok("path:")),
        (json!({"type": "github", "owner": "a/x", "repo": "b", "ref": "c/d"}), Ok("github:a%2Fx/b/c%2Fd")),
        (
            json!({"type": "git", "url": "git@github.com:a/b", "ref": "m", "rev": REV, "shallow": true}),
            Ok("git+ssh://git@github.com/a/b?ref=m&rev=aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa&shallow=1"),
        ),
        (json!({"type": "git", "url": "/a/b", "submodules": true}), Ok("git+file:///a/b?submodules=1")),
        (json!({"type": "git", "url": "a/b"}), Ok("git+file:a/b")),
        (json!({"type": "git", "url": "file:///a?dir=b", "dir": "c"}), Ok("git+file:///a?dir=b")),
        (
            json!({"type": "tarball", "url": "https://x/a.tgz?y=1", "narHash": HASH}),
            Ok("https://x/a.tgz?narHash=sha256-47DEQpj8HBSa%2B/TImW%2B5JCeuQeRkm5NMpJWZG3hSuFU%3D&y=1"),
        ),
        (json!({"type": "file", "url": "https://x/a.tgz"}), Ok("https://x/a.tgz")),
        (json!({"type": "indirect", "id": "a", "ref": "b"}), Ok("flake:a/b")),
        (json!({"type": "hg", "url": "https://x", "ref": "a"}), Ok("hg+https://x?ref=a")),
        (json!({"type": "nope"}), Err("cannot show unsupported input '{\"type\":\"nope\"}'")),
        (json!({"type": "path"}), Err("input attribute 'path' is missing")),
        (json!({"owner": 1}), Err("'type' attribute to specify input scheme is required but not provided")),
        (
            json!({"type": "github", "owner": "a", "repo": "b", "foo": 1}),
            Err("input attribute 'foo' not supported by scheme 'github'"),
        ),
        (
            json!({"type": "github", "owner": 1, "repo": "b"}),
            Err("input attribute 'owner' is not a string {\"owner\":1,\"repo\":\"b\",\"type\":\"github\"}"),
        ),
        (
            json!({"type": "git", "url": "x:y"}),
            Err("SCP-like URL 'x:y' is not supported; use SSH URL syntax instead (ssh://...)"),
        ),
        (json!({"type": "indirect", "id": "1"}), Err("'1' is not a valid flake ID")),
    ]
}

fn parse(text: &str) -> Result<Value, String> {
    FlakeRef::parse(text, ParseOptions::default())
        .map(|parsed| attrs_to_json(&parsed.to_attrs()))
        .map_err(|error| error.to_string())
}

fn print(attrs: &Value) -> Result<String, String> {
    let attrs: Attrs = attrs_from_json(attrs).unwrap();
    FlakeRef::from_attrs(attrs).and_then(|parsed| parsed.to_url_string()).map_err(|error| error.to_string())
}

#[test]
fn references_parse_to_nix_attributes() {
    for (text, expected) in parsed() {
        assert_eq!(parse(text), Ok(expected), "{text}");
    }
}

#[test]
fn references_are_refused_with_nix_reasons() {
    for (text, expected) in REFUSED {
        assert_eq!(parse(text), Err((*expected).to_owned()), "{text}");
    }
}

#[test]
fn attributes_print_as_nix_urls() {
    for (attrs, expected) in printed() {
        assert_eq!(print(&attrs).as_deref().map_err(String::as_str), expected, "{attrs}");
    }
}

#[test]
fn what_these_tests_expect_is_what_nix_says() {
    let Some(oracle) = Oracle::find() else { return };
    // one process for all that succeed
    let accepted = parsed();
    let list: Vec<String> = accepted.iter().map(|(text, _)| quote(text)).collect();
    let values = oracle.eval(&format!("map builtins.parseFlakeRef [ {} ]", list.join(" "))).unwrap();
    for ((text, expected), value) in accepted.iter().zip(values.as_array().unwrap()) {
        assert_eq!(value, expected, "{text}");
    }
    for (text, expected) in REFUSED {
        let error = oracle.eval(&format!("builtins.parseFlakeRef {}", quote(text))).unwrap_err();
        assert!(error.contains(expected), "{text}: {error}");
    }
    for (attrs, expected) in printed() {
        let value =
            oracle.eval(&format!("builtins.flakeRefToString (builtins.fromJSON {})", quote(&attrs.to_string())));
        match expected {
            Ok(expected) => assert_eq!(value, Ok(expected.into()), "{attrs}"),
            Err(expected) => {
                let error = value.unwrap_err();
                assert!(error.contains(expected), "{attrs}: {error}");
            }
        }
    }
}

#[test]
fn fragments_are_split_off_and_decoded() {
    let parse = |text| FlakeRef::parse_with_fragment(text, ParseOptions::default()).unwrap();
    assert_eq!(parse("nixpkgs#hello").fragment, "hello");
    assert_eq!(parse("github:a/b#x%20y.\"z\"").fragment, "x y.\"z\"");
    assert_eq!(parse("/a/b?dir=c#d").fragment, "d");
    assert_eq!(parse("/a/b?dir=c#d").flake_ref.subdir, "c");
}

mod command_line {
    use super::{FlakeRef, ParseOptions};
    use std::fs;
    use std::path::Path;

    fn parse(text: &str, base_dir: &Path) -> Result<(String, Vec<String>), String> {
        let options = ParseOptions { base_dir: Some(base_dir), allow_missing: false, ..ParseOptions::default() };
        FlakeRef::parse_with_fragment(text, options)
            .map(|parsed| (parsed.flake_ref.to_string(), parsed.notes))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn a_path_is_searched_upward_for_a_flake() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let shown = root.display();
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::write(root.join("flake.nix"), "").unwrap();
        let (found, notes) = parse("./a/b", &root).unwrap();
        assert_eq!(found, format!("path:{shown}"));
        assert_eq!(notes, [format!("path \"{shown}/a/b\" does not contain a 'flake.nix', searching up")]);
        assert_eq!(parse(".", &root).unwrap(), (format!("path:{shown}"), vec![]));
        let (found, notes) = parse("./flake.nix", &root).unwrap();
        assert_eq!(found, format!("path:{shown}"));
        assert!(notes[0].contains("should point at the directory"));
    }

    #[test]
    fn a_path_in_a_repository_is_the_repository_with_a_directory() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let shown = root.display();
        fs::create_dir_all(root.join("a/b/c")).unwrap();
        fs::create_dir(root.join(".git")).unwrap();
        fs::write(root.join("a/b/flake.nix"), "").unwrap();
        assert_eq!(parse("./a/b/c", &root).unwrap().0, format!("git+file://{shown}?dir=a/b"));
        assert_eq!(parse("./a/b", &root).unwrap().0, format!("git+file://{shown}?dir=a/b"));
        assert!(parse("./a/b?dir=x", &root).unwrap_err().contains("inconsistent 'dir' parameter"));
        assert!(parse("./a", &root).unwrap_err().contains("is not part of a flake"));
        fs::write(root.join(".git/shallow"), "").unwrap();
        assert_eq!(parse("./a/b", &root).unwrap().0, format!("git+file://{shown}?dir=a/b&shallow=1"));
    }

    #[test]
    fn a_file_or_nothing_is_no_flake() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("x"), "").unwrap();
        assert!(parse("./x", dir.path()).unwrap_err().contains("not a directory"));
        assert!(parse("./y", dir.path()).unwrap_err().contains("does not exist"));
    }
}
