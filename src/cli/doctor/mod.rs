//! `doctor`: asks everyone whom the service would ask, and says what is amiss in words that lead to a cure.

mod appservice;

use std::io::{self, Write};
use std::time::{Duration, Instant, SystemTime};

use crate::cli;
use crate::config::{Config, Environment};
use crate::livekit::room_service::RoomServiceClient;
use crate::matrix::client_api::{ClientApiDiscovery, DelayedEventSupport};
use crate::matrix::federation::FederationClient;
use crate::matrix::id::ServerName;
use crate::matrix::openid;
use crate::matrix::openid::{OpenIdRefusal, OpenIdToken, OpenIdVerifier};
use crate::matrix::server_directory::ServerDirectory;
use crate::net::base_url::BaseUrl;
use crate::net::http_client::{FetchLimits, FetchRequest, FetchResponse, Fetcher, HttpRoute};
use crate::net::permits::{MAX_CALLS_PER_SUBNET, PermitCounts};

use crate::app::{configured_server_fetcher, homeserver_fetcher_factory};

/// For one call. Whoever takes longer is ill.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
const FETCH_LIMITS: FetchLimits = FetchLimits {
    kind: "doctor",
    connect_timeout: Duration::from_secs(5),
    head_timeout: Duration::from_secs(8),
    body_timeout: Duration::from_secs(3),
    // a page of a proxy, of which nothing but its existence is looked at
    max_body: 1 << 20,
    max_subnet_calls: MAX_CALLS_PER_SUBNET,
};
/// A clock that is wrong by more is worth a warning: an SFU refuses what is off by a minute.
const MAX_CLOCK_SKEW: Duration = Duration::from_secs(30);
/// Homeservers that are asked; a list that is longer says nothing new.
const MAX_HOMESERVERS: usize = 50;
/// No homeserver ever gave it out.
const UNKNOWN_OPENID_TOKEN: &str = "livekit-token-service-doctor";

/// Examines what the settings name, and the service at its public `url`. Gives the exit code: 0 if nothing has failed.
pub(crate) fn run_doctor(
    env: &Environment,
    url: Option<BaseUrl>,
    out: &mut impl Write,
) -> io::Result<u8> {
    let (config, report) = Config::read_with_defaults(env);
    let mut chart = DoctorReport { out, failed: false };
    for warning in report.warnings() {
        chart.warn("settings", warning)?;
    }
    let config = match config {
        Ok(config) => config,
        Err(errors) => {
            for error in errors {
                chart.fail("settings", &error.to_string())?;
            }
            return Ok(cli::EXIT_CONFIG);
        }
    };
    chart.ok("settings", "understood")?;
    check_sfu(&config, &mut chart)?;
    check_proxy(&config, &mut chart)?;
    check_homeservers(&config, &mut chart)?;
    if let Some(own) = &config.appservice {
        appservice::check_appservice(own, &config, &mut chart)?;
    }
    match url {
        Some(url) => check_public_url(&config, &url, &mut chart)?,
        // clients speak with their homeserver
        None if !config.matrix_enabled && config.token_endpoint.is_none() => {}
        None => chart.warn(
            "public URL",
            "not examined: `doctor https://…` takes the URL that clients use",
        )?,
    }
    Ok(u8::from(chart.failed))
}

/// One line for each finding.
struct DoctorReport<'a, W> {
    out: &'a mut W,
    failed: bool,
}

impl<W: Write> DoctorReport<'_, W> {
    fn ok(&mut self, what: &str, finding: &str) -> io::Result<()> {
        self.write_line("ok  ", what, finding)
    }

    fn warn(&mut self, what: &str, finding: &str) -> io::Result<()> {
        self.write_line("warn", what, finding)
    }

    fn fail(&mut self, what: &str, finding: &str) -> io::Result<()> {
        self.failed = true;
        self.write_line("FAIL", what, finding)
    }

    /// Well, or the error.
    fn record_result(
        &mut self,
        what: &str,
        outcome: Result<&str, impl std::fmt::Display>,
    ) -> io::Result<()> {
        match outcome {
            Ok(finding) => self.ok(what, finding),
            Err(error) => self.fail(what, &error.to_string()),
        }
    }

    fn write_line(&mut self, verdict: &str, what: &str, finding: &str) -> io::Result<()> {
        let finding = crate::util::logging::escape_control_chars(finding);
        writeln!(self.out, "{verdict} {what}: {finding}")
    }
}

fn check_sfu(config: &Config, chart: &mut DoctorReport<'_, impl Write>) -> io::Result<()> {
    let (url, key) = (config.sfu_api_url.clone(), config.api_keys[0].clone());
    let rooms = RoomServiceClient::new(
        configured_server_fetcher(config, 1),
        url.clone(),
        key.clone(),
    );
    match rooms.probe() {
        Ok(()) => chart.ok(
            "SFU",
            &format!("{url} answers and takes the key {}", key.id()),
        )?,
        Err(error) => chart.fail("SFU", &error.to_string())?,
    }
    let answer = fetch_path(&configured_server_fetcher(config, 1), &url, "/");
    let Some(date) = answer.ok().and_then(|answer| parse_date_header(&answer)) else {
        return chart.warn("clock", "the SFU tells no time to compare with");
    };
    let now = SystemTime::now();
    let skew = now
        .duration_since(date)
        .or_else(|_| date.duration_since(now));
    let skew = skew.unwrap_or_default();
    let finding = format!("{} s apart from the SFU's", skew.as_secs());
    if skew > MAX_CLOCK_SKEW {
        return chart.fail(
            "clock",
            &format!("{finding}; let both follow one time server"),
        );
    }
    chart.ok("clock", &finding)
}

fn parse_date_header(answer: &FetchResponse) -> Option<SystemTime> {
    let field = answer.headers.get("date")?.to_str().ok()?;
    httpdate::parse_http_date(field).ok()
}

/// Whether an HTTP server is where the proxy should be. What it lets through is seen when the homeservers are asked.
fn check_proxy(config: &Config, chart: &mut DoctorReport<'_, impl Write>) -> io::Result<()> {
    let Some(proxy) = &config.egress.proxy else {
        return Ok(());
    };
    match fetch_path(&configured_server_fetcher(config, 1), proxy.url(), "/") {
        Ok(_) => chart.ok(
            "proxy",
            &format!("{proxy} answers; through it goes what is on public addresses, the SFU apart"),
        ),
        Err(error) => chart.fail(
            "proxy",
            &format!("{proxy}: {error}; LIVEKIT_HTTPS_PROXY has to be where this host reaches it"),
        ),
    }
}

fn check_homeservers(config: &Config, chart: &mut DoctorReport<'_, impl Write>) -> io::Result<()> {
    if !config.matrix_enabled {
        return Ok(());
    }
    let listed: Vec<_> = config.full_access.names().cloned().collect();
    let fetcher = homeserver_fetcher_factory(config, 1);
    let federation = FederationClient::new(
        fetcher(),
        ServerDirectory::new(config.federation_overrides.clone(), listed.clone()),
        PermitCounts::split(1),
    );
    let verifier = OpenIdVerifier::new(federation, Duration::ZERO);
    let overrides = config.delegation.client_api_overrides.clone();
    let client_api =
        ClientApiDiscovery::new(fetcher(), ServerDirectory::new(overrides, listed.clone()));
    if listed.is_empty() {
        chart.warn(
            "homeservers",
            "none is named in LIVEKIT_FULL_ACCESS_HOMESERVERS",
        )?;
    }
    for server in listed.iter().take(MAX_HOMESERVERS) {
        check_homeserver(server, &verifier, &client_api, chart)?;
    }
    Ok(())
}

fn check_homeserver(
    server: &ServerName,
    verifier: &OpenIdVerifier,
    client_api: &ClientApiDiscovery,
    chart: &mut DoctorReport<'_, impl Write>,
) -> io::Result<()> {
    let what = format!("{server} federation");
    match verifier.verify(server, &OpenIdToken::new(UNKNOWN_OPENID_TOKEN), None) {
        Err(openid::Error::Refused(OpenIdRefusal::UnknownToken(_))) => {
            chart.ok(&what, "answers, and refuses a token that it never gave out")?;
        }
        Ok(_) | Err(openid::Error::Refused(_)) => {
            chart.fail(&what, "vouches for a token that it never gave out")?;
        }
        Err(error) => chart.fail(
            &what,
            &format!("{error}; LIVEKIT_FEDERATION_URL_OVERRIDES={server}=https://… names another way to it"),
        )?,
    }
    let what = format!("{server} delayed events");
    match client_api.delayed_event_support(server) {
        Ok(DelayedEventSupport::Supported(_)) => {
            chart.ok(&what, "can be asked to restart and send them")
        }
        Ok(DelayedEventSupport::Unsupported) => chart.warn(
            &what,
            "says that it has none (MSC4140): clients keep their own leaves",
        ),
        Err(error) => chart.warn(&what, &error.to_string()),
    }
}

fn check_public_url(
    config: &Config,
    url: &BaseUrl,
    chart: &mut DoctorReport<'_, impl Write>,
) -> io::Result<()> {
    let fetcher = configured_server_fetcher(config, 1);
    match fetch_path(&fetcher, url, "/healthz") {
        Ok(answer) if answer.status == 200 => {
            chart.ok("public URL", &format!("{url} leads here"))?
        }
        Ok(answer) => {
            let status = answer.status;
            return chart.fail(
                "public URL",
                &format!(
                    "{url}/healthz answers with status {status}: does the proxy pass the path on?"
                ),
            );
        }
        Err(error) => return chart.fail("public URL", &format!("{url}: {error}")),
    }
    if !config.matrix_enabled {
        return Ok(());
    }
    let target = format!("{}/get_token", url.path());
    let request = FetchRequest {
        post: Some(("application/json", b"{}")),
        ..FetchRequest::get(&target)
    };
    let answer = fetcher.fetch(
        &HttpRoute::administrator_url(url),
        request,
        FETCH_LIMITS,
        Instant::now() + CALL_TIMEOUT,
    );
    match answer {
        Err(error) => chart.fail("public URL", &format!("POST {target}: {error}")),
        Ok(answer) if answer.status != 400 => {
            let status = answer.status;
            chart.fail(
                "public URL",
                &format!("POST {target} answers with status {status}, not 400: is it this service?"),
            )
        }
        Ok(answer) => match answer.headers.get_all("access-control-allow-origin").iter().count() {
            1 => chart.ok("CORS", "one Access-Control-Allow-Origin"),
            0 => chart.fail("CORS", "no Access-Control-Allow-Origin: the proxy takes it away"),
            count => chart.fail(
                "CORS",
                &format!("{count} times Access-Control-Allow-Origin, which browsers refuse: the proxy must not add its own"),
            ),
        },
    }
}

fn fetch_path(fetcher: &Fetcher, url: &BaseUrl, path: &str) -> Result<FetchResponse, String> {
    let target = format!("{}{path}", url.path());
    let answer = fetcher.fetch(
        &HttpRoute::administrator_url(url),
        FetchRequest::get(&target),
        FETCH_LIMITS,
        Instant::now() + CALL_TIMEOUT,
    );
    answer.map_err(|error| error.to_string())
}
