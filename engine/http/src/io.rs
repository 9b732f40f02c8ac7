//! A socket with two deadlines: for a connection's first bytes, and for bytes that nobody takes.
//!
//! hyper bounds the time of a request head, but not that of finding out which HTTP is spoken, nor
//! that of a client which stops reading: such a client would hold its connection for ever.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

/// A socket that fails with `TimedOut` when a deadline passes.
pub(crate) struct TimedIo<S> {
    socket: S,
    /// Runs until the connection has said which HTTP it speaks.
    opening: Option<Pin<Box<Sleep>>>,
    opening_bytes: usize,
    write_timeout: Duration,
    /// Runs while a write waits.
    writing: Pin<Box<Sleep>>,
    write_waits: bool,
}

impl<S> TimedIo<S> {
    /// Wraps a socket that was just accepted.
    pub(crate) fn new(socket: S, opening_timeout: Duration, write_timeout: Duration) -> Self {
        TimedIo {
            socket,
            opening: Some(Box::pin(sleep(opening_timeout))),
            opening_bytes: 0,
            write_timeout,
            writing: Box::pin(sleep(write_timeout)),
            write_waits: false,
        }
    }

    /// Bounds how long one and the same write may stay pending.
    fn bounded<T>(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.write_waits = false;
            return written;
        }
        if !self.write_waits {
            self.write_waits = true;
            self.writing.as_mut().reset(Instant::now() + self.write_timeout);
        }
        match self.writing.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

/// Length of HTTP/2's preface: after so many bytes it is known which HTTP is spoken.
const OPENING_BYTES: usize = 24;

impl<S: AsyncRead + Unpin> AsyncRead for TimedIo<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.socket).poll_read(cx, buffer);
        let Some(opening) = &mut self.opening else { return read };
        if read.is_pending() && opening.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        self.opening_bytes += buffer.filled().len() - before;
        if self.opening_bytes >= OPENING_BYTES {
            self.opening = None;
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for TimedIo<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        // Whoever is answered has said what it speaks.
        self.opening = None;
        let written = Pin::new(&mut self.socket).poll_write(cx, bytes);
        self.bounded(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.opening = None;
        let written = Pin::new(&mut self.socket).poll_write_vectored(cx, parts);
        self.bounded(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.socket).poll_flush(cx);
        self.bounded(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.socket).poll_shutdown(cx);
        self.bounded(cx, shut)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    const SHORT: Duration = Duration::from_millis(20);
    const LONG: Duration = Duration::from_secs(600);

    #[tokio::test]
    async fn a_silent_opening_ends_and_an_opened_connection_may_be_silent() {
        let (_client, server) = duplex(64);
        let mut silent = TimedIo::new(server, SHORT, LONG);
        let error = silent.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);

        let (mut client, server) = duplex(64);
        let mut opened = TimedIo::new(server, SHORT, LONG);
        client.write_all(&[b'x'; OPENING_BYTES]).await.unwrap();
        let mut bytes = [0; OPENING_BYTES];
        opened.read_exact(&mut bytes).await.unwrap();
        let late = async {
            tokio::time::sleep(4 * SHORT).await;
            client.write_u8(7).await.unwrap();
        };
        let (read, ()) = tokio::join!(opened.read_u8(), late);
        assert_eq!(read.unwrap(), 7);
    }

    #[tokio::test]
    async fn bytes_that_nobody_takes_end_the_connection() {
        let (_client, server) = duplex(8);
        let mut socket = TimedIo::new(server, LONG, SHORT);
        let error = socket.write_all(&[0; 64]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
