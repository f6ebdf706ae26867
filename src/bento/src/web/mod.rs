//! The fleet in a browser, and for Prometheus: where each host stands, what it was told, and what it said.
//!
//! Nothing can be changed from here. Every page is made from the hub's files when it is asked for; there are no sessions and
//! nothing is kept. It needs no script: the only one there is puts a newer table in place of an older one.

mod access;
mod pages;
mod timeline;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use axum::Router;
use axum::extract::{Path, Query, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures_util::stream::{self, Stream};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use jiff::Timestamp;
use maud::Markup;
use serde::Deserialize;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};

use crate::host::HostName;
use crate::http::{asset, confine};
use crate::hub::Hub;
use crate::status::history::{self, attempts, printable};
use crate::status::watch::Watch;
use crate::status::{self, Expected, HostState, Overview, metrics};
use pages::HostView;
use timeline::Lane;

pub use access::Access;

/// How many connections there may be at a time; more of them wait.
const CONNECTIONS: usize = 256;
/// How long a client may take to say what it wants.
const PATIENCE: Duration = Duration::from_secs(20);
/// How many pages are made at a time.
const WORKERS: usize = 4;
/// How many of a host's reports are looked at, for its own page and for the timeline of all.
const ATTEMPTS: usize = 200;
const ATTEMPTS_OF_ALL: usize = 50;
/// How much of a log is shown, on a page of its own and on the host's, in bytes.
const LOG: usize = 4 << 20;
const LOG_TAIL: usize = 16 << 10;
/// How often the table is worked out anew when nothing changes, as hosts that say nothing get stale.
const IDLE: Duration = Duration::from_secs(15);
/// How often a table is sent of which only the ages of things differ.
const AGES: Duration = Duration::from_secs(60);
/// As [`IDLE`] where files can't be watched.
const UNWATCHED: Duration = Duration::from_secs(3);

/// A page of a hub.
#[derive(Clone, Debug)]
pub struct Site {
    /// The hub's directory.
    pub hub: Hub,
    /// What the fleet's settings say about what hosts say.
    pub expected: Expected,
    /// Who may see the page.
    pub access: Access,
}

impl Site {
    fn overview(&self) -> Overview {
        status::overview(&self.hub, &self.expected, Timestamp::now())
    }

    /// Answers requests until the process ends.
    pub async fn serve(self, listener: TcpListener) -> Result<()> {
        let news = follow(self.clone())?;
        let shared = Arc::new(Shared { site: self, workers: Semaphore::new(WORKERS), news });
        let router = Router::new()
            .route("/", get(fleet))
            .route("/events", get(events))
            .route("/timeline", get(timeline_of_all))
            .route("/metrics", get(metrics_text))
            .route("/hosts/{host}", get(host))
            .route("/hosts/{host}/logs/{log}", get(log))
            .route("/hosts/{host}/releases/{serial}", get(release))
            .route("/style.css", get(|| asset("text/css; charset=utf-8", include_str!("style.css"))))
            .route("/live.js", get(|| asset("text/javascript; charset=utf-8", include_str!("live.js"))))
            .fallback(|| async { Failure::NotFound("There is no such page.".to_owned()) })
            .layer(middleware::from_fn_with_state(shared.clone(), guard))
            .with_state(shared);
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let place = places.clone().acquire_owned().await.context("cannot serve any more")?;
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // no more files may be open, say: that passes
                    eprintln!("cannot accept a connection: {error}");
                    tokio::time::sleep(Duration::from_millis(200)).await;
                    continue;
                }
            };
            let service = TowerToHyperService::new(router.clone());
            tokio::spawn(async move {
                let mut http = hyper::server::conn::http1::Builder::new();
                http.timer(TokioTimer::new()).header_read_timeout(PATIENCE);
                // one that goes away in the middle is none to speak of
                let _ = http.serve_connection(TokioIo::new(stream), service).await;
                drop(place);
            });
        }
    }
}

/// What all requests have in common.
struct Shared {
    site: Site,
    workers: Semaphore,
    /// The newest overview; as long as nobody listens, it is not renewed.
    news: watch::Receiver<Arc<Overview>>,
}

impl Shared {
    /// Does what reads files where it keeps nobody waiting, and not too much of it at a time.
    async fn work<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Site) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        let _place = self.workers.acquire().await.context("the hub is about to end")?;
        let shared = self.clone();
        tokio::task::spawn_blocking(move || work(&shared.site)).await.context("the page could not be made")?
    }
}

/// Why there is no page.
enum Failure {
    /// There is nothing of that name.
    NotFound(String),
    /// It can't be made.
    Broken(anyhow::Error),
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Broken(error)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        match self {
            Self::NotFound(text) => (StatusCode::NOT_FOUND, pages::message("Not found", &text)).into_response(),
            Self::Broken(error) => {
                let page = pages::message("This can't be shown", &format!("{error:#}"));
                (StatusCode::INTERNAL_SERVER_ERROR, page).into_response()
            }
        }
    }
}

/// Lets through what has a right to an answer, and tells browsers what the answer may do: next to nothing.
async fn guard(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let mut response = match shared.site.access.check(request.headers()) {
        Ok(()) => next.run(request).await,
        Err((status, text)) => {
            let mut response = (status, pages::message("Not for everybody", text)).into_response();
            if status == StatusCode::UNAUTHORIZED {
                let ask = HeaderValue::from_static("Basic realm=\"bento\", charset=\"UTF-8\"");
                response.headers_mut().insert(header::WWW_AUTHENTICATE, ask);
            }
            response
        }
    };
    const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src data:; \
                          base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
    confine(&mut response, POLICY, "no-referrer");
    response
}

/// What of the fleet is to be shown.
#[derive(Deserialize)]
struct Selection {
    state: Option<String>,
}

impl Selection {
    /// The one state that is to be shown, if it is not all.
    fn state(&self) -> Result<Option<HostState>, Failure> {
        let Some(word) = self.state.as_deref().filter(|word| !word.is_empty()) else { return Ok(None) };
        let state = HostState::ALL.into_iter().find(|state| state.word() == word);
        state.map(Some).ok_or_else(|| Failure::NotFound(format!("There is no state {word:?}.")))
    }
}

async fn fleet(State(shared): State<Arc<Shared>>, Query(selection): Query<Selection>) -> Result<Markup, Failure> {
    let only = selection.state()?;
    shared.work(move |site| Ok(pages::fleet_page(&site.overview(), only, Timestamp::now()))).await
}

async fn metrics_text(State(shared): State<Arc<Shared>>) -> Result<Response, Failure> {
    let text = shared
        .work(|site| {
            let overview = site.overview();
            Ok(metrics::render(&overview.hosts, overview.problems.len()))
        })
        .await?;
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response())
}

async fn timeline_of_all(State(shared): State<Arc<Shared>>) -> Result<Markup, Failure> {
    shared
        .work(|site| {
            let overview = site.overview();
            let mut problems = overview.problems;
            let mut lanes = Vec::new();
            for name in overview.hosts.into_iter().map(|status| status.machine) {
                match attempts(&site.hub.host(&name), &name, site.expected.keys_of(&name), ATTEMPTS_OF_ALL) {
                    Ok(found) => {
                        lanes.push(Lane::of_attempts(
                            name.to_string(),
                            Some(format!("/hosts/{name}")),
                            &found.attempts,
                        ));
                    }
                    Err(error) => problems.push(format!("{name}: {error:#}")),
                }
            }
            Ok(pages::timeline_page(&lanes, &problems, Timestamp::now()))
        })
        .await
}

/// A host of that name, if one can be called so.
fn host_name(name: &str) -> Result<HostName, Failure> {
    HostName::new(name).map_err(|error| Failure::NotFound(error.to_string()))
}

async fn host(State(shared): State<Arc<Shared>>, Path(name): Path<String>) -> Result<Markup, Failure> {
    let name = host_name(&name)?;
    shared
        .work(move |site| {
            let now = Timestamp::now();
            let (status, mut problems) = status::one(&site.hub, &name, &site.expected, now);
            let Some(status) = status else {
                problems.insert(0, format!("The hub has no host {name}."));
                return Err(Failure::NotFound(problems.join(" ")));
            };
            let dir = site.hub.host(&name);
            let mut take = |what: &str, error: anyhow::Error| problems.push(format!("{what}: {error:#}"));
            let releases = history::releases(&dir).unwrap_or_else(|error| {
                take("its releases", error);
                Vec::new()
            });
            // what is wrong with `logs/` as a whole is among the host's own problems
            let attempts = attempts(&dir, &name, site.expected.keys_of(&name), ATTEMPTS).unwrap_or_default();
            let logs = history::logs(&dir).unwrap_or_default();
            let tail = logs.last().map(|log| log.tail(LOG_TAIL));
            Ok(pages::host_page(&HostView { status, problems, releases, attempts, logs, tail }, now))
        })
        .await
}

async fn log(State(shared): State<Arc<Shared>>, Path((name, file)): Path<(String, String)>) -> Result<Markup, Failure> {
    let name = host_name(&name)?;
    shared
        .work(move |site| {
            let logs = history::logs(&site.hub.host(&name)).unwrap_or_default();
            // only what is listed is read: the name itself leads nowhere
            let Some(log) = logs.into_iter().find(|log| log.name.to_string() == file) else {
                return Err(Failure::NotFound(format!("{name} has left no log of that name.")));
            };
            Ok(pages::log_page(&name, &log, &log.tail(LOG)?))
        })
        .await
}

async fn release(
    State(shared): State<Arc<Shared>>,
    Path((name, serial)): Path<(String, u64)>,
) -> Result<Markup, Failure> {
    let name = host_name(&name)?;
    shared
        .work(move |site| {
            let dir = site.hub.host(&name);
            let serials = dir.serials()?;
            let before = serials.iter().rev().find(|other| **other < serial).copied();
            let manifest = |serial: u64| match dir.kept_manifest(serial)? {
                Some(manifest) if serials.contains(&serial) => Ok(manifest),
                _ => Err(Failure::NotFound(format!("The hub no longer knows what release {serial} of {name} was."))),
            };
            let new = manifest(serial)?;
            let Some(before) = before else {
                return Err(Failure::NotFound(format!("There is no release of {name} before {serial}.")));
            };
            let old = manifest(before)?;
            Ok(pages::release_page(&name, &old, &new, &status::changes::changes(&dir, &old, &new)))
        })
        .await
}

/// The table, now and whenever it changes.
async fn events(
    State(shared): State<Arc<Shared>>,
    Query(selection): Query<Selection>,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Failure> {
    let only = selection.state()?;
    // before the first table is made: what changes in between comes with the next
    let mut news = shared.news.clone();
    news.mark_unchanged();
    let first = shared.work(|site| Ok(Arc::new(site.overview()))).await?;
    let tables = stream::unfold((Some(first), news, None), move |(first, mut news, mut shown)| async move {
        let mut next: Option<Arc<Overview>> = first;
        loop {
            let overview = match next.take() {
                Some(overview) => overview,
                None => {
                    news.changed().await.ok()?;
                    news.borrow_and_update().clone()
                }
            };
            let same = |(last, since): &(Arc<Overview>, Instant)| *last == overview && since.elapsed() < AGES;
            if !shown.as_ref().is_some_and(same) {
                let table = printable(&pages::fleet(&overview, only, Timestamp::now()).into_string());
                shown = Some((overview, Instant::now()));
                return Some((Ok(Event::default().event("fleet").data(table)), (None, news, shown)));
            }
        }
    });
    Ok(Sse::new(tables).keep_alive(KeepAlive::default()))
}

/// Works the overview out anew whenever something changes on the hub and somebody wants to know.
fn follow(site: Site) -> Result<watch::Receiver<Arc<Overview>>> {
    let (sender, receiver) = watch::channel(Arc::new(Overview::default()));
    let follow = move || {
        let mut watch = Watch::new(&site.hub);
        loop {
            match &watch {
                Ok(held) => {
                    if let Err(error) = held.wait(&site.hub, IDLE) {
                        watch = Err(error);
                    }
                }
                Err(_) => {
                    std::thread::sleep(UNWATCHED);
                    watch = Watch::new(&site.hub);
                }
            }
            // one receiver is kept for those to come
            if sender.receiver_count() > 1 && sender.send(Arc::new(site.overview())).is_err() {
                break;
            }
        }
    };
    std::thread::Builder::new()
        .name("follow".to_owned())
        .spawn(follow)
        .map_err(|error| anyhow!("cannot start a thread: {error}"))?;
    Ok(receiver)
}
