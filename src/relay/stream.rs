//! What a session runs on, and the same line by line for as long as mail-send speaks.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::smtp::reply_reader::REPLY_LINE_OCTETS_MAX;

/// What a session runs on. TCP stands unboxed, because every octet passes here.
pub enum Stream {
    Tcp(TcpStream),
    Other(Box<dyn Duplex>),
}

/// Reads and writes.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Sync + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Sync + Unpin> Duplex for T {}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(tcp) => Pin::new(tcp).poll_read(cx, out),
            Stream::Other(other) => Pin::new(other).poll_read(cx, out),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, octets: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Tcp(tcp) => Pin::new(tcp).poll_write(cx, octets),
            Stream::Other(other) => Pin::new(other).poll_write(cx, octets),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(tcp) => Pin::new(tcp).poll_flush(cx),
            Stream::Other(other) => Pin::new(other).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Stream::Other(other) => Pin::new(other).poll_shutdown(cx),
        }
    }
}

/// Hands out what the server says line by line, so that mail-send never holds more than it understands.
pub(super) struct ByLine<S> {
    pub(super) inner: S,
    /// What was read and not handed out.
    pub(super) held: Vec<u8>,
    taken: usize,
    /// The server has closed its side.
    pub(super) ended: bool,
}

impl<S> ByLine<S> {
    pub(super) fn new(inner: S) -> ByLine<S> {
        ByLine { inner, held: Vec::new(), taken: 0, ended: false }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for ByLine<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            if let Some(end) = memchr::memchr(b'\n', &this.held) {
                let now = (end + 1).min(out.remaining());
                out.put_slice(&this.held[..now]);
                this.held.drain(..now);
                return Poll::Ready(Ok(()));
            }
            if this.held.len() >= GREETING_LINE_MAX || this.taken >= GREETING_OCTETS_MAX {
                return Poll::Ready(Err(io::Error::other("the server's greeting is too long")));
            }
            let mut space = [0; 1024];
            let mut buffer = ReadBuf::new(&mut space);
            ready!(Pin::new(&mut this.inner).poll_read(cx, &mut buffer))?;
            if buffer.filled().is_empty() {
                this.ended = true;
                return Poll::Ready(Ok(()));
            }
            this.taken += buffer.filled().len();
            this.held.extend_from_slice(buffer.filled());
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for ByLine<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, octets: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write(cx, octets)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }
}

/// As for any reply line.
const GREETING_LINE_MAX: usize = REPLY_LINE_OCTETS_MAX;
/// Banner, EHLO and HELO together; mail-send takes 4 KiB of each.
const GREETING_OCTETS_MAX: usize = 16 * 1024;
