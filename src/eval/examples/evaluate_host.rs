//! Works out what a NixOS host should run: `cargo run --example evaluate_host NIXPKGS CONFIGURATION.NIX`.

use bento_eval::{NoHost, RenderOptions, Settings, evaluate};

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct System {
    name: String,
    drv_path: String,
    out_path: String,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let [nixpkgs, configuration] =
        std::env::args().skip(1).collect::<Vec<_>>().try_into().map_err(|_| "two arguments")?;
    let settings = Settings { search_path: vec![("nixpkgs".to_owned(), nixpkgs)], ..Settings::default() };
    let code = format!("(import <nixpkgs/nixos> {{ configuration = {configuration}; }}).config.system.build.toplevel");
    let system = evaluate(settings, NoHost, |evaluator| {
        let system =
            evaluator.eval_string(code.as_bytes(), b"/").and_then(|value| evaluator.deserialize::<System>(value));
        system.map_err(|error| evaluator.diagnose(&error))
    })?;
    let system = system.map_err(|diagnostic| diagnostic.render(&RenderOptions::default()))?;
    println!("{}: {} makes {}", system.name, system.drv_path, system.out_path);
    Ok(())
}
