//! Derivations: `lang/derivations/NAME.nix` is a list of paths and environments, which are those that Nix printed into `NAME.exp`.

use crate::support::{Printed, assert_none, cases, eval_file, settings};

#[test]
fn compute_the_paths_that_nix_computes() {
    let mut differences = Vec::new();
    for path in cases("derivations") {
        let ours = eval_file(settings(), &path);
        let file = path.with_extension("exp");
        let expected = std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let expected: Printed = Ok(expected.trim_end_matches('\n').to_owned());
        if ours != expected {
            differences.push(format!("{}:\n    ours:     {ours:?}\n    expected: {expected:?}", path.display()));
        }
    }
    assert_none(&differences);
}
