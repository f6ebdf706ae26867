//! The page for the user at the machine, `http://localhost:51337/`: what the machine runs, what came of the last release, and
//! a button that has the agent look for a newer one, with its log as it is written.
//!
//! It is served to this machine alone: over loopback and a unix socket. Who is on the other end is asked of the kernel
//! (module `peer`); services get nothing, and only those who may read the machine's journal see the log. A page of somebody else's
//! that is open in the same browser can neither read it (the `Host` header has to be this machine's, whatever a name server
//! says) nor press the button (the form has a token).

mod peer;
mod view;

use std::convert::Infallible;
use std::io::{Read, Seek, SeekFrom};
use std::net::{SocketAddr, TcpListener as StdTcpListener};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use axum::extract::{Extension, Request, State};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use axum::{Form, Router};
use futures_util::stream;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;

use crate::agent::config::AgentConfig;
use crate::agent::standing::Standing;
use crate::agent::{self, units};
use crate::http::{asset, confine};
use crate::status::history::printable;
use peer::Peer;

/// The port that it has on every machine.
pub const PORT: u16 = 51337;
/// How many connections there may be at a time; more of them wait.
const CONNECTIONS: usize = 32;
/// How long a browser may take to say what it wants.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often the log and the state are looked at while somebody looks at them.
const TICK: Duration = Duration::from_millis(250);
/// How much of the log is sent at a time, in bytes; no more of an earlier one's end is shown.
const PART: u64 = 64 << 10;

/// A connection.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// Where connections come from.
enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    /// The next connection, whose it is, and to which port.
    async fn accept(&self) -> std::io::Result<(Box<dyn Stream>, Option<u32>, Option<u16>)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, from) = listener.accept().await?;
                let here = stream.local_addr()?;
                Ok((Box::new(stream), peer::uid_of_connection(from, here), Some(here.port())))
            }
            Self::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                let uid = stream.peer_cred().ok().map(|credentials| credentials.uid());
                Ok((Box::new(stream), uid, None))
            }
        }
    }
}

/// Where the page is served.
#[derive(Debug, Default)]
pub struct Sockets {
    tcp: Vec<StdTcpListener>,
    unix: Vec<StdUnixListener>,
}

impl Sockets {
    /// The sockets that systemd has opened for this process.
    pub fn inherited() -> Result<Self> {
        let mut found = listenfd::ListenFd::from_env();
        let mut sockets = Self::default();
        for index in 0..found.len() {
            if let Ok(Some(listener)) = found.take_unix_listener(index) {
                sockets.unix.push(listener);
            } else if let Some(listener) =
                found.take_tcp_listener(index).context("a socket from systemd is no listener")?
            {
                sockets.tcp.push(check(listener)?);
            }
        }
        Ok(sockets)
    }

    /// Listens at an address of this machine's own.
    pub fn listen(&mut self, address: SocketAddr) -> Result<()> {
        let listener = StdTcpListener::bind(address).with_context(|| format!("cannot listen on {address}"))?;
        self.tcp.push(check(listener)?);
        Ok(())
    }

    /// Listens at a unix socket, in the place of an earlier one.
    pub fn listen_unix(&mut self, path: &Path) -> Result<()> {
        let context = || format!("cannot listen on {}", path.display());
        crate::files::remove(path)?;
        let listener = StdUnixListener::bind(path).with_context(context)?;
        // who connects is asked of the kernel
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666)).with_context(context)?;
        self.unix.push(listener);
        Ok(())
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.tcp.is_empty() && self.unix.is_empty()
    }

    /// The addresses among them.
    pub fn addresses(&self) -> Result<Vec<SocketAddr>> {
        self.tcp.iter().map(|listener| listener.local_addr().context("a listener without an address")).collect()
    }
}

/// Refuses to listen where other machines could connect.
fn check(listener: StdTcpListener) -> Result<StdTcpListener> {
    let address = listener.local_addr().context("a listener without an address")?;
    if !address.ip().is_loopback() {
        bail!("the page is for this machine alone, but {address} is no address of loopback");
    }
    Ok(listener)
}

/// The page of one machine.
#[derive(Debug)]
pub struct Page {
    config: AgentConfig,
    /// What only a form of this page can say.
    token: String,
}

impl Page {
    /// The page of the machine that a configuration is about.
    pub fn new(config: AgentConfig) -> Result<Self> {
        let mut random = [0; 32];
        std::fs::File::open("/dev/urandom")
            .and_then(|mut file| file.read_exact(&mut random))
            .context("no random numbers")?;
        Ok(Self { config, token: blake3::hash(&random).to_hex().to_string() })
    }

    /// Answers requests: for ever, or, with `idle`, until there was no connection for so long.
    pub fn serve(self, sockets: Sockets, idle: Option<Duration>) -> Result<()> {
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        runtime.worker_threads(1).max_blocking_threads(2).enable_all();
        runtime.build().context("cannot start the page")?.block_on(self.answer(sockets, idle))
    }

    async fn answer(self, sockets: Sockets, idle: Option<Duration>) -> Result<()> {
        let page = Arc::new(self);
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        // each connection has a copy
        let alive = Arc::new(());
        let mut listeners = Vec::new();
        for listener in sockets.tcp {
            listener.set_nonblocking(true).context("cannot listen")?;
            listeners.push(Listener::Tcp(TcpListener::from_std(listener).context("cannot listen")?));
        }
        for listener in sockets.unix {
            listener.set_nonblocking(true).context("cannot listen")?;
            listeners.push(Listener::Unix(UnixListener::from_std(listener).context("cannot listen")?));
        }
        for listener in listeners {
            let (page, places, alive) = (page.clone(), places.clone(), Arc::downgrade(&alive));
            tokio::spawn(async move {
                loop {
                    let Ok((stream, uid, port)) = listener.accept().await else {
                        // no more files may be open, say: that passes
                        tokio::time::sleep(TICK).await;
                        continue;
                    };
                    let (alive, Ok(place)) = (alive.upgrade(), places.clone().acquire_owned().await) else { return };
                    let peer = Peer::of(uid, &page.config.page.log_groups);
                    let service = TowerToHyperService::new(page.clone().router(peer, port));
                    tokio::spawn(async move {
                        let mut http = hyper::server::conn::http1::Builder::new();
                        http.timer(TokioTimer::new()).header_read_timeout(PATIENCE);
                        // one that goes away in the middle is none to speak of
                        let _ = http.serve_connection(TokioIo::new(stream), service).await;
                        drop((place, alive));
                    });
                }
            });
        }
        let mut quiet = Duration::ZERO;
        while idle.is_none_or(|idle| quiet < idle) {
            tokio::time::sleep(TICK).await;
            quiet = if Arc::strong_count(&alive) > 1 { Duration::ZERO } else { quiet + TICK };
        }
        Ok(())
    }

    /// What there is to ask, for one connection.
    fn router(self: Arc<Self>, peer: Peer, port: Option<u16>) -> Router {
        Router::new()
            .route("/", get(show))
            .route("/events", get(events))
            .route("/update", post(update))
            .route("/page.css", get(|| asset("text/css; charset=utf-8", include_str!("page.css"))))
            .route("/page.js", get(|| asset("text/javascript; charset=utf-8", include_str!("page.js"))))
            .fallback(|| async { refuse(StatusCode::NOT_FOUND, "There is no such page.") })
            .layer(middleware::from_fn(guard))
            .layer(Extension(peer))
            .layer(Extension(Port(port)))
            .with_state(self)
    }

    fn log(&self) -> PathBuf {
        self.config.state_dir.join(agent::LOG)
    }

    /// Has the agent poll the hub now.
    fn start(&self) -> Result<()> {
        agent::ask(&self.config.state_dir)?;
        if self.config.system.has_systemd() {
            return units::start_service(&self.config.page.service);
        }
        let program = std::env::current_exe().context("cannot find bento itself")?;
        let mut child = Command::new(program)
            .args(["agent", "run", "--config"])
            .arg(&self.config.file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start the agent")?;
        // how it ended is in the log
        std::thread::spawn(move || child.wait());
        Ok(())
    }
}

/// The port that a connection came to; none over a unix socket.
#[derive(Clone, Copy)]
struct Port(Option<u16>);

impl Port {
    /// Whether a `Host` header is one of this machine: one of somebody else's name, which a name server led here, is not.
    fn is_here(self, host: Option<&str>) -> bool {
        let Some(port) = self.0 else { return true };
        host.is_some_and(|host| ["localhost", "127.0.0.1", "[::1]"].iter().any(|name| host == format!("{name}:{port}")))
    }
}

/// A page that says why there is no other.
fn refuse(status: StatusCode, why: &str) -> Response {
    (status, view::message(why)).into_response()
}

/// Why a request gets no answer; `None` if it does.
fn refusal(request: &Request, peer: Peer, port: Port) -> Option<Response> {
    let header = |name| request.headers().get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let foreign = header(header::ORIGIN).is_some_and(|origin| !port.is_here(origin.strip_prefix("http://")))
        || header(HeaderName::from_static("sec-fetch-site"))
            .is_some_and(|site| !["same-origin", "none"].contains(&site));
    if !port.is_here(header(header::HOST)) {
        Some(refuse(StatusCode::MISDIRECTED_REQUEST, "This page is only there as http://localhost."))
    } else if peer == Peer::Stranger {
        Some(refuse(StatusCode::FORBIDDEN, "This page is for the users of this machine."))
    } else if foreign && request.method() != Method::GET {
        Some(refuse(StatusCode::FORBIDDEN, "Another page asked for that."))
    } else {
        None
    }
}

/// Lets through who has a right to an answer, and tells browsers what the answer may do: next to nothing.
async fn guard(
    Extension(peer): Extension<Peer>,
    Extension(port): Extension<Port>,
    request: Request,
    next: Next,
) -> Response {
    let mut response = match refusal(&request, peer, port) {
        Some(refusal) => refusal,
        None => next.run(request).await,
    };
    const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; base-uri 'none'; \
                          form-action 'self'; frame-ancestors 'none'";
    confine(&mut response, POLICY, "same-origin");
    response
}

/// Looks at the machine where that keeps nobody waiting.
async fn look(page: &Arc<Page>) -> Result<Standing> {
    let page = page.clone();
    tokio::task::spawn_blocking(move || Standing::read(&page.config)).await.context("the page could not be made")?
}

async fn show(State(page): State<Arc<Page>>, Extension(peer): Extension<Peer>) -> Response {
    match look(&page).await {
        Ok(standing) => view::page(&standing, &page.token, peer == Peer::Reader).into_response(),
        Err(error) => refuse(StatusCode::INTERNAL_SERVER_ERROR, &format!("{error:#}")),
    }
}

/// What the form says.
#[derive(Deserialize)]
struct Asked {
    token: String,
}

async fn update(State(page): State<Arc<Page>>, Form(asked): Form<Asked>) -> Response {
    if asked.token != page.token {
        return refuse(
            StatusCode::FORBIDDEN,
            "This form is out of date: go back, load the page again, and press the button there.",
        );
    }
    match tokio::task::spawn_blocking(move || page.start()).await {
        Ok(Ok(())) => Redirect::to("/").into_response(),
        Ok(Err(error)) => refuse(StatusCode::INTERNAL_SERVER_ERROR, &format!("{error:#}")),
        Err(_) => refuse(StatusCode::INTERNAL_SERVER_ERROR, "The agent could not be started."),
    }
}

/// What somebody was shown.
struct Shown {
    page: Arc<Page>,
    /// Whether he may see the log.
    log: bool,
    /// How far; nothing before the first look.
    offset: Option<u64>,
    standing: Option<Standing>,
    /// What is to be sent yet.
    next: Vec<Event>,
}

/// The state and the log, now and as they change.
async fn events(
    State(page): State<Arc<Page>>,
    Extension(peer): Extension<Peer>,
) -> Sse<impl stream::Stream<Item = Result<Event, Infallible>>> {
    let shown = Shown { page, log: peer == Peer::Reader, offset: None, standing: None, next: Vec::new() };
    let events = stream::unfold(shown, |mut shown| async move {
        loop {
            if let Some(event) = shown.next.pop() {
                return Some((Ok(event), shown));
            }
            shown = tokio::task::spawn_blocking(move || shown.look()).await.ok()?;
            if shown.next.is_empty() {
                tokio::time::sleep(TICK).await;
            }
        }
    });
    Sse::new(events).keep_alive(KeepAlive::default())
}

impl Shown {
    /// Looks for what changed.
    fn look(mut self) -> Self {
        if let Ok(standing) = Standing::read(&self.page.config)
            && self.standing.as_ref() != Some(&standing)
        {
            let shown = printable(&view::standing(&standing).into_string());
            self.next.push(Event::default().event("standing").data(shown));
            self.standing = Some(standing);
        }
        if self.log {
            // a log that is not there yet, or can't be read now, is looked for again
            let _ = self.look_at_log();
        }
        self
    }

    fn look_at_log(&mut self) -> std::io::Result<()> {
        let mut file = std::fs::File::open(self.page.log())?;
        let length = file.metadata()?.len();
        let offset = match self.offset {
            // of what was written before only the end
            None => length.saturating_sub(PART),
            Some(offset) if offset > length => {
                self.next.insert(0, Event::default().event("clear").data(""));
                0
            }
            Some(offset) => offset,
        };
        self.offset = Some(offset);
        if offset == length {
            return Ok(());
        }
        file.seek(SeekFrom::Start(offset))?;
        let mut part = Vec::new();
        file.take(PART).read_to_end(&mut part)?;
        // whole lines, unless there is none as long as that
        let whole = part.iter().rposition(|byte| *byte == b'\n').map_or(part.len(), |end| end + 1);
        part.truncate(whole);
        self.offset = Some(offset + part.len() as u64);
        let text = printable(&String::from_utf8_lossy(&part));
        self.next.insert(0, Event::default().event("log").data(text));
        Ok(())
    }
}
