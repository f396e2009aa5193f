//! `serve`: the daemon in the foreground, until SIGTERM or SIGINT.

use std::io::IsTerminal;
use std::path::Path;

use anyhow::Context;

use super::Ended;
use crate::admin::drain::End;
use crate::clock::SystemClock;
use crate::config::Config;
use crate::contain;
use crate::daemon::{self, Daemon};
use crate::events;
use crate::listen::Inherited;
use crate::log;

/// Loads the configuration, serves and drains. A bad configuration is printed and ends before any port is open.
pub(super) fn run(config: &Path) -> anyhow::Result<Ended> {
    let inherited = Inherited::from_environment()?;
    let config = match Config::load(config) {
        Ok((config, report)) => {
            eprint!("{}", report.render(std::io::stderr().is_terminal()));
            config
        }
        Err(report) => {
            eprint!("{}", report.render(std::io::stderr().is_terminal()));
            return Ok(Ended::Findings);
        }
    };
    daemon::keep_files_private();
    let _log = log::install(config.log).context("cannot start the log")?;
    contain::tell_panics();
    events::without_function(&config.inert);
    daemon::raise_descriptor_limit();
    daemon::runtime()?.block_on(async {
        let signalled = daemon::until_signalled();
        tokio::pin!(signalled);
        let daemon = tokio::select! {
            // First: what reads addresses.json may send SIGTERM before we have looked for it.
            biased;
            early = &mut signalled => return early.map(|()| Ended::Done),
            started = Daemon::start(config, std::sync::Arc::new(SystemClock::new()), inherited) => started?,
        };
        let ended = tokio::select! {
            signal = signalled => signal.map(|()| Ended::Done),
            end = daemon.ended() => Ok(match end {
                End::Drained => Ended::Done,
                End::Fault => Ended::Findings,
            }),
        };
        daemon.drain().await;
        ended
    })
}
