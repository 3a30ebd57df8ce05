//! The test process' own certificate authority, and the certificates that it signs for fake homeservers.

use std::sync::{Arc, OnceLock};

use rcgen::{BasicConstraints, Certificate, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

/// Certificate of a fake homeserver.
#[derive(Clone, Copy)]
pub(crate) enum Presents<'a> {
    /// Signed by the authority for this name or address.
    Name(&'a str),
    /// Self-signed for this name.
    SelfSigned(&'a str),
}

/// The authority's certificate, for `LIVEKIT_CA_FILE`.
pub(crate) fn authority_pem() -> &'static str {
    &authority().pem
}

/// TLS configuration of a server with the certificate.
pub(crate) fn server_config(presents: Presents<'_>) -> Arc<ServerConfig> {
    let key = KeyPair::generate().unwrap();
    let leaf = match presents {
        Presents::Name(name) => leaf_for(name).signed_by(&key, &authority().issuer).unwrap(),
        Presents::SelfSigned(name) => leaf_for(name).self_signed(&key).unwrap(),
    };
    let chain = vec![CertificateDer::from(leaf.der().to_vec())];
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    Arc::new(config)
}

struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

fn authority() -> &'static Authority {
    static AUTHORITY: OnceLock<Authority> = OnceLock::new();
    AUTHORITY.get_or_init(|| {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
            .distinguished_name
            .push(DnType::CommonName, "authority of the black-box suite");
        let certificate: Certificate = params.self_signed(&key).unwrap();
        Authority {
            pem: certificate.pem(),
            issuer: Issuer::new(params, key),
        }
    })
}

fn leaf_for(name: &str) -> CertificateParams {
    let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    params
        .distinguished_name
        .push(DnType::CommonName, format!("fake homeserver {name}"));
    params
}
