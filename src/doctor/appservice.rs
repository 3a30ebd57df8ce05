//! The wiring of application-service mode, from both sides.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use livekit_token_service::config::Config;
use livekit_token_service::config::appservice::AppService as Own;
use livekit_token_service::matrix::appservice::{Error, Homeserver, Passing, Ping};
use livekit_token_service::matrix::client_api::{ClientApi, Support};
use livekit_token_service::matrix::id::{DelayId, RoomId, UserId};

use super::Chart;
use crate::house::to_our_homeserver;

/// How long a look-up of a delayed event may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// No such room can be, nor such a delayed event.
const NO_ROOM: &str = "!livekit-token-service-doctor";
const NO_EVENT: &str = "livekit-token-service-doctor";
const REGISTRATION: &str = "the registration has to be among the homeserver's app_service_config_files, as it is here, and the homeserver restarted since";

/// Examines how our homeserver and this service reach and know each other.
pub(super) fn examine(
    own: &Own,
    config: &Config,
    chart: &mut Chart<'_, impl Write>,
) -> io::Result<()> {
    let (name, url) = (own.server.clone(), own.url.clone());
    let as_token = own.registration.as_token.clone();
    let fetcher = || to_our_homeserver(config, 1);
    let homeserver = Homeserver::new(fetcher(), name, url, as_token);
    let Some(us) = introduce(own, &homeserver, chart)? else {
        return Ok(());
    };
    let room = RoomId::parse(NO_ROOM).map(|room| homeserver.is_still_joined(&room, &us));
    if let Ok(joined) = room {
        let joined = joined.map(|_| "tells who is in a room (MSC4502)");
        chart.either("homeserver is_joined", joined)?;
    }
    let relays = homeserver.can_relay();
    let relays = relays.map(|()| "asks other homeservers for us (MSC4512)");
    chart.either("homeserver fed_proxy", relays)?;
    let place = [(own.server.clone(), own.url.clone())];
    let client_api = ClientApi::new(
        fetcher(),
        place.into_iter().collect(),
        [own.server.clone()].into_iter().collect(),
    );
    delayed_events(own, &homeserver, &client_api, &us, chart)?;
    passes_on(&homeserver, chart)?;
    pushes(own, &homeserver, chart)
}

/// Who we are to the homeserver, if it knows us.
fn introduce(
    own: &Own,
    homeserver: &Homeserver,
    chart: &mut Chart<'_, impl Write>,
) -> io::Result<Option<UserId>> {
    let (what, url) = ("homeserver", &own.url);
    match homeserver.whoami() {
        Ok(us) if *us.server() == own.server => {
            chart.well(
                what,
                &format!("{url} is {}, and knows our as_token", own.server),
            )?;
            Ok(Some(us))
        }
        Ok(us) => {
            let name = us.server();
            chart.fail(
                what,
                &format!(
                    "{url} is {name}, not {}: LIVEKIT_HS_SERVER_NAME={name}, or LIVEKIT_HS_URL names another one",
                    own.server
                ),
            )?;
            Ok(Some(us))
        }
        Err(Error::Refused(..)) => {
            chart.fail(
                what,
                &format!("{url} does not know our as_token: {REGISTRATION}"),
            )?;
            Ok(None)
        }
        Err(Error::NotUnderstood(status)) => {
            chart.fail(
                what,
                &format!(
                    "{url} answers with status {status}: does LIVEKIT_HS_URL lead to a homeserver?"
                ),
            )?;
            Ok(None)
        }
        Err(error) => {
            chart.fail(what, &error.to_string())?;
            Ok(None)
        }
    }
}

/// A client's leave is looked up, restarted and sent.
fn delayed_events(
    own: &Own,
    homeserver: &Homeserver,
    client_api: &ClientApi,
    us: &UserId,
    chart: &mut Chart<'_, impl Write>,
) -> io::Result<()> {
    let what = "homeserver delayed events";
    match client_api.delayed_events(&own.server) {
        Ok(Support::Yes(_)) => {}
        Ok(Support::No) => {
            return chart.warn(
                what,
                "says that it has none (MSC4140; max_event_delay_duration of Synapse): clients keep their own leaves",
            );
        }
        Err(error) => return chart.warn(what, &error.to_string()),
    }
    let Ok(event) = DelayId::parse(NO_EVENT) else {
        return Ok(());
    };
    let looked_up = homeserver.delayed_event(us, &event, Instant::now() + PATIENCE);
    let looked_up = looked_up.map(|_| "can be looked up, restarted and sent (MSC4140)");
    chart.either(what, looked_up)
}

/// Its users' wishes come here, and are believed to be its own.
fn passes_on(homeserver: &Homeserver, chart: &mut Chart<'_, impl Write>) -> io::Result<()> {
    let what = "homeserver to us";
    match homeserver.passes_on() {
        Ok(Passing::ToUs) => {
            chart.well(what, "passes on what its users ask, and shows the right hs_token")
        }
        Ok(Passing::NotKnown) => chart.fail(
            what,
            &format!(
                "does not know the path that it is to pass on (MSC4512; of Synapse: msc4512_enabled among its experimental_features, and \
                 the proxy_prefix that generate-registration writes): {REGISTRATION}"
            ),
        ),
        Ok(Passing::NotBelieved) => chart.fail(
            what,
            &format!("the service does not believe it: another hs_token, or another LIVEKIT_HS_SERVER_NAME than here; {REGISTRATION}"),
        ),
        Ok(Passing::ToOthers) => chart.fail(
            what,
            "whoever is at the registration's proxy_url is not this service, or runs without the LIVEKIT_AS_ settings",
        ),
        Ok(Passing::Else(status, errcode)) => chart.fail(
            what,
            &format!(
                "answers with status {status} {errcode}: does the registration's proxy_url lead from there to this service, and does it run?"
            ),
        ),
        Err(error) => chart.fail(what, &error.to_string()),
    }
}

/// It reaches us with events, if its registration says so.
fn pushes(own: &Own, homeserver: &Homeserver, chart: &mut Chart<'_, impl Write>) -> io::Result<()> {
    let what = "homeserver pushes";
    let Some(id) = &own.registration.id else {
        return chart.warn(
            what,
            "not examined: the registration's id is only in the file (LIVEKIT_AS_REGISTRATION_FILE)",
        );
    };
    match homeserver.ping(id) {
        Ok(Ping::Well(ms)) => chart.well(
            what,
            &format!("reach us in {ms} ms: whoever leaves a room is put out at once"),
        ),
        Ok(Ping::NoUrl) => chart.warn(
            what,
            &format!(
                "none, as its registration has no url: whoever leaves a room is put out within {} s (LIVEKIT_AS_MEMBERSHIP_CHECK_SECONDS)",
                own.check.as_secs()
            ),
        ),
        Ok(Ping::BadStatus(status @ (401 | 403))) => chart.fail(
            what,
            &format!("the service answers with {status}, for it knows another hs_token: {REGISTRATION}"),
        ),
        Ok(Ping::BadStatus(status)) => chart.fail(
            what,
            &format!("whoever is at the registration's url answers with status {status}: is it this service?"),
        ),
        Ok(Ping::Failed) => chart.fail(
            what,
            "nobody is at the registration's url, as the homeserver sees it: is it right from there, and does the service run?",
        ),
        Ok(Ping::TimedOut) => chart.fail(
            what,
            "whoever is at the registration's url does not answer the homeserver: is it right from there?",
        ),
        Ok(Ping::Else(status, errcode)) => chart.fail(
            what,
            &format!("status {status} {errcode}, when it was to ping the application service {id:?}: {REGISTRATION}"),
        ),
        Err(error) => chart.fail(what, &error.to_string()),
    }
}
