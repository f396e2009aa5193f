//! Signatures and seals of the tests' own making, with keys that are made for each test.

use mail_auth::arc::ArcSealer;
use mail_auth::crypto::{Ed25519Key, RsaKey, Sha256};
use mail_auth::dkim::{DkimSigner, Signature};
use mail_auth::headers::HeaderWriter;
use mail_auth::{AuthenticatedMessage, AuthenticationResults, MessageAuthenticator, Parameters};
use rcgen::{KeyPair, PKCS_ED25519, PKCS_RSA_SHA256, RsaKeySize};

use crate::auth::verify::answers::Answers;
use crate::auth::verify::at_once;

/// A key of Ed25519 and its record.
pub(super) struct Key {
    pkcs8: Vec<u8>,
    /// `p=` alone.
    pub(super) public: String,
}

impl Key {
    pub(super) fn new() -> Key {
        let pair = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        // RFC 8463 §4: the key itself. It stands behind the twelve octets of its description.
        Key { pkcs8: pair.serialize_der(), public: base64_of(&pair)[16..].to_owned() }
    }

    pub(super) fn record(&self) -> String {
        format!("v=DKIM1; k=ed25519; p={}", self.public)
    }

    fn ed25519(&self) -> Ed25519Key {
        Ed25519Key::from_pkcs8_maybe_unchecked_der(&self.pkcs8).unwrap()
    }

    /// A DKIM-Signature field over the fields of these names, with changes made before signing.
    pub(super) fn sign(&self, domain: &str, selector: &str, names: &[&str], message: &[u8]) -> String {
        let signer = DkimSigner::from_key(self.ed25519()).domain(domain).selector(selector);
        signer.headers(names.iter().copied()).sign(message).unwrap().to_header()
    }

    pub(super) fn sign_until(&self, domain: &str, seconds: u64, message: &[u8]) -> String {
        let signer = DkimSigner::from_key(self.ed25519()).domain(domain).selector("s1").headers(["From"]);
        signer.expiration(std::time::Duration::from_secs(seconds)).sign(message).unwrap().to_header()
    }

    /// Signs so much of the body as `message` has.
    pub(super) fn sign_length(&self, domain: &str, message: &[u8]) -> Signature {
        let signer = DkimSigner::from_key(self.ed25519()).domain(domain).selector("s1").headers(["From"]);
        signer.body_length(true).sign(message).unwrap()
    }

    /// Puts a further ARC set above the message.
    pub(super) fn seal(&self, domain: &str, message: &[u8]) -> Vec<u8> {
        let library = MessageAuthenticator::new(Default::default(), Default::default()).unwrap();
        let mut answers = Answers::default();
        answers.add_keys(vec![(format!("s1._domainkey.{domain}"), Ok([self.record().into_bytes()].into()))]);
        let parsed = AuthenticatedMessage::parse(message).unwrap();
        let output = at_once(library.verify_arc(Parameters::new(&parsed).with_cache(&answers))).unwrap();
        let results = AuthenticationResults::new(domain);
        let sealer = ArcSealer::from_key(self.ed25519()).domain(domain).selector("s1").headers(["From", "Subject"]);
        let set = sealer.seal(&parsed, &results, &output).unwrap().to_header();
        [set.as_bytes(), message].concat()
    }
}

/// A DKIM-Signature with RSA of 2048 bits, and its key's record.
pub(super) fn sign_rsa(domain: &str, message: &[u8]) -> (String, String) {
    let pair = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap();
    let der = rustls::pki_types::PrivateKeyDer::try_from(pair.serialize_der()).unwrap();
    let key = RsaKey::<Sha256>::from_key_der(der).unwrap();
    let signer = DkimSigner::from_key(key).domain(domain).selector("rsa").headers(["From"]);
    (signer.sign(message).unwrap().to_header(), format!("v=DKIM1; p={}", base64_of(&pair)))
}

fn base64_of(pair: &KeyPair) -> String {
    pair.public_key_pem().lines().filter(|line| !line.starts_with('-')).collect()
}
