//! Signatures of releases and reports: SSH signatures, as `ssh-keygen -Y sign` makes and `ssh-keygen -Y verify` checks them.
//!
//! The key is the administrator's: a file that only he can read, or one that an ssh agent holds and nobody reads. The hub
//! needs neither, so whoever takes it over can keep releases from hosts, but not make one that they accept. The format is
//! OpenSSH's PROTOCOL.sshsig.

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use serde::Deserialize;
use ssh_agent_client_rs::{Client, Identity};
use ssh_key::{HashAlg, LineEnding, PrivateKey, PublicKey, SshSig};

/// What the signatures of releases are for: one that was made for anything else is none of a release.
pub const NAMESPACE: &str = "bento-release";
/// The same for reports, which hosts sign.
pub const REPORTS: &str = "bento-report";
/// The same for what a host says of itself with every poll.
pub const PRESENCES: &str = "bento-presence";
/// No signature is larger, in bytes: an RSA key of 16,384 bits and its signature fit.
pub const LIMIT: u64 = 16 << 10;

/// Someone who signs releases.
pub struct Signer {
    public_key: PublicKey,
    holder: Holder,
}

/// Where the private key is.
enum Holder {
    /// In this process.
    Process(Box<PrivateKey>),
    /// In the ssh agent with this socket.
    Agent(PathBuf),
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signer").field("public_key", &self.name()).finish_non_exhaustive()
    }
}

impl Signer {
    /// Takes the key that `key` names: a file with a private key, or one with the public key of a key that the ssh agent
    /// at `agent` (the value of `SSH_AUTH_SOCK`) holds. A private key with a passphrase, or for RSA, is left to the agent
    /// too; a public key whose private half lies beside it, ready for use, needs none.
    pub fn open(key: &Path, agent: Option<&Path>) -> Result<Self> {
        let text = std::fs::read_to_string(key)
            .with_context(|| format!("cannot read the signing key {} (SIGNING_KEY)", key.display()))?;
        if let Ok(public_key) = PublicKey::from_openssh(text.trim()) {
            let beside = std::fs::read_to_string(key.with_extension("")).ok();
            let beside = beside.and_then(|text| PrivateKey::from_openssh(text.trim()).ok());
            let same = |private: &PrivateKey| private.public_key().key_data() == public_key.key_data();
            return match beside.filter(|private| same(private) && is_usable(private)) {
                Some(private) => Ok(Self { public_key, holder: Holder::Process(Box::new(private)) }),
                None => Self::in_agent(public_key, key, agent),
            };
        }
        let private_key = PrivateKey::from_openssh(text.trim()).map_err(|error| {
            anyhow!("{} is neither an OpenSSH private key nor a public one: {error}", key.display())
        })?;
        if !is_usable(&private_key) {
            return Self::in_agent(private_key.public_key().clone(), key, agent);
        }
        Ok(Self { public_key: private_key.public_key().clone(), holder: Holder::Process(Box::new(private_key)) })
    }

    /// Takes a host's own key, with which it logs in too. Fails with a key that this program can't sign with:
    /// see [`SigningKey::can_sign`].
    pub fn of_host(identity: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(identity)
            .with_context(|| format!("cannot read the host's key {}", identity.display()))?;
        let key = PrivateKey::from_openssh(text.trim())
            .map_err(|error| anyhow!("{} is no OpenSSH private key: {error}", identity.display()))?;
        let what = match (key.is_encrypted(), SigningKey::from(key.public_key()).can_sign()) {
            (false, true) => {
                return Ok(Self { public_key: key.public_key().clone(), holder: Holder::Process(Box::new(key)) });
            }
            (false, false) => "is an RSA key",
            (true, _) => "has a passphrase",
        };
        bail!(
            "{} {what}, which reports can't be signed with: make one of ed25519 (ssh-keygen -t ed25519 -N '' -f FILE), name it \
             as the agent's key (hub.identity in agent.toml, services.bento.agent.hub.identityFile), and have the hub know its \
             public half (hosts.NAME.keys in bento.toml)",
            identity.display()
        );
    }

    /// Takes a key that an ssh agent holds.
    fn in_agent(public_key: PublicKey, key: &Path, agent: Option<&Path>) -> Result<Self> {
        let way_out = || {
            format!(
                "the signing key {} is used through an ssh agent: start one, `ssh-add` the key, and keep SSH_AUTH_SOCK \
                 (under sudo: `sudo --preserve-env=SSH_AUTH_SOCK`)",
                key.display()
            )
        };
        let socket = agent.with_context(|| anyhow!("SSH_AUTH_SOCK is not set")).with_context(way_out)?;
        let mut client = connect(socket).with_context(way_out)?;
        let identities = client
            .list_all_identities()
            .map_err(|error| anyhow!("the ssh agent at {} does not say what it has: {error}", socket.display()))?;
        let held = identities.iter().any(|identity| match identity {
            Identity::PublicKey(held) => held.key_data() == public_key.key_data(),
            Identity::Certificate(_) => false,
        });
        if !held {
            return Err(anyhow!("the ssh agent at {} does not hold {}", socket.display(), name(&public_key)))
                .with_context(way_out);
        }
        Ok(Self { public_key, holder: Holder::Agent(socket.to_owned()) })
    }

    /// The public half, which the hosts pin.
    pub fn public_key(&self) -> &PublicKey {
        &self.public_key
    }

    /// Fingerprint and comment, for people.
    pub fn name(&self) -> String {
        name(&self.public_key)
    }

    /// Signs a release; gives the text of the signature.
    pub fn sign(&self, message: &[u8]) -> Result<String> {
        self.sign_in(NAMESPACE, message)
    }

    /// Signs a message for a purpose; gives the text of the signature.
    pub fn sign_in(&self, namespace: &str, message: &[u8]) -> Result<String> {
        let context = || format!("cannot sign with {}", self.name());
        let signature = match &self.holder {
            Holder::Process(key) => key.sign(namespace, HashAlg::Sha512, message).with_context(context)?,
            Holder::Agent(socket) => {
                let data = SshSig::signed_data(namespace, HashAlg::Sha512, message).with_context(context)?;
                // several threads sign at a time
                let signature = connect(socket)?
                    .sign(self.public_key.clone(), &data)
                    .map_err(|error| anyhow!("the ssh agent refused: {error}"))
                    .with_context(context)?;
                SshSig::new(self.public_key.key_data().clone(), namespace, HashAlg::Sha512, signature)
                    .with_context(context)?
            }
        };
        signature.to_pem(LineEnding::LF).with_context(context)
    }
}

/// Whether this process can sign with a private key.
fn is_usable(key: &PrivateKey) -> bool {
    // ssh-key 0.6 computes wrong signatures with RSA keys, and says so only as "cryptographic error"
    !key.is_encrypted() && !key.algorithm().is_rsa()
}

/// Connects to the ssh agent with this socket.
fn connect(socket: &Path) -> Result<Client> {
    Client::connect(socket).map_err(|error| anyhow!("cannot talk to the ssh agent at {}: {error}", socket.display()))
}

/// Reads a public key, or the public half of a private key; gives its line too.
pub fn read_public_key(file: &Path) -> Result<(PublicKey, String)> {
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read the key {}", file.display()))?;
    let key = PublicKey::from_openssh(text.trim())
        .or_else(|_| PrivateKey::from_openssh(text.trim()).map(|key| key.public_key().clone()))
        .map_err(|error| anyhow!("{} is neither an OpenSSH private key nor a public one: {error}", file.display()))?;
    let line = key.to_openssh().with_context(|| format!("cannot write the key {}", file.display()))?;
    Ok((key, line))
}

/// A key's fingerprint and comment.
fn name(key: &PublicKey) -> String {
    let fingerprint = key.fingerprint(HashAlg::Sha256);
    match key.comment() {
        "" => fingerprint.to_string(),
        comment => format!("{fingerprint} ({comment})"),
    }
}

/// A public key, as in `id_ed25519.pub`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct SigningKey(PublicKey);

impl TryFrom<String> for SigningKey {
    type Error = anyhow::Error;

    fn try_from(line: String) -> Result<Self> {
        let key = PublicKey::from_openssh(line.trim())
            .map_err(|error| anyhow!("{line:?} is no public key of the form \"ssh-ed25519 AAAA...\": {error}"))?;
        Ok(Self(key))
    }
}

impl SigningKey {
    /// Whether a host can sign its reports with it. ssh-key 0.6 computes wrong signatures with RSA keys.
    pub fn can_sign(&self) -> bool {
        !self.0.algorithm().is_rsa()
    }
}

impl From<&PublicKey> for SigningKey {
    fn from(key: &PublicKey) -> Self {
        Self(key.clone())
    }
}

/// Checks that `signature` is one of `message` as a release, by one of the keys.
///
/// An error says which of these it is not.
pub fn verify(message: &[u8], signature: &[u8], keys: &[SigningKey]) -> Result<()> {
    verify_in(NAMESPACE, message, signature, keys)
}

/// Checks that `signature` is one of `message`, for that purpose and by one of the keys.
///
/// An error says which of these it is not.
pub fn verify_in(namespace: &str, message: &[u8], signature: &[u8], keys: &[SigningKey]) -> Result<()> {
    let signature = SshSig::from_pem(signature).map_err(|error| anyhow!("the signature is not one: {error}"))?;
    let signed_by = PublicKey::from(signature.public_key().clone());
    let Some(SigningKey(key)) = keys.iter().find(|SigningKey(key)| key.key_data() == signed_by.key_data()) else {
        let pinned: Vec<String> = keys.iter().map(|SigningKey(key)| name(key)).collect();
        bail!(
            "it is signed by {}, which is none of the keys that are trusted with that: {}",
            name(&signed_by),
            pinned.join(", ")
        );
    };
    if signature.namespace() != namespace {
        bail!("it carries a signature that was made for {:?}, not for {namespace:?}", signature.namespace());
    }
    key.verify(namespace, message, &signature)
        .map_err(|_| anyhow!("its signature by {} does not fit: it was changed after it was signed", name(key)))
}

/// The line of an `allowed_signers` file that lets `ssh-keygen -Y verify -I bento` accept a key's releases.
pub fn allowed_signers_line(key: &PublicKey) -> Result<String> {
    let key = key.to_openssh().context("cannot write the key")?;
    Ok(format!("bento namespaces=\"{NAMESPACE}\" {key}\n"))
}

/// A path as people write it: `~/` is the home directory, and what is relative is relative to `base`.
pub fn key_path(text: &str, base: &Path, home: Option<&Path>) -> PathBuf {
    match (text.strip_prefix("~/"), home) {
        (Some(rest), Some(home)) => home.join(rest),
        _ => base.join(text),
    }
}
