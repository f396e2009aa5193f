//! `serve`: the daemon in the foreground, until SIGTERM or SIGINT.

use std::io::IsTerminal;
use std::path::Path;

use anyhow::Context;

use super::Ended;
use crate::clock::SystemClock;
use crate::config::Config;
use crate::daemon::{self, Daemon};
use crate::log;

/// Loads the configuration, serves and drains. A bad configuration is printed and ends before any port is open.
pub(super) fn run(config: &Path) -> anyhow::Result<Ended> {
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
    let _log = log::install(config.log).context("cannot start the log")?;
    daemon::raise_descriptor_limit();
    daemon::runtime()?.block_on(async {
        let daemon = Daemon::start(config, std::sync::Arc::new(SystemClock::new())).await?;
        daemon::until_signalled().await?;
        daemon.drain().await;
        Ok(Ended::Done)
    })
}
