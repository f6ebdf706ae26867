//! The host's key: made before there is a host, so that secrets can be encrypted to it, the hub can know it, and the machine is
//! known when it comes back.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use ssh_key::PublicKey;
use toml_edit::{Array, DocumentMut, Item, Table, value};

use crate::build::succeed;
use crate::files;
use crate::fleet::config::{Config, TOML};
use crate::host::HostName;
use crate::push::target::Destination;
use crate::sign::read_public_key;

/// Where a host has its key.
pub const PLACE: &str = "etc/ssh/ssh_host_ed25519_key";

/// A host's key pair, in files.
#[derive(Clone, Debug)]
pub struct HostKey {
    /// The file of the private key.
    pub private: PathBuf,
    /// The public key's line.
    pub public: String,
}

impl HostKey {
    /// The one in a directory; made if it isn't there.
    pub fn in_dir(dir: &Path, host: &HostName) -> Result<Self> {
        let private = dir.join("ssh_host_ed25519_key");
        if !private.exists() {
            // made beside it: a key that was cut short must not be taken for one
            let new = dir.join(".new-key");
            files::remove(&new)?;
            files::remove(&new.with_extension("pub"))?;
            let mut command = Command::new("ssh-keygen");
            command.args(["-q", "-t", "ed25519", "-N", "", "-C", &format!("root@{host}"), "-f"]).arg(&new);
            succeed(command).context("cannot make the host's key")?;
            files::remove(&new.with_extension("pub"))?;
            fs::rename(&new, &private).with_context(|| format!("cannot create {}", private.display()))?;
            files::sync_dir(dir)?;
        }
        let (_, public) = read_public_key(&private)?;
        Ok(Self { private, public })
    }

    /// Writes the lines of a `known_hosts` that has only this key, for every name; gives options for ssh that use it and
    /// believe nothing else.
    pub fn pin(&self, file: &Path, host: &HostName) -> Result<Vec<String>> {
        let line = format!("{host} {}\n", self.public.split_whitespace().take(2).collect::<Vec<_>>().join(" "));
        files::write_atomic(file, line.as_bytes(), 0o600, None)?;
        let options = [
            format!("UserKnownHostsFile={}", file.display()),
            "GlobalKnownHostsFile=/dev/null".to_owned(),
            "StrictHostKeyChecking=yes".to_owned(),
            format!("HostKeyAlias={host}"),
            "HostKeyAlgorithms=ssh-ed25519".to_owned(),
            "CheckHostIP=no".to_owned(),
            "UpdateHostKeys=no".to_owned(),
        ];
        Ok(options.into_iter().flat_map(|option| ["-o".to_owned(), option]).collect())
    }

    /// The line of it for the user's own `known_hosts`.
    pub fn known_hosts_line(&self, destination: &Destination) -> String {
        let place = match destination.port {
            Some(port) if port != 22 => format!("[{}]:{port}", destination.host),
            _ => destination.host.clone(),
        };
        format!("{place} {}", self.public.split_whitespace().take(2).collect::<Vec<_>>().join(" "))
    }

    /// Puts the files of the key, as the host shall have them, below a directory that stands for the host's root.
    pub fn lay_out(&self, root: &Path) -> Result<()> {
        let place = root.join(PLACE);
        let dir = place.parent().context("a key needs a directory")?;
        fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let private = fs::read(&self.private).with_context(|| format!("cannot read {}", self.private.display()))?;
        files::write_atomic(&place, &private, 0o600, None)?;
        files::write_atomic(&place.with_extension("pub"), format!("{}\n", self.public).as_bytes(), 0o644, None)
    }
}

/// Has the fleet's settings know a host's key; gives whether they had to be changed.
///
/// A host that is installed anew has a new key, so one that is there is replaced only if `replace` says so.
pub fn record(dir: &Path, host: &HostName, public: &str, replace: bool) -> Result<bool> {
    let file = Config::file(dir)?;
    let line = format!("keys = [{public:?}]");
    if !file.ends_with(TOML) {
        bail!(
            "{} has no place for a host's key: make a {TOML} of it (`bento config check` shows what it comes to), with\n\n[hosts.{host}]\n{line}",
            file.display()
        );
    }
    let config = Config::read(dir)?;
    let there = config.hosts.get(host).map_or(&[][..], |host| &host.keys);
    let same = |one: &str| match (PublicKey::from_openssh(one), PublicKey::from_openssh(public)) {
        (Ok(one), Ok(other)) => one.key_data() == other.key_data(),
        _ => false,
    };
    if there.len() == 1 && there.iter().all(|key| same(key)) {
        return Ok(false);
    }
    if !there.is_empty() && !replace {
        bail!(
            "{} has another key of {host} already (hosts.{host}.keys): if {host} is to be installed anew, --new-key puts the new one in \
             its place",
            file.display()
        );
    }
    let context = || format!("cannot change {}", file.display());
    let text = fs::read_to_string(&file).with_context(context)?;
    let mut document: DocumentMut = text.parse().with_context(context)?;
    let table = |item: &mut Item| -> Result<()> {
        if item.is_none() {
            *item = Item::Table(Table::new());
        }
        if item.is_table_like() { Ok(()) } else { bail!("{} has hosts that are no tables", file.display()) }
    };
    let hosts = &mut document["hosts"];
    if hosts.is_none() {
        let mut new = Table::new();
        new.set_implicit(true);
        *hosts = Item::Table(new);
    }
    let entry = &mut hosts[host.as_str()];
    table(entry)?;
    entry["keys"] = value(Array::from_iter([public]));
    let text = document.to_string();
    let known = Config::parse_toml(&text).with_context(context)?;
    if known.hosts.get(host).is_none_or(|host| host.keys != [public]) {
        bail!("{} can't be changed: put {line} into [hosts.{host}] by hand", file.display());
    }
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&file).with_context(context)?.permissions());
    files::write_atomic(&file, text.as_bytes(), mode & 0o777, None)?;
    Ok(true)
}
