//! The DNS records that a configuration needs: what `dns` prints, and what there is to compare with. Pure.
//!
//! Each has its reason. A record whose value only the administrator knows, such as our public address behind a
//! translation, stands there without one. What a domain has of its own already, an SPF record for its people say, must be
//! changed rather than doubled; that is advice, because we do not look.

use std::fmt::Write;
use std::net::IpAddr;

use crate::address::Domain;
use crate::auth::sign;

use super::Config;

/// One record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Without the dot at its end.
    pub name: String,
    pub kind: &'static str,
    pub data: Data,
    /// Why it is there, in a sentence for people.
    pub why: String,
    pub need: Need,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Data {
    /// As a zone file writes it: an address, a preference and a host.
    Plain(String),
    /// The text whole; a zone file holds it in strings of at most [`STRING_OCTETS_MAX`].
    Text(String),
    /// What belongs there is not known here.
    Unknown,
}

/// How much hangs on a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Without it mail is not found, or what we send is not believed.
    Required,
    /// A start, where there is nothing yet.
    Advised,
}

/// The records for `config`. `key` is what the TXT record of the DKIM key says; none where there is no key (yet).
#[must_use]
pub fn records(config: &Config, key: Option<&str>) -> Vec<Record> {
    let mut records = host_records(config);
    for domain in config.rules.domains() {
        records.push(mx(config, domain.as_str(), "mail for the domain comes to us"));
        if config.dkim.is_some() {
            records.push(dkim(config, domain, key));
        }
        records.push(dmarc(domain));
    }
    if let Some(srs) = &config.srs {
        let domain = srs.domain().as_str();
        records.push(mx(config, domain, "what a next hop returns to a rewritten sender comes to us"));
        records.push(Record {
            name: domain.to_owned(),
            kind: "TXT",
            data: Data::Text(spf(config)),
            why: "SPF: rewritten senders come from here and from nowhere else".to_owned(),
            need: Need::Required,
        });
    }
    records
}

/// Our names in EHLO and their addresses, both ways.
fn host_records(config: &Config) -> Vec<Record> {
    let mut records = Vec::new();
    let addresses = public_addresses(config);
    for name in names(config) {
        let own: Vec<Option<IpAddr>> = match addresses.len() {
            0 => vec![None],
            _ => addresses.iter().copied().map(Some).collect(),
        };
        for address in own {
            let kind = if address.is_some_and(|ip| ip.is_ipv6()) { "AAAA" } else { "A" };
            let data = address.map_or(Data::Unknown, |ip| Data::Plain(ip.to_string()));
            let why = "our public address; receivers look up what we call ourselves".to_owned();
            records.push(Record { name: name.clone(), kind, data, why, need: Need::Required });
            records.push(Record {
                name: address.map_or_else(|| "the address in reverse, set by its provider".to_owned(), reverse),
                kind: "PTR",
                data: Data::Plain(format!("{name}.")),
                why: "the address leads back to the name; its provider sets this".to_owned(),
                need: Need::Required,
            });
        }
        records.push(Record {
            data: Data::Text(spf_of(config, "a")),
            name,
            kind: "TXT",
            why: "SPF of our name: notifications have no sender but this".to_owned(),
            need: Need::Required,
        });
    }
    records
}

fn mx(config: &Config, name: &str, why: &str) -> Record {
    let data = Data::Plain(format!("10 {}.", config.hostname));
    Record { name: name.to_owned(), kind: "MX", data, why: why.to_owned(), need: Need::Required }
}

fn dkim(config: &Config, domain: &Domain, key: Option<&str>) -> Record {
    let selector = config.dkim.as_ref().map_or(domain, |dkim| &dkim.selector);
    let why = match key {
        Some(_) => "the key that our notifications are signed with",
        None => "the key that our notifications are signed with, once there is one: the daemon's first start makes it",
    };
    Record {
        name: sign::record_name(selector, domain),
        kind: "TXT",
        data: key.map_or(Data::Unknown, |key| Data::Text(key.to_owned())),
        why: why.to_owned(),
        need: Need::Required,
    }
}

fn dmarc(domain: &Domain) -> Record {
    Record {
        name: format!("_dmarc.{domain}"),
        kind: "TXT",
        data: Data::Text(format!("v=DMARC1; p=none; rua=mailto:postmaster@{domain}")),
        why: "DMARC where the domain has none: read the reports, then ask for quarantine or reject".to_owned(),
        need: Need::Advised,
    }
}

/// The SPF record of a name for which we alone send.
fn spf(config: &Config) -> String {
    let names: Vec<String> = names(config).iter().map(|name| format!("a:{name}")).collect();
    spf_of(config, &names.join(" "))
}

/// The routes' own source addresses may have no name of ours.
fn spf_of(config: &Config, names: &str) -> String {
    let mut sources: Vec<IpAddr> = config.routes.values().filter_map(|route| route.source).filter(is_public).collect();
    sources.sort();
    sources.dedup();
    let mut text = format!("v=spf1 {names}");
    for source in sources {
        let family = if source.is_ipv6() { "ip6" } else { "ip4" };
        write!(text, " {family}:{source}").expect("writing to memory does not fail");
    }
    text + " -all"
}

/// What we call ourselves in EHLO: our hostname, and what routes say instead.
fn names(config: &Config) -> Vec<String> {
    let mut names = vec![config.hostname.clone()];
    for helo in config.routes.values().filter_map(|route| route.helo.clone()) {
        if !names.contains(&helo) {
            names.push(helo);
        }
    }
    names
}

/// The addresses that the configuration gives away.
fn public_addresses(config: &Config) -> Vec<IpAddr> {
    let mut addresses: Vec<IpAddr> = config.listeners.iter().map(|l| l.address.ip()).filter(is_public).collect();
    addresses.sort();
    addresses.dedup();
    addresses
}

/// Not for this machine or this network alone. What else is not reachable the administrator knows.
fn is_public(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => !(v4.is_unspecified() || v4.is_loopback() || v4.is_private() || v4.is_link_local()),
        IpAddr::V6(v6) => {
            !(v6.is_unspecified() || v6.is_loopback() || v6.is_unique_local() || v6.is_unicast_link_local())
        }
    }
}

/// RFC 1035 §3.5, RFC 3596 §2.5.
fn reverse(ip: IpAddr) -> String {
    match ip {
        IpAddr::V4(v4) => {
            let [a, b, c, d] = v4.octets();
            format!("{d}.{c}.{b}.{a}.in-addr.arpa")
        }
        IpAddr::V6(v6) => {
            let nibbles = v6.octets().into_iter().rev().flat_map(|octet| [octet & 15, octet >> 4]);
            nibbles.fold(String::new(), |name, nibble| format!("{name}{nibble:x}.")) + "ip6.arpa"
        }
    }
}

/// The strings of a TXT record that hold `text`.
#[must_use]
pub fn strings(text: &str) -> Vec<&str> {
    let mut strings = Vec::new();
    let mut rest = text;
    while rest.len() > STRING_OCTETS_MAX {
        // All that we write is ASCII; a name that is not would be cut before its character.
        let at = rest.floor_char_boundary(STRING_OCTETS_MAX);
        strings.push(&rest[..at]);
        rest = &rest[at..];
    }
    strings.push(rest);
    strings
}

/// RFC 1035 §3.3: a character-string.
pub const STRING_OCTETS_MAX: usize = 255;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_cut_at_255_octets() {
        for (octets, lengths) in
            [(0, &[0][..]), (255, &[255]), (256, &[255, 1]), (510, &[255, 255]), (511, &[255, 255, 1])]
        {
            let text = "x".repeat(octets);
            let strings = strings(&text);
            assert_eq!(strings.iter().map(|part| part.len()).collect::<Vec<_>>(), lengths);
            assert_eq!(strings.concat(), text);
        }
    }

    #[test]
    fn an_address_in_reverse() {
        assert_eq!(reverse("192.0.2.10".parse().unwrap()), "10.2.0.192.in-addr.arpa");
        let v6 = reverse("2001:db8::1".parse().unwrap());
        assert_eq!(v6, format!("1.{}8.b.d.0.1.0.0.2.ip6.arpa", "0.".repeat(23)));
    }
}
