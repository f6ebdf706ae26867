//! An embedded hub: SSH with nothing but SFTP, for machines where nobody wants to be root or to touch sshd.
//!
//! A host logs in under its name with its own key, sees its directory as the root of everything, reads it, and writes below
//! `logs/`. There is no shell, no command, no forwarding of anything, and no other way to log in.

mod crowd;
mod doorway;
mod root;
mod sftp;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use russh::keys::ssh_key::public::KeyData;
use russh::keys::{PrivateKey, PublicKey};
use russh::server::{Auth, ChannelOpenHandle, Handler, Msg, Session, VerifiedPublicKey};
use russh::{Channel, ChannelId, Disconnect, MethodKind, MethodSet, Pty};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::files;
use crate::fleet::config::{Config, key_file, read_keys};
use crate::host::HostName;
use crate::hub::Hub;

use crowd::{Crowd, Member, source};
use doorway::{Admission, Doorway};
pub use root::Quota;
use root::Usages;

/// How many connections there may be at a time; more of them wait.
const CONNECTIONS: usize = 2000;
/// What somebody hears for whom there is no place. Before a server says its version it may say other lines (RFC 4253, 4.2), and clients
/// show them.
const REFUSAL: &[u8] = b"too many connections from this address have not logged in\r\n";
/// What a host hears that has as many connections as it may have.
const ENOUGH: &str = "this host has too many connections at the same time";
/// How many channels one connection may have open.
const CHANNELS: usize = 4;
/// A connection that says nothing for so long is closed.
const SILENCE: Duration = Duration::from_secs(120);

/// Where hosts' public keys are.
#[derive(Clone, Debug)]
pub struct Keys {
    /// The fleet's directory: the hosts' keys in its settings count.
    pub fleet: PathBuf,
    /// A directory with a file `NAME.pub` for each host, as `authorized_keys` has its lines.
    pub dir: Option<PathBuf>,
}

impl Keys {
    /// A host's keys, as they are now.
    fn of(&self, host: &HostName) -> Result<Vec<KeyData>> {
        let config = Config::read_for(&self.fleet, host)?;
        let mut lines = config.hosts.get(host).map(|host| host.keys.clone()).unwrap_or_default();
        if let Some(dir) = &self.dir {
            lines.extend(read_keys(&key_file(dir, host))?);
        }
        let key = |line: &String| PublicKey::from_openssh(line).ok().map(|key| key.key_data().clone());
        Ok(lines.iter().filter_map(key).collect())
    }
}

/// The server's own key: read from a file, which is made with a new key if it isn't there.
#[derive(Clone, Debug)]
pub struct HostKey {
    private: PrivateKey,
    /// The public half's line, which the hosts pin.
    pub line: String,
}

impl HostKey {
    /// Reads the key, or makes it.
    pub fn open(file: &Path) -> Result<Self> {
        let context = || format!("cannot read the hub's key {}", file.display());
        let text = match std::fs::read_to_string(file) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Self::generate(file)?,
            Err(error) => return Err(error).with_context(context),
        };
        let private = PrivateKey::from_openssh(text.trim()).with_context(context)?;
        let line = private.public_key().to_openssh().with_context(context)?;
        Ok(Self { private, line })
    }

    /// Makes a key and writes it; gives its text.
    fn generate(file: &Path) -> Result<String> {
        let context = || format!("cannot make the hub's key {}", file.display());
        let mut random = ssh_key::rand_core::OsRng;
        let key = ssh_key::PrivateKey::random(&mut random, ssh_key::Algorithm::Ed25519).with_context(context)?;
        let text = key.to_openssh(ssh_key::LineEnding::LF).with_context(context)?;
        files::write_atomic(file, text.as_bytes(), 0o600, None)?;
        Ok(text.to_string())
    }
}

/// What is served.
#[derive(Clone, Debug)]
pub struct Server {
    /// The hub's directory.
    pub hub: Hub,
    /// Who may log in.
    pub keys: Keys,
    /// The server's own key.
    pub host_key: HostKey,
    /// How much a host may leave.
    pub quota: Quota,
    /// A connection that has not logged in after so long is closed.
    pub login_grace: Duration,
    /// How many connections from one address may not have logged in at a time; more of them are refused.
    pub per_address: usize,
    /// How many connections a host may have at a time; more of them are refused.
    pub per_host: usize,
}

impl Server {
    /// Serves the hosts until the process ends.
    pub async fn serve(self, listener: TcpListener) -> Result<()> {
        let config = Arc::new(russh::server::Config {
            methods: MethodSet::from(&[MethodKind::PublicKey][..]),
            auth_rejection_time: Duration::from_secs(1),
            auth_rejection_time_initial: Some(Duration::ZERO),
            max_auth_attempts: 6,
            keys: vec![self.host_key.private.clone()],
            inactivity_timeout: Some(SILENCE),
            nodelay: true,
            ..russh::server::Config::default()
        });
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        let waiting = Arc::new(Crowd::<IpAddr>::new("have not logged in"));
        let admitted = Arc::new(Crowd::<HostName>::new("are logged in"));
        let usages = Arc::new(Usages::default());
        let server = Arc::new(self);
        loop {
            let place = places.clone().acquire_owned().await.context("cannot serve any more")?;
            let (stream, peer) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    // no more files may be open, say: that passes
                    eprintln!("cannot accept a connection: {error}");
                    tokio::time::sleep(Duration::from_millis(200)).await;
                    continue;
                }
            };
            // as many as are still free, its own among them: so some are left whoever comes next
            let limit = server.per_address.min(places.available_permits() + 1);
            let Some(waiting) = waiting.join(source(peer.ip()), limit) else {
                refuse(&stream);
                continue;
            };
            let (config, server, admitted, usages) = (config.clone(), server.clone(), admitted.clone(), usages.clone());
            tokio::spawn(async move {
                let _ = stream.set_nodelay(true);
                let admission = Admission::new(waiting);
                let stream = Doorway::new(stream, server.login_grace, admission.clone());
                let visitor =
                    Visitor { server, peer, admission, admitted, usages, host: None, channels: HashMap::new() };
                let served = match russh::server::run_stream(config, stream, visitor).await {
                    Ok(session) => session.await,
                    Err(error) => Err(error),
                };
                if let Err(error) = served {
                    // one that goes away without a word is none to speak of
                    if !matches!(error.downcast_ref(), Some(russh::Error::Disconnect | russh::Error::HUP)) {
                        eprintln!("{peer}: {error:#}");
                    }
                }
                drop(place);
            });
        }
    }
}

/// Says that there is no place, if that can be said at once.
fn refuse(stream: &TcpStream) {
    let _ = stream.try_write(REFUSAL);
}

/// One connection.
struct Visitor {
    server: Arc<Server>,
    peer: SocketAddr,
    admission: Admission,
    /// All those who have logged in.
    admitted: Arc<Crowd<HostName>>,
    /// What all hosts have left.
    usages: Arc<Usages>,
    /// Who it is, once that is proven and there is a place for it.
    host: Option<(HostName, Member<HostName>)>,
    /// Its open channels: as long as it has not asked for SFTP, with what that needs.
    channels: HashMap<ChannelId, Option<Channel<Msg>>>,
}

impl Visitor {
    /// The host of that name, if the key is one of its own.
    fn admit(&self, user: &str, key: &PublicKey) -> Option<HostName> {
        let host = HostName::new(user).ok()?;
        match self.server.keys.of(&host) {
            Ok(keys) => keys.contains(key.key_data()).then_some(host),
            Err(error) => {
                eprintln!("{}: cannot tell the keys of {host}: {error:#}", self.peer);
                None
            }
        }
    }
}

impl Handler for Visitor {
    type Error = anyhow::Error;

    async fn auth_publickey(&mut self, user: &str, key: VerifiedPublicKey<'_>) -> Result<Auth> {
        let Some(host) = self.admit(user, key.public_key) else {
            eprintln!("{}: the key is none of {user:?}'s", self.peer);
            return Ok(Auth::reject());
        };
        if let Some(member) = self.admitted.join(host.clone(), self.server.per_host) {
            self.host = Some((host, member));
            self.admission.grant();
        }
        // whoever has a key of the host's may hear why it has no place
        Ok(Auth::Accept)
    }

    async fn auth_succeeded(&mut self, session: &mut Session) -> Result<()> {
        match self.host {
            Some(_) => Ok(()),
            // if it stays all the same, its time to log in ends
            None => Ok(session.disconnect(Disconnect::TooManyConnections, ENOUGH, "en")?),
        }
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<()> {
        // without an answer it is refused
        if self.host.is_some() && self.channels.len() < CHANNELS {
            self.channels.insert(channel.id(), Some(channel));
            reply.accept().await;
        }
        Ok(())
    }

    async fn subsystem_request(&mut self, id: ChannelId, name: &str, session: &mut Session) -> Result<()> {
        let channel = self.channels.get_mut(&id).filter(|_| name == "sftp").and_then(Option::take);
        let (Some((host, _)), Some(channel)) = (&self.host, channel) else {
            return Ok(session.channel_failure(id)?);
        };
        let dir = self.server.hub.host(host);
        match root::Root::open(dir.path(), self.server.quota, self.usages.of(host)) {
            Ok(root) => {
                session.channel_success(id)?;
                russh_sftp::server::run(channel.into_stream(), sftp::Files::new(root)).await;
                Ok(())
            }
            Err(error) => {
                eprintln!("{}: {error:#}", self.peer);
                Ok(session.channel_failure(id)?)
            }
        }
    }

    async fn shell_request(&mut self, id: ChannelId, session: &mut Session) -> Result<()> {
        Ok(session.channel_failure(id)?)
    }

    async fn exec_request(&mut self, id: ChannelId, _command: &[u8], session: &mut Session) -> Result<()> {
        Ok(session.channel_failure(id)?)
    }

    async fn pty_request(
        &mut self,
        id: ChannelId,
        _term: &str,
        _columns: u32,
        _rows: u32,
        _width: u32,
        _height: u32,
        _modes: &[(Pty, u32)],
        session: &mut Session,
    ) -> Result<()> {
        Ok(session.channel_failure(id)?)
    }

    async fn x11_request(
        &mut self,
        id: ChannelId,
        _single: bool,
        _protocol: &str,
        _cookie: &str,
        _screen: u32,
        session: &mut Session,
    ) -> Result<()> {
        Ok(session.channel_failure(id)?)
    }

    async fn channel_close(&mut self, id: ChannelId, _session: &mut Session) -> Result<()> {
        self.channels.remove(&id);
        Ok(())
    }

    async fn channel_eof(&mut self, id: ChannelId, session: &mut Session) -> Result<()> {
        self.channels.remove(&id);
        Ok(session.close(id)?)
    }
}

/// Lets this process open as many files as the machine allows: each connection is one, and each of its downloads another. What
/// a shell or systemd gives to begin with is less than a large fleet needs.
pub fn raise_limits() -> Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).context("cannot tell how many files may be open")?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most).context("cannot raise the number of files that may be open")
}

/// Sees that a directory is there to be served, and that this machine can keep hosts in theirs.
pub fn check(hub: &Hub) -> Result<()> {
    let dir = hub.root();
    if !dir.is_dir() {
        bail!("{} is no directory: `bento deploy` makes it", dir.display());
    }
    let listed = root::Root::open(dir, Quota::default(), Arc::default())?.list("");
    match listed {
        Ok(_) => Ok(()),
        // not by its kind, which others have too
        Err(error) if error.raw_os_error() == Some(Errno::ENOSYS as i32) => Err(error).context(
            "this machine can't keep hosts in their directories: that takes openat2, so Linux 5.6 or newer, and a service of \
             systemd's without RestrictSUIDSGID",
        ),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", dir.display())),
    }
}
