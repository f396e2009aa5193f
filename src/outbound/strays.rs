//! The legs of routes that are gone: held, so that they do not lie unseen, until somebody sends them by another or brings
//! the route back.

use std::sync::Arc;

use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use crate::events;
use crate::outbound::holding::hold;
use crate::outbound::lane::LOOK_MAX;
use crate::outbound::{Shared, worker};
use crate::queue::Reason;

/// Holds the legs of routes that the configuration does not have (any more), so that they do not lie unseen.
pub(super) async fn hold_strays(shared: Arc<Shared>, mut stop: watch::Receiver<Option<Instant>>) {
    loop {
        match shared.ports.store.next_due().await {
            Ok(dues) => {
                let ways = shared.ways();
                for (route, due) in dues {
                    if !ways.routes.contains_key(&route) && due <= shared.now() {
                        hold_route(&shared, &route).await;
                    }
                }
            }
            Err(error) => events::outbound_store_failed("", "next due", &error),
        }
        tokio::select! {
            _ = stop.changed() => return,
            () = shared.strays.notified() => {}
            () = sleep(LOOK_MAX) => {}
        }
    }
}

async fn hold_route(shared: &Shared, route: &str) {
    let detail = no_such_route(route);
    loop {
        let now = shared.now();
        let legs = match shared.ports.store.claim(route, now, STRAYS_AT_ONCE).await {
            Ok(legs) => legs,
            Err(error) => return events::outbound_store_failed(route, "claim", &error),
        };
        let settlements = legs.iter().map(|leg| hold(leg, now, Reason::Route, &detail)).collect();
        worker::settle(shared, route, &legs, settlements, || false).await;
        if legs.len() < STRAYS_AT_ONCE {
            return;
        }
    }
}

/// Why a leg of a route that is gone is held: whoever brings the route back finds its legs by it.
#[must_use]
pub fn no_such_route(route: &str) -> String {
    format!("the configuration has no route `{route}`")
}

const STRAYS_AT_ONCE: usize = 100;
