//! Checks of application-service mode, in both directions.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use super::DoctorReport;
use crate::config::{AppServiceConfig, FetcherFactory};
use crate::matrix::appservice::{Error, ForwardingCheck, HomeserverClient, PingResult};
use crate::matrix::client_api::{ClientApiDiscovery, DelayedEventSupport};
use crate::matrix::id::{DelayId, RoomId, UserId};
use crate::matrix::server_directory::ServerDirectory;

/// Time for the lookup of a delayed event.
const DELAYED_EVENT_TIMEOUT: Duration = Duration::from_secs(10);
/// Ids that neither a room nor a delayed event has.
const UNKNOWN_ROOM_ID: &str = "!livekit-token-service-doctor";
const UNKNOWN_DELAY_ID: &str = "livekit-token-service-doctor";
const REGISTRATION_HINT: &str = "the homeserver needs the same registration as this service, among its app_service_config_files, and a restart after a change";

pub(super) fn check_appservice(
    config: &AppServiceConfig,
    fetchers: &FetcherFactory,
    report: &mut DoctorReport<'_, impl Write>,
) -> io::Result<()> {
    let (server, url) = (&config.server_name, &config.client_api_url);
    let as_token = config.registration.as_token.clone();
    let fetcher = fetchers.own_homeserver();
    let homeserver = HomeserverClient::new(fetcher, server.clone(), url.clone(), as_token);
    let Some(own_user) = check_identity(config, &homeserver, report)? else {
        return Ok(());
    };
    if let Ok(room) = RoomId::parse(UNKNOWN_ROOM_ID) {
        let joined = homeserver.is_joined_uncached(&room, &own_user);
        let result = joined.map(|_| "answers who is in a room (MSC4502)");
        report.result("homeserver is_joined", result)?;
    }
    let relay = homeserver.check_relay();
    let result = relay.map(|()| "relays requests to other homeservers (MSC4512)");
    report.result("homeserver fed_proxy", result)?;
    let overrides = [(server.clone(), url.clone())].into_iter().collect();
    let directory = ServerDirectory::new(overrides, [server.clone()]);
    let client_api = ClientApiDiscovery::new(fetchers.own_homeserver(), directory);
    check_delayed_events(config, &homeserver, &client_api, &own_user, report)?;
    check_forwarding(&homeserver, report)?;
    check_event_push(config, &homeserver, report)
}

/// Returns the service's own user, if the homeserver accepts the as_token.
fn check_identity(
    config: &AppServiceConfig,
    homeserver: &HomeserverClient,
    report: &mut DoctorReport<'_, impl Write>,
) -> io::Result<Option<UserId>> {
    let (subject, url, expected) = ("homeserver", &config.client_api_url, &config.server_name);
    match homeserver.whoami() {
        Ok(user) => {
            let name = user.server();
            if name == expected {
                report.ok(
                    subject,
                    format!("{url} is {expected}, and accepts the as_token"),
                )?;
            } else {
                report.fail(
                    subject,
                    format!("{url} is {name}, not {expected}: set LIVEKIT_HS_SERVER_NAME={name}, or LIVEKIT_HS_URL to the URL of {expected}"),
                )?;
            }
            return Ok(Some(user));
        }
        Err(Error::Refused(..)) => report.fail(
            subject,
            format!("{url} refuses the as_token: {REGISTRATION_HINT}"),
        )?,
        Err(Error::UnexpectedResponse(status)) => report.fail(
            subject,
            format!(
                "{url} answers with status {status}: is LIVEKIT_HS_URL the URL of a homeserver?"
            ),
        )?,
        Err(error) => report.fail(subject, error)?,
    }
    Ok(None)
}

fn check_delayed_events(
    config: &AppServiceConfig,
    homeserver: &HomeserverClient,
    client_api: &ClientApiDiscovery,
    own_user: &UserId,
    report: &mut DoctorReport<'_, impl Write>,
) -> io::Result<()> {
    let subject = "homeserver delayed events";
    match client_api.delayed_event_support(&config.server_name) {
        Ok(DelayedEventSupport::Supported(_)) => {}
        Ok(DelayedEventSupport::Unsupported) => {
            return report.warn(
                subject,
                "not supported (MSC4140; max_event_delay_duration of Synapse): clients send their leaves themselves",
            );
        }
        Err(error) => return report.warn(subject, error),
    }
    let Ok(delay_id) = DelayId::parse(UNKNOWN_DELAY_ID) else {
        return Ok(());
    };
    let deadline = Instant::now() + DELAYED_EVENT_TIMEOUT;
    let event = homeserver.get_delayed_event(own_user, &delay_id, deadline);
    report.result(
        subject,
        event.map(|_| "can be looked up, restarted and sent (MSC4140)"),
    )
}

/// Checks that requests of the homeserver's users reach this service, with the right hs_token.
fn check_forwarding(
    homeserver: &HomeserverClient,
    report: &mut DoctorReport<'_, impl Write>,
) -> io::Result<()> {
    let subject = "homeserver to service";
    match homeserver.check_forwarding() {
        Ok(ForwardingCheck::Forwarded) => report.ok(
            subject,
            "forwards its users' requests with the right hs_token",
        ),
        Ok(ForwardingCheck::UnknownPath) => report.fail(
            subject,
            format!(
                "does not forward the path (MSC4512; Synapse needs msc4512_enabled among its experimental_features, and the \
                 proxy_prefix that generate-registration writes): {REGISTRATION_HINT}"
            ),
        ),
        Ok(ForwardingCheck::HsTokenRejected) => report.fail(
            subject,
            format!("the service refuses the request: its hs_token or its LIVEKIT_HS_SERVER_NAME differs; {REGISTRATION_HINT}"),
        ),
        Ok(ForwardingCheck::WrongService) => report.fail(
            subject,
            "the registration's proxy_url leads to another service, or to this one without the LIVEKIT_AS_ settings",
        ),
        Ok(ForwardingCheck::Other(status, errcode)) => report.fail(
            subject,
            format!("answers with status {status} {errcode}: can the homeserver reach the registration's proxy_url, and does the service run?"),
        ),
        Err(error) => report.fail(subject, error),
    }
}

/// Checks that the homeserver pushes events to this service, if its registration has a URL for them.
fn check_event_push(
    config: &AppServiceConfig,
    homeserver: &HomeserverClient,
    report: &mut DoctorReport<'_, impl Write>,
) -> io::Result<()> {
    let subject = "homeserver pushes";
    let Some(id) = &config.registration.id else {
        return report.warn(
            subject,
            "not checked: the registration's id is only in its file (LIVEKIT_AS_REGISTRATION_FILE)",
        );
    };
    match homeserver.ping(id) {
        Ok(PingResult::Answered(ms)) => report.ok(
            subject,
            format!("arrive in {ms} ms: a participant who leaves the Matrix room is removed from the call at once"),
        ),
        Ok(PingResult::NoUrl) => report.warn(
            subject,
            format!(
                "none, since the homeserver's registration has no url: a participant who leaves the Matrix room is removed from the \
                 call within {} s (LIVEKIT_AS_MEMBERSHIP_CHECK_SECONDS)",
                config.membership_check_interval.as_secs()
            ),
        ),
        Ok(PingResult::BadStatus(status @ (401 | 403))) => report.fail(
            subject,
            format!("the service answers with status {status}, since its hs_token differs: {REGISTRATION_HINT}"),
        ),
        Ok(PingResult::BadStatus(status)) => report.fail(
            subject,
            format!("the registration's url answers with status {status}: is it this service?"),
        ),
        Ok(PingResult::ConnectionFailed) => report.fail(
            subject,
            "the homeserver cannot connect to the registration's url: is it right for the homeserver's host, and does the service run?",
        ),
        Ok(PingResult::TimedOut) => report.fail(
            subject,
            "the registration's url does not answer the homeserver: is it right for the homeserver's host?",
        ),
        Ok(PingResult::Other(status, errcode)) => report.fail(
            subject,
            format!("status {status} {errcode} instead of a ping of the application service {id:?}: {REGISTRATION_HINT}"),
        ),
        Err(error) => report.fail(subject, error),
    }
}
