//! What the DNS says of us: our domains' MX, our name's addresses, our addresses' names, SPF of the SRS domain.
//!
//! Others look there before they take our mail, or bring us theirs. Without an answer nothing is known, and nothing is
//! called a fault.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::time::Duration;

use super::{Finding, Subject};
use crate::auth::spf::{self, Request, SpfResult};
use crate::dns::{Dns, DnsError};
use crate::network;

pub(super) async fn look(subject: &Subject, dns: &dyn Dns) -> Vec<Finding> {
    let host = addresses(dns, &subject.hostname).await;
    let mut found = vec![hostname(subject, &host)];
    let egress = egress(subject, host.as_deref().unwrap_or_default());
    if egress.is_empty() {
        let what = "this machine's own address is private, and the hostname leads to no public one: where mail leaves is not known";
        found.push(Finding::unknown("egress", "", what));
    }
    for ip in egress.iter().take(ADDRESSES_MAX) {
        found.push(reverse(dns, *ip).await);
        if let Some(domain) = &subject.srs {
            found.push(sender_policy(subject, dns, *ip, domain.as_str()).await);
        }
    }
    let ours = host.unwrap_or_default();
    for domain in subject.rules.domains().take(DOMAINS_MAX) {
        found.push(exchange(subject, dns, domain.as_str(), &ours).await);
    }
    found
}

/// A question that is given up after a while.
async fn answer<T>(ask: impl Future<Output = Result<T, DnsError>>) -> Result<T, DnsError> {
    tokio::time::timeout(ANSWER_WAIT, ask).await.unwrap_or(Err(DnsError::Temporary))
}

/// None is an answer; an error is that there was none.
async fn addresses(dns: &dyn Dns, name: &str) -> Result<Vec<IpAddr>, DnsError> {
    let (four, six) = tokio::join!(answer(dns.a(name)), answer(dns.aaaa(name)));
    let mut all = Vec::new();
    match &four {
        Ok(found) => all.extend(found.iter().copied().map(IpAddr::V4)),
        Err(error) if error.is_void() => {}
        Err(error) => return Err(*error),
    }
    match &six {
        Ok(found) => all.extend(found.iter().copied().map(IpAddr::V6)),
        Err(error) if error.is_void() => {}
        Err(error) if all.is_empty() => return Err(*error),
        Err(_) => {}
    }
    Ok(all)
}

fn hostname(subject: &Subject, found: &Result<Vec<IpAddr>, DnsError>) -> Finding {
    let name = &subject.hostname;
    match found {
        Ok(all) if all.is_empty() => {
            let what = "has no address: hosts that we greet with it may refuse us, and no MX can name it";
            Finding::fault("hostname", name, what, format!("give {name} an A record, and AAAA where there is IPv6"))
        }
        Ok(all) => Finding::ok("hostname", name, all.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")),
        Err(error) => Finding::unknown("hostname", name, error.to_string()),
    }
}

/// Where our mail leaves: the routes' own sources, and where there is none whatever address leads to the world. Behind a
/// translator that address is private; then it is taken for the one that our name has.
fn egress(subject: &Subject, host: &[IpAddr]) -> Vec<IpAddr> {
    let mut all: Vec<IpAddr> = subject.routes.values().filter_map(|route| route.source).collect();
    if subject.routes.values().any(|route| route.source.is_none()) {
        match outward() {
            Some(ip) if network::is_public(ip) => all.push(ip),
            Some(_) | None => all.extend(host.iter().copied().filter(|ip| network::is_public(*ip))),
        }
    }
    all.sort();
    all.dedup();
    all
}

/// The address from which the world would be spoken to. Nothing is sent.
fn outward() -> Option<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect((SOMEWHERE, 25)).ok()?;
    socket.local_addr().ok().map(|address| address.ip())
}

/// RFC 8601 §3: a name that leads back to the address.
async fn reverse(dns: &dyn Dns, ip: IpAddr) -> Finding {
    let subject = ip.to_string();
    let help = "ask whoever gave you the address for a PTR to the hostname; large receivers refuse mail without one";
    let names = match answer(dns.ptr(ip)).await {
        Ok(names) => names,
        Err(error) if error.is_void() => return Finding::fault("ptr", subject, "has no name", help),
        Err(error) => return Finding::unknown("ptr", subject, error.to_string()),
    };
    let mut unanswered = false;
    for name in names.iter().take(ADDRESSES_MAX) {
        match addresses(dns, name).await {
            Ok(found) if found.contains(&ip) => return Finding::ok("ptr", subject, name.clone()),
            Ok(_) => {}
            Err(_) => unanswered = true,
        }
    }
    let what = format!("{}, which does not lead back", names.join(", "));
    if unanswered { Finding::unknown("ptr", subject, what) } else { Finding::fault("ptr", subject, what, help) }
}

/// What the next hop's SPF check says of the senders that we write.
async fn sender_policy(subject: &Subject, dns: &dyn Dns, ip: IpAddr, domain: &str) -> Finding {
    let request = Request { domain, ..Request::helo(ip, &subject.hostname, &subject.hostname, subject.now) };
    let verdict = spf::check_host(dns, &request).await;
    let what = format!("{} for {ip}", verdict.result.word());
    match verdict.result {
        SpfResult::Pass => Finding::ok("spf", domain, what),
        SpfResult::TempError => Finding::unknown("spf", domain, what),
        SpfResult::None | SpfResult::Neutral | SpfResult::Fail | SpfResult::SoftFail | SpfResult::PermError => {
            let kind = if ip.is_ipv4() { "ip4" } else { "ip6" };
            let help = format!("a TXT record at {domain}, such as: v=spf1 {kind}:{ip} -all");
            Finding::fault("spf", domain, what, help)
        }
    }
}

/// Whether the mail of a domain comes here.
async fn exchange(subject: &Subject, dns: &dyn Dns, domain: &str, ours: &[IpAddr]) -> Finding {
    let records = match answer(dns.mx(domain)).await {
        Ok(records) => records,
        Err(error) if error.is_void() => {
            let help = format!("{domain} needs: MX 10 {}.", subject.hostname);
            return Finding::fault("mx", domain, "has none: nobody's mail comes here", help);
        }
        Err(error) => return Finding::unknown("mx", domain, error.to_string()),
    };
    let names: Vec<&str> = records.iter().map(|mx| mx.exchange.as_str()).collect();
    let told = names.join(", ");
    if names.iter().any(|name| name.trim_end_matches('.').eq_ignore_ascii_case(&subject.hostname)) {
        return Finding::ok("mx", domain, told);
    }
    let listen = |ip: &IpAddr| ours.contains(ip) || subject.listeners.iter().any(|listener| listener.ip() == *ip);
    let mut unanswered = false;
    for name in names.iter().take(ADDRESSES_MAX) {
        match addresses(dns, name).await {
            Ok(found) if found.iter().any(listen) => return Finding::ok("mx", domain, told),
            Ok(_) => {}
            Err(_) => unanswered = true,
        }
    }
    if subject.has_upstream {
        return Finding::ok("mx", domain, format!("{told}: not this host, which [upstream] explains"));
    }
    if unanswered {
        return Finding::unknown("mx", domain, told);
    }
    let help = format!("until an MX of {domain} names {}, its mail goes elsewhere", subject.hostname);
    Finding::fault("mx", domain, told, help)
}

/// A resolver asks several servers in that time.
const ANSWER_WAIT: Duration = Duration::from_secs(8);
/// Of our domains; whoever has more has them alike.
const DOMAINS_MAX: usize = 50;
const ADDRESSES_MAX: usize = 8;
/// An address of the world (Quad9's): only the way to it is asked for.
const SOMEWHERE: Ipv4Addr = Ipv4Addr::new(9, 9, 9, 9);

#[cfg(test)]
mod tests {
    use super::super::Judgement;
    use super::*;
    use crate::dns::zone::Zone;

    #[tokio::test]
    async fn a_name_that_leads_back_and_one_that_does_not() {
        let zone = Zone::parse(
            "9.9.9.1 PTR mx.d.example\nmx.d.example A 9.9.9.1\n9.9.9.2 PTR liar.example\nliar.example A 9.9.9.7\n\
             9.9.9.3 SERVFAIL PTR\n9.9.9.4 PTR silent.example\nsilent.example SERVFAIL\n",
        );
        for (ip, want) in [
            ("9.9.9.1", Judgement::Ok),
            ("9.9.9.2", Judgement::Finding),
            ("9.9.9.3", Judgement::Unknown),
            ("9.9.9.4", Judgement::Unknown),
            ("9.9.9.5", Judgement::Finding),
        ] {
            let found = reverse(&zone, ip.parse().unwrap()).await;
            assert_eq!(found.result, want, "{found:?}");
        }
    }
}
