//! The record of what an evaluation read, and what others take over from it.

#![allow(clippy::unwrap_used)]

use bento_eval::fs::{FileSystem, FileType, bytes_of};
use bento_eval::record::{Check, Findings, Node, Readings, RecordingFs};
use bento_eval::{NoHost, Settings, TreeHashes, evaluate_on};
use std::path::{Path, PathBuf};
use std::rc::Rc;

fn tree() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    std::fs::create_dir(root.join("sub")).unwrap();
    std::fs::write(root.join("a"), "contents").unwrap();
    std::fs::write(root.join("sub/b"), "other").unwrap();
    std::os::unix::fs::symlink("a", root.join("link")).unwrap();
    dir
}

fn files() -> RecordingFs {
    RecordingFs::new(Path::new("/nix/store"))
}

fn paths(readings: &Readings) -> Vec<PathBuf> {
    readings.keys().map(|path| bento_eval::fs::path_of(path).to_owned()).collect()
}

#[test]
fn what_was_read_is_taken_once() {
    let (dir, files) = (tree(), files());
    let a = dir.path().join("a");
    files.read_file(&a).unwrap();
    assert_eq!(paths(&files.take()), std::slice::from_ref(&a));
    files.read_file(&a).unwrap();
    assert_eq!(files.take(), Readings::new(), "it is the same as before");
    assert_eq!(files.lstat(&a).unwrap().unwrap().file_type, FileType::Regular);
    let more = files.take();
    let reading = &more[bytes_of(&a)];
    assert_eq!((reading.node, reading.contents), (Some(Node::File), None), "only what is new");
}

#[test]
fn contents_that_changed_meanwhile_are_taken_again() {
    let (dir, files) = (tree(), files());
    let a = dir.path().join("a");
    files.read_file(&a).unwrap();
    let before = files.take();
    std::fs::write(&a, "changed").unwrap();
    files.read_file(&a).unwrap();
    let after = files.take();
    assert_eq!(before[bytes_of(&a)].check(bytes_of(&a)), Check::Changed);
    assert!(matches!(after[bytes_of(&a)].check(bytes_of(&a)), Check::Same(_)));
}

#[test]
fn what_was_absent_is_looked_for_again() {
    let (dir, files) = (tree(), files());
    let new = dir.path().join("new");
    assert_eq!(files.lstat(&new).unwrap(), None);
    std::fs::write(&new, "").unwrap();
    assert!(files.lstat(&new).unwrap().is_some());
    assert_eq!(files.take()[bytes_of(&new)].node, Some(Node::File));
}

#[test]
fn what_others_found_out_is_not_looked_at_again_and_counts_when_it_is_asked_for() {
    let (dir, first, second) = (tree(), files(), files());
    let [root, a, b] = ["", "a", "sub/b"].map(|name| dir.path().join(name));
    first.read_dir(&root).unwrap();
    first.lstat(&a).unwrap();
    first.read_file(&b).unwrap();
    let read = first.take();
    second.learn(first.findings());
    assert_eq!(second.take(), Readings::new(), "nothing was asked for yet");
    // so that any look at them would show
    let listing = first.read_dir(&root).unwrap();
    std::fs::remove_dir_all(dir.path()).unwrap();
    assert_eq!(second.read_dir(&root).unwrap(), listing);
    assert_eq!(second.take()[bytes_of(&root)], read[bytes_of(&root)]);
    assert!(second.lstat(&a).unwrap().is_some() && second.read_again(&b) && !second.read_again(&a));
    let taken = second.take();
    assert_eq!(
        (taken.len(), &taken[bytes_of(&a)], &taken[bytes_of(&b)]),
        (2, &read[bytes_of(&a)], &read[bytes_of(&b)])
    );
    second.read_file(&b).unwrap_err();
}

#[test]
fn only_what_is_new_is_passed_on() {
    let (dir, first, second, third) = (tree(), files(), files(), files());
    let [a, b] = ["a", "sub/b"].map(|name| dir.path().join(name));
    first.read_file(&a).unwrap();
    second.learn(first.findings());
    second.read_file(&b).unwrap();
    third.learn(second.findings());
    assert!(third.read_again(&b) && !third.read_again(&a), "what was learned is not passed on");
}

/// What there is to learn from an evaluation.
type Known = (Findings, TreeHashes);

/// The store path of a copy of the tree's files without its links, what was read for that, and what there is to learn from it.
fn filtered(root: &Path, known: Known) -> Result<(String, Readings, Known), String> {
    let (findings, hashes) = known;
    let start = move || {
        let files = files();
        files.learn(findings);
        Rc::new(files)
    };
    evaluate_on(Settings::default(), start, NoHost, |evaluator, files: &RecordingFs| {
        evaluator.learn_trees(hashes);
        let program = format!(r#"toString (builtins.filterSource (path: type: type != "symlink") {})"#, root.display());
        let value = evaluator.eval_string(program.as_bytes(), b"/");
        let path = value.and_then(|value| evaluator.deserialize(value)).map_err(|error| error.message)?;
        Ok((path, files.take(), (files.findings(), evaluator.tree_hashes())))
    })
    .unwrap()
}

#[test]
fn a_tree_that_another_evaluation_filtered_is_not_hashed_again() {
    let dir = tree();
    let (path, readings, known) = filtered(dir.path(), Known::default()).unwrap();
    std::fs::remove_dir_all(dir.path()).unwrap();
    let (again, same, more) = filtered(dir.path(), known).unwrap();
    assert_eq!((again, same), (path, readings), "it depends on the same files as if they had been read");
    assert!(format!("{:?}", more.0).ends_with("([])"), "there is nothing new to learn");
}

#[test]
fn a_hash_without_its_files_is_not_relied_upon() {
    let dir = tree();
    let (path, _, (_, hashes)) = filtered(dir.path(), Known::default()).unwrap();
    std::fs::write(dir.path().join("a"), "changed").unwrap();
    let (other, readings, _) = filtered(dir.path(), (Findings::default(), hashes)).unwrap();
    assert_ne!(other, path);
    assert!(readings[bytes_of(&dir.path().join("a"))].contents.is_some());
}
