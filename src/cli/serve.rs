//! `serve`: the daemon in the foreground, until SIGTERM or SIGINT.

use std::io::IsTerminal;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;

use super::Ended;
use crate::admin::drain::End;
use crate::clock::{Clock, SystemClock};
use crate::contain;
use crate::daemon::{self, Daemon};
use crate::events;
use crate::listen::Inherited;
use crate::log;
use crate::reload::start;

/// Loads the configuration, serves and drains. A bad configuration is printed; it ends before any port is open where
/// nothing was accepted before.
pub(super) fn run(config: &Path) -> anyhow::Result<Ended> {
    let inherited = Inherited::from_environment()?;
    let runtime = daemon::runtime()?;
    // Until it is heard, SIGHUP would end us: who renews a certificate may say it at any time.
    let hang_ups = daemon::hang_ups(&runtime);
    let clock = Arc::new(SystemClock::new());
    let coloured = std::io::stderr().is_terminal();
    let chosen = match start::choose(config, clock.now()) {
        Ok(chosen) => chosen,
        Err(report) => {
            eprint!("{}", report.render(coloured));
            return Ok(Ended::Findings);
        }
    };
    let told = chosen.refused.as_ref().unwrap_or(&chosen.loaded.report);
    eprint!("{}", told.render(coloured));
    daemon::keep_files_private();
    let _log = log::install(chosen.loaded.config.log).context("cannot start the log")?;
    contain::tell_panics();
    events::without_function(&chosen.loaded.config.inert);
    daemon::raise_descriptor_limit();
    runtime.block_on(async {
        let signalled = daemon::until_signalled();
        tokio::pin!(signalled);
        let daemon = tokio::select! {
            // First: what reads addresses.json may send SIGTERM before we have looked for it.
            biased;
            early = &mut signalled => return early.map(|()| Ended::Done),
            started = Daemon::start(chosen, clock, inherited, hang_ups) => started?,
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
