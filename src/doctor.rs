//! `doctor`: asks everyone whom the service would ask, and says what is amiss in words that lead to a cure.

mod appservice;

use std::io::{self, Write};
use std::time::{Duration, Instant, SystemTime};

use livekit_token_service::cli;
use livekit_token_service::config::{Config, Environment};
use livekit_token_service::livekit::room_service::RoomService;
use livekit_token_service::matrix::client_api::{ClientApi, Support};
use livekit_token_service::matrix::federation::Federation;
use livekit_token_service::matrix::id::ServerName;
use livekit_token_service::matrix::openid::{self, OpenIdToken, Refusal, Verifier};
use livekit_token_service::net::base_url::BaseUrl;
use livekit_token_service::net::bulkhead::{PER_NEIGHBOURHOOD, Places};
use livekit_token_service::net::fetch::{Answer, Fetcher, Limits, Request, Route};

use crate::house::{to_homeservers, to_the_named};

/// For one call. Whoever takes longer is ill.
const BUDGET: Duration = Duration::from_secs(10);
const LIMITS: Limits = Limits {
    kind: "doctor",
    connect: Duration::from_secs(5),
    head: Duration::from_secs(8),
    body: Duration::from_secs(3),
    // a page of a proxy, of which nothing but its existence is looked at
    max_body: 1 << 20,
    neighbours: PER_NEIGHBOURHOOD,
};
/// A clock that is wrong by more is worth a warning: an SFU refuses what is off by a minute.
const SKEW: Duration = Duration::from_secs(30);
/// Homeservers that are asked; a list that is longer says nothing new.
const MOST_HOMESERVERS: usize = 50;
/// No homeserver ever gave it out.
const NOBODYS_TOKEN: &str = "livekit-token-service-doctor";

/// Examines what the settings name, and the service at its public `url`. Gives the exit code: 0 if nothing has failed.
pub(crate) fn examine(
    env: &Environment,
    url: Option<BaseUrl>,
    out: &mut impl Write,
) -> io::Result<u8> {
    let (config, report) = Config::read(env);
    let mut chart = Chart { out, failed: false };
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
    chart.well("settings", "understood")?;
    sfu(&config, &mut chart)?;
    proxy(&config, &mut chart)?;
    homeservers(&config, &mut chart)?;
    if let Some(own) = &config.appservice {
        appservice::examine(own, &config, &mut chart)?;
    }
    match url {
        Some(url) => public(&config, &url, &mut chart)?,
        // clients speak with their homeserver
        None if !config.matrix && config.token_server.is_none() => {}
        None => chart.warn(
            "public URL",
            "not examined: `doctor https://…` takes the URL that clients use",
        )?,
    }
    Ok(u8::from(chart.failed))
}

/// One line for each finding.
struct Chart<'a, W> {
    out: &'a mut W,
    failed: bool,
}

impl<W: Write> Chart<'_, W> {
    fn well(&mut self, what: &str, finding: &str) -> io::Result<()> {
        self.line("ok  ", what, finding)
    }

    fn warn(&mut self, what: &str, finding: &str) -> io::Result<()> {
        self.line("warn", what, finding)
    }

    fn fail(&mut self, what: &str, finding: &str) -> io::Result<()> {
        self.failed = true;
        self.line("FAIL", what, finding)
    }

    /// Well, or the error.
    fn either(
        &mut self,
        what: &str,
        outcome: Result<&str, impl std::fmt::Display>,
    ) -> io::Result<()> {
        match outcome {
            Ok(finding) => self.well(what, finding),
            Err(error) => self.fail(what, &error.to_string()),
        }
    }

    fn line(&mut self, verdict: &str, what: &str, finding: &str) -> io::Result<()> {
        let finding = livekit_token_service::logger::escaped(finding);
        writeln!(self.out, "{verdict} {what}: {finding}")
    }
}

fn sfu(config: &Config, chart: &mut Chart<'_, impl Write>) -> io::Result<()> {
    let (url, key) = (config.api_url.clone(), config.keys[0].clone());
    let rooms = RoomService::new(to_the_named(config, 1), url.clone(), key.clone());
    match rooms.check() {
        Ok(()) => chart.well(
            "SFU",
            &format!("{url} answers and takes the key {}", key.id()),
        )?,
        Err(error) => chart.fail("SFU", &error.to_string())?,
    }
    let answer = get(&to_the_named(config, 1), &url, "/");
    let Some(date) = answer.ok().and_then(|answer| date(&answer)) else {
        return chart.warn("clock", "the SFU tells no time to compare with");
    };
    let now = SystemTime::now();
    let skew = now
        .duration_since(date)
        .or_else(|_| date.duration_since(now));
    let skew = skew.unwrap_or_default();
    let finding = format!("{} s apart from the SFU's", skew.as_secs());
    if skew > SKEW {
        return chart.fail(
            "clock",
            &format!("{finding}; let both follow one time server"),
        );
    }
    chart.well("clock", &finding)
}

fn date(answer: &Answer) -> Option<SystemTime> {
    let field = answer.headers.get("date")?.to_str().ok()?;
    httpdate::parse_http_date(field).ok()
}

/// Whether an HTTP server is where the proxy should be. What it lets through is seen when the homeservers are asked.
fn proxy(config: &Config, chart: &mut Chart<'_, impl Write>) -> io::Result<()> {
    let Some(proxy) = &config.egress.proxy else {
        return Ok(());
    };
    match get(&to_the_named(config, 1), proxy.url(), "/") {
        Ok(_) => chart.well(
            "proxy",
            &format!("{proxy} answers; through it goes what is on public addresses, the SFU apart"),
        ),
        Err(error) => chart.fail(
            "proxy",
            &format!("{proxy}: {error}; LIVEKIT_HTTPS_PROXY has to be where this host reaches it"),
        ),
    }
}

fn homeservers(config: &Config, chart: &mut Chart<'_, impl Write>) -> io::Result<()> {
    if !config.matrix {
        return Ok(());
    }
    let listed: Vec<_> = config.full_access.names().cloned().collect();
    let fetcher = to_homeservers(config, 1);
    let federation = Federation::new(
        fetcher(),
        config.federation_overrides.clone(),
        listed.iter().cloned().collect(),
        Places::of(1),
    );
    let verifier = Verifier::new(federation, Duration::ZERO);
    let overrides = config.delegation.client_api_overrides.clone();
    let client_api = ClientApi::new(fetcher(), overrides, listed.iter().cloned().collect());
    if listed.is_empty() {
        chart.warn(
            "homeservers",
            "none is named in LIVEKIT_FULL_ACCESS_HOMESERVERS",
        )?;
    }
    for server in listed.iter().take(MOST_HOMESERVERS) {
        homeserver(server, &verifier, &client_api, chart)?;
    }
    Ok(())
}

fn homeserver(
    server: &ServerName,
    verifier: &Verifier,
    client_api: &ClientApi,
    chart: &mut Chart<'_, impl Write>,
) -> io::Result<()> {
    let what = format!("{server} federation");
    match verifier.verify(server.as_str(), &OpenIdToken::new(NOBODYS_TOKEN), None) {
        Err(openid::Error::Refused(Refusal::UnknownToken(_))) => {
            chart.well(&what, "answers, and refuses a token that it never gave out")?;
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
    match client_api.delayed_events(server) {
        Ok(Support::Yes(_)) => chart.well(&what, "can be asked to restart and send them"),
        Ok(Support::No) => chart.warn(
            &what,
            "says that it has none (MSC4140): clients keep their own leaves",
        ),
        Err(error) => chart.warn(&what, &error.to_string()),
    }
}

fn public(config: &Config, url: &BaseUrl, chart: &mut Chart<'_, impl Write>) -> io::Result<()> {
    let fetcher = to_the_named(config, 1);
    match get(&fetcher, url, "/healthz") {
        Ok(answer) if answer.status == 200 => {
            chart.well("public URL", &format!("{url} leads here"))?
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
    if !config.matrix {
        return Ok(());
    }
    let target = format!("{}/get_token", url.path());
    let request = Request {
        post: Some(("application/json", b"{}")),
        ..Request::get(&target)
    };
    let answer = fetcher.fetch(&Route::to(url), request, LIMITS, Instant::now() + BUDGET);
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
            1 => chart.well("CORS", "one Access-Control-Allow-Origin"),
            0 => chart.fail("CORS", "no Access-Control-Allow-Origin: the proxy takes it away"),
            count => chart.fail(
                "CORS",
                &format!("{count} times Access-Control-Allow-Origin, which browsers refuse: the proxy must not add its own"),
            ),
        },
    }
}

fn get(fetcher: &Fetcher, url: &BaseUrl, path: &str) -> Result<Answer, String> {
    let target = format!("{}{path}", url.path());
    let answer = fetcher.fetch(
        &Route::to(url),
        Request::get(&target),
        LIMITS,
        Instant::now() + BUDGET,
    );
    answer.map_err(|error| error.to_string())
}
