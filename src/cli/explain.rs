//! `explain`: what the rules would do with a message, and why, without sending one.

use std::io::IsTerminal;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use serde_json::{Value, json};

use super::Ended;
use crate::address::{Mailbox, ReversePath};
use crate::clock::{Clock, SystemClock, Timestamp};
use crate::config::Config;
use crate::config::systems::System;
use crate::message::reading::{Reading, Wanted};
use crate::message::{Head, Header};
use crate::relay::route::MX_IS_BUILT;
use crate::relay::{Route, TlsMode};
use crate::rules::{AuthFacts, Explanation, Fact, Facts};

#[derive(Debug, Args)]
pub(super) struct ExplainArgs {
    /// The recipient, as it would be given at RCPT
    #[arg(long)]
    recipient: String,
    /// The envelope's sender; "<>" is the null sender. Default: somebody whom no rule names
    #[arg(long)]
    sender: Option<String>,
    /// The client's address
    #[arg(long, value_name = "IP")]
    client: Option<IpAddr>,
    /// The client's name in EHLO
    #[arg(long)]
    helo: Option<String>,
    /// It arrives over TLS
    #[arg(long)]
    tls: bool,
    /// A message, as a file; without one, what asks for it stays open
    #[arg(long, value_name = "F.eml")]
    message: Option<PathBuf>,
    /// When it arrives (RFC 3339); default: now
    #[arg(long, value_name = "TIME")]
    at: Option<jiff::Timestamp>,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

/// Prints the explanation; 0 whatever it finds, 2 for an address that is none, 1 where the configuration does not load.
pub(super) fn run(config: &Path, args: &ExplainArgs) -> anyhow::Result<Ended> {
    let Some((recipient, sender)) = envelope(args) else { return Ok(Ended::Usage) };
    let config = match Config::load(config) {
        Ok((config, _)) => config,
        Err(report) => {
            eprint!("{}", report.render(std::io::stderr().is_terminal()));
            return Ok(Ended::Findings);
        }
    };
    let message = args.message.as_deref().map(|path| read_message(path, config.rules.wanted())).transpose()?;
    let (header, reading) = message.unzip();
    let at = args.at.map_or_else(|| SystemClock::new().now(), |at| Timestamp(at.as_millisecond()));
    let facts = Facts {
        client: args.client,
        helo: args.helo.as_deref(),
        tls: args.tls,
        auth: Fact::Known(AuthFacts::default()),
        score: Fact::Known(None),
        message: reading.as_ref().map_or(Fact::Unknown, Fact::Known),
        ..Facts::of(&recipient, &sender, at)
    };
    let explanation = config.rules.explain(&facts);
    if args.json {
        println!("{}", as_json(&explanation, &config, &sender, header.as_ref()));
    } else {
        print_text(&explanation, &config, &sender, header.as_ref());
    }
    Ok(Ended::Done)
}

fn envelope(args: &ExplainArgs) -> Option<(Mailbox, ReversePath)> {
    let recipient = args.recipient.trim_matches(['<', '>']);
    let recipient = Mailbox::parse(recipient).map_err(|error| complain("recipient", recipient, &error)).ok()?;
    let sender = args.sender.as_deref().unwrap_or(NOBODY).trim_matches(['<', '>']);
    let sender = ReversePath::parse(sender).map_err(|error| complain("sender", sender, &error)).ok()?;
    Some((recipient, sender))
}

fn complain(what: &str, text: &str, error: &crate::address::AddressError) {
    eprintln!("pointsman: the {what} `{text}` is no address: {error}");
}

fn read_message(path: &Path, wanted: Wanted) -> anyhow::Result<(Header, Reading)> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read `{}`", path.display()))?;
    let mut head = Head::default();
    head.push(&bytes);
    let reading = Reading::of(head.as_bytes(), &bytes, bytes.len() as u64, wanted);
    Ok((Header::index(head.as_bytes()), reading))
}

fn print_text(explanation: &Explanation, config: &Config, sender: &ReversePath, header: Option<&Header>) {
    println!("sender {sender}");
    if let Some(header) = header {
        println!("message from {}, subject {:?}, {} Received fields", header.from, header.subject, header.hops());
    }
    print!("{}", explanation.render());
    for route in routes(explanation, config) {
        println!("     route {}: {}; {}", route.name, hosts(route, MX_IS_BUILT), tls(route.tls));
    }
    for system in systems(explanation, config) {
        print!("{}", system.render());
    }
}

fn as_json(explanation: &Explanation, config: &Config, sender: &ReversePath, header: Option<&Header>) -> Value {
    let mut object = explanation.json();
    object["sender"] = json!(sender.to_string());
    let way =
        |route: &Route| json!({"route": route.name, "hosts": hosts(route, MX_IS_BUILT), "tls": route.tls.as_str()});
    object["routes"] = routes(explanation, config).map(way).collect();
    object["systems"] = systems(explanation, config).iter().map(System::json).collect();
    object["message"] =
        json!(header.map(|header| json!({"from": header.from, "subject": header.subject, "hops": header.hops()})));
    object
}

/// The routes of the legs, each once.
fn routes<'a>(explanation: &'a Explanation, config: &'a Config) -> impl Iterator<Item = &'a Route> {
    let mut names: Vec<&str> = explanation.decision.verdict.legs().iter().map(|leg| leg.route.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    names.into_iter().filter_map(|name| config.routes.get(name)).map(|route| &**route)
}

/// What holds for the targets of the legs, each once.
fn systems(explanation: &Explanation, config: &Config) -> Vec<System> {
    let legs = explanation.decision.verdict.legs();
    let destinations = legs.iter().map(|leg| {
        let called = leg.target_name.as_deref().unwrap_or(leg.target.as_str());
        (called, leg.target.domain(), leg.route.as_str())
    });
    System::of(config, destinations)
}

fn hosts(route: &Route, looks_up_mx: bool) -> String {
    let hosts: Vec<String> = route.hosts.iter().map(|host| format!("{}:{}", host.name, host.port)).collect();
    match (&hosts[..], looks_up_mx) {
        ([], true) => "the MX of the target's domain".to_owned(),
        ([], false) => "no hosts: needs the MX look-up, which is not built yet; its legs are held".to_owned(),
        ([host], _) => host.clone(),
        (hosts, _) => format!("{}, in this order", hosts.join(", ")),
    }
}

fn tls(mode: TlsMode) -> &'static str {
    match mode {
        TlsMode::Off => "tls off: in clear text",
        TlsMode::Opportunistic => "tls opportunistic: where the host offers it, with any certificate",
        TlsMode::Require => "tls require: with any certificate, else deferred",
        TlsMode::Verify => "tls verify: with a certificate that is checked, else deferred",
    }
}

/// Reserved by RFC 2606, so no rule names it.
const NOBODY: &str = "somebody@sender.invalid";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay::Host;

    #[test]
    fn a_route_tells_its_hosts_or_whose_they_are() {
        let route = |hosts: &[&str]| Route {
            hosts: hosts
                .iter()
                .map(|name| Host { name: (*name).to_owned(), port: 25, addresses: Vec::new() })
                .collect(),
            tls: TlsMode::Verify,
            concurrency: 1,
            ..Route::named("r")
        };
        assert_eq!(hosts(&route(&["a"]), false), "a:25");
        assert_eq!(hosts(&route(&["b", "a"]), true), "b:25, a:25, in this order");
        assert_eq!(hosts(&route(&[]), true), "the MX of the target's domain");
        assert!(hosts(&route(&[]), false).contains("held"));
    }
}
