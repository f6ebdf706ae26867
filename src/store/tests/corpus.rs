//! Every derivation of a real closure: `BENTO_DRVS` names a directory of `.drv` files that C++ Nix wrote.

use std::{collections::HashMap, env, fs, path::Path, time::Instant};

use bento_store::{
    derivation::{Derivation, DerivationError, DerivationOutput, HashModulo},
    store_path::{StoreDir, StorePath},
};

#[test]
fn every_derivation_of_a_closure_is_reproduced() {
    let Some(dir) = env::var_os("BENTO_DRVS") else {
        eprintln!("skipped: BENTO_DRVS does not name a directory of .drv files");
        return;
    };
    let store = StoreDir::default();
    let files = read_files(Path::new(&dir));
    assert!(!files.is_empty(), "no .drv files in {}", Path::new(&dir).display());

    let start = Instant::now();
    let mut drvs = HashMap::new();
    for (path, contents) in &files {
        let drv = Derivation::parse(&store, path.derivation_name().unwrap(), contents)
            .unwrap_or_else(|e| panic!("{path}: {e}"));
        drvs.insert(path.clone(), drv);
    }
    let parsed = start.elapsed();

    let start = Instant::now();
    for (path, contents) in &files {
        let (own_path, written) = drvs[path].to_file(&store).unwrap();
        assert!(written == *contents, "{path} is written differently");
        assert_eq!(own_path, *path);
    }
    let written = start.elapsed();

    let start = Instant::now();
    let mut memo = HashMap::new();
    let mut outputs = 0;
    for path in drvs.keys() {
        modulo(&store, &drvs, &mut memo, path).unwrap();
    }
    for (path, drv) in &drvs {
        drv.check_output_paths(&store, |p| modulo(&store, &drvs, &mut memo, p))
            .unwrap_or_else(|e| panic!("{path}: {e}"));
        let blank = blanked(drv);
        let mut filled = blank.clone();
        filled.fill_in_output_paths(&store, |p| modulo(&store, &drvs, &mut memo, p)).unwrap();
        assert_eq!(filled, *drv, "{path}: outputs are computed differently");
        outputs += drv.outputs.len();
    }
    let hashed = start.elapsed();
    println!(
        "{} derivations, {outputs} outputs, {} bytes: parsed in {parsed:?}, written and addressed in {written:?}, \
         hashed modulo three times in {hashed:?}",
        files.len(),
        files.iter().map(|(_, c)| c.len()).sum::<usize>(),
    );
}

fn read_files(dir: &Path) -> Vec<(StorePath, Vec<u8>)> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if name.ends_with(".drv") {
            files.push((name.parse().unwrap(), fs::read(entry.path()).unwrap()));
        }
    }
    files
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
        if let DerivationOutput::InputAddressed(_) = output {
            *output = DerivationOutput::Deferred;
            drv.env.insert(name.clone().into_bytes(), Vec::new());
        }
    }
    drv
}
