//! Signing what we write ourselves (RFC 6376): notifications leave with a DKIM signature of the domain in their From.
//!
//! mail-auth canonicalizes and hashes; the key is RSA, the one kind that every verifier knows. Each signed field is
//! named once more than it is there, so that a second From, Subject or Content-Type put in later breaks the signature.
//! What others wrote is never signed here; `seal` seals it, with the same key. Files are `key_file`'s business.

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::KeyPair as _;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use mail_auth::crypto::{RsaKey, Sha256, SigningKey};
use mail_auth::dkim::DkimSigner;
use mail_auth::headers::HeaderWriter;
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::{self, PemObject};

use crate::address::Domain;

/// An RSA key of 2048 to 8192 bits.
#[derive(Debug)]
pub struct Key {
    der: PrivateKeyDer<'static>,
    /// SubjectPublicKeyInfo, which verifiers read in spite of RFC 6376 §3.6.1's wording.
    public: Vec<u8>,
}

/// Why a text holds no key that we can sign with.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoKey {
    #[error("it holds no private key in PEM")]
    Missing,
    #[error("its PEM is broken: {0}")]
    Pem(String),
    #[error("expected an RSA key of 2048 to 8192 bits: {0}")]
    Unusable(String),
}

/// The signature could not be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot sign: {0}")]
pub struct SignError(String);

impl Key {
    /// A new key of 2048 bits: RFC 8301 §3.2 asks for them, and DNS hosts have trouble with the records of longer ones.
    #[must_use]
    pub fn generate() -> Option<Key> {
        let pair = KeyPair::generate(KeySize::Rsa2048).ok()?;
        let private: Pkcs8V1Der<'_> = pair.as_der().ok()?;
        let public = public_key(&pair)?;
        Some(Key { der: PrivateKeyDer::Pkcs8(private.as_ref().to_vec().into()), public })
    }

    /// Reads the first private key of a PEM text: PKCS#8 as we write it, or PKCS#1 as `opendkim-genkey` does.
    pub fn from_pem(text: &[u8]) -> Result<Key, NoKey> {
        let der = match PrivateKeyDer::from_pem_slice(text) {
            Ok(der) => der,
            Err(pem::Error::NoItemsFound) => return Err(NoKey::Missing),
            Err(error) => return Err(NoKey::Pem(error.to_string())),
        };
        let pair = match &der {
            PrivateKeyDer::Pkcs8(der) => KeyPair::from_pkcs8(der.secret_pkcs8_der()),
            PrivateKeyDer::Pkcs1(der) => KeyPair::from_der(der.secret_pkcs1_der()),
            _ => return Err(NoKey::Unusable("it is of another kind".to_owned())),
        };
        let pair = pair.map_err(|error| NoKey::Unusable(error.to_string()))?;
        let public = public_key(&pair).ok_or_else(|| NoKey::Unusable("it has no public half".to_owned()))?;
        Ok(Key { der, public })
    }

    /// PKCS#8 or, where it was read so, PKCS#1 in PEM (RFC 7468).
    #[must_use]
    pub fn to_pem(&self) -> String {
        let label = match &self.der {
            PrivateKeyDer::Pkcs1(_) => "RSA PRIVATE KEY",
            _ => "PRIVATE KEY",
        };
        let text = STANDARD.encode(self.der.secret_der());
        let lines: Vec<&str> =
            text.as_bytes().chunks(PEM_LINE).map(|line| str::from_utf8(line).expect("base64 is ASCII")).collect();
        format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
    }

    /// What the TXT record at [`Signer::record_name`] must say (RFC 6376 §3.6.1).
    #[must_use]
    pub fn record(&self) -> String {
        format!("v=DKIM1; k=rsa; p={}", STANDARD.encode(&self.public))
    }
}

fn public_key(pair: &KeyPair) -> Option<Vec<u8>> {
    let der: PublicKeyX509Der<'_> = pair.public_key().as_der().ok()?;
    Some(der.as_ref().to_vec())
}

/// A key and the name under which its public half stands in the DNS.
#[derive(Debug)]
pub struct Signer {
    key: Key,
    selector: Domain,
}

impl Signer {
    #[must_use]
    pub fn new(key: Key, selector: Domain) -> Signer {
        Signer { key, selector }
    }

    #[must_use]
    pub fn selector(&self) -> &Domain {
        &self.selector
    }

    /// A signature by rsa-sha256 of these octets.
    pub fn sign_octets(&self, octets: &[u8]) -> Result<Vec<u8>, SignError> {
        let failed = |error: mail_auth::Error| SignError(error.to_string());
        RsaKey::<Sha256>::from_key_der(self.key.der.clone_key()).map_err(failed)?.sign(octets).map_err(failed)
    }

    /// The DKIM-Signature field, CRLF included, that stands before `message`: `d=` is `domain`, which must be that of
    /// the message's From, and `t=` the system's time.
    pub fn sign(&self, domain: &Domain, message: &[u8]) -> Result<String, SignError> {
        let failed = |error: mail_auth::Error| SignError(error.to_string());
        let key = RsaKey::<Sha256>::from_key_der(self.key.der.clone_key()).map_err(failed)?;
        let signer = DkimSigner::from_key(key)
            .domain(domain.as_str())
            .selector(self.selector.as_str())
            // What is named and not there is signed as absent.
            .headers(SIGNED_FIELDS.iter().chain(SIGNED_FIELDS).copied());
        Ok(signer.sign(message).map_err(failed)?.to_header())
    }
}

/// Where the record of a key stands: `<selector>._domainkey.<domain>` (RFC 6376 §3.6.2.1).
#[must_use]
pub fn record_name(selector: &Domain, domain: &Domain) -> String {
    format!("{selector}._domainkey.{domain}")
}

/// All that a notification has, but for what hosts add on the way (RFC 6376 §5.4.1).
const SIGNED_FIELDS: &[&str] =
    &["From", "To", "Subject", "Date", "Message-ID", "Auto-Submitted", "MIME-Version", "Content-Type"];
/// RFC 7468 §2.
const PEM_LINE: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    const MESSAGE: &[u8] = b"From: Mail delivery <postmaster@d.example>\r\nTo: <client@example.org>\r\nSubject: x\r\n\
        Date: Sat, 21 Nov 2026 20:00:00 +0000\r\nMessage-ID: <1@d.example>\r\nAuto-Submitted: auto-replied\r\n\
        MIME-Version: 1.0\r\nContent-Type: text/plain\r\n\r\nHello.\r\n";

    fn domain(text: &str) -> Domain {
        Domain::parse(text).unwrap()
    }

    #[test]
    fn a_key_is_read_back_as_written() {
        let key = Key::generate().unwrap();
        let again = Key::from_pem(key.to_pem().as_bytes()).unwrap();
        assert_eq!(key.record(), again.record());
        assert!(key.record().starts_with("v=DKIM1; k=rsa; p=MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8A"), "{}", key.record());
        assert!(key.to_pem().lines().all(|line| line.len() <= PEM_LINE), "{}", key.to_pem());
    }

    #[test]
    fn what_is_no_key_says_why() {
        assert_eq!(Key::from_pem(b"").unwrap_err(), NoKey::Missing);
        assert_eq!(Key::from_pem(b"hello\n").unwrap_err(), NoKey::Missing);
        for (text, why) in [
            ("-----BEGIN PRIVATE KEY-----\nMC4\n", "its PEM is broken"),
            ("-----BEGIN PRIVATE KEY-----\nMC4C\n-----END PRIVATE KEY-----\n", "expected an RSA key"),
            ("-----BEGIN EC PRIVATE KEY-----\nMC4C\n-----END EC PRIVATE KEY-----\n", "expected an RSA key"),
        ] {
            let error = Key::from_pem(text.as_bytes()).unwrap_err().to_string();
            assert!(error.starts_with(why), "{error}");
        }
    }

    #[test]
    fn each_field_is_named_once_more_than_it_is_there() {
        let signer = Signer::new(Key::generate().unwrap(), domain("pointsman"));
        let field = signer.sign(&domain("d.example"), MESSAGE).unwrap();
        assert!(field.starts_with("DKIM-Signature: ") && field.ends_with("\r\n"), "{field}");
        let flat: String = field.split_whitespace().collect();
        assert!(flat.contains("s=pointsman;d=d.example;c=relaxed/relaxed;"), "{field}");
        let names = flat.split("h=").nth(1).unwrap().split(';').next().unwrap().to_lowercase();
        for name in SIGNED_FIELDS {
            let times = names.split(':').filter(|signed| signed.eq_ignore_ascii_case(name)).count();
            assert_eq!(times, 2, "{name}: {names}");
        }
        // RFC 5322 §2.1.1: 998 at the most; the library aims at 78.
        assert!(field.lines().all(|line| line.len() <= 80), "{field}");
    }
}
