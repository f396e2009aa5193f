//! The HTTP side for machines: `/metrics`, `/healthz`, `/readyz`. No credentials, so nothing here names an address
//! of a message. axum serves it; the console and the API will hang beside it.

use std::sync::Arc;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tokio::net::TcpListener;

use crate::events;

/// What the endpoints need to know.
pub struct Health {
    pub metrics: Metrics,
    /// Sets the gauges that are read at scrape time.
    pub refresh: Box<dyn Fn() + Send + Sync>,
    /// Whether new mail can be taken: about disk and store, never about a CRM. The error says why not.
    pub ready: Box<dyn Fn() -> Result<(), String> + Send + Sync>,
}

/// Serves until the task is dropped.
pub async fn serve(listener: TcpListener, health: Arc<Health>) {
    let on_metrics = Arc::clone(&health);
    let app = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(move || async move { ready(&health) }))
        .route("/metrics", get(move || async move { metrics(&on_metrics) }));
    if let Err(error) = axum::serve(listener, app).await {
        tracing::error!(event = "admin-failed", %error, "the admin listener ended");
    }
}

fn ready(health: &Health) -> (StatusCode, String) {
    match (health.ready)() {
        Ok(()) => (StatusCode::OK, "ready\n".to_owned()),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {why}\n")),
    }
}

fn metrics(health: &Health) -> impl IntoResponse + use<> {
    (health.refresh)();
    events::readiness((health.ready)().is_ok());
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], health.metrics.0.render())
}

/// The recorder that `metrics` macros write to.
#[derive(Clone)]
pub struct Metrics(PrometheusHandle);

impl Metrics {
    /// Installs the process's one recorder. A second call in the same process shares the first's.
    pub fn install() -> anyhow::Result<Metrics> {
        static INSTALLED: std::sync::OnceLock<Metrics> = std::sync::OnceLock::new();
        if let Some(metrics) = INSTALLED.get() {
            return Ok(metrics.clone());
        }
        let handle = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Full("pointsman_commit_batch_messages".to_owned()), BATCH_BUCKETS)?
            .set_buckets_for_metric(Matcher::Full("pointsman_delivery_seconds".to_owned()), DELIVERY_BUCKETS)?
            .set_buckets_for_metric(Matcher::Full("pointsman_spam_score".to_owned()), SCORE_BUCKETS)?
            .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), LATENCY_BUCKETS)?
            .install_recorder()?;
        describe();
        Ok(INSTALLED.get_or_init(|| Metrics(handle)).clone())
    }

    /// Moves recorded samples into their buckets; wanted every few seconds, else they pile up until a scrape.
    pub fn upkeep(&self) {
        self.0.run_upkeep();
    }
}

fn describe() {
    use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};
    describe_counter!("pointsman_connections_total", "Connections by listener and result");
    describe_gauge!("pointsman_sessions", "Open SMTP sessions");
    describe_counter!("pointsman_messages_total", "Messages by what the client was told, or aborted by it");
    describe_counter!("pointsman_recipients_total", "Recipients by the reply to RCPT");
    describe_counter!(
        "pointsman_rule_shadow_hits_total",
        "Times a shadow rule would have applied, by what it would have done"
    );
    describe_counter!("pointsman_rule_hits_total", "Times a rule applied to a recipient of an accepted message");
    describe_gauge!("pointsman_rule_last_hit_timestamp_seconds", Unit::Seconds, "When a rule applied last");
    describe_counter!("pointsman_legs_total", "Entries of legs into a state");
    describe_gauge!("pointsman_open_legs", "Legs that are not final");
    describe_gauge!("pointsman_open_legs_oldest_seconds", Unit::Seconds, "Age of the oldest open leg");
    describe_counter!("pointsman_attempts_total", "Delivery attempts by result");
    describe_gauge!("pointsman_route_paused", "1 while a route is paused or backed off");
    describe_gauge!(
        "pointsman_route_breaker_open",
        "1 while a route is left alone: no host reached, or most attempts fail"
    );
    describe_histogram!("pointsman_accept_seconds", Unit::Seconds, "From the final dot to the reply");
    describe_histogram!("pointsman_delivery_seconds", Unit::Seconds, "From acceptance to the target's 250");
    describe_histogram!("pointsman_commit_seconds", Unit::Seconds, "One group commit of the queue");
    describe_histogram!("pointsman_commit_batch_messages", "Messages in one group commit");
    describe_counter!("pointsman_panics_total", "Panics that were contained, by the part of the daemon");
    describe_histogram!("pointsman_spam_score", "The scores of messages");
    describe_counter!("pointsman_spam_errors_total", "Messages that rspamd did not judge, by why");
    describe_gauge!("pointsman_blocklist_ignored", "1 while a DNS block list is not believed");
    describe_gauge!("pointsman_data_free_bytes", Unit::Bytes, "Free space where the queue is");
    describe_counter!("pointsman_reloads_total", "Configurations that were to be taken, by what became of them");
    describe_gauge!("pointsman_config_stale", "1 while what serves is not what the files on the disk say");
    describe_counter!("pointsman_tls_handshakes_total", "TLS handshakes with clients by version, or failed");
    describe_gauge!(
        "pointsman_tls_certificate_expiry_timestamp_seconds",
        Unit::Seconds,
        "When the certificate in use expires"
    );
    describe_counter!("pointsman_dns_total", "Questions to DNS past our cache, by what came of them");
    describe_counter!("pointsman_auth_total", "Checks of SPF, DKIM, DMARC, ARC and PTR by result");
    describe_counter!("pointsman_loops_total", "Messages and legs that go round in circles, by what shows it");
    describe_counter!("pointsman_paced_total", "Legs that were too many in a time, by what became of them");
    describe_counter!("pointsman_dmarc_at_risk_total", "Legs that will fail DMARC at the next hop");
    describe_gauge!("pointsman_ready", "1 while new mail can be taken");
    describe_counter!("pointsman_store_failures_total", "Times that the queue could not be written");
    describe_gauge!("pointsman_build_info", "1, with the version as a label");
}

/// From a sync on a fast disk to a client's patience.
const LATENCY_BUCKETS: &[f64] =
    &[0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
/// Up to the queue's five days.
const DELIVERY_BUCKETS: &[f64] =
    &[0.005, 0.025, 0.1, 0.5, 1.0, 5.0, 30.0, 60.0, 300.0, 900.0, 3_600.0, 14_400.0, 86_400.0, 432_000.0];
/// The bands as they come, and some on either side.
const SCORE_BUCKETS: &[f64] = &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0, 20.0, 30.0];
const BATCH_BUCKETS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0];
