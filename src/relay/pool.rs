//! Keeping a session between transactions: each worker of a lane keeps its own.
//!
//! A kept session is listened to while it is idle, because a server that is tired of it closes it or says 421. A
//! session that breaks in the very moment of its reuse is found by the transaction (`attempt::Ended::Stale`).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use crate::relay::Host;
use crate::relay::dial::{Connection, Timeouts};

/// How many sessions of a lane are open. Each [`Kept`] session counts itself.
#[derive(Clone, Debug, Default)]
pub struct Open(Arc<AtomicUsize>);

impl Open {
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

/// An open session, the hosts from which it was chosen, and the place of its own among them.
pub struct Kept {
    pub connection: Connection,
    pub hosts: Arc<[Host]>,
    pub host: usize,
    open: Open,
}

impl Kept {
    #[must_use]
    pub fn new(connection: Connection, hosts: Arc<[Host]>, host: usize, open: &Open) -> Kept {
        open.0.fetch_add(1, Ordering::Relaxed);
        Kept { connection, hosts, host, open: open.clone() }
    }

    /// It has carried its share; the next message gets a new one.
    #[must_use]
    pub fn is_spent(&self) -> bool {
        self.connection.used >= SESSION_MESSAGES_MAX
    }

    /// Returns when the idle session is of no use any more: closed, or spoken on out of turn. Safe to cancel.
    pub async fn broken(&mut self) {
        // Whatever it was, end, error or octets: nobody asked for it.
        let _ = self.connection.stream.read_buf(self.connection.replies.space()).await;
    }

    /// Says QUIT and closes.
    pub async fn quit(mut self, timeouts: &Timeouts) {
        let farewell = async {
            self.connection.stream.write_all(b"QUIT\r\n").await?;
            // RFC 5321 §4.1.1.10: the client waits for the reply. Its text tells us nothing.
            self.connection.stream.read_buf(self.connection.replies.space()).await?;
            self.connection.stream.shutdown().await
        };
        // A remote that is gone, or slow to say goodbye, is closed just the same.
        let _ = timeout(timeouts.quit, farewell).await;
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.open.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Servers drop a client after some hundred messages or begin to distrust it; a new session each 200 messages costs
/// half a percent.
pub const SESSION_MESSAGES_MAX: u32 = 200;
/// Long enough to catch the next message of a busy target, short enough not to be the client that sits idle.
pub const SESSION_IDLE_MAX: Duration = Duration::from_secs(10);
