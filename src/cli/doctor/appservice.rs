//! The wiring of application-service mode, from both sides.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use crate::config::Config;
use crate::config::appservice::AppServiceConfig as Own;
use crate::matrix::appservice::{Error, ForwardingCheck, HomeserverClient, PingResult};
use crate::matrix::client_api::{ClientApiDiscovery, DelayedEventSupport};
use crate::matrix::id::{DelayId, RoomId, UserId};
use crate::matrix::server_directory::ServerDirectory;

use super::DoctorReport;
use crate::app::own_homeserver_fetcher;

/// How long a look-up of a delayed event may take.
const DELAYED_EVENT_TIMEOUT: Duration = Duration::from_secs(10);
/// No such room can be, nor such a delayed event.
const UNKNOWN_ROOM_ID: &str = "!livekit-token-service-doctor";
const UNKNOWN_DELAY_ID: &str = "livekit-token-service-doctor";
const REGISTRATION_HINT: &str = "the registration has to be among the homeserver's app_service_config_files, as it is here, and the homeserver restarted since";

/// Examines how our homeserver and this service reach and know each other.
pub(super) fn check_appservice(
    own: &Own,
    config: &Config,
    chart: &mut DoctorReport<'_, impl Write>,
) -> io::Result<()> {
    let (name, url) = (own.server_name.clone(), own.client_api_url.clone());
    let as_token = own.registration.as_token.clone();
    let fetcher = || own_homeserver_fetcher(config, 1);
    let homeserver = HomeserverClient::new(fetcher(), name, url, as_token);
    let Some(us) = check_identity(own, &homeserver, chart)? else {
        return Ok(());
    };
    let room = RoomId::parse(UNKNOWN_ROOM_ID).map(|room| homeserver.is_joined_uncached(&room, &us));
    if let Ok(joined) = room {
        let joined = joined.map(|_| "tells who is in a room (MSC4502)");
        chart.record_result("homeserver is_joined", joined)?;
    }
    let relays = homeserver.check_relay();
    let relays = relays.map(|()| "asks other homeservers for us (MSC4512)");
    chart.record_result("homeserver fed_proxy", relays)?;
    let place = [(own.server_name.clone(), own.client_api_url.clone())];
    let client_api = ClientApiDiscovery::new(fetcher(), ServerDirectory::new(place.into(), []));
    check_delayed_events(own, &homeserver, &client_api, &us, chart)?;
    check_proxied_requests(&homeserver, chart)?;
    check_event_push(own, &homeserver, chart)
}

/// Who we are to the homeserver, if it knows us.
fn check_identity(
    own: &Own,
    homeserver: &HomeserverClient,
    chart: &mut DoctorReport<'_, impl Write>,
) -> io::Result<Option<UserId>> {
    let (what, url) = ("homeserver", &own.client_api_url);
    match homeserver.whoami() {
        Ok(us) if *us.server() == own.server_name => {
            chart.ok(
                what,
                &format!("{url} is {}, and knows our as_token", own.server_name),
            )?;
            Ok(Some(us))
        }
        Ok(us) => {
            let name = us.server();
            chart.fail(
                what,
                &format!(
                    "{url} is {name}, not {}: LIVEKIT_HS_SERVER_NAME={name}, or LIVEKIT_HS_URL names another one",
                    own.server_name
                ),
            )?;
            Ok(Some(us))
        }
        Err(Error::Refused(..)) => {
            chart.fail(
                what,
                &format!("{url} does not know our as_token: {REGISTRATION_HINT}"),
            )?;
            Ok(None)
        }
        Err(Error::UnexpectedResponse(status)) => {
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
fn check_delayed_events(
    own: &Own,
    homeserver: &HomeserverClient,
    client_api: &ClientApiDiscovery,
    us: &UserId,
    chart: &mut DoctorReport<'_, impl Write>,
) -> io::Result<()> {
    let what = "homeserver delayed events";
    match client_api.delayed_event_support(&own.server_name) {
        Ok(DelayedEventSupport::Supported(_)) => {}
        Ok(DelayedEventSupport::Unsupported) => {
            return chart.warn(
                what,
                "says that it has none (MSC4140; max_event_delay_duration of Synapse): clients keep their own leaves",
            );
        }
        Err(error) => return chart.warn(what, &error.to_string()),
    }
    let Ok(event) = DelayId::parse(UNKNOWN_DELAY_ID) else {
        return Ok(());
    };
    let looked_up =
        homeserver.get_delayed_event(us, &event, Instant::now() + DELAYED_EVENT_TIMEOUT);
    let looked_up = looked_up.map(|_| "can be looked up, restarted and sent (MSC4140)");
    chart.record_result(what, looked_up)
}

/// Its users' wishes come here, and are believed to be its own.
fn check_proxied_requests(
    homeserver: &HomeserverClient,
    chart: &mut DoctorReport<'_, impl Write>,
) -> io::Result<()> {
    let what = "homeserver to us";
    match homeserver.check_forwarding() {
        Ok(ForwardingCheck::Forwarded) => {
            chart.ok(what, "passes on what its users ask, and shows the right hs_token")
        }
        Ok(ForwardingCheck::UnknownPath) => chart.fail(
            what,
            &format!(
                "does not know the path that it is to pass on (MSC4512; of Synapse: msc4512_enabled among its experimental_features, and \
                 the proxy_prefix that generate-registration writes): {REGISTRATION_HINT}"
            ),
        ),
        Ok(ForwardingCheck::HsTokenRejected) => chart.fail(
            what,
            &format!("the service does not believe it: another hs_token, or another LIVEKIT_HS_SERVER_NAME than here; {REGISTRATION_HINT}"),
        ),
        Ok(ForwardingCheck::WrongService) => chart.fail(
            what,
            "whoever is at the registration's proxy_url is not this service, or runs without the LIVEKIT_AS_ settings",
        ),
        Ok(ForwardingCheck::Other(status, errcode)) => chart.fail(
            what,
            &format!(
                "answers with status {status} {errcode}: does the registration's proxy_url lead from there to this service, and does it run?"
            ),
        ),
        Err(error) => chart.fail(what, &error.to_string()),
    }
}

/// It reaches us with events, if its registration says so.
fn check_event_push(
    own: &Own,
    homeserver: &HomeserverClient,
    chart: &mut DoctorReport<'_, impl Write>,
) -> io::Result<()> {
    let what = "homeserver pushes";
    let Some(id) = &own.registration.id else {
        return chart.warn(
            what,
            "not examined: the registration's id is only in the file (LIVEKIT_AS_REGISTRATION_FILE)",
        );
    };
    match homeserver.ping(id) {
        Ok(PingResult::Answered(ms)) => chart.ok(
            what,
            &format!("reach us in {ms} ms: whoever leaves a room is put out at once"),
        ),
        Ok(PingResult::NoUrl) => chart.warn(
            what,
            &format!(
                "none, as its registration has no url: whoever leaves a room is put out within {} s (LIVEKIT_AS_MEMBERSHIP_CHECK_SECONDS)",
                own.membership_check_interval.as_secs()
            ),
        ),
        Ok(PingResult::BadStatus(status @ (401 | 403))) => chart.fail(
            what,
            &format!("the service answers with {status}, for it knows another hs_token: {REGISTRATION_HINT}"),
        ),
        Ok(PingResult::BadStatus(status)) => chart.fail(
            what,
            &format!("whoever is at the registration's url answers with status {status}: is it this service?"),
        ),
        Ok(PingResult::ConnectionFailed) => chart.fail(
            what,
            "nobody is at the registration's url, as the homeserver sees it: is it right from there, and does the service run?",
        ),
        Ok(PingResult::TimedOut) => chart.fail(
            what,
            "whoever is at the registration's url does not answer the homeserver: is it right from there?",
        ),
        Ok(PingResult::Other(status, errcode)) => chart.fail(
            what,
            &format!("status {status} {errcode}, when it was to ping the application service {id:?}: {REGISTRATION_HINT}"),
        ),
        Err(error) => chart.fail(what, &error.to_string()),
    }
}
