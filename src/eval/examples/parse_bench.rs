//! Parses all the files that are named (or listed, one per line, in a file named after `@`) and prints how fast that was.

use bento_eval::symbol::SymbolTable;
use bento_eval::syntax::{ParseOptions, parse};
use bumpalo::Bump;
use std::time::Duration;

/// Each file is parsed this often; the fastest round counts.
const ROUNDS: usize = 5;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // the parser is promised this much stack
    let thread = std::thread::Builder::new().stack_size(64 << 20).spawn(|| run().map_err(|error| error.to_string()))?;
    match thread.join() {
        Ok(result) => Ok(result?),
        Err(_) => Err("the parser panicked".into()),
    }
}

/// The processor time of this thread where the system tells it, so that other programs don't disturb; else the time of day.
fn now() -> Duration {
    let statistics = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    match statistics.split(' ').next().and_then(|nanoseconds| nanoseconds.parse().ok()) {
        Some(nanoseconds) => Duration::from_nanos(nanoseconds),
        None => std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default(),
    }
}

fn run() -> Result<(), Box<dyn std::error::Error>> {
    let mut sources = Vec::new();
    for argument in std::env::args().skip(1) {
        match argument.strip_prefix('@') {
            Some(list) => {
                for path in std::fs::read_to_string(list)?.lines() {
                    sources.push((path.to_owned(), std::fs::read(path)?));
                }
            }
            None => sources.push((argument.clone(), std::fs::read(&argument)?)),
        }
    }
    let bytes: usize = sources.iter().map(|(_, source)| source.len()).sum();
    let mut best = f64::INFINITY;
    let mut errors = 0;
    let mut allocated = 0;
    for round in 0..ROUNDS {
        let names = Bump::new();
        let symbols = SymbolTable::new(&names);
        let mut arena = Bump::new();
        let start = now();
        for (path, source) in &sources {
            arena.reset();
            let options = ParseOptions { base_path: b"/", home: Some(b"/home"), ..ParseOptions::default() };
            if let Err(error) = parse(&arena, &symbols, source, &options)
                && round == 0
            {
                errors += 1;
                println!("{path}: {error}");
            }
            if round == 0 {
                allocated += arena.iter_allocated_chunks().map(<[_]>::len).sum::<usize>();
            }
        }
        best = best.min((now() - start).as_secs_f64());
    }
    println!(
        "{} files, {:.1} MB, {errors} errors: {:.1} ms, {:.1} MB/s, arenas of {:.1} MB",
        sources.len(),
        bytes as f64 / 1e6,
        best * 1e3,
        bytes as f64 / 1e6 / best,
        allocated as f64 / 1e6,
    );
    Ok(())
}
