//! What publishing needs of a secret: by what it is known again, and how it is encrypted.

use std::fmt;
use std::fs::{self, DirBuilder, File};
use std::io::{Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use age::ssh::Recipient;
use anyhow::{Context, Result, anyhow, bail};
use zeroize::Zeroizing;

use super::{Access, OVERHEAD, Secret, folder};
use crate::files;
use crate::host::HostName;

/// The administrator's key for [`Draft::digest`].
///
/// Encrypting the same twice gives two different files, so something has to tell that a secret has not changed: a digest of
/// it, in the manifest, where whoever has the hub reads it. Without a key it would let him try out short passwords. So the
/// key stays with the administrator, and if it is lost, all secrets are encrypted anew once.
pub struct DigestKey(Zeroizing<[u8; 32]>);

impl fmt::Debug for DigestKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DigestKey")
    }
}

impl DigestKey {
    /// The user's own, in `bento/secrets.key` below `XDG_STATE_HOME` or `~/.local/state`; made if it isn't there and
    /// `create` says so, and else one that knows nothing again.
    pub fn of_user(create: bool) -> Result<Self> {
        let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let state = absolute("XDG_STATE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".local/state")));
        let state = state.context(
            "there is no place for the key that secrets are known again by: neither XDG_STATE_HOME nor HOME is an absolute path",
        )?;
        Self::in_file(&state.join("bento/secrets.key"), create)
    }

    /// The one in a file.
    fn in_file(file: &Path, create: bool) -> Result<Self> {
        let mut key = Zeroizing::new([0; 32]);
        match fs::read(file).map(Zeroizing::new) {
            Ok(content) if content.len() == key.len() => key.copy_from_slice(&content),
            Ok(_) => bail!("{} is damaged: remove it, and all secrets are encrypted anew once", file.display()),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                File::open("/dev/urandom")
                    .and_then(|mut random| random.read_exact(&mut *key))
                    .context("/dev/urandom")?;
                if create {
                    let dir = file.parent().context("a key needs a directory")?;
                    let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
                    made.with_context(|| format!("cannot create {}", dir.display()))?;
                    files::write_atomic(file, &*key, 0o600, None)?;
                }
            }
            Err(e) => return Err(e).with_context(|| format!("cannot read {}", file.display())),
        }
        Ok(Self(key))
    }
}

/// The keys that one host's secrets are encrypted to.
struct Recipients {
    /// As age takes them.
    keys: Vec<Recipient>,
    /// Kind and base-64 of each, sorted.
    names: Vec<String>,
}

impl Recipients {
    /// Those of a host's public keys that age can encrypt to: ed25519 and RSA.
    fn new(host: &HostName, keys: &[String]) -> Result<Self> {
        let mut names: Vec<String> =
            keys.iter().map(|key| key.split_whitespace().take(2).collect::<Vec<_>>().join(" ")).collect();
        names.sort();
        names.dedup();
        names.retain(|name| name.parse::<Recipient>().is_ok());
        if names.is_empty() {
            bail!(
                "it has secrets, but nothing says which key they can be encrypted to: put the host's \
                 /etc/ssh/ssh_host_ed25519_key.pub into bento.toml, as keys of [hosts.{host}], or as {host}.pub into the \
                 directory that hub.keys there, or HOST_KEYS in config.sh, names (ed25519 and RSA keys do)"
            );
        }
        let keys = names.iter().filter_map(|name| name.parse().ok()).collect();
        Ok(Self { keys, names })
    }
}

/// A secret on its way to a host.
pub struct Draft {
    /// As in [`super::Secret`].
    pub path: String,
    /// As in [`super::Secret`].
    pub access: Access,
    /// By which it is known again: equal only for the same secret, of the same host, encrypted to the same keys. It tells
    /// nothing to those who don't have the key.
    pub digest: String,
    content: Content,
}

/// What a draft holds.
enum Content {
    /// The secret, and whom it is encrypted to.
    Plain(Zeroizing<Vec<u8>>, Rc<Recipients>),
    /// The secret as it was encrypted earlier.
    Sealed(Vec<u8>),
}

impl fmt::Debug for Draft {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Draft").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Draft {
    /// The secrets in a folder, for a host with these public keys; `key` is the key to know them again by, if there are any.
    pub fn of_folder(host: &HostName, folder: &Path, keys: &[String], key: Option<&DigestKey>) -> Result<Vec<Self>> {
        let plain = folder::read(folder)?;
        if plain.is_empty() {
            return Ok(Vec::new());
        }
        let recipients = Rc::new(Recipients::new(host, keys)?);
        let key = key.context("there is no key to know secrets again by")?;
        let draft = |plain: folder::Plain| {
            let mut hasher = blake3::Hasher::new_keyed(&key.0);
            let mut field = |bytes: &[u8]| {
                hasher.update(&(bytes.len() as u64).to_le_bytes());
                hasher.update(bytes);
            };
            field(host.as_str().as_bytes());
            field(plain.path.as_bytes());
            field(recipients.names.join("\n").as_bytes());
            field(&plain.content);
            let digest = hasher.finalize().to_hex().to_string();
            let content = Content::Plain(plain.content, recipients.clone());
            Self { path: plain.path, access: plain.access, digest, content }
        };
        Ok(plain.into_iter().map(draft).collect())
    }

    /// A secret that was encrypted earlier.
    pub fn of_sealed(secret: &Secret, sealed: Vec<u8>) -> Result<Self> {
        let Secret { path, access, digest, .. } = secret;
        if blake3::hash(&sealed).to_hex().as_str() != secret.blake3 {
            bail!("the encrypted secret {path} is damaged");
        }
        let content = Content::Sealed(sealed);
        Ok(Self { path: path.clone(), access: access.clone(), digest: digest.clone(), content })
    }

    /// The secret, encrypted: each time another text, unless it was encrypted already.
    pub fn seal(&self) -> Result<Vec<u8>> {
        let (content, recipients) = match &self.content {
            Content::Plain(content, recipients) => (content, recipients),
            Content::Sealed(sealed) => return Ok(sealed.clone()),
        };
        let context = || format!("cannot encrypt the secret {}", self.path);
        let keys = recipients.keys.iter().map(|key| key as &dyn age::Recipient);
        let encryptor =
            age::Encryptor::with_recipients(keys).map_err(|error| anyhow!("{error}")).with_context(context)?;
        let mut sealed = Vec::new();
        let mut writer = encryptor.wrap_output(&mut sealed).with_context(context)?;
        writer.write_all(content).with_context(context)?;
        writer.finish().with_context(context)?;
        if (sealed.len() - content.len()) as u64 > OVERHEAD {
            bail!("{}: the host has too many keys", context());
        }
        Ok(sealed)
    }
}
