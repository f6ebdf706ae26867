use bento_eval::text::version::{compare_versions, parse_drv_name, split_version};
use serde_json::json;

use crate::golden;
use crate::oracle::{Form, Oracle, Random, check, literal};

fn text(bytes: &[u8]) -> Result<&str, String> {
    std::str::from_utf8(bytes).map_err(|error| error.to_string())
}

#[test]
fn splits_versions_as_cpp_nix_does() {
    let ours = |arguments: &[&[u8]]| {
        let components = split_version(arguments[0]).map(text).collect::<Result<Vec<_>, _>>()?;
        Ok(json!(components).to_string())
    };
    check("splits_versions_as_cpp_nix_does", golden::SPLIT_VERSION, Form::Json, "builtins.splitVersion @1", ours);
}

#[test]
fn compares_versions_as_cpp_nix_does() {
    let ours = |arguments: &[&[u8]]| Ok((compare_versions(arguments[0], arguments[1]) as i32).to_string());
    let expression = "builtins.compareVersions @1 @2";
    check("compares_versions_as_cpp_nix_does", golden::COMPARE_VERSIONS, Form::Json, expression, ours);
}

#[test]
fn splits_names_from_versions_as_cpp_nix_does() {
    let ours = |arguments: &[&[u8]]| {
        let (name, version) = parse_drv_name(arguments[0]);
        Ok(format!("{{\"name\":{},\"version\":{}}}", json!(text(name)?), json!(text(version)?)))
    };
    let expression = "builtins.parseDrvName @1";
    check("splits_names_from_versions_as_cpp_nix_does", golden::PARSE_DRV_NAME, Form::Json, expression, ours);
}

#[test]
fn random_versions_compare_as_in_cpp_nix() {
    let Some(oracle) = Oracle::find("random_versions_compare_as_in_cpp_nix") else { return };
    let mut random = Random(6);
    let parts = ["1", "2", "10", "0", "01", "a", "b", "pre", "rc", ".", ".", "-", "3000000000", "_", "+"];
    let mut made = || -> String { (0..random.below(6)).map(|_| random.pick(&parts)).collect() };
    let pairs: Vec<(String, String)> = (0..5000).map(|_| (made(), made())).collect();
    let mut expression = b"map (p: builtins.compareVersions p.a p.b) [".to_vec();
    for (a, b) in &pairs {
        let (a, b) = (literal(a.as_bytes()), literal(b.as_bytes()));
        expression.extend([b"{a=", &*a, b";b=", &*b, b";}"].concat());
    }
    expression.push(b']');
    let answers = oracle.json(&expression).expect("the oracle compares versions");
    for ((a, b), answer) in pairs.iter().zip(answers.as_array().expect("a list")) {
        assert_eq!(json!(compare_versions(a.as_bytes(), b.as_bytes()) as i32), *answer, "{a:?} {b:?}");
    }
}
