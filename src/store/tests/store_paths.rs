//! Store paths are checked and computed as C++ Nix does.

#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

use std::collections::BTreeSet;

use bento_store::{
    content_address::{ContentAddress, ContentAddressMethod},
    hash::{Hash, HashAlgo},
    store_path::{References, StoreDir, StorePath, StorePathError, check_name},
};

fn empty() -> Hash {
    Hash::digest(HashAlgo::Sha256, "")
}

#[test]
fn content_addressed_paths_are_those_of_nix() {
    let store = StoreDir::default();
    let (mut with_references, mut with_itself) = (0, 0);
    for line in include_str!("golden/paths.tsv").lines() {
        let [path, address, references] = line.split('\t').collect::<Vec<_>>()[..] else { panic!("{line}") };
        let parsed = store.parse(path).unwrap();
        let address: ContentAddress = address.parse().unwrap();
        let mut found = References::default();
        for reference in references.split(',').filter(|r| !r.is_empty()) {
            if reference == "self" {
                found.itself = true;
            } else {
                found.others.insert(store.parse(reference).unwrap());
            }
        }
        with_references += usize::from(!found.others.is_empty());
        with_itself += usize::from(found.itself);
        let made = store.make_content_addressed_path(parsed.name(), &address, &found).unwrap();
        assert_eq!(store.print(&made), path);
        if found.is_empty() {
            assert_eq!(store.make_fixed_output_path(parsed.name(), &address).unwrap(), parsed);
        }
    }
    assert!(with_references > 0 && with_itself > 0);
}

#[test]
fn content_addresses_are_written_as_they_were_read() {
    for line in include_str!("golden/paths.tsv").lines() {
        let text = line.split('\t').nth(1).unwrap();
        assert_eq!(text.parse::<ContentAddress>().unwrap().to_string(), text);
    }
}

#[test]
fn content_addresses_of_no_known_form_are_refused() {
    let error = |text: &str| text.parse::<ContentAddress>().unwrap_err().to_string();
    assert_eq!(error("x"), "not a content address because it is not in the form '<prefix>:<rest>': x");
    assert_eq!(
        error("x:sha256:y"),
        "content address prefix 'x' is unrecognized. Recogonized prefixes are 'text' or 'fixed'"
    );
    assert_eq!(error("fixed:r:x"), "content address hash must be in form '<algo>:<hash>', but found: fixed:r:x");
    assert!(error("fixed:text:sha256:y").starts_with("unknown hash algorithm 'text'"));
    assert_eq!(error("text:sha256:y"), "hash 'y' has wrong length for hash algorithm 'sha256'");
}

#[test]
fn names_are_accepted_and_refused_as_nix_does() {
    let store = StoreDir::default();
    // Not all of it is text: Nix shows the first byte of a character that has several.
    for line in String::from_utf8_lossy(include_bytes!("golden/names.tsv")).lines() {
        let (name, expected) = line.split_once('\t').unwrap();
        match store.make_text_path(name, &empty(), []) {
            Ok(path) => assert_eq!(store.print(&path), expected),
            Err(error) => assert_eq!(error.to_string(), expected),
        }
        assert_eq!(check_name(name).is_ok(), expected.starts_with('/'), "{name}");
    }
}

#[test]
fn base_names_need_a_hash_a_dash_and_a_name() {
    let error = |text: &str| text.parse::<StorePath>().unwrap_err().to_string();
    assert_eq!(error("abc"), "'abc' is too short to be a valid store path");
    let hash = "z".repeat(31);
    assert_eq!(error(&format!("{hash}e-x")), format!("store path '{hash}e-x' contains illegal base-32 character 'e'"));
    assert_eq!(
        error(&format!("{hash}z-")),
        format!("path '{hash}z-' is not a valid store path: name must not be empty")
    );
    assert!(matches!(format!("{hash}zx").parse::<StorePath>(), Err(StorePathError::NoDash(_))));
    let path: StorePath = format!("{hash}z-a-b.drv").parse().unwrap();
    assert_eq!((path.hash_part().len(), path.name()), (32, "a-b.drv"));
    assert!(path.is_derivation());
    assert_eq!(path.derivation_name().unwrap(), "a-b");
    let source: StorePath = format!("{hash}z-a").parse().unwrap();
    assert_eq!(
        source.derivation_name().unwrap_err().to_string(),
        format!("store path '{hash}z-a' is not a valid derivation path")
    );
}

#[test]
fn full_paths_are_made_canonical_first() {
    let store = StoreDir::default();
    let base = "5akl8zsmda0yrr63v4khwgskih2g2hsh-greeting";
    let path: StorePath = base.parse().unwrap();
    for text in [
        format!("/nix/store/{base}"),
        format!("/nix/store/{base}/"),
        format!("//nix/./store//{base}/."),
        format!("/nix/store/x/../{base}"),
    ] {
        assert_eq!(store.parse(&text), Ok(path.clone()), "{text}");
    }
    for text in ["/foo/bar", "/", "/nix/store", "/nix/store/..", &format!("/nix/store/{base}/bin")] {
        assert!(matches!(store.parse(text), Err(StorePathError::NotInStore(_))), "{text}");
    }
    assert_eq!(store.parse("/foo/bar").unwrap_err().to_string(), "path \"/foo/bar\" is not in the Nix store");
    assert_eq!(store.parse(base).unwrap_err(), StorePathError::NotAbsolute(base.into()));
}

#[test]
fn paths_below_a_store_path_are_split() {
    let store = StoreDir::default();
    let base = "5akl8zsmda0yrr63v4khwgskih2g2hsh-greeting";
    let path: StorePath = base.parse().unwrap();
    let whole = format!("/nix/store/{base}");
    assert_eq!(store.split(whole.as_bytes()), Ok((path.clone(), b"".as_slice())));
    let inner = format!("{whole}/bin/x");
    assert_eq!(store.split(inner.as_bytes()), Ok((path, b"/bin/x".as_slice())));
    assert!(store.split(b"/nix/storex/y").is_err());
    assert!(store.contains(&inner) && !store.contains("/nix/store/") && !store.contains("/nix/stores/x"));
}

#[test]
fn another_store_directory_gives_other_paths() {
    // What C++ Nix gives with `--store 'dummy://?store=/other/store' --readonly-mode` for `builtins.toFile "a" ""`.
    let store = StoreDir::new("/other//store/").unwrap();
    let path = store.make_text_path("a", &empty(), []).unwrap();
    assert_eq!(store.print(&path), "/other/store/f57crb1zwq0a515jycy7r6skp113vy3q-a");
    assert!(StoreDir::new("relative").is_err());
}

#[test]
fn objects_that_cannot_exist_have_no_path() {
    let store = StoreDir::default();
    let other: StorePath = "5akl8zsmda0yrr63v4khwgskih2g2hsh-greeting".parse().unwrap();
    let others = References { others: BTreeSet::from([other]), itself: false };
    let itself = References { others: BTreeSet::new(), itself: true };
    let make = |method, algo, references: &References| {
        let address = ContentAddress { method, hash: Hash::digest(algo, "") };
        store.make_content_addressed_path("x", &address, references)
    };
    assert_eq!(
        make(ContentAddressMethod::Flat, HashAlgo::Sha256, &others),
        Err(StorePathError::References("x".into()))
    );
    assert_eq!(
        make(ContentAddressMethod::NixArchive, HashAlgo::Sha1, &itself),
        Err(StorePathError::References("x".into()))
    );
    assert_eq!(make(ContentAddressMethod::Text, HashAlgo::Sha256, &itself), Err(StorePathError::TextSelfReference));
    assert_eq!(
        make(ContentAddressMethod::Text, HashAlgo::Sha1, &References::default()),
        Err(StorePathError::TextAlgo(HashAlgo::Sha1))
    );
    assert_eq!(
        make(ContentAddressMethod::Git, HashAlgo::Md5, &References::default()).unwrap_err().to_string(),
        "Git file ingestion must use SHA-1 or SHA-256 hash, but instead using: md5"
    );
}
