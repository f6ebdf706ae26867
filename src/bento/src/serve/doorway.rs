//! A connection that has so much time to log in.

use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use super::crowd::Member;

/// Says that whoever is at the door has logged in, and may stay: it waits no longer.
#[derive(Clone, Debug)]
pub(super) struct Admission(Arc<Mutex<Option<Member<IpAddr>>>>);

impl Admission {
    pub(super) fn new(waiting: Member<IpAddr>) -> Self {
        Self(Arc::new(Mutex::new(Some(waiting))))
    }

    fn waiting(&self) -> MutexGuard<'_, Option<Member<IpAddr>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn grant(&self) {
        *self.waiting() = None;
    }

    fn is_granted(&self) -> bool {
        self.waiting().is_none()
    }
}

/// A stream from which nothing can be read any more once the time is over, if nobody was admitted. So whatever reads it ends,
/// at whichever point of the protocol it is.
pub(super) struct Doorway<S> {
    stream: S,
    end: Pin<Box<Sleep>>,
    admission: Admission,
}

impl<S> Doorway<S> {
    pub(super) fn new(stream: S, time: Duration, admission: Admission) -> Self {
        Self { stream, end: Box::pin(tokio::time::sleep(time)), admission }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Doorway<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.admission.is_granted() && self.end.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "it has not logged in in time")));
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Doorway<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
