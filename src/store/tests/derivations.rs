//! Derivations that C++ Nix wrote are read, written and hashed as it did.
//!
//! `golden/derivations` has every kind of derivation. `BENTO_DRVS` can name a directory with the `.drv` files of a real
//! closure.

#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

use std::{collections::HashMap, env, fs, path::Path, time::Instant};

use bento_store::{
    aterm::ParseReason,
    derivation::{Derivation, DerivationError, DerivationOutput, DerivationType, HashModulo},
    placeholder::{DownstreamPlaceholder, hash_placeholder},
    store_path::{StoreDir, StorePath},
};

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/derivations");

/// A directory of derivations, parsed.
struct Closure {
    store: StoreDir,
    files: Vec<(StorePath, Vec<u8>)>,
    drvs: HashMap<StorePath, Derivation>,
    memo: HashMap<StorePath, HashModulo>,
}

impl Closure {
    fn read(dir: &Path) -> Self {
        let store = StoreDir::default();
        let mut files = Vec::new();
        for entry in fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            if name.ends_with(".drv") {
                files.push((name.parse::<StorePath>().unwrap(), fs::read(entry.path()).unwrap()));
            }
        }
        assert!(!files.is_empty(), "no .drv files in {}", dir.display());
        let drvs = files
            .iter()
            .map(|(path, contents)| {
                let drv = Derivation::parse(&store, path.derivation_name().unwrap(), contents)
                    .unwrap_or_else(|e| panic!("{path}: {e}"));
                (path.clone(), drv)
            })
            .collect();
        Self { store, files, drvs, memo: HashMap::new() }
    }

    /// The only derivation with this name.
    fn named(&self, name: &str) -> (&StorePath, &Derivation) {
        let mut found = self.drvs.iter().filter(|(_, drv)| drv.name == name);
        let drv = found.next().unwrap();
        assert!(found.next().is_none(), "more than one {name}");
        drv
    }

    fn check_written(&self) {
        for (path, contents) in &self.files {
            let (own_path, written) = self.drvs[path].to_file(&self.store).unwrap();
            assert!(written == *contents, "{path} is written differently");
            assert_eq!(own_path, *path);
        }
    }

    fn check_outputs(&mut self) {
        let Self { store, drvs, memo, .. } = self;
        for (path, drv) in drvs.iter() {
            drv.check_output_paths(store, |p| modulo(store, drvs, memo, p)).unwrap_or_else(|e| panic!("{path}: {e}"));
            let mut filled = blanked(drv);
            filled.fill_in_output_paths(store, |p| modulo(store, drvs, memo, p)).unwrap();
            assert_eq!(filled, *drv, "{path}: outputs are computed differently");
        }
    }
}

fn modulo(
    store: &StoreDir,
    drvs: &HashMap<StorePath, Derivation>,
    memo: &mut HashMap<StorePath, HashModulo>,
    path: &StorePath,
) -> Result<HashModulo, DerivationError> {
    if let Some(known) = memo.get(path) {
        return Ok(known.clone());
    }
    let drv = drvs.get(path).unwrap_or_else(|| panic!("{path} is used but not there"));
    let computed = drv.hash_modulo(store, |p| modulo(store, drvs, memo, p))?;
    memo.insert(path.clone(), computed.clone());
    Ok(computed)
}

/// The derivation as an evaluator has it before it knows the output paths.
fn blanked(drv: &Derivation) -> Derivation {
    let mut drv = drv.clone();
    for (name, output) in &mut drv.outputs {
        if matches!(output, DerivationOutput::InputAddressed(_) | DerivationOutput::CaFixed(_)) {
            drv.env.insert(name.clone().into_bytes(), Vec::new());
        }
        if let DerivationOutput::InputAddressed(_) = output {
            *output = DerivationOutput::Deferred;
        }
    }
    drv
}

#[test]
fn derivations_of_every_kind_are_reproduced() {
    let mut closure = Closure::read(Path::new(GOLDEN));
    closure.check_written();
    closure.check_outputs();
}

#[test]
fn every_derivation_of_a_real_closure_is_reproduced() {
    let Some(dir) = env::var_os("BENTO_DRVS") else {
        eprintln!("skipped: BENTO_DRVS does not name a directory of .drv files");
        return;
    };
    let start = Instant::now();
    let mut closure = Closure::read(Path::new(&dir));
    let read = start.elapsed();
    let start = Instant::now();
    closure.check_written();
    let written = start.elapsed();
    let start = Instant::now();
    closure.check_outputs();
    let hashed = start.elapsed();
    println!(
        "{} derivations with {} outputs, {} bytes: read in {read:?}, written and addressed in {written:?}, hashed \
         modulo three times in {hashed:?}",
        closure.files.len(),
        closure.drvs.values().map(|drv| drv.outputs.len()).sum::<usize>(),
        closure.files.iter().map(|(_, contents)| contents.len()).sum::<usize>(),
    );
}

#[test]
fn how_a_source_is_fetched_does_not_change_what_is_built_from_it() {
    let closure = Closure::read(Path::new(GOLDEN));
    let users: Vec<_> = closure.drvs.iter().filter(|(_, drv)| drv.name == "uses-flat").collect();
    let [(path, drv), (other_path, other)] = users[..] else { panic!("two derivations are called uses-flat") };
    assert_ne!(path, other_path);
    assert_eq!(drv.outputs, other.outputs);
}

#[test]
fn kinds_of_derivations_are_told_apart() {
    let closure = Closure::read(Path::new(GOLDEN));
    let kind = |name| closure.named(name).1.derivation_type().unwrap();
    assert_eq!(kind("plain"), DerivationType::InputAddressed { deferred: false });
    assert_eq!(kind("uses-uses-floating"), DerivationType::InputAddressed { deferred: true });
    // A fixed output is known, whatever it is made from.
    assert_eq!(kind("uses-fixed-uses-floating"), DerivationType::InputAddressed { deferred: false });
    assert_eq!(kind("recursive"), DerivationType::ContentAddressed { fixed: true });
    assert_eq!(kind("floating"), DerivationType::ContentAddressed { fixed: false });
    assert_eq!(kind("impure"), DerivationType::Impure);
    assert_eq!(kind("uses-impure"), DerivationType::InputAddressed { deferred: true });
}

#[test]
fn placeholders_stand_for_outputs_that_are_not_known() {
    let closure = Closure::read(Path::new(GOLDEN));
    let variable = |drv: &Derivation, name: &str| String::from_utf8(drv.env[name.as_bytes()].clone()).unwrap();
    let of = |drv: &StorePath, output| DownstreamPlaceholder::unknown_ca_output(drv, output).unwrap();

    let (floating_path, floating) = closure.named("floating");
    assert_eq!(variable(floating, "out"), hash_placeholder("out"));
    assert_eq!(variable(floating, "dev"), hash_placeholder("dev"));
    let (_, user) = closure.named("uses-floating");
    assert_eq!(variable(user, "x"), of(floating_path, "dev").render());
    assert_eq!(variable(user, "y"), of(closure.named("floating-sha1").0, "out").render());

    let produced = of(closure.named("made.drv").0, "out");
    let (_, dynamic) = closure.named("dynamic");
    let of_produced = |output| DownstreamPlaceholder::unknown_derivation(&produced, output);
    assert_eq!(variable(dynamic, "x"), of_produced("dev").render());
    assert_eq!(variable(dynamic, "y"), DownstreamPlaceholder::unknown_derivation(&of_produced("out"), "lib").render());
}

#[test]
fn placeholders_are_those_of_nix() {
    for line in include_str!("golden/placeholders.tsv").lines() {
        let (output, placeholder) = line.split_once('\t').unwrap();
        assert_eq!(hash_placeholder(output), placeholder);
    }
}

#[test]
fn a_missing_output_of_an_input_is_an_error() {
    let mut closure = Closure::read(Path::new(GOLDEN));
    let (plain, _) = closure.named("plain");
    let plain = plain.clone();
    let mut drv = closure.named("structured").1.clone();
    drv.input_drvs.entry(plain).or_default().outputs.insert("doc".into());
    let Closure { store, drvs, memo, .. } = &mut closure;
    let error = drv.hash_modulo(store, |p| modulo(store, drvs, memo, p)).unwrap_err();
    assert_eq!(error.to_string(), "no hash for output 'doc' of derivation 'structured'");
}

#[test]
fn wrong_output_paths_and_variables_are_found() {
    let mut closure = Closure::read(Path::new(GOLDEN));
    let drv = closure.named("plain").1.clone();
    let fixed = closure.named("recursive").1.clone();
    let other = closure.named("no-out").0.clone();
    let Closure { store, drvs, memo, .. } = &mut closure;
    let mut check = |drv: &Derivation| drv.check_output_paths(store, |p| modulo(store, drvs, memo, p)).unwrap_err();
    let right = "/nix/store/0ps7ipmgdsf2xvw8h4afl9jidm3ffmsn-plain";

    let mut wrong = drv.clone();
    wrong.outputs.insert("out".into(), DerivationOutput::InputAddressed(other.clone()));
    let actual = format!("/nix/store/{other}");
    assert_eq!(check(&wrong), DerivationError::WrongOutputPath { actual, expected: right.into() });

    let mut wrong = drv.clone();
    wrong.env.insert("out".into(), "elsewhere".into());
    assert_eq!(
        check(&wrong).to_string(),
        format!("derivation has incorrect environment variable 'out', should be '{right}' but is actually 'elsewhere'")
    );

    let mut wrong = fixed;
    wrong.env.remove(b"out".as_slice());
    assert!(matches!(check(&wrong), DerivationError::MissingVariable { .. }));

    let mut wrong = drv;
    wrong.outputs.insert("out".into(), DerivationOutput::Deferred);
    assert_eq!(check(&wrong), DerivationError::UnexpectedDeferred(right.into()));
}

#[test]
fn outputs_that_cannot_be_together_are_refused() {
    let closure = Closure::read(Path::new(GOLDEN));
    let output = |name: &str| closure.named(name).1.outputs["out"].clone();
    let with = |outputs: &[(&str, DerivationOutput)]| Derivation {
        outputs: outputs.iter().map(|(name, output)| ((*name).to_owned(), output.clone())).collect(),
        ..Derivation::default()
    };
    let error = |outputs: &[_]| with(outputs).derivation_type().unwrap_err();
    let (plain, fixed) = (output("plain"), output("recursive"));
    assert_eq!(error(&[]), DerivationError::NoOutputs);
    assert_eq!(error(&[("a", plain.clone()), ("b", DerivationOutput::Deferred)]), DerivationError::MixedOutputs);
    assert_eq!(error(&[("out", fixed.clone()), ("x", plain)]), DerivationError::MixedOutputs);
    assert_eq!(error(&[("out", fixed.clone()), ("x", fixed.clone())]), DerivationError::ManyFixedOutputs);
    assert_eq!(error(&[("x", fixed)]), DerivationError::FixedOutputName);
    assert_eq!(error(&[("a", output("floating")), ("b", output("floating-sha1"))]), DerivationError::MixedAlgos);
}

#[test]
fn text_that_is_no_derivation_is_refused_where_it_goes_wrong() {
    let store = StoreDir::default();
    let good =
        r#"Derive([("out","/nix/store/0ps7ipmgdsf2xvw8h4afl9jidm3ffmsn-plain","","")],[],[],"s","b",[],[("a","b")])"#;
    let parse = |text: &str| Derivation::parse(&store, "x", text.as_bytes());
    assert!(parse(good).is_ok());
    // What is replaced, and by what; `¦` is where the error is.
    let cases = [
        (r#"Derive("#, r#"¦Drv("#),
        (r#"Derive("#, r#"DrvWithVersion(¦"xp-other","#),
        (r#"[("out""#, r#"[¦"out""#),
        (r#"("out","#, r#"("out"¦;"#),
        (r#""b")])"#, r#"¦"b\")])"#),
        (r#""/nix/store/0ps"#, r#"¦"nix/store/0ps"#),
        (r#""/nix/store/0ps"#, r#"¦"/nix/store/eps"#),
        (r#""/nix/store/0ps"#, r#"¦"/nix/0ps"#),
        (r#"-plain","""#, r#"-plain",¦"sha257""#),
        (r#""/nix/store/0ps7ipmgdsf2xvw8h4afl9jidm3ffmsn-plain","""#, r#"¦"/nix/store/x","sha256""#),
        (r#""/nix/store/0ps7ipmgdsf2xvw8h4afl9jidm3ffmsn-plain","""#, r#"¦"/","r:sha256""#),
        (r#"-plain","","""#, r#"-plain","r:sha256",¦"abc""#),
        (r#""/nix/store/0ps7ipmgdsf2xvw8h4afl9jidm3ffmsn-plain","","""#, r#"¦"/x","r:sha256","impure""#),
        (r#"-plain","","""#, r#"-plain","",¦"abc""#),
        (r#"],[],[],"s""#, r#"],[¦,],[],"s""#),
        (r#"],[],[],"s""#, r#"],[],[¦"x"],"s""#),
        (r#"[("a","b")]"#, r#"[("a","b"),¦]"#),
        (r#"[("a","b")]"#, r#"[("a","b")¦("c","d")]"#),
        (r#"[("a","b")]"#, r#"[("a","b"),(¦"a","c")]"#),
        (r#"[("a","b")])"#, r#"[("a","b")])¦ "#),
        (r#"[("a","b")])"#, r#"[("a","b")¦"#),
    ];
    for (from, to) in cases {
        assert_eq!(good.matches(from).count(), 1, "{from}");
        let marked = good.replace(from, to);
        let error = parse(&marked.replace('¦', "")).expect_err(to);
        assert_eq!(Some(error.offset), marked.find('¦'), "{to}: {error}");
    }
    for len in 0..good.len() {
        assert!(parse(&good[..len]).is_err(), "cut after {len} bytes");
    }
}

#[test]
fn deeply_nested_dynamic_inputs_are_refused() {
    let store = StoreDir::default();
    let nested = |depth: usize| {
        let path = "/nix/store/bnwgcpinrlnmz1i6l8qv7wbg7bh4mi4s-made.drv.drv";
        let (open, close) = (r#"([],[("out","#.repeat(depth), ")])".repeat(depth));
        format!(r#"DrvWithVersion("xp-dyn-drv",[],[("{path}",{open}["out"]{close})],[],"s","b",[],[])"#)
    };
    assert!(Derivation::parse(&store, "x", nested(10).as_bytes()).is_ok());
    let error = Derivation::parse(&store, "x", nested(1_000_000).as_bytes()).unwrap_err();
    assert_eq!(error.reason, ParseReason::TooDeep);
    // Older derivations never nest.
    let old = nested(1).replacen(r#"DrvWithVersion("xp-dyn-drv","#, "Derive(", 1);
    assert!(Derivation::parse(&store, "x", old.as_bytes()).is_err());
}
