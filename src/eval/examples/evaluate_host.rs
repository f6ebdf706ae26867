//! Prints the path of a derivation: `evaluate_host NIXPKGS FILE ATTRIBUTE`.

use bento_eval::{Aborted, Host, Settings, evaluate};

struct Quiet;

impl Host for Quiet {
    fn env(&self, _: &str) -> Option<Vec<u8>> {
        None
    }
    fn warn(&self, message: &str) {
        eprintln!("warning: {message}");
    }
    fn trace(&self, message: &str) {
        eprintln!("trace: {message}");
    }
}

fn main() -> Result<(), Aborted> {
    let [nixpkgs, file, attribute] = std::env::args().skip(1).collect::<Vec<_>>().try_into().expect("three arguments");
    let settings = Settings { search_path: vec![("nixpkgs".to_owned(), nixpkgs)], ..Settings::default() };
    let result = evaluate(settings, Quiet, |evaluator| {
        let root = evaluator.eval_file(file.as_bytes())?;
        let host = evaluator.select_path(root, &attribute, evaluator.heap.empty_attrs())?;
        evaluator
            .instantiables(host, evaluator.heap.empty_attrs())
            .map(|found| found.into_iter().map(|one| one.drv_path).collect::<Vec<_>>())
    })?;
    println!("{result:#?}");
    Ok(())
}
