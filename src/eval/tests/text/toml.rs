use bento_eval::text::toml::{TomlError, parse};

use crate::golden;
use crate::oracle::{Form, check};
use crate::value::Trees;

#[test]
fn reads_documents_as_cpp_nix_does() {
    let ours = |arguments: &[&[u8]]| match parse(arguments[0], false, &mut Trees) {
        Ok(tree) => Ok(tree.printed()),
        // Which syntax error it is, is told in other words.
        Err(TomlError::Parse(_)) => Err("while parsing TOML: ".to_owned()),
        Err(error) => Err(error.to_string()),
    };
    check("reads_documents_as_cpp_nix_does", golden::FROM_TOML, Form::Printed, "builtins.fromTOML @1", ours);
}

#[test]
fn timestamps_become_text_when_asked_for() {
    let shown = |value: &str| parse(format!("a={value}").as_bytes(), true, &mut Trees).map(|tree| tree.printed());
    for (value, expected) in golden::TIMESTAMPS {
        let expected = match expected {
            Some(text) => Ok(format!(r#"{{ a = {{ _type = "timestamp"; value = "{text}"; }}; }}"#)),
            None => Err(()),
        };
        assert_eq!(shown(value).map_err(|_| ()), expected, "{value}");
    }
}

#[test]
fn depth_ends_in_an_error() {
    for text in [
        "[".repeat(100_000),
        "a=".to_owned() + &"[".repeat(100_000),
        "a=".to_owned() + &"{a=".repeat(100_000),
        "[a".to_owned() + &".a".repeat(100_000) + "]",
        "a".to_owned() + &".a".repeat(100_000) + "=1",
        "a=".to_owned() + &("{a".to_owned() + &".a".repeat(70) + "=").repeat(70) + "1" + &"}".repeat(70),
    ] {
        assert!(parse(text.as_bytes(), false, &mut Trees).is_err());
    }
}
