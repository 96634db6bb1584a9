//! Certificates for throwaway servers.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use secrecy::SecretString;

use crate::tenant::CaCertificate;

use super::ClusterError;

/// A server's certificate and key, the authority that signed it, and an authority that has nothing to do with it.
///
/// They make it possible to test what matters about TLS: that the right server is trusted and that a wrong one is
/// refused. They are valid for a year from yesterday: macOS refuses server certificates of more than 825 days.
#[derive(Clone)]
pub struct Certificates {
    ca: Arc<str>,
    stranger: Arc<str>,
    certificate: Arc<str>,
    key: SecretString,
}

impl Certificates {
    /// Certificates for a server that is reached as `localhost` or `127.0.0.1`.
    ///
    /// # Errors
    /// When the cryptographic library refuses, which it does only without randomness.
    pub fn generate() -> Result<Self, ClusterError> {
        Self::generate_for(&["localhost", "127.0.0.1"])
    }

    /// Certificates for a server that is reached by these host names and IP addresses. With a name that the test
    /// does not use, they show that `verify-full` looks at the name.
    ///
    /// # Errors
    /// When a name cannot stand in a certificate.
    pub fn generate_for(names: &[&str]) -> Result<Self, ClusterError> {
        Self::make(names).map_err(ClusterError::Certificates)
    }

    /// The authority that signed the server's certificate.
    #[must_use]
    pub fn ca(&self) -> CaCertificate {
        CaCertificate::Pem(Arc::clone(&self.ca))
    }

    /// An authority that did not.
    #[must_use]
    pub fn unrelated_ca(&self) -> CaCertificate {
        CaCertificate::Pem(Arc::clone(&self.stranger))
    }

    /// The server's certificate, in PEM.
    #[must_use]
    pub fn certificate_pem(&self) -> &str {
        &self.certificate
    }

    /// The server's private key, in PEM.
    #[must_use]
    pub const fn key_pem(&self) -> &SecretString {
        &self.key
    }

    pub(super) fn ca_pem(&self) -> &str {
        &self.ca
    }

    fn make(names: &[&str]) -> Result<Self, rcgen::Error> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let ca = authority("biplane test authority")?;
        let stranger = authority("unrelated test authority")?;
        let key = KeyPair::generate()?;
        let mut params = dated(CertificateParams::new(names)?);
        params
            .distinguished_name
            .push(DnType::CommonName, "biplane test server");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &ca)?;
        Ok(Self {
            ca: ca.pem().into(),
            stranger: stranger.pem().into(),
            certificate: certificate.pem().into(),
            key: SecretString::from(key.serialize_pem()),
        })
    }
}

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Certificates(…)")
    }
}

fn authority(name: &str) -> Result<CertifiedIssuer<'static, KeyPair>, rcgen::Error> {
    let mut params = dated(CertificateParams::default());
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    CertifiedIssuer::self_signed(params, KeyPair::generate()?)
}

fn dated(mut params: CertificateParams) -> CertificateParams {
    const DAY: Duration = Duration::from_secs(24 * 60 * 60);
    let now = SystemTime::now();
    params.not_before = (now - DAY).into();
    params.not_after = (now + 365 * DAY).into();
    params
}
