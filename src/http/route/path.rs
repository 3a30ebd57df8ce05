//! What a path means, whatever proxies have made of it.

/// What a path means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Endpoint {
    GetToken,
    SfuGet,
    Delegate,
    Webhook,
    Alive,
    Ready,
    Token,
    Health,
    Root,
    UserToken,
    UserLeave,
    ServerToken,
    Ping,
    Events,
    Unknown,
}

impl Endpoint {
    /// As it is called in metrics and the log.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::GetToken => "get_token",
            Self::SfuGet => "sfu/get",
            Self::Delegate => "delegate_delayed_leave",
            Self::Webhook => "sfu_webhook",
            Self::Alive => "healthz",
            Self::Ready => "readyz",
            Self::Token => "token",
            Self::Health => "health",
            Self::Root => "root",
            Self::UserToken => "client/get_token",
            Self::UserLeave => "client/delegate_delayed_leave",
            Self::ServerToken => "federation/get_token",
            Self::Ping => "ping",
            Self::Events => "transactions",
            Self::Unknown => "unknown",
        }
    }

    /// Whether it is for the homeserver whose application service we are.
    pub(super) fn is_proxied(self) -> bool {
        matches!(
            self,
            Self::UserToken | Self::UserLeave | Self::ServerToken | Self::Ping | Self::Events
        )
    }
}

/// Reads the end of a path: proxies strip their prefix, or do not, or leave a slash too many.
pub(super) fn endpoint(target: &str) -> Endpoint {
    let mut parts = path(target).rsplit('/').filter(|part| !part.is_empty());
    match (parts.next(), parts.next()) {
        (Some("get_token"), _) => Endpoint::GetToken,
        (Some("get"), Some("sfu")) => Endpoint::SfuGet,
        (Some("delegate_delayed_leave"), _) => Endpoint::Delegate,
        (Some("sfu_webhook"), _) => Endpoint::Webhook,
        (Some("healthz"), _) => Endpoint::Alive,
        (Some("readyz"), _) => Endpoint::Ready,
        (Some("token"), _) => Endpoint::Token,
        (Some("health"), _) => Endpoint::Health,
        (None, _) => Endpoint::Root,
        _ => Endpoint::Unknown,
    }
}

/// Reads a path of the homeserver's whose application service we are; none if it is not one of its own. As it passes them on they
/// are whole (MSC4512), but there may be a prefix of ours before them. What its users have written after that opens no other door.
pub(super) fn proxied(target: &str) -> Option<Endpoint> {
    let parts: Vec<_> = path(target)
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
        ("client", ["rtc", "livekit", "get_token"]) => Endpoint::UserToken,
        ("client", ["rtc", "livekit", "delegate_delayed_leave"]) => Endpoint::UserLeave,
        ("federation", ["rtc", "livekit", "get_token"]) => Endpoint::ServerToken,
        ("app", ["ping"]) if parts[start + 2] == "v1" => Endpoint::Ping,
        ("app", ["transactions", _]) if parts[start + 2] == "v1" => Endpoint::Events,
        _ => Endpoint::Unknown,
    })
}

/// Without what comes after it.
pub(super) fn path(target: &str) -> &str {
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
                Some(Endpoint::UserToken),
            ),
            (
                "/_matrix/client/unstable/io.element.msc4195/rtc/livekit/get_token?x",
                Some(Endpoint::UserToken),
            ),
            (
                "/a//_matrix/client/v1//rtc/livekit/get_token/",
                Some(Endpoint::UserToken),
            ),
            (
                "/_matrix/client/v1/rtc/livekit/delegate_delayed_leave",
                Some(Endpoint::UserLeave),
            ),
            (
                "/_matrix/federation/v1/rtc/livekit/get_token",
                Some(Endpoint::ServerToken),
            ),
            (
                "/_matrix/federation/unstable/io.element.msc4195/rtc/livekit/get_token",
                Some(Endpoint::ServerToken),
            ),
            ("/_matrix/app/v1/ping", Some(Endpoint::Ping)),
            ("/_matrix/app/v1/transactions/7", Some(Endpoint::Events)),
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
                Some(Endpoint::UserToken),
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
            assert_eq!(proxied(target), expected, "{target}");
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
            ("/healthz", Endpoint::Alive),
            ("http://host/healthz", Endpoint::Alive),
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
            ("/x/delegate_delayed_leave/", Endpoint::Delegate),
            ("/livekit/sfu_webhook", Endpoint::Webhook),
            ("/readyz", Endpoint::Ready),
        ] {
            assert_eq!(endpoint(target), expected, "{target}");
        }
    }
}
