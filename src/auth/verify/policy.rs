//! A DMARC policy record as values (RFC 9989 §4.7, §4.8). Pure.
//!
//! Read here rather than by the library, which gives up at the first tag that it cannot read, where the RFC goes on with
//! the default: a typing error in `adkim=` must not undo `p=reject`.

use mail_auth::dmarc::{Alignment, DmarcRecord, FailureOptions, Policy, Psd};

use super::tags::{first, tags};

/// Reads a record; none where it is not one of DMARC's. A record without a usable policy has [`Policy::Unspecified`]:
/// it ends the search as any record does, and nothing is applied.
pub(super) fn parse(record: &[u8]) -> Option<DmarcRecord> {
    // RFC 9989 §4.8: the version comes first, and in exactly these letters.
    let (name, version) = tags(record).next()?;
    if !name.eq_ignore_ascii_case(b"v") || version != b"DMARC1" {
        return None;
    }
    let word = |tag: &str| first(record, tag).map(<[u8]>::to_ascii_lowercase);
    let alignment = |tag: &str| match word(tag).as_deref() {
        Some(b"s") => Alignment::Strict,
        _ => Alignment::Relaxed,
    };
    let (p, sp, np) = policies(record);
    Some(DmarcRecord {
        adkim: alignment("adkim"),
        aspf: alignment("aspf"),
        fo: FailureOptions::All,
        np,
        p,
        psd: match word("psd").as_deref() {
            Some(b"y") => Psd::Yes,
            Some(b"n") => Psd::No,
            _ => Psd::Default,
        },
        // We send no reports.
        rua: Vec::new(),
        ruf: Vec::new(),
        sp,
        t: word("t").as_deref() == Some(b"y"),
    })
}

/// `p`, `sp` and `np` with their defaults.
fn policies(record: &[u8]) -> (Policy, Policy, Policy) {
    let read = |tag: &str| first(record, tag).map(policy);
    match (read("p"), read("sp"), read("np")) {
        (Some(Some(p)), sp @ (None | Some(Some(_))), np @ (None | Some(Some(_)))) => {
            let sp = sp.flatten().unwrap_or(p);
            (p, sp, np.flatten().unwrap_or(sp))
        }
        // RFC 9989 §4.10.1: whoever wants reports is taken at "none"; nobody else is taken at anything.
        _ if first(record, "rua").is_some_and(names_a_place) => (Policy::None, Policy::None, Policy::None),
        _ => (Policy::Unspecified, Policy::Unspecified, Policy::Unspecified),
    }
}

fn policy(value: &[u8]) -> Option<Policy> {
    match value.to_ascii_lowercase().as_slice() {
        b"none" => Some(Policy::None),
        b"quarantine" => Some(Policy::Quarantine),
        b"reject" => Some(Policy::Reject),
        _ => None,
    }
}

/// One of the URIs of `rua` can be read as one.
fn names_a_place(list: &[u8]) -> bool {
    list.split(|octet| *octet == b',').any(|uri| {
        let uri = uri.trim_ascii();
        let Some(colon) = memchr::memchr(b':', uri) else { return false };
        let (scheme, rest) = (&uri[..colon], &uri[colon + 1..]);
        let named = scheme.first().is_some_and(u8::is_ascii_alphabetic) && !rest.is_empty();
        let address = rest.iter().position(|octet| *octet == b'@').is_some_and(|at| at > 0 && at + 1 < rest.len());
        named && (address || !scheme.eq_ignore_ascii_case(b"mailto"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(record: &str) -> Option<(Policy, Policy, Policy)> {
        parse(record.as_bytes()).map(|record| (record.p, record.sp, record.np))
    }

    #[test]
    fn section_4_8_which_records_are_policies() {
        for (record, want) in [
            ("v=DMARC1; p=none", true),
            ("v=DMARC1", true),
            ("v = DMARC1 ;p=none", true),
            ("V=DMARC1; p=none", true),
            ("v=dmarc1; p=none", false),
            ("v=DMARC1x; p=none", false),
            ("v=DMARC2; p=none", false),
            ("p=none; v=DMARC1", false),
            ("google-site=v=DMARC1", false),
            ("", false),
        ] {
            assert_eq!(read(record).is_some(), want, "{record:?}");
        }
    }

    #[test]
    fn section_4_7_policies_and_their_defaults() {
        use Policy::{None, Quarantine, Reject, Unspecified};
        let unspecified = (Unspecified, Unspecified, Unspecified);
        for (tags, want) in [
            ("p=reject", (Reject, Reject, Reject)),
            ("p=Reject; sp=NONE", (Reject, None, None)),
            ("p=reject; np=quarantine", (Reject, Reject, Quarantine)),
            ("p = none ; sp = quarantine ; np = reject", (None, Quarantine, Reject)),
            // The first of two counts, and what is unknown or wrong elsewhere is passed over.
            ("p=reject; p=none", (Reject, Reject, Reject)),
            ("p=reject; pct=0; adkim=x; aspf=; fo=9; ri=z; rf=; psd=q; t=yes; x; =", (Reject, Reject, Reject)),
            // Section 4.10.1.
            ("rua=mailto:d@a.example", (None, None, None)),
            ("p=block; rua=mailto:d@a.example!10m", (None, None, None)),
            ("p=reject; sp=bounce; rua=mailto:d@a.example", (None, None, None)),
            ("p=reject; np=; rua=ftp, https://a.example/r", (None, None, None)),
            ("p=reject; sp=bounce", unspecified),
            ("p=block", unspecified),
            ("adkim=s", unspecified),
            ("p=block; rua=d@a.example", unspecified),
            ("p=block; rua=mailto:", unspecified),
            ("p=block; rua=mailto:@a.example,mailto:d@", unspecified),
            ("p=block; rua=", unspecified),
        ] {
            assert_eq!(read(&format!("v=DMARC1; {tags}")), Some(want), "{tags}");
        }
    }

    #[test]
    fn section_4_7_the_other_tags() {
        for (tags, adkim, aspf, psd, t) in [
            ("p=none", Alignment::Relaxed, Alignment::Relaxed, Psd::Default, false),
            ("adkim=S; aspf=s; psd=Y; t=Y", Alignment::Strict, Alignment::Strict, Psd::Yes, true),
            ("adkim=r; aspf=strict; psd=n; t=n", Alignment::Relaxed, Alignment::Relaxed, Psd::No, false),
            ("psd=u; t=1", Alignment::Relaxed, Alignment::Relaxed, Psd::Default, false),
        ] {
            let record = parse(format!("v=DMARC1; {tags}").as_bytes()).unwrap();
            assert_eq!((record.adkim, record.aspf, record.psd, record.t), (adkim, aspf, psd, t), "{tags}");
        }
    }
}
