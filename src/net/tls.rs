//! TLS for outgoing connections: trusted authorities (Mozilla's, compiled in, the system's and the administrator's) and configuration.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use crate::net::address::Host;
use crate::util::file::read_bounded;

/// Largest certificate file, in bytes. A system's bundle has some 250 KB.
const MAX_FILE_BYTES: usize = 8 * 1024 * 1024;
/// Files of a certificate directory that are read. A system's has some 300.
const MAX_FILES: usize = 2048;
/// Bundles of distributions, to which an administrator may have added an authority.
const SYSTEM_BUNDLES: [&str; 3] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
];

/// A certificate file that cannot be used.
#[derive(Debug)]
pub struct Error {
    path: PathBuf,
    reason: String,
}

impl Error {
    /// The reason without the path.
    pub(crate) fn reason(&self) -> &str {
        &self.reason
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path.display(), self.reason)
    }
}

impl std::error::Error for Error {}

/// Trusted certificate authorities.
#[derive(Debug, Clone)]
pub struct RootCertificates(RootCertStore);

impl PartialEq for RootCertificates {
    fn eq(&self, other: &Self) -> bool {
        self.0.roots == other.0.roots
    }
}

impl RootCertificates {
    /// Mozilla's, and those of the first of the system's bundles.
    pub fn built_in_and_system() -> Self {
        let mut roots = Self(RootCertStore {
            roots: webpki_roots::TLS_SERVER_ROOTS.to_vec(),
        });
        for bundle in SYSTEM_BUNDLES {
            // optional: the compiled-in roots suffice
            if roots.add_file(Path::new(bundle)).is_ok() {
                break;
            }
        }
        roots
    }

    /// Adds the authorities of a PEM file, at least one of which has to be valid.
    pub fn add_file(&mut self, path: &Path) -> Result<(), Error> {
        let fail = |reason: String| Error {
            path: path.to_owned(),
            reason,
        };
        let pem = read_bounded(path, MAX_FILE_BYTES).map_err(|e| fail(e.to_string()))?;
        let found = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>();
        let found = found.map_err(|e| fail(format!("not a PEM file of certificates: {e}")))?;
        match self.0.add_parsable_certificates(found) {
            (0, _) => Err(fail(
                "expected certificates in PEM form, found none that can be used".into(),
            )),
            _ => Ok(()),
        }
    }

    /// Adds the authorities in the files of a directory (`SSL_CERT_DIR`). Other files are skipped.
    pub(crate) fn add_directory(&mut self, path: &Path) -> Result<(), Error> {
        let entries = std::fs::read_dir(path).map_err(|e| Error {
            path: path.to_owned(),
            reason: e.to_string(),
        })?;
        for entry in entries.flatten().take(MAX_FILES) {
            // directories, keys and dangling links are common there
            let _ = self.add_file(&entry.path());
        }
        Ok(())
    }
}

/// Whether server certificates are verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CertificateVerification {
    On,
    /// `LIVEKIT_INSECURE_SKIP_VERIFY_TLS`.
    Off,
}

/// The TLS configuration of outgoing connections. Sessions are not resumed, which would keep tickets and certificate chains of other
/// servers in memory.
pub(crate) fn client_config(
    roots: &RootCertificates,
    verification: CertificateVerification,
) -> Arc<ClientConfig> {
    let provider = Arc::new(ring::default_provider());
    let builder =
        ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
    // ring supports both versions
    let builder = builder.unwrap_or_else(|_| unreachable!());
    let mut config = match verification {
        CertificateVerification::On => builder
            .with_root_certificates(roots.0.clone())
            .with_no_client_auth(),
        CertificateVerification::Off => {
            let verifier = Arc::new(InsecureCertVerifier(provider));
            builder
                .dangerous()
                .with_custom_certificate_verifier(verifier)
                .with_no_client_auth()
        }
    };
    config.resumption = Resumption::disabled();
    Arc::new(config)
}

/// The host as the name that a certificate has to match.
///
/// # Errors
///
/// If the host is no valid DNS name.
pub(crate) fn server_name(host: &Host) -> Result<ServerName<'static>, rustls::Error> {
    match host {
        Host::Ip(ip) => Ok(ServerName::from(*ip)),
        Host::Dns(name) => ServerName::try_from(name.to_string())
            .map_err(|error| rustls::Error::General(format!("{name}: {error}"))),
    }
}

/// Accepts every certificate whose key the peer holds.
#[derive(Debug)]
struct InsecureCertVerifier(Arc<CryptoProvider>);

impl ServerCertVerifier for InsecureCertVerifier {
    fn verify_server_cert(
        &self,
        _certificate: &CertificateDer<'_>,
        _chain: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_certificates_is_an_error() {
        let path = std::env::temp_dir().join(format!("lts-not-a-ca-{}.pem", std::process::id()));
        std::fs::write(&path, "nothing to see").unwrap();
        let error = RootCertificates::built_in_and_system()
            .add_file(&path)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("lts-not-a-ca") && error.contains("certificates"),
            "{error}"
        );
        std::fs::remove_file(&path).unwrap();
        let error = RootCertificates::built_in_and_system()
            .add_file(&path)
            .unwrap_err()
            .to_string();
        assert!(error.contains("No such file"), "{error}");
        assert!(
            RootCertificates::built_in_and_system()
                .add_directory(&path)
                .is_err()
        );
    }

    #[test]
    fn the_compiled_in_roots_are_trusted() {
        assert!(
            RootCertificates::built_in_and_system().0.len() >= webpki_roots::TLS_SERVER_ROOTS.len()
        );
    }
}
