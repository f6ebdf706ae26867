//! `bento verify`: is what the hub serves what the fleet's files come to?

use std::process::ExitCode;

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;

use super::fleet::FleetOptions;
use crate::evaluation::{Evaluator, SearchPath};
use crate::fleet::{Fleet, FleetHost};
use crate::hub::Hub;
use crate::manifest::{Manifest, ReleaseMode};
use crate::nix::NixEvaluator;
use crate::package::{Package, hash_file, place};
use crate::secrets::secrets_dir;
use crate::sign::{self, SigningKey, read_public_key};

/// Evaluate hosts anew, with C++ Nix, and compare with what the hub serves: system, files, secrets and signature
#[derive(Args)]
pub(super) struct Verify {
    /// The hosts: names, globs, @TAG [default: those in the environment's NAME, or else all]
    hosts: Vec<String>,
    #[command(flatten)]
    fleet: FleetOptions,
}

impl Verify {
    pub(super) fn run(self) -> Result<ExitCode> {
        let (dir, config) = super::fleet_config()?;
        let selection = self.fleet.selection(&self.hosts, &config)?;
        let search_path = self.fleet.search_path()?;
        let key = config.release.signing_key.as_deref().map(read_public_key).transpose()?;
        let key = key.map(|(key, _)| SigningKey::from(&key));
        let hub = config.hub(&dir)?;
        // the names of hosts are the same whoever evaluates
        let fleet = Fleet::discover(&dir, self.fleet.evaluator()?.as_ref(), &selection)?;
        let mut failed = false;
        for broken in &fleet.broken {
            if broken.name.as_ref().map_or(selection.is_all(), |name| selection.includes(name)) {
                failed = true;
                eprintln!("{}: {:#}", broken.dir.display(), broken.error);
            }
        }
        for host in fleet.selected(&selection) {
            let name = &host.host.name;
            match verify(&hub, host, key.as_ref(), &search_path) {
                Ok(manifest) => {
                    super::print(&format!("{name}: release {} is {}\n", manifest.serial, manifest.toplevel))?;
                }
                Err(error) => {
                    failed = true;
                    eprintln!("{name}: {error:#}");
                }
            }
        }
        Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }
}

/// Compares the current release of a host with what its files come to; gives its manifest.
fn verify(hub: &Hub, host: &FleetHost, key: Option<&SigningKey>, search_path: &SearchPath) -> Result<Manifest> {
    let dir = hub.host(&host.host.name);
    let manifest = dir.manifest()?.context("nothing was published for it yet")?;
    if let Some(key) = key {
        let read =
            |file: std::path::PathBuf| std::fs::read(&file).with_context(|| format!("cannot read {}", file.display()));
        let signature = read(dir.signature_file(manifest.serial)).context("the release is not signed")?;
        sign::verify(&read(dir.manifest_file())?, &signature, std::slice::from_ref(key)).context("the manifest")?;
    }
    for secret in &manifest.secrets {
        let file = place(&dir.path().join(secrets_dir(manifest.serial)), &secret.path)?;
        if hash_file(&file)? != secret.blake3 {
            bail!("the release's secret {} is not that of its manifest", secret.path);
        }
    }
    if manifest.mode == ReleaseMode::Source {
        let served = Package::served(&dir.path().join(crate::manifest::release_dir(manifest.serial)), &manifest.files)?;
        if served != manifest.files {
            bail!("the release's files are not those of its manifest");
        }
        if Package::of(&host.tree.path())?.files != manifest.files {
            bail!("the files in {} were changed since release {}: deploy", host.dir.display(), manifest.serial);
        }
    }
    let evaluation = NixEvaluator::default()
        .evaluate(&host.tree, &host.host, search_path)
        .map_err(|error| anyhow!(host.tree.original_names(&format!("{error:#}"))))
        .context("Nix can't evaluate it")?;
    if (&evaluation.toplevel, &evaluation.drv_path) != (&manifest.toplevel, &manifest.drv_path) {
        bail!(
            "release {} is {} ({}), but C++ Nix comes to {} ({})",
            manifest.serial,
            manifest.toplevel,
            manifest.drv_path,
            evaluation.toplevel,
            evaluation.drv_path
        );
    }
    Ok(manifest)
}
