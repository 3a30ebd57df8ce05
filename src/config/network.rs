//! How other servers are reached: allowed addresses, the proxy, and the certificate authorities to trust.

use std::path::Path;
use std::sync::Arc;

use rustls::ClientConfig;

use super::reader::{Reported, SettingValue, SettingsReader, describe_length, quote_redacted};
use super::table::{
    LIVEKIT_ALLOWED_NETWORKS, LIVEKIT_CA_FILE, LIVEKIT_DENIED_NETWORKS, LIVEKIT_HTTPS_PROXY,
    LIVEKIT_INSECURE_SKIP_VERIFY_TLS, SSL_CERT_DIR, SSL_CERT_FILE,
};
use super::values::{parse_networks, split_directories};
use crate::net::address::{AddressPolicy, Network};
use crate::net::http_client::Fetcher;
use crate::net::http_client::proxy::{InvalidProxy, Proxy};
use crate::net::tls::{CertificateVerification, RootCertificates, client_config};

/// The only value of `LIVEKIT_INSECURE_SKIP_VERIFY_TLS` that has an effect.
const INSECURE_TLS_OPT_IN: &str = "YES_I_KNOW_WHAT_I_AM_DOING";

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct NetworkConfig {
    allowed_networks: Vec<Network>,
    denied_networks: Vec<Network>,
    /// Proxy for TLS to public addresses, except those of the SFU and of Redis.
    pub proxy: Option<Proxy>,
    /// The certificate authorities to trust.
    pub roots: RootCertificates,
    insecure_skip_verify_tls: bool,
}

impl NetworkConfig {
    /// The addresses that homeservers and JWKS may have.
    pub(crate) fn address_policy(&self) -> AddressPolicy {
        AddressPolicy::new(self.allowed_networks.clone(), self.denied_networks.clone())
    }

    /// A source of fetchers, each with a pool of at most `max_idle` connections.
    pub(crate) fn fetchers(&self, max_idle: usize) -> FetcherFactory {
        let homeservers = match self.insecure_skip_verify_tls {
            true => CertificateVerification::Off,
            false => CertificateVerification::On,
        };
        FetcherFactory {
            tls: client_config(&self.roots, CertificateVerification::On),
            homeserver_tls: client_config(&self.roots, homeservers),
            address_policy: self.address_policy(),
            proxy: self.proxy.clone(),
            max_idle,
        }
    }
}

/// Makes fetchers that share their TLS settings and nothing else.
#[derive(Debug, Clone)]
pub(crate) struct FetcherFactory {
    tls: Arc<ClientConfig>,
    homeserver_tls: Arc<ClientConfig>,
    address_policy: AddressPolicy,
    proxy: Option<Proxy>,
    max_idle: usize,
}

impl FetcherFactory {
    /// For homeservers that users name.
    pub(crate) fn homeserver(&self) -> Fetcher {
        let (tls, policy) = (self.homeserver_tls.clone(), self.address_policy.clone());
        Fetcher::new(tls, policy, self.max_idle).with_proxy(self.proxy.clone())
    }

    /// For the JWKS of a login.
    pub(crate) fn jwks(&self) -> Fetcher {
        let (tls, policy) = (self.tls.clone(), self.address_policy.clone());
        Fetcher::new(tls, policy, 0).with_proxy(self.proxy.clone())
    }

    /// For URLs that the administrator names, without the proxy: the SFU.
    pub(crate) fn direct(&self) -> Fetcher {
        Fetcher::new(self.tls.clone(), AddressPolicy::default(), self.max_idle)
    }

    /// For the homeserver that has this service as an application service. Certificates are always checked: requests carry the
    /// as_token.
    pub(crate) fn own_homeserver(&self) -> Fetcher {
        self.direct().with_proxy(self.proxy.clone())
    }
}

pub(super) fn read(reader: &mut SettingsReader<'_>) -> Result<NetworkConfig, Reported> {
    let allowed_networks = reader.parse(&LIVEKIT_ALLOWED_NETWORKS, parse_networks);
    let denied_networks = reader.parse(&LIVEKIT_DENIED_NETWORKS, parse_networks);
    let proxy = read_proxy(reader);
    let roots = read_certificate_authorities(reader);
    let insecure_skip_verify_tls = read_insecure_skip_verify_tls(reader);
    Ok(NetworkConfig {
        allowed_networks: allowed_networks?,
        denied_networks: denied_networks?,
        proxy: proxy?,
        roots: roots?,
        insecure_skip_verify_tls: insecure_skip_verify_tls?,
    })
}

fn read_proxy(reader: &mut SettingsReader<'_>) -> Result<Option<Proxy>, Reported> {
    let Some(value) = reader.value(&LIVEKIT_HTTPS_PROXY)? else {
        return Ok(None);
    };
    match Proxy::parse(&value.text) {
        Ok(proxy) => {
            let display_text = match value.text.contains('@') {
                true => format!("{proxy} (login set)"),
                false => proxy.to_string(),
            };
            reader.report_as(value.setting, display_text, value.origin);
            Ok(Some(proxy))
        }
        // a password can be anywhere in it
        Err(InvalidProxy) => {
            let found = describe_length(&value.text);
            Err(reader.invalid(value.setting, InvalidProxy::EXPECTED, found))
        }
    }
}

/// Reads the certificate authorities. `LIVEKIT_CA_FILE` has to be usable; the variables of other programs need not.
fn read_certificate_authorities(
    reader: &mut SettingsReader<'_>,
) -> Result<RootCertificates, Reported> {
    let mut roots = RootCertificates::built_in_and_system();
    if let Some(value) = reader.value(&LIVEKIT_CA_FILE)? {
        if let Err(error) = roots.add_file(Path::new(&value.text)) {
            let found = format!("{}: {}", quote_redacted(&value.text), error.reason());
            return Err(reader.invalid(value.setting, value.setting.expected_form(), found));
        }
        reader.report_value(&value);
    }
    let files = reader.value(&SSL_CERT_FILE)?;
    let directories = reader.value(&SSL_CERT_DIR)?;
    let add = |value: &SettingValue, roots: &mut RootCertificates| match value.setting.path {
        true => roots.add_file(Path::new(&value.text)),
        false => split_directories(&value.text)
            .iter()
            .try_for_each(|path| roots.add_directory(path)),
    };
    for value in [files, directories].into_iter().flatten() {
        match add(&value, &mut roots) {
            Ok(()) => reader.report_value(&value),
            Err(error) => {
                let (name, text) = (value.setting.name, quote_redacted(&value.text));
                let reason = error.reason();
                reader.warn(format!("{name} is ignored: {text}: {reason}"));
            }
        }
    }
    Ok(roots)
}

fn read_insecure_skip_verify_tls(reader: &mut SettingsReader<'_>) -> Result<bool, Reported> {
    let Some(value) = reader.value(&LIVEKIT_INSECURE_SKIP_VERIFY_TLS)? else {
        return Ok(false);
    };
    let (name, is_on) = (value.setting.name, value.text == INSECURE_TLS_OPT_IN);
    if is_on {
        reader.warn(format!(
            "CERTIFICATES OF HOMESERVERS ARE NOT CHECKED, because {name} is set: anyone between this service and a homeserver can \
             pose as any user of it"
        ));
        reader.report_value(&value);
    } else {
        reader.warn(format!(
            "{name} has no effect: certificates are checked, since its value is not {INSECURE_TLS_OPT_IN}"
        ));
    }
    Ok(is_on)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use crate::config::tests::{TempDir, environment, errors, read_valid, row};

    const PROXY: &str = "LIVEKIT_HTTPS_PROXY";

    #[test]
    fn a_proxy_is_shown_without_its_login() {
        for (value, display_text) in [
            ("http://proxy:3128", "http://proxy:3128 | environment"),
            (
                "http://user:hunter2@proxy:3128/",
                "http://proxy:3128 (login set) | environment",
            ),
            ("", "(no row)"),
        ] {
            let (config, report) = read_valid(&[(PROXY, value)]);
            assert_eq!(config.network.proxy.is_some(), !value.is_empty());
            assert_eq!(row(&report, PROXY), display_text);
            let output = format!("{config:?} {report:?}");
            assert!(
                !output.contains("hunter2") && !output.contains("user:"),
                "{output}"
            );
        }
    }

    #[test]
    fn a_wrong_proxy_is_an_error_that_does_not_show_it() {
        for value in [
            "hunter2",
            "proxy:3128",
            "https://user:hunter2@proxy:3128",
            "socks5://proxy:1080",
            "http://user:hunter2",
            "http://user:hunter2@proxy",
            "http://proxy:3128/hunter2",
        ] {
            let errors = errors(&environment(&[(PROXY, value)]));
            let start = format!("{PROXY}: expected http://[user:password@]host:port");
            assert_eq!(errors.len(), 1);
            assert!(errors[0].starts_with(&start), "{errors:?}");
            assert!(errors[0].ends_with(" characters") && !errors[0].contains("hunter2"));
        }
    }

    #[test]
    fn certificates_are_checked_unless_the_exact_words_say_otherwise() {
        const NAME: &str = "LIVEKIT_INSECURE_SKIP_VERIFY_TLS";
        let read = |value| {
            let (config, report) = read_valid(&[(NAME, value)]);
            (config.network.insecure_skip_verify_tls, report.warnings)
        };
        for value in ["true", "1", "yes_i_know_what_i_am_doing"] {
            let (insecure, warnings) = read(value);
            let start = format!("{NAME} has no effect");
            assert!(!insecure && warnings.iter().any(|w| w.starts_with(&start)));
        }
        let (insecure, warnings) = read("YES_I_KNOW_WHAT_I_AM_DOING");
        assert!(insecure && warnings.iter().any(|w| w.contains("NOT CHECKED")));
    }

    #[test]
    fn authorities_of_other_programs_may_be_unusable() {
        let directory = TempDir::new();
        let certificate = rcgen::generate_simple_self_signed(["ca.example".to_owned()]).unwrap();
        let ca = directory.file("ca.pem", certificate.cert.pem());
        let (_, report) = read_valid(&[
            ("LIVEKIT_CA_FILE", &ca),
            ("SSL_CERT_FILE", "/etc/hosts"),
            ("SSL_CERT_DIR", "/etc/ssl/certs:/nowhere"),
        ]);
        for name in ["SSL_CERT_FILE", "SSL_CERT_DIR"] {
            let ignored = format!("{name} is ignored: ");
            let mut warnings = report.warnings.iter();
            assert!(warnings.any(|w| w.starts_with(&ignored)), "{report:?}");
        }
        fs::write(&ca, "no certificate").unwrap();
        let wrong = errors(&environment(&[("LIVEKIT_CA_FILE", &ca)]));
        let start = "LIVEKIT_CA_FILE: expected a PEM file of certificates, found";
        assert!(wrong[0].starts_with(start), "{wrong:?}");
    }
}
