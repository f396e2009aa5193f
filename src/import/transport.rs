//! transport(5): by which way mail to an address or domain goes.

use std::collections::{BTreeMap, HashSet};

use crate::address::{Domain, Mailbox};

use super::draft::{RouteDraft, slug, unique};
use super::tables::{self, Entry};

/// What Postfix does with mail for an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// By the MX of the address's domain.
    Mx,
    /// By this route.
    Route(String),
    /// error: and retry: with the enhanced code, where there is one, and the text.
    Error(Option<String>, String),
    Retry(Option<String>, String),
    Discard(String),
    /// By a program of the machine's own.
    Own(String),
}

#[derive(Debug, Default)]
pub(super) struct Transport {
    ways: BTreeMap<String, (usize, Way)>,
    pub(super) routes: Vec<RouteDraft>,
    /// By line: what, and why not.
    pub(super) left_out: Vec<(usize, String, String)>,
}

impl Transport {
    pub(super) fn read(text: &str) -> Result<Transport, String> {
        let table = tables::read(text)?;
        let mut transport = Transport::default();
        transport.left_out.extend(table.skipped.into_iter().map(|(line, why)| (line, "the line".to_owned(), why)));
        let mut routes = Routes::default();
        for Entry { line, key, value } in table.entries {
            let (name, nexthop) = value.split_once(':').unwrap_or((&value, ""));
            let way = match name {
                "" if nexthop.is_empty() => Way::Mx,
                "" | "smtp" | "relay" => match routes.way(&key, nexthop) {
                    Ok((way, None)) => way,
                    Ok((way, Some(why))) => {
                        transport.left_out.push((line, format!("`{value}`"), why));
                        way
                    }
                    Err(why) => {
                        transport.left_out.push((line, format!("`{value}`"), why));
                        Way::Own(value.clone())
                    }
                },
                "error" => coded(nexthop, '5', Way::Error),
                "retry" => coded(nexthop, '4', Way::Retry),
                "discard" => {
                    Way::Discard(if nexthop.is_empty() { "discarded".to_owned() } else { nexthop.trim().to_owned() })
                }
                other => Way::Own(other.to_owned()),
            };
            transport.ways.insert(key, (line, way));
        }
        transport.routes = routes.drafts;
        Ok(transport)
    }

    /// What holds for this address: by itself, by its domain, by a domain above it, or by `*`.
    pub(super) fn way(&self, address: &Mailbox) -> Way {
        let by_address = self.ways.get(&address.key());
        by_address.map(|(_, way)| way.clone()).unwrap_or_else(|| self.domain(address.domain()).unwrap_or(Way::Mx))
    }

    /// What the table says of the domain, if anything.
    pub(super) fn domain(&self, domain: &Domain) -> Option<Way> {
        self.own(domain).or_else(|| {
            // `.example.com` means the domains below, and not itself.
            let dots = domain.as_str().match_indices('.').map(|(at, _)| &domain.as_str()[at..]);
            let mut keys = dots.chain(["*"]);
            keys.find_map(|key| self.ways.get(key)).map(|(_, way)| way.clone())
        })
    }

    /// What the table says of the domain by its name.
    pub(super) fn own(&self, domain: &Domain) -> Option<Way> {
        self.ways.get(domain.as_str()).map(|(_, way)| way.clone())
    }

    /// The addresses that it names: line, address and way.
    pub(super) fn addresses(&self) -> impl Iterator<Item = (usize, Mailbox, &Way)> {
        self.ways.iter().filter_map(|(key, (line, way))| Some((*line, Mailbox::parse(key).ok()?, way)))
    }
}

/// The text behind `error:` or `retry:`, which may begin with a code (error(8)).
fn coded(nexthop: &str, class: char, way: fn(Option<String>, String) -> Way) -> Way {
    let (first, rest) = nexthop.trim().split_once(' ').unwrap_or((nexthop.trim(), ""));
    let parts: Vec<&str> = first.split('.').collect();
    let is_code = parts.len() == 3
        && first.starts_with(class)
        && parts[0].len() == 1
        && parts.iter().all(|part| (1..=3).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_digit()));
    let (code, text) = if is_code { (Some(first.to_owned()), rest) } else { (None, nexthop) };
    let text: String = text.trim().chars().filter(|c| (' '..='~').contains(c)).take(TEXT_OCTETS_MAX).collect();
    way(code, if text.is_empty() { "mail for this address is not taken".to_owned() } else { text })
}

/// Routes by their hosts, each once.
#[derive(Default)]
struct Routes {
    drafts: Vec<RouteDraft>,
    names: HashSet<String>,
}

impl Routes {
    /// The way to `nexthop` for `key`, and what is not the same here. The error says why it cannot be gone.
    fn way(&mut self, key: &str, nexthop: &str) -> Result<(Way, Option<String>), String> {
        let destinations: Vec<&str> = tables::addresses(nexthop);
        if destinations.is_empty() {
            return Ok((Way::Mx, None));
        }
        let (mut hosts, mut by_mx) = (Vec::new(), Vec::new());
        for destination in destinations {
            let (host, port, bracketed) = host(destination)?;
            if !bracketed && host.parse::<std::net::IpAddr>().is_err() {
                by_mx.push(host.clone());
            }
            hosts.push(match port {
                Some(port) => format!("{host}:{port}"),
                None => host,
            });
        }
        if let ([host], [_]) = (&hosts[..], &by_mx[..])
            && host == key
        {
            return Ok((Way::Mx, None));
        }
        let why = (!by_mx.is_empty()).then(|| {
            format!(
                "Postfix looks up the MX of {}, a route names its hosts: correct them in pointsman.toml",
                by_mx.join(", ")
            )
        });
        let comment =
            (!by_mx.is_empty()).then(|| format!("Postfix asked for the MX of {}: name the hosts.", by_mx.join(", ")));
        if let Some(known) = self.drafts.iter().find(|draft| draft.hosts == hosts && draft.comment == comment) {
            return Ok((Way::Route(known.name.clone()), why));
        }
        let name = unique(&slug(&hosts[0]), &mut self.names);
        self.drafts.push(RouteDraft { name: name.clone(), hosts, comment });
        Ok((Way::Route(name), why))
    }
}

/// `[host]:port`, `host:port`: the name as a route writes it, the port, and whether no MX is to be asked for.
fn host(text: &str) -> Result<(String, Option<u16>, bool), String> {
    let (host, port, bracketed) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, behind) = rest.split_once(']').ok_or("a bracket is not closed")?;
            let port = behind.strip_prefix(':').or((!behind.is_empty()).then_some(behind));
            (host, port, true)
        }
        None => match text.rsplit_once(':') {
            Some((host, port)) => (host, Some(port), false),
            None => (text, None, false),
        },
    };
    let port = match port {
        None => None,
        Some("smtp") => Some(25),
        Some("submission") => Some(587),
        Some("submissions" | "smtps") => Some(465),
        Some("lmtp") => Some(24),
        Some(digits) => Some(digits.parse::<u16>().map_err(|_| format!("`{digits}` is no port"))?),
    };
    let lower = host.to_lowercase();
    let address = lower.strip_prefix("ipv6:").unwrap_or(&lower);
    if address.parse::<std::net::Ipv6Addr>().is_ok() {
        return Ok((format!("[{address}]"), port, bracketed));
    }
    let named = address.parse::<std::net::Ipv4Addr>().is_ok()
        || Domain::parse(address).is_ok_and(|domain| !domain.is_literal());
    if named { Ok((address.to_owned(), port, bracketed)) } else { Err(format!("`{host}` is no host")) }
}

/// What the rules take as the text of a reply, with room for a code.
const TEXT_OCTETS_MAX: usize = 380;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ways_are_found_as_postfix_finds_them() {
        let table = "d.example smtp:[mx.d.example]:2525\n.d.example relay:[192.0.2.1]\na@d.example :\n\
            gone.example error:5.1.6 moved away\nlater.example retry:4.3.0 tomorrow\nnull.example discard:\n\
            mx.example smtp:mx.example\nother.example smtp:elsewhere.example\nlocal.example local:\n\
            six.example smtp:[IPv6:2001:db8::1]:25\n* relay:[smart.example]:submission\n";
        let transport = Transport::read(table).unwrap();
        let route = |name: &str| Way::Route(name.to_owned());
        for (address, way) in [
            ("x@D.example", route("mx-d-example-2525")),
            ("a@d.example", Way::Mx),
            ("x@y.d.example", route("192-0-2-1")),
            ("x@gone.example", Way::Error(Some("5.1.6".into()), "moved away".into())),
            ("x@later.example", Way::Retry(Some("4.3.0".into()), "tomorrow".into())),
            ("x@null.example", Way::Discard("discarded".into())),
            ("x@mx.example", Way::Mx),
            ("x@other.example", route("elsewhere-example")),
            ("x@local.example", Way::Own("local".into())),
            ("x@six.example", route("2001-db8-1-25")),
            ("x@nowhere.example", route("smart-example-587")),
        ] {
            assert_eq!(transport.way(&Mailbox::parse(address).unwrap()), way, "{address}");
        }
        let hosts = |name: &str| transport.routes.iter().find(|r| r.name == name).unwrap().hosts.join(" ");
        assert_eq!(hosts("mx-d-example-2525"), "mx.d.example:2525");
        assert_eq!(hosts("2001-db8-1-25"), "[2001:db8::1]:25");
        // The MX of another domain is no host.
        assert_eq!(transport.left_out.iter().map(|(line, ..)| *line).collect::<Vec<_>>(), [8]);
    }
}
