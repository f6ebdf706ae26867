use bento_eval::text::number::{float_to_string, parse_float, parse_int, write_float, write_json_float};

use crate::golden;
use crate::oracle::{Form, Oracle, Random, check, literal};

fn given(arguments: &[&[u8]]) -> f64 {
    String::from_utf8_lossy(arguments[0]).parse().expect("a float")
}

fn text(write: impl Fn(&mut Vec<u8>, f64), value: f64) -> String {
    let mut out = Vec::new();
    write(&mut out, value);
    String::from_utf8_lossy(&out).into_owned()
}

#[test]
fn floats_in_json_read_as_in_cpp_nix() {
    let ours = |arguments: &[&[u8]]| Ok(text(write_json_float, given(arguments)));
    check("floats_in_json_read_as_in_cpp_nix", golden::FLOAT_TO_JSON, Form::Json, "builtins.fromJSON @1", ours);
}

#[test]
fn printed_floats_read_as_in_cpp_nix() {
    let ours = |arguments: &[&[u8]]| Ok(text(write_float, given(arguments)));
    check("printed_floats_read_as_in_cpp_nix", golden::FLOAT_PRINT, Form::Printed, "builtins.fromJSON @1", ours);
}

#[test]
fn floats_as_strings_read_as_in_cpp_nix() {
    let ours = |arguments: &[&[u8]]| Ok(format!("\"{}\"", float_to_string(given(arguments))));
    let expression = "toString (builtins.fromJSON @1)";
    check("floats_as_strings_read_as_in_cpp_nix", golden::FLOAT_TO_STRING, Form::Printed, expression, ours);
}

#[test]
fn float_literals_are_kept_or_refused_as_in_cpp_nix() {
    let ours = |arguments: &[&[u8]]| match parse_float(arguments[0]) {
        Ok(value) => Ok(text(write_json_float, value)),
        Err(_) => Err(format!("invalid float '{}'", String::from_utf8_lossy(arguments[0]))),
    };
    check("float_literals_are_kept_or_refused_as_in_cpp_nix", golden::FLOAT_LITERAL, Form::Json, "@raw", ours);
}

#[test]
fn integer_literals_are_kept_or_refused_as_in_cpp_nix() {
    let ours = |arguments: &[&[u8]]| match parse_int(arguments[0]) {
        Some(value) => Ok(value.to_string()),
        None => Err(format!("invalid integer '{}'", String::from_utf8_lossy(arguments[0]))),
    };
    check("integer_literals_are_kept_or_refused_as_in_cpp_nix", golden::INT_LITERAL, Form::Json, "@raw", ours);
}

#[test]
fn what_is_no_number_is_refused() {
    for literal in ["", "x", "1.5x", "inf", "nan", "1e", "-", ".", "0x1p3", "1 ", "infinity"] {
        assert!(parse_float(literal.as_bytes()).is_err(), "{literal}");
        assert_eq!(parse_int(literal.as_bytes()), None, "{literal}");
    }
}

#[test]
fn a_float_that_is_subnormal_and_exact_is_kept() {
    let smallest = f64::from_bits(1);
    assert_eq!(parse_float(format!("{smallest:.1074}").as_bytes()), Ok(smallest));
    assert!(parse_float(format!("{smallest:.1073}").as_bytes()).is_err());
}

#[test]
fn what_is_not_finite_has_a_text() {
    for (value, plain) in [(f64::INFINITY, "inf"), (f64::NEG_INFINITY, "-inf"), (f64::NAN.copysign(1.0), "nan")] {
        assert_eq!(text(write_float, value), plain);
        assert_eq!(float_to_string(value), plain);
        assert_eq!(text(write_json_float, value), "null");
    }
    assert_eq!(text(write_float, f64::NAN.copysign(-1.0)), "-nan");
}

#[test]
fn random_floats_read_as_in_cpp_nix() {
    let Some(oracle) = Oracle::find("random_floats_read_as_in_cpp_nix") else { return };
    let mut random = Random(5);
    let mut floats = Vec::new();
    while floats.len() < 20_000 {
        let value = match random.below(3) {
            0 => f64::from_bits(random.next()),
            1 => random.next() as f64 / 10f64.powi(random.below(24) as i32),
            _ => random.below(100_000) as f64 / 10f64.powi(random.below(9) as i32),
        };
        if value.is_finite() {
            floats.push(value);
        }
    }
    let listed: Vec<String> = floats.iter().map(|value| format!("{value:e}")).collect();
    let list = literal(format!("[{}]", listed.join(",")).as_bytes());
    let all = |write: &dyn Fn(f64) -> String, before: &str, between: &str, after: &str| {
        let texts: Vec<String> = floats.iter().map(|value| write(*value)).collect();
        format!("{before}{}{after}", texts.join(between))
    };
    let read = [b"(builtins.fromJSON ", &*list, b")"].concat();
    let json = oracle.run(&["--json"], &read).expect("the oracle reads floats");
    assert_eq!(String::from_utf8_lossy(&json), all(&|value| text(write_json_float, value), "[", ",", "]"));
    let printed = oracle.run(&[], &read).expect("the oracle reads floats");
    assert_eq!(String::from_utf8_lossy(&printed), all(&|value| text(write_float, value), "[ ", " ", " ]"));
    let strings = oracle.run(&["--json"], &[b"map toString ", &*read].concat()).expect("the oracle reads floats");
    assert_eq!(String::from_utf8_lossy(&strings), all(&float_to_string, "[\"", "\",\"", "\"]"));
}
