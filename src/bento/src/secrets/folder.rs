//! A host's folder of secrets in the administrator's directory, and what in it is none.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use zeroize::Zeroizing;

use super::{Access, LIMIT, check_paths};

/// The name of the folder.
pub const NAME: &str = "secrets";
/// The file in it that says to whom secrets belong on the host.
pub const ACCESS_FILE: &str = "secrets.toml";

/// A secret as the administrator has it.
#[derive(Debug)]
pub struct Plain {
    /// Relative to the folder, with `/` between its components.
    pub path: String,
    /// To whom it shall belong.
    pub access: Access,
    /// It.
    pub content: Zeroizing<Vec<u8>>,
}

/// What a file in a folder of secrets is.
enum Kind {
    /// To be encrypted to the host.
    Secret(Zeroizing<Vec<u8>>),
    /// Encrypted already, for agenix or sops-nix: part of the configuration.
    Encrypted,
    /// Nix code.
    Code,
    /// [`ACCESS_FILE`], or something of git's or sops's.
    Aside,
}

/// Reads a folder of secrets; sorted by path.
///
/// Errors are Nix code where nothing is encrypted for it, a file that is too large or that git-crypt has locked, and a
/// [`ACCESS_FILE`] that speaks of what isn't there.
pub fn read(folder: &Path) -> Result<Vec<Plain>> {
    let mut secrets = Vec::new();
    for (path, file) in files(folder)? {
        if let Kind::Secret(content) = kind(folder, &file)? {
            secrets.push(Plain { path, access: Access::default(), content });
        }
    }
    check_paths(secrets.iter().map(|secret| secret.path.as_str())).with_context(|| folder.display().to_string())?;
    let file = folder.join(ACCESS_FILE);
    let text = match fs::read_to_string(&file) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(secrets),
        text => text.with_context(|| format!("cannot read {}", file.display()))?,
    };
    let table: BTreeMap<String, Access> = toml::from_str(&text).with_context(|| file.display().to_string())?;
    for (path, access) in table {
        access.check().with_context(|| format!("{}: {path:?}", file.display()))?;
        match secrets.iter_mut().find(|secret| secret.path == path) {
            Some(secret) => secret.access = access,
            None => bail!("{}: there is no secret {path:?} in {}", file.display(), folder.display()),
        }
    }
    Ok(secrets)
}

/// All files of a folder, by their paths in it.
fn files(folder: &Path) -> Result<BTreeMap<String, PathBuf>> {
    fn collect(dir: &Path, prefix: &str, depth: u32, found: &mut BTreeMap<String, PathBuf>) -> Result<()> {
        for entry in fs::read_dir(dir).with_context(|| format!("cannot read the directory {}", dir.display()))? {
            let file = entry.with_context(|| format!("cannot read the directory {}", dir.display()))?.path();
            let name = file.file_name().and_then(|name| name.to_str());
            let name = name.with_context(|| format!("the name of {} is not UTF-8", file.display()))?;
            let path = if prefix.is_empty() { name.to_owned() } else { format!("{prefix}/{name}") };
            // links may be how hosts share a secret
            let metadata = fs::metadata(&file).with_context(|| format!("cannot read {}", file.display()))?;
            if metadata.is_file() {
                found.insert(path, file);
            } else if !metadata.is_dir() {
                bail!("{} is neither a file nor a directory: it can't be a secret", file.display());
            } else if depth == 0 {
                bail!("{} is too deep for a folder of secrets: does a link in it lead back?", file.display());
            } else {
                collect(&file, &path, depth - 1, found)?;
            }
        }
        Ok(())
    }
    let mut found = BTreeMap::new();
    if folder.is_dir() {
        collect(folder, "", 8, &mut found)?;
    }
    Ok(found)
}

/// Sorts one file of a folder in.
fn kind(folder: &Path, file: &Path) -> Result<Kind> {
    let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    if file == folder.join(ACCESS_FILE) || name.starts_with(".git") || name == ".sops.yaml" {
        return Ok(Kind::Aside);
    }
    let context = || format!("cannot read {}", file.display());
    if name.ends_with(".nix") {
        return Ok(Kind::Code);
    }
    let size = fs::metadata(file).with_context(context)?.len();
    let mut content = Zeroizing::new(Vec::new());
    File::open(file).and_then(|file| file.take(LIMIT + 1).read_to_end(&mut content)).with_context(context)?;
    if is_encrypted(&content) {
        return Ok(Kind::Encrypted);
    }
    if size > LIMIT {
        bail!("{} is larger than a secret can be: {size} bytes instead of {LIMIT} at most", file.display());
    }
    // https://github.com/AGWA/git-crypt/blob/master/crypto.hpp names what its files begin with
    if content.starts_with(b"\0GITCRYPT\0") {
        bail!("{} is locked: `git-crypt unlock` opens it", file.display());
    }
    Ok(Kind::Secret(content))
}

/// Whether a file is encrypted for agenix (age's two formats) or sops-nix (sops's in YAML, JSON, INI or of variables).
fn is_encrypted(content: &[u8]) -> bool {
    if content.starts_with(b"age-encryption.org/v1\n") || content.starts_with(b"-----BEGIN AGE ENCRYPTED FILE-----") {
        return true;
    }
    // each format has its authentication code, which only sops can make, on a line of its own
    let Ok(text) = std::str::from_utf8(content) else { return false };
    text.lines().any(|line| {
        let (name, value) = line.split_once([':', '=']).unwrap_or_default();
        matches!(name.trim().trim_matches('"'), "mac" | "sops_mac")
            && value.trim().trim_start_matches('"').starts_with("ENC[AES256_GCM,")
    })
}

/// The folders of secrets of a fleet: what is kept out of configurations.
#[derive(Clone, Debug, Default)]
pub struct Folders {
    folders: Vec<PathBuf>,
    /// What links in them lead to.
    shared: BTreeSet<PathBuf>,
}

impl Folders {
    /// Finds the folders of the fleet in `root`: in each directory below `hosts/`, and for the hosts of a flake in the
    /// directories below `hosts/` beside it.
    pub fn of_fleet(root: &Path) -> Result<Self> {
        let mut found = Self::default();
        for host in directories(&root.join("hosts"))? {
            found.add(host.join(NAME))?;
            if host.join("flake.nix").exists() {
                for host in directories(&host.join("hosts"))? {
                    found.add(host.join(NAME))?;
                }
            }
        }
        Ok(found)
    }

    fn add(&mut self, folder: PathBuf) -> Result<()> {
        if !folder.is_dir() {
            return Ok(());
        }
        for file in files(&folder)?.into_values() {
            self.shared.insert(fs::canonicalize(&file).with_context(|| format!("cannot read {}", file.display()))?);
        }
        self.folders.push(folder);
        Ok(())
    }

    /// Whether a configuration must not have this file: it is a secret. An error if the configuration refers to it all the
    /// same, through a link.
    pub fn keep_out(&self, file: &Path) -> Result<bool> {
        if self.folders.is_empty() {
            return Ok(false);
        }
        let folder = self.folders.iter().find(|folder| file.starts_with(folder));
        let real = fs::canonicalize(file).with_context(|| format!("cannot read {}", file.display()))?;
        if folder.is_none() && !self.shared.contains(&real) {
            return Ok(false);
        }
        match kind(folder.map_or(Path::new(""), PathBuf::as_path), file)? {
            Kind::Encrypted => return Ok(false),
            Kind::Code if folder.is_none_or(|folder| has_encrypted(folder)) => return Ok(false),
            Kind::Code => bail!(
                "{} is Nix code, but the files in {NAME}/ take no part in the configuration: they are encrypted to the \
                 host. Move it to another directory",
                file.display()
            ),
            Kind::Secret(_) | Kind::Aside => {}
        }
        // in its folder it is where it belongs, and a shared one lies wherever it likes
        let linked = folder.is_none() && fs::symlink_metadata(file).is_ok_and(|metadata| metadata.is_symlink());
        if linked {
            bail!(
                "{} is a link to {}, which is a secret: the configuration would have it in the Nix store, where \
                 everybody can read it. On the host it is below /run/bento/secrets",
                file.display(),
                real.display()
            );
        }
        Ok(true)
    }
}

/// Whether a folder has anything for agenix or sops-nix: then its Nix code belongs to that.
fn has_encrypted(folder: &Path) -> bool {
    files(folder).is_ok_and(|files| {
        files.values().any(|file| fs::read(file).map(Zeroizing::new).is_ok_and(|content| is_encrypted(&content)))
    })
}

/// Whether a folder has anything that would be encrypted to a host.
pub fn has_secrets(folder: &Path) -> Result<bool> {
    Ok(!read(folder)?.is_empty())
}

/// The directories in a directory, which need not be there; sorted.
fn directories(dir: &Path) -> Result<Vec<PathBuf>> {
    // whoever looks for hosts there says what is wrong with it
    let Ok(entries) = fs::read_dir(dir) else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.with_context(|| format!("cannot read {}", dir.display()))?.path();
        if path.is_dir() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}
