//! Who asks: the homeserver shows its token, and only then is it believed about its users and about other homeservers (MSC4512).

use super::Error;
use crate::matrix::id::{ServerName, UserId};
use crate::matrix::registration::AppServiceSecret;

/// Who shows what, as it came: nothing of it is believed.
#[derive(Clone, Copy)]
pub(crate) struct ProxiedCredentials<'a> {
    /// `Authorization`.
    pub authorization: Option<&'a str>,
    /// `X-Matrix-User-Identifier`.
    pub user: Option<&'a str>,
    /// `X-Matrix-Origin`.
    pub origin: Option<&'a str>,
}

/// One of our homeserver's own users, whom it has authenticated. Nothing but [`Doorkeeper::user`] makes one.
#[derive(Debug)]
pub(crate) struct LocalUser(UserId);

impl LocalUser {
    /// Who it is.
    pub(crate) fn id(&self) -> &UserId {
        &self.0
    }
}

/// Another homeserver, which ours has authenticated. Nothing but [`Doorkeeper::origin`] makes one.
#[derive(Debug)]
pub(crate) struct OriginServer(ServerName);

impl OriginServer {
    /// Its name.
    pub(crate) fn name(&self) -> &ServerName {
        &self.0
    }
}

/// Knows the homeserver, and whom it may speak for.
#[derive(Debug)]
pub(crate) struct AppServiceAuthenticator {
    hs_token: AppServiceSecret,
    server_name: ServerName,
}

impl AppServiceAuthenticator {
    /// The homeserver called `name` is known by `hs_token`.
    pub(crate) fn new(hs_token: AppServiceSecret, name: ServerName) -> Self {
        Self {
            hs_token,
            server_name: name,
        }
    }

    /// Whether it is the homeserver that asks.
    pub(crate) fn authenticate(&self, authorization: Option<&str>) -> Result<(), Error> {
        let shown = authorization.ok_or(Error::NotAuthenticated)?;
        let bearer = shown
            .split_once(' ')
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
        let (_, token) = bearer.ok_or(Error::NotAuthenticated)?;
        if self.hs_token.matches(token.trim()) {
            Ok(())
        } else {
            Err(Error::WrongHsToken)
        }
    }

    /// The user who asks on a path of the client-server API.
    pub(crate) fn authenticate_user(
        &self,
        shown: ProxiedCredentials<'_>,
    ) -> Result<LocalUser, Error> {
        self.authenticate(shown.authorization)?;
        let user = match (shown.user, shown.origin) {
            (Some(user), None) => user,
            (None, _) => return Err(Error::InvalidProxyHeaders("no X-Matrix-User-Identifier")),
            (Some(_), Some(_)) => {
                return Err(Error::InvalidProxyHeaders("X-Matrix-Origin of a user"));
            }
        };
        let user = UserId::parse(user)
            .map_err(|_| Error::InvalidProxyHeaders("X-Matrix-User-Identifier is no user id"))?;
        if *user.server() != self.server_name {
            return Err(Error::InvalidProxyHeaders(
                "X-Matrix-User-Identifier is of another server than LIVEKIT_HS_SERVER_NAME",
            ));
        }
        Ok(LocalUser(user))
    }

    /// The homeserver that asks on a path of the server-server API.
    pub(crate) fn authenticate_origin(
        &self,
        shown: ProxiedCredentials<'_>,
    ) -> Result<OriginServer, Error> {
        self.authenticate(shown.authorization)?;
        let origin = match (shown.origin, shown.user) {
            (Some(origin), None) => origin,
            (None, _) => return Err(Error::InvalidProxyHeaders("no X-Matrix-Origin")),
            (Some(_), Some(_)) => {
                return Err(Error::InvalidProxyHeaders(
                    "X-Matrix-User-Identifier of a server",
                ));
            }
        };
        let origin = ServerName::parse(origin)
            .map_err(|_| Error::InvalidProxyHeaders("X-Matrix-Origin is no server name"))?;
        if origin == self.server_name {
            return Err(Error::InvalidProxyHeaders(
                "X-Matrix-Origin is our own homeserver",
            ));
        }
        Ok(OriginServer(origin))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown<'a>(user: Option<&'a str>, origin: Option<&'a str>) -> ProxiedCredentials<'a> {
        ProxiedCredentials {
            authorization: Some("Bearer an-hs-token"),
            user,
            origin,
        }
    }

    fn doorkeeper() -> AppServiceAuthenticator {
        let token = AppServiceSecret::parse("an-hs-token").unwrap();
        AppServiceAuthenticator::new(token, ServerName::parse("example.com").unwrap())
    }

    #[test]
    fn nobody_is_named_by_somebody_else_than_the_homeserver() {
        let (alice, doorkeeper) = (Some("@alice:example.com"), doorkeeper());
        for authorization in [
            None,
            Some("an-hs-token"),
            Some("Basic an-hs-token"),
            Some("Bearer"),
        ] {
            let shown = ProxiedCredentials {
                authorization,
                ..shown(alice, None)
            };
            let error = doorkeeper.authenticate_user(shown).unwrap_err();
            assert!(
                matches!(error, Error::NotAuthenticated),
                "{authorization:?}"
            );
        }
        for token in ["an-hs-toke", "an-hs-tokens", "An-hs-token", "", "*"] {
            let authorization = format!("Bearer {token}");
            let shown = ProxiedCredentials {
                authorization: Some(&authorization),
                ..shown(None, Some("other.org"))
            };
            let error = doorkeeper.authenticate_origin(shown).unwrap_err();
            assert!(matches!(error, Error::WrongHsToken), "{token:?}");
        }
        assert!(doorkeeper.authenticate_user(shown(alice, None)).is_ok());
        assert!(doorkeeper.authenticate(Some("bearer an-hs-token")).is_ok());
    }

    #[test]
    fn the_homeserver_speaks_for_its_own_users_and_for_other_servers() {
        let (alice, other) = (Some("@alice:example.com"), Some("other.org"));
        let doorkeeper = doorkeeper();
        assert!(doorkeeper.authenticate_user(shown(alice, None)).is_ok());
        assert!(doorkeeper.authenticate_origin(shown(None, other)).is_ok());
        for (user, origin) in [
            (None, None),
            (alice, other),
            (None, other),
            (Some("@alice:other.org"), None),
            (Some("alice"), None),
            (Some(""), None),
        ] {
            let error = doorkeeper
                .authenticate_user(shown(user, origin))
                .unwrap_err();
            assert!(
                matches!(error, Error::InvalidProxyHeaders(_)),
                "{user:?} {origin:?}"
            );
        }
        for (user, origin) in [
            (None, None),
            (alice, other),
            (alice, None),
            (None, Some("example.com")),
            (None, Some("https://other.org")),
            (None, Some("")),
        ] {
            let error = doorkeeper
                .authenticate_origin(shown(user, origin))
                .unwrap_err();
            assert!(
                matches!(error, Error::InvalidProxyHeaders(_)),
                "{user:?} {origin:?}"
            );
        }
    }
}
