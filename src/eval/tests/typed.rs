//! Values as Rust types and back.

use bento_eval::value::Pos;
use bento_eval::{ContextString, Diagnostic, ErrorKind, NoHost, RenderOptions, Settings, evaluate};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

const DERIVATION: &str = r#"derivation { name = "greeting"; system = "x86_64-linux"; builder = "/bin/sh"; }"#;
const DRV_PATH: &str = "/nix/store/6c2xmil36rjmqv2jd9nbgck4v2zb1zyq-greeting.drv";
const OUT_PATH: &str = "/nix/store/kp0sc2igr6x6f3fb7r5bql92f54qkjai-greeting";

/// What an expression is as a `T`.
fn read<T: DeserializeOwned + Send>(code: &str) -> Result<T, Diagnostic> {
    evaluate(Settings::default(), NoHost, |evaluator| {
        let value = evaluator.eval_string(code.as_bytes(), b"/");
        value.and_then(|value| evaluator.deserialize(value)).map_err(|error| evaluator.diagnose(&error))
    })
    .expect("the evaluation starts")
}

/// What Nix makes of something in Rust, as it prints it; or why it can't.
fn write<T: Serialize + Sync + ?Sized>(value: &T) -> Result<String, String> {
    evaluate(Settings::default(), NoHost, |evaluator| {
        let printed = evaluator.serialize(value).and_then(|value| evaluator.print(value, true));
        printed.map(|text| String::from_utf8_lossy(&text).into_owned()).map_err(|error| error.message)
    })
    .expect("the evaluation starts")
}

/// What comes out of a value that went into Nix.
fn there_and_back<T: Serialize + DeserializeOwned + Sync + Send>(value: &T) -> T {
    evaluate(Settings::default(), NoHost, |evaluator| {
        evaluator.serialize(value).and_then(|value| evaluator.deserialize(value)).map_err(|error| error.message)
    })
    .expect("the evaluation starts")
    .expect("it has a form in Nix")
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
enum Shape {
    Point,
    Circle(f64),
    Line(i64, i64),
    Box { width: u8, height: u8 },
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Everything {
    truth: bool,
    small: i8,
    large: i64,
    float: f64,
    letter: char,
    text: String,
    nothing: (),
    maybe: Option<u32>,
    list: Vec<Option<bool>>,
    pair: (u16, String),
    map: BTreeMap<String, i32>,
    shapes: Vec<Shape>,
}

fn everything() -> Everything {
    Everything {
        truth: true,
        small: -128,
        large: i64::MAX,
        float: 0.5,
        letter: 'ß',
        text: "a \"quoted\" ${text}\n".to_owned(),
        nothing: (),
        maybe: None,
        list: vec![Some(true), None],
        pair: (65535, String::new()),
        map: [("a b".to_owned(), 1), ("if".to_owned(), -1)].into(),
        shapes: vec![Shape::Point, Shape::Circle(1.0), Shape::Line(1, 2), Shape::Box { width: 3, height: 4 }],
    }
}

#[test]
fn what_goes_in_comes_out() {
    assert_eq!(there_and_back(&everything()), everything());
    assert_eq!(there_and_back(&i64::MIN), i64::MIN);
    assert_eq!(there_and_back(&PathBuf::from("/etc")), PathBuf::from("/etc"));
    let json = serde_json::json!({ "a": [1, 2.5, null, true, "x"], "b": {} });
    assert_eq!(there_and_back(&json), json);
}

#[test]
fn what_goes_in_is_what_nix_writes_like_that() {
    assert_eq!(
        write(&everything()).as_deref(),
        Ok(concat!(
            "{ float = 0.5; large = 9223372036854775807; letter = \"ß\"; list = [ true null ]; ",
            "map = { \"a b\" = 1; \"if\" = -1; }; maybe = null; nothing = null; pair = [ 65535 \"\" ]; ",
            "shapes = [ \"Point\" { Circle = 1; } { Line = [ 1 2 ]; } { Box = { height = 4; width = 3; }; } ]; ",
            "small = -128; text = \"a \\\"quoted\\\" \\${text}\\n\"; truth = true; }"
        ))
    );
}

#[test]
fn what_has_no_form_in_nix_does_not_go_in() {
    assert_eq!(write(&u64::MAX), Err("the integer 18446744073709551615 does not fit 64 bits".to_owned()));
    assert_eq!(write("a\0b"), Err("the string 'a␀b' has a zero byte, which no Nix string can have".to_owned()));
    let map: BTreeMap<i32, i32> = [(1, 2)].into();
    assert_eq!(write(&map), Err("an attribute's name must be a string, not an integer".to_owned()));
}

#[test]
fn only_what_the_type_has_is_evaluated() {
    #[derive(Deserialize)]
    struct Host {
        name: String,
    }
    let host: Host = read(r#"{ name = "web"; secret = abort "not asked for"; }"#).expect("it has a name");
    assert_eq!(host.name, "web");
    let keys: BTreeMap<String, serde::de::IgnoredAny> = read(r#"{ a = throw "no"; b = x: x; }"#).expect("a set");
    assert_eq!(keys.keys().collect::<Vec<_>>(), ["a", "b"]);
}

#[test]
fn a_value_of_another_type_is_an_error_that_says_where() {
    #[derive(Debug, Deserialize)]
    struct Host {
        #[expect(dead_code, reason = "it is only read")]
        ports: Vec<u16>,
    }
    let error = read::<Host>("{\n  ports = [ 80 70000 ];\n}").expect_err("a port has 16 bits");
    assert_eq!(error.kind, ErrorKind::Eval);
    assert_eq!(error.message, "invalid value: integer `70000`, expected u16");
    let steps: Vec<_> = error.steps.iter().map(|step| step.message.as_str()).collect();
    assert_eq!(steps, ["while converting the attribute 'ports'", "while converting the list element at index 1"]);
    assert_eq!(error.steps[0].place.as_ref().map(|place| (place.line, place.column)), Some((2, 3)));
    assert_eq!(read::<Host>("{ }").expect_err("nothing there").message, "missing field `ports`");
    assert_eq!(read::<String>("x: x").expect_err("a function").message, "a function can't be converted");
    assert_eq!(read::<Vec<u8>>("{ }").expect_err("a set").message, "invalid type: map, expected a sequence");
}

#[test]
fn errors_of_the_evaluation_come_through() {
    let error = read::<Vec<i32>>(r#"[ 1 (throw "not two") ]"#).expect_err("it throws");
    assert_eq!((error.kind, error.message.as_str()), (ErrorKind::Throw, "not two"));
    let error = read::<serde_json::Value>("let x = { inherit x; }; in x").expect_err("it has no end");
    assert_eq!(error.kind, ErrorKind::Overflow);
}

#[test]
fn derivations_are_structs_and_strings() {
    #[derive(Deserialize)]
    struct Derivation {
        name: String,
        #[serde(rename = "drvPath")]
        drv_path: String,
        #[serde(rename = "outPath")]
        out_path: ContextString,
    }
    let derivation: Derivation = read(DERIVATION).expect("it evaluates");
    assert_eq!((derivation.name.as_str(), derivation.drv_path.as_str()), ("greeting", DRV_PATH));
    assert_eq!(derivation.out_path.text, OUT_PATH);
    assert_eq!(derivation.out_path.context, [format!("{DRV_PATH}^out")]);
    assert_eq!(read::<String>(DERIVATION).as_deref(), Ok(OUT_PATH));
    assert_eq!(read::<serde_json::Value>(DERIVATION), Ok(OUT_PATH.into()));
}

#[test]
fn contexts_go_in_again() {
    let strings = [
        ContextString { text: "plain".to_owned(), context: Vec::new() },
        ContextString { text: format!("{OUT_PATH}/bin"), context: vec![format!("{DRV_PATH}^out")] },
        ContextString { text: DRV_PATH.to_owned(), context: vec![format!("={DRV_PATH}")] },
        ContextString { text: "both".to_owned(), context: vec![DRV_PATH.to_owned(), format!("{DRV_PATH}^out^lib")] },
    ];
    for string in &strings {
        assert_eq!(&there_and_back(string), string);
    }
    let context = evaluate(Settings::default(), NoHost, |evaluator| {
        let string = evaluator.serialize(&strings[1])?;
        let get_context = evaluator.eval_string(b"builtins.getContext", b"/")?;
        evaluator.deserialize::<serde_json::Value>(evaluator.call(get_context, &[string], Pos::NONE)?)
    });
    let context = context.expect("the evaluation starts").expect("a string has a context");
    assert_eq!(context, serde_json::json!({ DRV_PATH: { "outputs": ["out"] } }));
    let wrong = ContextString { text: String::new(), context: vec!["/etc/passwd".to_owned()] };
    assert!(write(&wrong).expect_err("not in the store").starts_with("context element '/etc/passwd': "));
}

#[test]
fn diagnostics_can_be_sent_elsewhere() {
    let error = read::<i32>("let s = { port = 80; }; in s.prot").expect_err("there is no such attribute");
    let json = serde_json::to_string(&error).expect("it has a form in JSON");
    let copy: Diagnostic = serde_json::from_str(&json).expect("it comes back");
    assert_eq!(copy, error);
    assert_eq!(copy.render(&RenderOptions::default()), error.render(&RenderOptions::default()));
    assert_eq!(copy.suggestions, ["port"]);
}
