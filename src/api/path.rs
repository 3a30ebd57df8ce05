//! What a path means, whatever proxies have made of it.

/// What a path means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Endpoint {
    GetToken,
    SfuGet,
    DelegateDelayedLeave,
    SfuWebhook,
    Liveness,
    Readiness,
    Token,
    Health,
    Root,
    ClientGetToken,
    ClientDelegateDelayedLeave,
    FederationGetToken,
    Ping,
    Transactions,
    Unknown,
}

impl Endpoint {
    /// As it is called in metrics and the log.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::GetToken => "get_token",
            Self::SfuGet => "sfu/get",
            Self::DelegateDelayedLeave => "delegate_delayed_leave",
            Self::SfuWebhook => "sfu_webhook",
            Self::Liveness => "healthz",
            Self::Readiness => "readyz",
            Self::Token => "token",
            Self::Health => "health",
            Self::Root => "root",
            Self::ClientGetToken => "client/get_token",
            Self::ClientDelegateDelayedLeave => "client/delegate_delayed_leave",
            Self::FederationGetToken => "federation/get_token",
            Self::Ping => "ping",
            Self::Transactions => "transactions",
            Self::Unknown => "unknown",
        }
    }

    /// Whether it is for the homeserver whose application service we are.
    pub(super) fn is_proxied(self) -> bool {
        matches!(
            self,
            Self::ClientGetToken
                | Self::ClientDelegateDelayedLeave
                | Self::FederationGetToken
                | Self::Ping
                | Self::Transactions
        )
    }
}

/// Reads the end of a path: proxies strip their prefix, or do not, or leave a slash too many.
pub(super) fn parse_endpoint(target: &str) -> Endpoint {
    let mut parts = strip_query(target)
        .rsplit('/')
        .filter(|part| !part.is_empty());
    match (parts.next(), parts.next()) {
        (Some("get_token"), _) => Endpoint::GetToken,
        (Some("get"), Some("sfu")) => Endpoint::SfuGet,
        (Some("delegate_delayed_leave"), _) => Endpoint::DelegateDelayedLeave,
        (Some("sfu_webhook"), _) => Endpoint::SfuWebhook,
        (Some("healthz"), _) => Endpoint::Liveness,
        (Some("readyz"), _) => Endpoint::Readiness,
        (Some("token"), _) => Endpoint::Token,
        (Some("health"), _) => Endpoint::Health,
        (None, _) => Endpoint::Root,
        _ => Endpoint::Unknown,
    }
}

/// Reads a path of the homeserver's whose application service we are; none if it is not one of its own. As it passes them on they
/// are whole (MSC4512), but there may be a prefix of ours before them. What its users have written after that opens no other door.
pub(super) fn parse_proxied_endpoint(target: &str) -> Option<Endpoint> {
    let parts: Vec<_> = strip_query(target)
        .split('/')
        .filter(|part| !part.is_empty())
        .collect();
    let begins = |pair: &[&str]| matches!(pair, ["_matrix", "client" | "federation" | "app"]);
    let start = parts.windows(2).position(begins)?;
    let api = parts[start + 1];
    let rest = match &parts[start + 2..] {
        ["v1", rest @ ..] | ["unstable", "io.element.msc4195", rest @ ..] => rest,
        _ => return Some(Endpoint::Unknown),
    };
    Some(match (api, rest) {
        ("client", ["rtc", "livekit", "get_token"]) => Endpoint::ClientGetToken,
        ("client", ["rtc", "livekit", "delegate_delayed_leave"]) => {
            Endpoint::ClientDelegateDelayedLeave
        }
        ("federation", ["rtc", "livekit", "get_token"]) => Endpoint::FederationGetToken,
        ("app", ["ping"]) if parts[start + 2] == "v1" => Endpoint::Ping,
        ("app", ["transactions", _]) if parts[start + 2] == "v1" => Endpoint::Transactions,
        _ => Endpoint::Unknown,
    })
}

/// Without what comes after it.
pub(super) fn strip_query(target: &str) -> &str {
    target.split(['?', '#']).next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_homeserver_s_paths_are_for_users_or_for_servers() {
        for (target, expected) in [
            (
                "/_matrix/client/v1/rtc/livekit/get_token",
                Some(Endpoint::ClientGetToken),
            ),
            (
                "/_matrix/client/unstable/io.element.msc4195/rtc/livekit/get_token?x",
                Some(Endpoint::ClientGetToken),
            ),
            (
                "/a//_matrix/client/v1//rtc/livekit/get_token/",
                Some(Endpoint::ClientGetToken),
            ),
            (
                "/_matrix/client/v1/rtc/livekit/delegate_delayed_leave",
                Some(Endpoint::ClientDelegateDelayedLeave),
            ),
            (
                "/_matrix/federation/v1/rtc/livekit/get_token",
                Some(Endpoint::FederationGetToken),
            ),
            (
                "/_matrix/federation/unstable/io.element.msc4195/rtc/livekit/get_token",
                Some(Endpoint::FederationGetToken),
            ),
            ("/_matrix/app/v1/ping", Some(Endpoint::Ping)),
            (
                "/_matrix/app/v1/transactions/7",
                Some(Endpoint::Transactions),
            ),
            ("/_matrix/app/v1/transactions", Some(Endpoint::Unknown)),
            (
                "/_matrix/federation/v1/rtc/livekit/delegate_delayed_leave",
                Some(Endpoint::Unknown),
            ),
            (
                "/_matrix/client/v2/rtc/livekit/get_token",
                Some(Endpoint::Unknown),
            ),
            (
                "/_matrix/client/unstable/other/rtc/livekit/get_token",
                Some(Endpoint::Unknown),
            ),
            ("/_matrix/client/v1/rtc/get_token", Some(Endpoint::Unknown)),
            (
                "/_matrix/client/v1/rtc%2Flivekit/get_token",
                Some(Endpoint::Unknown),
            ),
            (
                "/_matrix/client/v1/rtc/livekit/get_token/x",
                Some(Endpoint::Unknown),
            ),
            ("/_matrix/client/get_token", Some(Endpoint::Unknown)),
            (
                "/_matrix/app/unstable/io.element.msc4195/ping",
                Some(Endpoint::Unknown),
            ),
            (
                "/_matrix/livekit/_matrix/client/v1/rtc/livekit/get_token",
                Some(Endpoint::ClientGetToken),
            ),
            (
                "/_matrix/client/v1/rtc/livekit/_matrix/x/readyz",
                Some(Endpoint::Unknown),
            ),
            (
                "/_matrix/client/v1/rtc/livekit/_matrix/x/sfu_webhook",
                Some(Endpoint::Unknown),
            ),
            (
                "/_matrix/client/v1/rtc/livekit/_matrix/federation/v1/rtc/livekit/get_token",
                Some(Endpoint::Unknown),
            ),
            (
                "/_matrix/federation/v1/rtc/livekit/_matrix/app/v1/ping",
                Some(Endpoint::Unknown),
            ),
            ("/_matrix/client/healthz", Some(Endpoint::Unknown)),
            ("/_matrix/livekit/jwt/get_token", None),
            ("/_matrix/livekit/client/readyz", None),
            ("/get_token?/_matrix/client/v1/rtc/livekit/get_token", None),
            ("/_matrix", None),
        ] {
            assert_eq!(parse_proxied_endpoint(target), expected, "{target}");
        }
    }

    #[test]
    fn the_end_of_a_path_decides() {
        for (target, expected) in [
            ("/get_token", Endpoint::GetToken),
            ("//get_token", Endpoint::GetToken),
            ("/get_token/", Endpoint::GetToken),
            ("/livekit/jwt/get_token?x=/healthz", Endpoint::GetToken),
            ("/livekit/jwt//sfu//get//", Endpoint::SfuGet),
            ("/sfu/get", Endpoint::SfuGet),
            ("/healthz", Endpoint::Liveness),
            ("http://host/healthz", Endpoint::Liveness),
            ("/get", Endpoint::Unknown),
            ("/token", Endpoint::Token),
            ("/livekit//token/", Endpoint::Token),
            ("/api/health?x", Endpoint::Health),
            ("/token/x", Endpoint::Unknown),
            ("/xsfu/get", Endpoint::Unknown),
            ("/sfu/get/x", Endpoint::Unknown),
            ("/?/get_token", Endpoint::Root),
            ("/", Endpoint::Root),
            ("//", Endpoint::Root),
            ("/x/delegate_delayed_leave/", Endpoint::DelegateDelayedLeave),
            ("/livekit/sfu_webhook", Endpoint::SfuWebhook),
            ("/readyz", Endpoint::Readiness),
        ] {
            assert_eq!(parse_endpoint(target), expected, "{target}");
        }
    }
}
