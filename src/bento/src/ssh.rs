//! The hub as a host sees it: SFTP over SSH, with the hub's keys pinned.

use std::hash::{BuildHasher, RandomState};
use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use ssh2::{ErrorCode, MethodType, OpenFlags, OpenType, RenameFlags, Session, Sftp};

/// A public key of the hub, as in `ssh_host_ed25519_key.pub`: the kind, the key in base-64, maybe a comment.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct HostKey {
    algorithm: String,
    blob: Vec<u8>,
}

impl TryFrom<String> for HostKey {
    type Error = anyhow::Error;

    fn try_from(line: String) -> Result<Self> {
        let mut words = line.split_whitespace();
        let (Some(algorithm), Some(key)) = (words.next(), words.next()) else {
            bail!("the host key {line:?} is not of the form \"ssh-ed25519 AAAA...\"");
        };
        let blob = STANDARD.decode(key).map_err(|_| anyhow!("the host key {line:?} is not in base-64"))?;
        // a key's blob begins with the length and the text of its algorithm
        let inner = blob.get(4..4 + algorithm.len());
        if inner != Some(algorithm.as_bytes()) {
            bail!("the host key {line:?} is cut short or says another algorithm inside");
        }
        Ok(Self { algorithm: algorithm.to_owned(), blob })
    }
}

impl HostKey {
    /// The signature algorithms that a server can prove this key with.
    fn methods(&self) -> &str {
        match self.algorithm.as_str() {
            "ssh-rsa" => "rsa-sha2-512,rsa-sha2-256",
            other => other,
        }
    }
}

/// Where the hub is and how to know it.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct HubAddress {
    /// Name or address.
    pub address: String,
    /// Port of sshd.
    #[serde(default = "default_port")]
    pub port: u16,
    /// The user to log in as: the host's name on every hub that bento set up.
    pub user: String,
    /// The hub's keys; any other is refused.
    pub host_keys: Vec<HostKey>,
    /// The private key to log in with.
    pub identity: PathBuf,
    /// Seconds that connecting and each later step may take.
    #[serde(default = "default_timeout")]
    pub timeout: u64,
}

fn default_port() -> u16 {
    22
}

fn default_timeout() -> u64 {
    20
}

/// An SFTP session on the hub.
pub struct Connection {
    sftp: Sftp,
}

/// The status of SFTP for "no such file".
const NO_SUCH_FILE: i32 = 2;

/// Whether an error says that a file isn't there.
fn is_missing(error: &ssh2::Error) -> bool {
    error.code() == ErrorCode::SFTP(NO_SUCH_FILE)
}

impl HubAddress {
    /// `address:port`, for messages.
    fn name(&self) -> String {
        format!("{}:{}", self.address, self.port)
    }

    /// Connects, checks the hub's key, logs in and starts SFTP.
    pub fn connect(&self) -> Result<Connection> {
        let hub = self.name();
        let timeout = Duration::from_secs(self.timeout.max(1));
        let mut session = Session::new().context("cannot start SSH")?;
        session.set_timeout(u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX));
        // a manifest shrinks to a third
        session.set_compress(true);
        session.set_tcp_stream(self.open_stream(timeout)?);
        // the server shows one key only: it must be of a kind that is pinned
        let methods: Vec<&str> = self.host_keys.iter().map(HostKey::methods).collect();
        session
            .method_pref(MethodType::HostKey, &methods.join(","))
            .with_context(|| format!("SSH does not know the kinds of key in host-keys ({})", methods.join(",")))?;
        session.handshake().with_context(|| {
            format!("cannot agree with the hub {hub} on an SSH session (its keys must be among: {})", methods.join(","))
        })?;
        let (key, _) = session.host_key().with_context(|| format!("the hub {hub} has shown no host key"))?;
        if !self.host_keys.iter().any(|pinned| pinned.blob == key) {
            bail!(
                "the hub {hub} has a host key that is not pinned ({}): either something poses as the hub, or its key \
                 changed; if it did, put the new key into host-keys of the agent's configuration",
                fingerprint(&session)
            );
        }
        session.userauth_pubkey_file(&self.user, None, &self.identity, None).with_context(|| {
            format!(
                "cannot log in to the hub {hub} as {} with the key {}: is its public half in the hub's fleet.nix?",
                self.user,
                self.identity.display()
            )
        })?;
        let sftp = session.sftp().with_context(|| {
            format!("the hub {hub} offers no SFTP, or this host has too many connections there already")
        })?;
        Ok(Connection { sftp })
    }

    /// As [`HubAddress::connect`], but a hub that is there and does not get round to an answer in time is asked once more, and one that
    /// hangs up several times, after a pause: as a rule many others asked it in the same moment.
    pub fn connect_patiently(&self) -> Result<Connection> {
        /// libssh2's `LIBSSH2_ERROR_TIMEOUT`
        const LATE: ErrorCode = ErrorCode::Session(-9);
        /// libssh2's `LIBSSH2_ERROR_SOCKET_DISCONNECT` and `LIBSSH2_ERROR_SOCKET_RECV`, of a connection that is closed or reset, and
        /// `LIBSSH2_ERROR_CHANNEL_FAILURE`, where that happens right after logging in
        const HUNG_UP: [ErrorCode; 3] = [ErrorCode::Session(-13), ErrorCode::Session(-43), ErrorCode::Session(-21)];
        /// seconds, after each of which there is another try
        const PAUSES: [u64; 3] = [1, 2, 4];

        let mut pauses = PAUSES.into_iter();
        let mut asked_again = false;
        loop {
            let error = match self.connect() {
                Ok(connection) => return Ok(connection),
                Err(error) => error,
            };
            let code = error.chain().find_map(|cause| Some(cause.downcast_ref::<ssh2::Error>()?.code()));
            if code == Some(LATE) && !asked_again {
                asked_again = true;
            } else if code.is_some_and(|code| HUNG_UP.contains(&code))
                && let Some(seconds) = pauses.next()
            {
                std::thread::sleep(Duration::from_secs(seconds).mul_f64(0.5 + chance()));
            } else {
                return Err(error);
            }
        }
    }

    /// Opens a TCP connection to the first of the hub's addresses that answers.
    fn open_stream(&self, timeout: Duration) -> Result<TcpStream> {
        let hub = self.name();
        let addresses = (self.address.as_str(), self.port)
            .to_socket_addrs()
            .with_context(|| format!("cannot find the address of the hub {hub}"))?;
        let mut last = None;
        for address in addresses {
            match TcpStream::connect_timeout(&address, timeout) {
                Ok(stream) => return Ok(stream),
                Err(e) => last = Some(e),
            }
        }
        let error = last.map_or_else(|| anyhow!("it has no address"), anyhow::Error::from);
        Err(error.context(format!("cannot reach the hub {hub}")))
    }
}

/// A number from 0 to 1, another one each time, so that those who were refused together do not come back together.
fn chance() -> f64 {
    f64::from(RandomState::new().hash_one(()) as u32) / f64::from(u32::MAX)
}

/// The fingerprint of the key that the server has shown, as `ssh-keygen -l` writes it.
fn fingerprint(session: &Session) -> String {
    session
        .host_key_hash(ssh2::HashType::Sha256)
        .map_or_else(String::new, |hash| format!("SHA256:{}", STANDARD.encode(hash).trim_end_matches('=')))
}

impl Connection {
    /// Reads a whole file of at most `limit` bytes.
    pub fn read(&self, path: &str, limit: u64) -> Result<Vec<u8>> {
        let file = self.sftp.open(Path::new(path)).map_err(|e| match is_missing(&e) {
            true => anyhow!("the hub has no {path}"),
            false => anyhow!(e).context(format!("cannot open {path} on the hub")),
        })?;
        let mut content = Vec::new();
        file.take(limit + 1).read_to_end(&mut content).with_context(|| format!("cannot read {path} from the hub"))?;
        if content.len() as u64 > limit {
            bail!("{path} on the hub is larger than {limit} bytes");
        }
        Ok(content)
    }

    /// Whether the hub has a file or directory there.
    pub fn exists(&self, path: &str) -> Result<bool> {
        match self.sftp.stat(Path::new(path)) {
            Ok(_) => Ok(true),
            Err(e) if is_missing(&e) => Ok(false),
            Err(e) => Err(e).with_context(|| format!("cannot look at {path} on the hub")),
        }
    }

    /// Uploads a file under a temporary name and renames it, never over another.
    ///
    /// Gives whether the file is there now with this content; `false` means that the name is taken by other content.
    pub fn upload(&self, path: &str, content: &[u8]) -> Result<bool> {
        if self.exists(path)? {
            return self.holds(path, content);
        }
        let temporary = self.put_aside(path, content)?;
        // without flags: OpenSSH then fails where the name is taken
        match self.sftp.rename(&temporary, Path::new(path), Some(RenameFlags::empty())) {
            Ok(()) => Ok(true),
            Err(e) => {
                if self.exists(path)? {
                    self.sftp.unlink(&temporary).with_context(|| format!("cannot upload {path} to the hub"))?;
                    return self.holds(path, content);
                }
                Err(e).with_context(|| format!("cannot upload {path} to the hub"))
            }
        }
    }

    /// Uploads a file under a temporary name and renames it, over another if need be.
    pub fn replace(&self, path: &str, content: &[u8]) -> Result<()> {
        let temporary = self.put_aside(path, content)?;
        let renamed = self.sftp.rename(&temporary, Path::new(path), Some(RenameFlags::empty())).or_else(|_| {
            // SFTP knows no rename over another file: for a moment there is none
            self.sftp.unlink(Path::new(path))?;
            self.sftp.rename(&temporary, Path::new(path), Some(RenameFlags::empty()))
        });
        renamed.with_context(|| format!("cannot upload {path} to the hub"))
    }

    /// Uploads a file under a temporary name beside `path`, and gives that name.
    fn put_aside(&self, path: &str, content: &[u8]) -> Result<PathBuf> {
        let temporary = PathBuf::from(match path.rsplit_once('/') {
            Some((dir, name)) => format!("{dir}/{}{name}", crate::files::TEMPORARY),
            None => format!("{}{path}", crate::files::TEMPORARY),
        });
        let context = || format!("cannot upload {path} to the hub");
        let flags = OpenFlags::WRITE | OpenFlags::CREATE | OpenFlags::TRUNCATE;
        let mut file = self.sftp.open_mode(&temporary, flags, 0o640, OpenType::File).with_context(context)?;
        file.write_all(content).with_context(context)?;
        file.close().with_context(context)?;
        Ok(temporary)
    }

    /// Whether the file has exactly this content.
    fn holds(&self, path: &str, content: &[u8]) -> Result<bool> {
        let size = self.sftp.stat(Path::new(path)).with_context(|| format!("cannot look at {path} on the hub"))?.size;
        Ok(size == Some(content.len() as u64) && self.read(path, content.len() as u64)? == content)
    }
}
