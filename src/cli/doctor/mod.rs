//! `doctor`: calls the servers that the service calls, and prints each problem with what to do about it.

mod appservice;

use std::fmt::Display;
use std::io::{self, Write};
use std::time::{Duration, Instant, SystemTime};

use super::EXIT_CONFIG;
use crate::config::{Config, Environment, FetcherFactory, Mode};
use crate::livekit::room_service::RoomServiceClient;
use crate::matrix::client_api::{ClientApiDiscovery, DelayedEventSupport};
use crate::matrix::federation::FederationClient;
use crate::matrix::id::ServerName;
use crate::matrix::openid::{self, OpenIdRefusal, OpenIdToken, OpenIdVerifier};
use crate::matrix::server_directory::ServerDirectory;
use crate::net::base_url::BaseUrl;
use crate::net::http_client::{FetchLimits, FetchRequest, FetchResponse, Fetcher, HttpRoute};
use crate::net::permits::PermitCounts;
use crate::util::logging::escape_control_chars;

/// Time for one call.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
const FETCH_LIMITS: FetchLimits = FetchLimits {
    // a proxy's page may be large, and only its existence matters
    max_body: 1 << 20,
    ..FetchLimits::new("doctor")
};
/// Largest clock difference: the SFU refuses tokens that are off by a minute.
const MAX_CLOCK_SKEW: Duration = Duration::from_secs(30);
/// Homeservers that are checked; a longer list would say nothing new.
const MAX_HOMESERVERS: usize = 50;
/// A token that no homeserver has issued.
const UNKNOWN_OPENID_TOKEN: &str = "livekit-token-service-doctor";

/// Checks the servers that the settings name, and the service at its public `url`. Returns the exit code: 0 without failures.
pub(crate) fn run(env: &Environment, url: Option<BaseUrl>, out: &mut impl Write) -> io::Result<u8> {
    let (config, config_report) = Config::read(env, Mode::Serve);
    let mut report = DoctorReport { out, failed: false };
    for warning in &config_report.warnings {
        report.warn("settings", warning)?;
    }
    let config = match config {
        Ok(config) => config,
        Err(errors) => {
            for error in errors {
                report.fail("settings", error)?;
            }
            return Ok(EXIT_CONFIG);
        }
    };
    report.ok("settings", "valid")?;
    let fetchers = config.network.fetchers(1);
    check_sfu(&config, &fetchers, &mut report)?;
    check_proxy(&config, &fetchers, &mut report)?;
    if config.endpoints.matrix {
        check_homeservers(&config, &fetchers, &mut report)?;
    }
    if let Some(appservice) = &config.appservice {
        appservice::check_appservice(appservice, &fetchers, &mut report)?;
    }
    match url {
        Some(url) => check_public_url(&config, &fetchers.direct(), &url, &mut report)?,
        // in application-service mode alone, clients call their homeserver
        None if !config.endpoints.matrix && !config.endpoints.token => {}
        None => report.warn(
            "public URL",
            "not checked: pass the URL that clients use (`doctor https://…`)",
        )?,
    }
    Ok(u8::from(report.failed))
}

/// Prints a line for each result.
struct DoctorReport<'a, W> {
    out: &'a mut W,
    failed: bool,
}

impl<W: Write> DoctorReport<'_, W> {
    fn ok(&mut self, subject: &str, result: impl Display) -> io::Result<()> {
        self.print("ok  ", subject, result)
    }

    fn warn(&mut self, subject: &str, result: impl Display) -> io::Result<()> {
        self.print("warn", subject, result)
    }

    fn fail(&mut self, subject: &str, result: impl Display) -> io::Result<()> {
        self.failed = true;
        self.print("FAIL", subject, result)
    }

    /// A failure for an error.
    fn result(&mut self, subject: &str, result: Result<&str, impl Display>) -> io::Result<()> {
        match result {
            Ok(text) => self.ok(subject, text),
            Err(error) => self.fail(subject, error),
        }
    }

    fn print(&mut self, verdict: &str, subject: &str, result: impl Display) -> io::Result<()> {
        let text = result.to_string();
        let text = escape_control_chars(&text);
        writeln!(self.out, "{verdict} {subject}: {text}")
    }
}

fn check_sfu(
    config: &Config,
    fetchers: &FetcherFactory,
    report: &mut DoctorReport<'_, impl Write>,
) -> io::Result<()> {
    let (url, key) = (&config.sfu.api_url, config.sfu_keys.keys.signing());
    let room_service = RoomServiceClient::new(fetchers.direct(), url.clone(), key.clone());
    match room_service.probe() {
        Ok(()) => report.ok(
            "SFU",
            format!("{url} answers and accepts API key {}", key.id()),
        )?,
        Err(error) => report.fail("SFU", error)?,
    }
    let response = fetch_path(&fetchers.direct(), url, "/");
    let Some(date) = response
        .ok()
        .and_then(|response| parse_date_header(&response))
    else {
        return report.warn("clock", "not checked: the SFU sends no Date header");
    };
    let now = SystemTime::now();
    let skew = now
        .duration_since(date)
        .or_else(|_| date.duration_since(now));
    let skew = skew.unwrap_or_default();
    let difference = format!("differs from the SFU's by {} s", skew.as_secs());
    if skew > MAX_CLOCK_SKEW {
        return report.fail(
            "clock",
            format!("{difference}; use the same time server on both hosts"),
        );
    }
    report.ok("clock", difference)
}

fn parse_date_header(response: &FetchResponse) -> Option<SystemTime> {
    let date = response.headers.get("date")?.to_str().ok()?;
    httpdate::parse_http_date(date).ok()
}

/// Checks that the proxy answers; whether it forwards shows in the checks of homeservers.
fn check_proxy(
    config: &Config,
    fetchers: &FetcherFactory,
    report: &mut DoctorReport<'_, impl Write>,
) -> io::Result<()> {
    let Some(proxy) = &config.network.proxy else {
        return Ok(());
    };
    match fetch_path(&fetchers.direct(), proxy.url(), "/") {
        Ok(_) => report.ok(
            "proxy",
            format!("{proxy} answers; it is used for public addresses, except the SFU's"),
        ),
        Err(error) => report.fail(
            "proxy",
            format!(
                "{proxy}: {error}; LIVEKIT_HTTPS_PROXY has to be a proxy that this host reaches"
            ),
        ),
    }
}

fn check_homeservers(
    config: &Config,
    fetchers: &FetcherFactory,
    report: &mut DoctorReport<'_, impl Write>,
) -> io::Result<()> {
    let homeservers = &config.homeservers;
    let listed = || homeservers.full_access.names().cloned();
    let directory = |overrides| ServerDirectory::new(overrides, listed());
    let federation = FederationClient::new(
        fetchers.homeserver(),
        directory(homeservers.federation_overrides.clone()),
        PermitCounts::split(1),
    );
    let verifier = OpenIdVerifier::new(federation, Duration::ZERO);
    let client_api = ClientApiDiscovery::new(
        fetchers.homeserver(),
        directory(homeservers.client_api_overrides.clone()),
    );
    if listed().next().is_none() {
        report.warn(
            "homeservers",
            "not checked: LIVEKIT_FULL_ACCESS_HOMESERVERS names none",
        )?;
    }
    for server in listed().take(MAX_HOMESERVERS) {
        check_homeserver(&server, &verifier, &client_api, report)?;
    }
    Ok(())
}

fn check_homeserver(
    server: &ServerName,
    verifier: &OpenIdVerifier,
    client_api: &ClientApiDiscovery,
    report: &mut DoctorReport<'_, impl Write>,
) -> io::Result<()> {
    let subject = format!("{server} federation");
    match verifier.verify(server, &OpenIdToken::new(UNKNOWN_OPENID_TOKEN), None) {
        Err(openid::Error::Refused(OpenIdRefusal::UnknownToken(_))) => {
            report.ok(&subject, "answers, and refuses an OpenID token that it has not issued")?;
        }
        Ok(_) | Err(openid::Error::Refused(_)) => {
            report.fail(&subject, "accepts an OpenID token that it has not issued")?;
        }
        Err(error) => report.fail(
            &subject,
            format!("{error}; LIVEKIT_FEDERATION_URL_OVERRIDES={server}=https://… sets another URL for it"),
        )?,
    }
    let subject = format!("{server} delayed events");
    match client_api.delayed_event_support(server) {
        Ok(DelayedEventSupport::Supported(_)) => report.ok(&subject, "can be restarted and sent"),
        Ok(DelayedEventSupport::Unsupported) => report.warn(
            &subject,
            "not supported (MSC4140): clients send their leaves themselves",
        ),
        Err(error) => report.warn(&subject, error),
    }
}

fn check_public_url(
    config: &Config,
    fetcher: &Fetcher,
    url: &BaseUrl,
    report: &mut DoctorReport<'_, impl Write>,
) -> io::Result<()> {
    match fetch_path(fetcher, url, "/healthz") {
        Ok(response) if response.status == 200 => {
            report.ok("public URL", format!("{url} leads to this service"))?;
        }
        Ok(response) => {
            let status = response.status;
            return report.fail(
                "public URL",
                format!(
                    "{url}/healthz answers with status {status}: does the proxy forward the path?"
                ),
            );
        }
        Err(error) => return report.fail("public URL", format!("{url}: {error}")),
    }
    if !config.endpoints.matrix {
        return Ok(());
    }
    let target = format!("{}/get_token", url.path());
    let request = FetchRequest {
        post: Some(("application/json", b"{}")),
        ..FetchRequest::get(&target)
    };
    let response = match fetch(fetcher, url, request) {
        Ok(response) if response.status == 400 => response,
        Ok(response) => {
            let status = response.status;
            return report.fail(
                "public URL",
                format!(
                    "POST {target} answers with status {status} instead of 400: is it this service?"
                ),
            );
        }
        Err(error) => return report.fail("public URL", format!("POST {target}: {error}")),
    };
    let origins = response.headers.get_all("access-control-allow-origin");
    match origins.iter().count() {
        1 => report.ok("CORS", "one Access-Control-Allow-Origin header"),
        0 => report.fail("CORS", "no Access-Control-Allow-Origin header: the proxy removes it"),
        count => report.fail(
            "CORS",
            format!("{count} Access-Control-Allow-Origin headers, which browsers refuse: the proxy must not add its own"),
        ),
    }
}

fn fetch_path(fetcher: &Fetcher, url: &BaseUrl, path: &str) -> Result<FetchResponse, String> {
    let target = format!("{}{path}", url.path());
    fetch(fetcher, url, FetchRequest::get(&target))
}

fn fetch(
    fetcher: &Fetcher,
    url: &BaseUrl,
    request: FetchRequest<'_>,
) -> Result<FetchResponse, String> {
    let (route, deadline) = (
        HttpRoute::administrator_url(url),
        Instant::now() + CALL_TIMEOUT,
    );
    let response = fetcher.fetch(&route, request, FETCH_LIMITS, deadline);
    response.map_err(|error| error.to_string())
}
