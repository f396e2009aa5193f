//! When a certificate expires: the one thing in it that we read ourselves, for the metric and for `check`.
//!
//! Only the path to `notAfter` is walked (RFC 5280 §4.1); whether the rest is sound, rustls says. The certificate is the
//! administrator's own, but one octet of it may be damaged all the same, so nothing here trusts a length.

use jiff::civil::DateTime;
use jiff::tz::TimeZone;

use crate::clock::Timestamp;

/// The `notAfter` of a certificate in DER, or `None` where it cannot be found.
pub(super) fn not_after(certificate: &[u8]) -> Option<Timestamp> {
    let (certificate, _) = expect(SEQUENCE, certificate)?;
    let (mut rest, _) = expect(SEQUENCE, certificate)?;
    // The version is not there in version 1.
    if let Some((_, behind)) = expect(VERSION, rest) {
        rest = behind;
    }
    for tag in [INTEGER, SEQUENCE, SEQUENCE] {
        // Serial number, signature algorithm, issuer.
        (_, rest) = expect(tag, rest)?;
    }
    let (validity, _) = expect(SEQUENCE, rest)?;
    let (_, _, behind) = element(validity)?;
    let (tag, time, _) = element(behind)?;
    match tag {
        UTC_TIME => {
            let year = digits(time.get(..2)?)?;
            // RFC 5280 §4.1.2.5.1: 50 to 99 are of the last century.
            at(if year < 50 { 2000 + year } else { 1900 + year }, &time[2..])
        }
        GENERALIZED_TIME => at(digits(time.get(..4)?)?, &time[4..]),
        _ => None,
    }
}

/// `MMDDHHMMSSZ` of a year.
fn at(year: i16, rest: &[u8]) -> Option<Timestamp> {
    let [fields @ .., b'Z'] = rest else { return None };
    if fields.len() != 10 {
        return None;
    }
    let field = |n: usize| digits(&fields[2 * n..2 * n + 2]).and_then(|number| i8::try_from(number).ok());
    let time = DateTime::new(year, field(0)?, field(1)?, field(2)?, field(3)?, field(4)?, 0).ok()?;
    Some(Timestamp(time.to_zoned(TimeZone::UTC).ok()?.timestamp().as_millisecond()))
}

fn digits(text: &[u8]) -> Option<i16> {
    let number = text.iter().all(u8::is_ascii_digit).then_some(text)?;
    std::str::from_utf8(number).ok()?.parse().ok()
}

/// The contents of the element in front, which has this tag, and what stands behind it.
fn expect(tag: u8, der: &[u8]) -> Option<(&[u8], &[u8])> {
    element(der).filter(|(found, ..)| *found == tag).map(|(_, contents, behind)| (contents, behind))
}

/// Tag, contents and what stands behind the element in front (X.690 §8.1).
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&[tag, first], rest) = der.split_first_chunk::<2>()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        // Four octets of length are four GiB.
        0x81..=0x84 => {
            let (octets, rest) = rest.split_at_checked(usize::from(first - 0x80))?;
            (octets.iter().fold(0, |length, &octet| length << 8 | usize::from(octet)), rest)
        }
        _ => return None,
    };
    let (contents, behind) = rest.split_at_checked(length)?;
    Some((tag, contents, behind))
}

const INTEGER: u8 = 0x02;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xa0;

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(year: i32) -> Vec<u8> {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut parameters = rcgen::CertificateParams::new(vec!["mx.example".to_owned()]).unwrap();
        parameters.not_after = rcgen::date_time_ymd(year, 3, 1);
        parameters.self_signed(&key).unwrap().der().to_vec()
    }

    #[test]
    fn both_ways_to_write_a_time_are_read() {
        for (year, want) in [(1999, "1999"), (2027, "2027"), (2049, "2049"), (2050, "2050"), (9998, "9998")] {
            let expires = not_after(&certificate(year)).unwrap();
            assert_eq!(expires.to_string(), format!("{want}-03-01T00:00:00.000Z"));
        }
    }

    #[test]
    fn a_damaged_certificate_has_no_answer_or_another_but_never_a_panic() {
        let whole = certificate(2030);
        for length in 0..whole.len() {
            assert_eq!(not_after(&whole[..length]), None);
        }
        for at in 0..200 {
            for octet in [0x00, 0x7f, 0x80, 0x84, 0xff] {
                let mut damaged = whole.clone();
                damaged[at] = octet;
                let _ = not_after(&damaged);
            }
        }
    }
}
