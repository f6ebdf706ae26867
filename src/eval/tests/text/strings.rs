use std::convert::Infallible;

use bento_eval::text::strings::{base_name, canon_path, dir_name, replace_strings, split, tokenize};
use serde_json::json;

use crate::golden;
use crate::oracle::{Form, Oracle, Random, check, literal};

fn quoted(bytes: &[u8]) -> Result<String, String> {
    Ok(json!(std::str::from_utf8(bytes).map_err(|error| error.to_string())?).to_string())
}

fn replaced(from: &[&[u8]], to: &[&[u8]], text: &[u8]) -> Vec<u8> {
    let append = |index: usize, out: &mut Vec<u8>| -> Result<(), Infallible> {
        out.extend(to[index]);
        Ok(())
    };
    replace_strings(from, text, append).unwrap_or_else(|error| match error {})
}

#[test]
fn names_the_last_component_as_cpp_nix_does() {
    let ours = |arguments: &[&[u8]]| quoted(base_name(arguments[0]));
    check("names_the_last_component_as_cpp_nix_does", golden::BASE_NAME, Form::Json, "baseNameOf @1", ours);
}

#[test]
fn names_the_folder_as_cpp_nix_does() {
    let ours = |arguments: &[&[u8]]| quoted(dir_name(arguments[0]));
    check("names_the_folder_as_cpp_nix_does", golden::DIR_NAME, Form::Json, "dirOf @1", ours);
}

#[test]
fn canonicalises_paths_as_cpp_nix_does() {
    let ours = |arguments: &[&[u8]]| quoted(&canon_path(arguments[0]));
    check("canonicalises_paths_as_cpp_nix_does", golden::CANON_PATH, Form::Json, "toString (/. + @1)", ours);
}

#[test]
fn replaces_strings_as_cpp_nix_does() {
    let ours = |arguments: &[&[u8]]| quoted(&replaced(&arguments[..1], &arguments[1..2], arguments[2]));
    let expression = "builtins.replaceStrings [ @1 ] [ @2 ] @3";
    check("replaces_strings_as_cpp_nix_does", golden::REPLACE_ONE, Form::Json, expression, ours);
    let ours = |arguments: &[&[u8]]| quoted(&replaced(&arguments[..2], &arguments[2..4], arguments[4]));
    let expression = "builtins.replaceStrings [ @1 @2 ] [ @3 @4 ] @5";
    check("replaces_strings_as_cpp_nix_does", golden::REPLACE_TWO, Form::Json, expression, ours);
}

#[test]
fn an_error_of_a_replacement_ends_the_search() {
    let mut calls = 0;
    let outcome = replace_strings(&["a"], b"aaa", |_, _| {
        calls += 1;
        Err("no")
    });
    assert_eq!((outcome, calls), (Err("no"), 1));
}

#[test]
fn splitting_keeps_empty_pieces_and_tokenizing_drops_them() {
    let pieces = |iterator: &mut dyn Iterator<Item = &'static [u8]>| iterator.map(<[u8]>::to_vec).collect::<Vec<_>>();
    assert_eq!(pieces(&mut split(b" a  b,c ", b" ,")), [&b""[..], b"a", b"", b"b", b"c", b""]);
    assert_eq!(pieces(&mut tokenize(b" a  b,c ", b" ,")), [b"a", b"b", b"c"]);
    assert_eq!(pieces(&mut split(b"", b":")), [b""]);
    assert!(pieces(&mut tokenize(b"", b":")).is_empty());
}

#[test]
fn random_replacements_and_paths_come_out_as_in_cpp_nix() {
    let Some(oracle) = Oracle::find("random_replacements_and_paths_come_out_as_in_cpp_nix") else { return };
    let mut random = Random(7);
    let mut word = |letters: &[&str], length: usize| -> String {
        (0..random.below(length + 1)).map(|_| random.pick(letters)).collect()
    };
    let mut expression = b"[".to_vec();
    let mut expected = Vec::new();
    for _ in 0..3000 {
        let from = [word(&["a", "b"], 2), word(&["a", "b"], 2), word(&["a", "b"], 2)];
        let to = [word(&["a", "x"], 2), word(&["b", "y"], 2), word(&["z"], 2)];
        let text = word(&["a", "b", "c"], 8);
        let path = word(&["a", "b", "/", "/", ".", ".."], 8);
        let lists = [&from, &to].map(|list| list.iter().flat_map(|s| literal(s.as_bytes())).collect::<Vec<_>>());
        expression.extend(b"(builtins.replaceStrings [");
        expression.extend(&lists[0]);
        expression.extend(b"] [");
        expression.extend(&lists[1]);
        expression.extend(b"] ");
        expression.extend(literal(text.as_bytes()));
        expression.extend(b")(baseNameOf ");
        expression.extend(literal(path.as_bytes()));
        expression.extend(b")(dirOf ");
        expression.extend(literal(path.as_bytes()));
        expression.extend(b")(toString (/. + ");
        expression.extend(literal(path.as_bytes()));
        expression.extend(b"))\n");
        let (from, to) = (from.each_ref().map(String::as_bytes), to.each_ref().map(String::as_bytes));
        expected.push(replaced(&from, &to, text.as_bytes()));
        expected.push(base_name(path.as_bytes()).to_vec());
        expected.push(dir_name(path.as_bytes()).to_vec());
        expected.push(canon_path(path.as_bytes()));
    }
    expression.push(b']');
    let answers = oracle.json(&expression).expect("the oracle evaluates these");
    for (answer, expected) in answers.as_array().expect("a list").iter().zip(expected) {
        assert_eq!(answer.as_str(), std::str::from_utf8(&expected).ok());
    }
}
