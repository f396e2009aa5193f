//! Where a message came from: the address that our host saw, or none, whatever the client said and brought along.

use std::net::IpAddr;

use pointsman::message::Header;
use pointsman::message::origin::Origin;
use pointsman::network::Network;

use super::input::{Input, sound};

pub fn check(data: &[u8]) {
    let mut input = Input::new(data);
    let (kind, hops) = (input.octet(), input.octet() % 3);
    let (helo, name) = (input.text().replace(['\r', '\0'], ""), input.text().replace(['\r', '\0'], ""));
    let below = sound(input.rest());
    let inside = ["192.0.2.0/28", "2001:db8:1::/48"].map(|network| Network::parse(network).expect("it is a network"));
    let seen: IpAddr = if kind % 2 == 0 { "198.51.100.7" } else { "2001:db8::7" }.parse().expect("it is an address");

    let by = "by mx.ours.example with ESMTP id 1;\r\n\tdate\r\n";
    let ours = format!("Received: from mx.ours.example (mx.ours.example [192.0.2.14])\r\n\t{by}").repeat(hops.into());
    let literal = if seen.is_ipv6() { format!("IPv6:{seen}") } else { seen.to_string() };
    // The name behind HELO is the client's word everywhere; the other one is what the DNS said, which is a name.
    let name: String = name.chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_')).collect();
    let from = match kind / 2 % 5 {
        0 => format!("from {helo} ({name} [{literal}])"),
        1 => format!("from {name} ([{seen}] helo={helo})"),
        2 => format!("from [{seen}] (helo={helo})"),
        3 => format!("from {name} (HELO {helo}) ({seen})"),
        _ => format!("from {helo} ({seen})"),
    };
    let head = [format!("{ours}Received: {from}\r\n\t{by}").as_bytes(), &below].concat();
    let header = Header::index(&head);
    let traced = Origin::trace(&head, &header, &inside);
    assert_eq!(Origin::trace(&head, &header, &inside), traced);
    match &traced {
        Origin::Outside { ip, helo: told } => {
            assert_eq!(*ip, seen, "{from:?}");
            let plain = |told: &String| told.len() <= 255 && told.bytes().all(|b| b.is_ascii_graphic());
            assert!(told.as_ref().is_none_or(plain), "{told:?}");
        }
        Origin::Unreadable => {}
        Origin::Inside => panic!("a client outside is taken for one of ours: {from:?}"),
    }

    // And a header that is a stranger's from the first octet on.
    let header = Header::index(&below);
    if let Origin::Outside { ip, .. } = Origin::trace(&below, &header, &inside) {
        assert!(!ip.is_loopback() && !inside.iter().any(|network| network.contains(ip)));
    }
}
