//! An authority of the test's own, and the certificate that it issued last.

use std::fs;
use std::path::PathBuf;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use tempfile::TempDir;

/// A folder with `ca.pem`, `certificate.pem` and `key.pem`.
pub struct Certificates {
    dir: TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Certificates {
    /// A new authority, which issues a certificate for `name`.
    pub fn new(name: &str) -> Certificates {
        let dir = tempfile::Builder::new().prefix("pointsman-tls-").tempdir().expect("a temporary directory");
        let key = KeyPair::generate().unwrap();
        let mut parameters = CertificateParams::new(Vec::new()).unwrap();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        fs::write(dir.path().join("ca.pem"), parameters.self_signed(&key).unwrap().pem()).unwrap();
        let certificates = Certificates { dir, issuer: Issuer::new(parameters, key) };
        certificates.issue(name, 2096);
        certificates
    }

    /// Issues another in its place, as a renewal does; it expires in March of `year`.
    pub fn issue(&self, name: &str, year: i32) {
        let key = KeyPair::generate().unwrap();
        let mut parameters = CertificateParams::new(vec![name.to_owned()]).unwrap();
        parameters.distinguished_name.push(DnType::CommonName, name);
        parameters.not_after = date_time_ymd(year, 3, 1);
        fs::write(self.certificate(), parameters.signed_by(&key, &self.issuer).unwrap().pem()).unwrap();
        fs::write(self.key(), key.serialize_pem()).unwrap();
    }

    pub fn ca(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    pub fn certificate(&self) -> PathBuf {
        self.dir.path().join("certificate.pem")
    }

    pub fn key(&self) -> PathBuf {
        self.dir.path().join("key.pem")
    }
}
