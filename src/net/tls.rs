//! What a TLS connection is trusted by: Mozilla's roots, compiled in, and the administrator's files.

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

/// Largest certificate file that is read, in bytes; a system's whole bundle has some 250 KB.
const MAX_FILE_BYTES: usize = 8 * 1024 * 1024;
/// Files of a certificate directory that are read; a system's has some 300.
const MAX_FILES: usize = 2048;
/// Where distributions keep their bundle, and so where an administrator's own authority is found without a setting.
const SYSTEM_BUNDLES: [&str; 3] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
];

/// A certificate file that is of no use.
#[derive(Debug)]
pub struct Error {
    path: PathBuf,
    reason: String,
}

impl Error {
    /// What is wrong with it, without its path.
    pub fn reason(&self) -> &str {
        &self.reason
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path.display(), self.reason)
    }
}

impl std::error::Error for Error {}

/// The authorities whose certificates are believed.
#[derive(Debug, Clone)]
pub struct RootCertificates(RootCertStore);

impl RootCertificates {
    /// Mozilla's, and the system's if it has a bundle where one is expected.
    pub fn built_in_and_system() -> Self {
        let mut roots = Self(RootCertStore {
            roots: webpki_roots::TLS_SERVER_ROOTS.to_vec(),
        });
        for bundle in SYSTEM_BUNDLES {
            // the compiled-in roots are enough without it
            if roots.add_file(Path::new(bundle)).is_ok() {
                break;
            }
        }
        roots
    }

    /// Adds the authorities of a PEM file; at least one of them has to be usable.
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

    /// Adds what the files of a directory hold (`SSL_CERT_DIR`); files that are no certificates are passed over.
    pub fn add_directory(&mut self, path: &Path) -> Result<(), Error> {
        let entries = std::fs::read_dir(path).map_err(|e| Error {
            path: path.to_owned(),
            reason: e.to_string(),
        })?;
        for entry in entries.flatten().take(MAX_FILES) {
            // directories, keys and links to nowhere are common there
            let _ = self.add_file(&entry.path());
        }
        Ok(())
    }
}

/// Whether certificates are checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CertificateVerification {
    /// They are.
    On,
    /// Any certificate will do: `LIVEKIT_INSECURE_SKIP_VERIFY_TLS`.
    Off,
}

/// TLS for connections of ours.
///
/// Sessions are not resumed: the tickets and certificate chains of strangers' servers would have to be kept.
pub(crate) fn client_config(
    roots: &RootCertificates,
    verification: CertificateVerification,
) -> Arc<ClientConfig> {
    let provider = Arc::new(ring::default_provider());
    let builder =
        ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
    // ring speaks TLS 1.2 and 1.3
    let builder = builder.unwrap_or_else(|_| unreachable!());
    let mut config = match verification {
        CertificateVerification::On => builder
            .with_root_certificates(roots.0.clone())
            .with_no_client_auth(),
        CertificateVerification::Off => {
            let any = Arc::new(InsecureCertVerifier(provider));
            builder
                .dangerous()
                .with_custom_certificate_verifier(any)
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

/// Believes every certificate, but still wants the peer to hold its key.
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
    fn a_file_without_certificates_is_refused_by_name() {
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
    fn the_roots_that_are_compiled_in_are_always_there() {
        assert!(
            RootCertificates::built_in_and_system().0.len() >= webpki_roots::TLS_SERVER_ROOTS.len()
        );
    }
}
