//! Lists of `tag=value;` as signatures, their keys and DMARC's policies are written (RFC 6376 §3.2). Pure.
//!
//! The library reads them too, and forgives what attackers live on: a tag that stands twice, a key that is for something
//! else. This looks at such a list before the library does.

/// The tags of a list in their order, white space around names and values cut. What has no `=` is passed over.
pub(super) fn tags(list: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    list.split(|octet| *octet == b';').filter_map(|part| {
        let at = memchr::memchr(b'=', part)?;
        Some((part[..at].trim_ascii(), part[at + 1..].trim_ascii()))
    })
}

/// The value of the first tag of that name, which is in lower case.
pub(super) fn first<'l>(list: &'l [u8], name: &str) -> Option<&'l [u8]> {
    tags(list).find(|(tag, _)| tag.eq_ignore_ascii_case(name.as_bytes())).map(|(_, value)| value)
}

/// One of the names stands more than once: two readers may take different values (RFC 6376 §3.2: the list is invalid).
pub(super) fn has_repeated(list: &[u8], names: &[&str]) -> bool {
    let mut seen = vec![false; names.len()];
    for (tag, _) in tags(list) {
        let Some(at) = names.iter().position(|name| tag.eq_ignore_ascii_case(name.as_bytes())) else { continue };
        if std::mem::replace(&mut seen[at], true) {
            return true;
        }
    }
    false
}

/// The key in a record is for e-mail (`s=`) and for the one hash that counts (`h=`): RFC 6376 §3.6.1, RFC 8301 §3.1.
pub(super) fn is_key_for_us(record: &[u8]) -> bool {
    let names = |tag: &str, wanted: &[&[u8]]| {
        let listed = |value: &[u8]| {
            value
                .split(|octet| *octet == b':')
                .any(|item| wanted.iter().any(|w| item.trim_ascii().eq_ignore_ascii_case(w)))
        };
        first(record, tag).is_none_or(listed)
    };
    names("s", &[b"*", b"email"]) && names("h", &[b"sha256"])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_with_any_white_space() {
        let list = b" v=1 ;\r\n\tD = a.example; x; b=\r\n Ab=c ;;";
        let read: Vec<_> = tags(list).collect();
        assert_eq!(read, [(&b"v"[..], &b"1"[..]), (b"D", b"a.example"), (b"b", b"Ab=c")]);
        assert_eq!(first(list, "d"), Some(&b"a.example"[..]));
        assert_eq!(first(list, "s"), None);
    }

    #[test]
    fn a_tag_that_stands_twice_is_seen() {
        for (list, want) in [
            (&b"d=a; s=b"[..], false),
            (b"d=a; s=b; d=a", true),
            (b"d=a;\r\n D =b", true),
            (b"z=a; z=b; d=c", false),
            (b"d=a; bd=b", false),
        ] {
            assert_eq!(has_repeated(list, &["d", "s"]), want, "{}", list.escape_ascii());
        }
    }

    #[test]
    fn whom_a_key_is_for() {
        for (record, want) in [
            (&b"v=DKIM1; p=AAAA"[..], true),
            (b"s=*; p=AAAA", true),
            (b"s=email; h=sha256; p=AAAA", true),
            (b"S=other:Email; h=sha1:SHA256; p=AAAA", true),
            (b"s=tlsrpt; p=AAAA", false),
            (b"s=; p=AAAA", false),
            (b"h=sha1; p=AAAA", false),
            (b"h=sha512; p=AAAA", false),
            (b"s=emails; p=AAAA", false),
        ] {
            assert_eq!(is_key_for_us(record), want, "{}", record.escape_ascii());
        }
    }
}
