//! What is written is read back, and no bytes make a reader panic.

#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    io::{self, Read, Write},
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
};

use bento_store::{
    base32,
    content_address::{ContentAddress, ContentAddressMethod},
    derivation::{Derivation, DerivationOutput, InputOutputs},
    hash::{Hash, HashAlgo, HashFormat},
    nar::{self, Files, Metadata, Visitor, keep_all},
    store_path::{StoreDir, StorePath},
};
use proptest::{collection, prelude::*, sample};

fn bytes(max: usize) -> impl Strategy<Value = Vec<u8>> {
    collection::vec(any::<u8>(), 0..max)
}

fn algo() -> impl Strategy<Value = HashAlgo> {
    sample::select(HashAlgo::ALL.to_vec())
}

/// A file tree that only exists in memory.
#[derive(Debug, Clone, PartialEq)]
enum Tree {
    File { executable: bool, contents: Vec<u8> },
    Link(Vec<u8>),
    Directory(BTreeMap<Vec<u8>, Tree>),
}

impl Tree {
    fn find(&self, path: &Path) -> io::Result<&Self> {
        path.iter().try_fold(self, |node, name| match node {
            Self::Directory(entries) => entries.get(name.as_bytes()).ok_or(io::ErrorKind::NotFound.into()),
            _ => Err(io::ErrorKind::NotADirectory.into()),
        })
    }

    fn insert(&mut self, path: &Path, new: Self) -> io::Result<()> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            *self = new;
            return Ok(());
        };
        let mut node = self;
        for name in parent {
            let Self::Directory(entries) = node else { return Err(io::ErrorKind::NotADirectory.into()) };
            node = entries.get_mut(name.as_bytes()).ok_or(io::ErrorKind::NotFound)?;
        }
        let Self::Directory(entries) = node else { return Err(io::ErrorKind::NotADirectory.into()) };
        entries.insert(name.to_owned().into_vec(), new);
        Ok(())
    }
}

impl Files for Tree {
    fn metadata(&self, path: &Path) -> io::Result<Metadata> {
        Ok(match self.find(path)? {
            Self::File { executable, contents } => {
                Metadata::Regular { executable: *executable, size: contents.len() as u64 }
            }
            Self::Link(_) => Metadata::Symlink,
            Self::Directory(_) => Metadata::Directory,
        })
    }

    fn names(&self, directory: &Path) -> io::Result<Vec<Vec<u8>>> {
        match self.find(directory)? {
            // Not in order, as a real directory.
            Self::Directory(entries) => Ok(entries.keys().rev().cloned().collect()),
            _ => Err(io::ErrorKind::NotADirectory.into()),
        }
    }

    fn contents(&self, file: &Path, sink: &mut dyn Write) -> io::Result<()> {
        match self.find(file)? {
            Self::File { contents, .. } => sink.write_all(contents),
            _ => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    fn target(&self, link: &Path) -> io::Result<Vec<u8>> {
        match self.find(link)? {
            Self::Link(target) => Ok(target.clone()),
            _ => Err(io::ErrorKind::InvalidInput.into()),
        }
    }
}

struct Builder(Option<Tree>);

impl Builder {
    fn add(&mut self, path: &Path, node: Tree) -> io::Result<()> {
        match &mut self.0 {
            Some(tree) => tree.insert(path, node),
            None => {
                self.0 = Some(node);
                Ok(())
            }
        }
    }
}

impl Visitor for Builder {
    fn directory(&mut self, path: &Path) -> io::Result<()> {
        self.add(path, Tree::Directory(BTreeMap::new()))
    }

    fn regular(&mut self, path: &Path, executable: bool, _: u64, source: &mut dyn Read) -> io::Result<()> {
        let mut contents = Vec::new();
        source.read_to_end(&mut contents)?;
        self.add(path, Tree::File { executable, contents })
    }

    fn symlink(&mut self, path: &Path, target: &[u8]) -> io::Result<()> {
        self.add(path, Tree::Link(target.to_vec()))
    }
}

fn tree() -> impl Strategy<Value = Tree> {
    let not_zero = collection::vec(1u8.., 1..40);
    let name = collection::vec((1u8..).prop_filter("slash", |c| *c != b'/'), 1..20)
        .prop_filter("dots", |n| !matches!(n.as_slice(), b"." | b".."));
    let leaf = prop_oneof![
        (any::<bool>(), bytes(100)).prop_map(|(executable, contents)| Tree::File { executable, contents }),
        not_zero.prop_map(Tree::Link),
    ];
    leaf.prop_recursive(4, 30, 6, move |inner| {
        collection::btree_map(name.clone(), inner, 0..6).prop_map(Tree::Directory)
    })
}

fn store_path() -> impl Strategy<Value = StorePath> {
    (any::<[u8; 20]>(), "[a-zA-Z0-9+_?=-][a-zA-Z0-9+._?=-]{0,20}")
        .prop_map(|(hash, name)| StorePath::from_parts(hash, &name).unwrap())
}

fn hash() -> impl Strategy<Value = Hash> {
    (algo(), bytes(8)).prop_map(|(algo, data)| Hash::digest(algo, data))
}

fn method() -> impl Strategy<Value = ContentAddressMethod> {
    use ContentAddressMethod::{Flat, Git, NixArchive, Text};
    sample::select(vec![Flat, NixArchive, Text, Git])
}

fn output() -> impl Strategy<Value = DerivationOutput> {
    prop_oneof![
        store_path().prop_map(DerivationOutput::InputAddressed),
        Just(DerivationOutput::Deferred),
        (method(), algo()).prop_map(|(method, algo)| DerivationOutput::CaFloating { method, algo }),
        (method(), algo()).prop_map(|(method, algo)| DerivationOutput::Impure { method, algo }),
        (method(), hash())
            .prop_map(|(method, hash)| ContentAddress { method, hash })
            .prop_filter("possible", |a| StoreDir::default().make_fixed_output_path("x", a).is_ok())
            .prop_map(DerivationOutput::CaFixed),
    ]
}

fn input() -> impl Strategy<Value = InputOutputs> {
    let names = || collection::btree_set("[a-z]{1,4}", 0..3);
    names().prop_map(|outputs| InputOutputs { outputs, dynamic: BTreeMap::new() }).prop_recursive(
        3,
        8,
        2,
        move |inner| {
            (names(), collection::btree_map("[a-z]{1,4}", inner, 0..3))
                .prop_map(|(outputs, dynamic)| InputOutputs { outputs, dynamic })
        },
    )
}

fn derivation() -> impl Strategy<Value = Derivation> {
    let text = || prop_oneof![bytes(30), "[a\"\\\\\n\r\t]{0,10}".prop_map(String::into_bytes)];
    (
        collection::btree_map("[a-z]{1,6}", output(), 0..4),
        collection::btree_map(store_path(), input(), 0..4),
        collection::btree_set(store_path(), 0..4),
        ("[a-z0-9_-]{0,12}", text()),
        collection::vec(text(), 0..4),
        collection::btree_map(text(), text(), 0..5),
    )
        .prop_map(|(outputs, input_drvs, input_srcs, (platform, builder), args, env)| Derivation {
            name: "name".into(),
            outputs,
            input_drvs,
            input_srcs,
            platform: platform.into_bytes(),
            builder,
            args,
            env,
        })
}

proptest! {
    #[test]
    fn base32_is_read_back(data in bytes(70)) {
        let text = base32::encode(&data);
        prop_assert_eq!(text.len(), base32::encoded_len(data.len()));
        prop_assert_eq!(base32::decode(&text), Ok(data));
    }

    #[test]
    fn base32_accepts_only_what_it_writes(text in "[0-9a-z]{0,20}") {
        if let Ok(data) = base32::decode(&text) {
            prop_assert_eq!(base32::encode(&data), text);
        }
    }

    #[test]
    fn hashes_are_read_back(hash in hash()) {
        for format in [HashFormat::Base16, HashFormat::Nix32, HashFormat::Base64, HashFormat::Sri] {
            let prefixed = Hash::parse_any_prefixed(&hash.format(format, true));
            prop_assert_eq!(prefixed, Ok(hash));
        }
    }

    #[test]
    fn no_text_makes_the_readers_of_hashes_and_paths_panic(text in "\\PC{0,60}", algo in algo()) {
        let _ = Hash::parse_any(&text, Some(algo));
        let _ = Hash::parse_sri(&format!("{algo}-{text}"));
        let _ = text.parse::<ContentAddress>();
        let store = StoreDir::default();
        let _ = store.parse(&text);
        if let Ok(path) = store.parse(format!("/nix/store/{text}")) {
            prop_assert_eq!(store.parse(store.print(&path)), Ok(path));
        }
    }

    #[test]
    fn archives_are_read_back(tree in tree()) {
        let mut archive = Vec::new();
        nar::dump(&tree, &PathBuf::new(), keep_all, &mut archive).unwrap();
        let mut builder = Builder(None);
        nar::parse(archive.as_slice(), &mut builder).unwrap();
        prop_assert_eq!(builder.0, Some(tree));
    }

    #[test]
    fn changed_archives_do_not_panic(tree in tree(), at in any::<sample::Index>(), with in bytes(10)) {
        let mut archive = Vec::new();
        nar::dump(&tree, &PathBuf::new(), keep_all, &mut archive).unwrap();
        let start = at.index(archive.len());
        let end = (start + with.len()).min(archive.len());
        archive.splice(start..end, with);
        let mut builder = Builder(None);
        if nar::parse(archive.as_slice(), &mut builder).is_ok() {
            let mut again = Vec::new();
            nar::dump(&builder.0.unwrap(), Path::new(OsStr::new("")), keep_all, &mut again).unwrap();
            prop_assert!(archive.starts_with(&again));
        }
    }

    #[test]
    fn derivations_are_read_back(drv in derivation()) {
        let store = StoreDir::default();
        let contents = drv.to_aterm(&store).unwrap();
        prop_assert_eq!(Derivation::parse(&store, "name", &contents), Ok(drv));
    }

    #[test]
    fn changed_derivations_do_not_panic(drv in derivation(), at in any::<sample::Index>(), with in bytes(10)) {
        let store = StoreDir::default();
        let mut contents = drv.to_aterm(&store).unwrap();
        let start = at.index(contents.len());
        let end = (start + with.len()).min(contents.len());
        contents.splice(start..end, with);
        match Derivation::parse(&store, "name", &contents) {
            Ok(drv) => {
                // Accepted, it is a derivation like any other.
                let again = drv.to_aterm(&store);
                if let Ok(again) = again {
                    prop_assert_eq!(Derivation::parse(&store, "name", &again), Ok(drv));
                }
            }
            Err(error) => prop_assert!(error.offset <= contents.len()),
        }
    }

    #[test]
    fn the_order_and_number_of_references_do_not_matter(paths in collection::vec(store_path(), 0..6)) {
        let store = StoreDir::default();
        let hash = Hash::digest(HashAlgo::Sha256, "");
        let set: BTreeSet<_> = paths.iter().cloned().collect();
        let twice = paths.iter().chain(&paths);
        prop_assert_eq!(store.make_text_path("x", &hash, twice), store.make_text_path("x", &hash, &set));
    }
}
