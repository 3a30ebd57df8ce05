//! Authentication of our homeserver, and of the user or homeserver in whose name it passes a request on (MSC4512).

use super::Error;
use crate::matrix::id::{ServerName, UserId};
use crate::matrix::registration::AppServiceSecret;
use crate::util::auth::parse_bearer;

/// The headers that authenticate a request of our homeserver, unverified.
#[derive(Clone, Copy)]
pub(crate) struct ProxiedCredentials<'a> {
    /// `Authorization`.
    pub authorization: Option<&'a str>,
    /// `X-Matrix-User-Identifier`.
    pub user: Option<&'a str>,
    /// `X-Matrix-Origin`.
    pub origin: Option<&'a str>,
}

/// A user of our homeserver, authenticated by it. Only [`AppServiceAuthenticator::authenticate_user`] makes one.
#[derive(Debug)]
pub(crate) struct LocalUser(UserId);

impl LocalUser {
    pub(crate) fn id(&self) -> &UserId {
        &self.0
    }
}

/// Another homeserver, authenticated by ours. Only [`AppServiceAuthenticator::authenticate_origin`] makes one.
#[derive(Debug)]
pub(crate) struct OriginServer(ServerName);

impl OriginServer {
    pub(crate) fn name(&self) -> &ServerName {
        &self.0
    }
}

/// Knows our homeserver's `hs_token` and name.
#[derive(Debug)]
pub(crate) struct AppServiceAuthenticator {
    hs_token: AppServiceSecret,
    server_name: ServerName,
}

impl AppServiceAuthenticator {
    pub(crate) fn new(hs_token: AppServiceSecret, server_name: ServerName) -> Self {
        Self {
            hs_token,
            server_name,
        }
    }

    /// Checks that our homeserver sends the request.
    pub(crate) fn authenticate(&self, authorization: Option<&str>) -> Result<(), Error> {
        match authorization.and_then(parse_bearer) {
            None => Err(Error::NotAuthenticated),
            Some(token) if self.hs_token.matches(token) => Ok(()),
            Some(_) => Err(Error::WrongHsToken),
        }
    }

    /// Authenticates the user of a request on a path of the client-server API.
    pub(crate) fn authenticate_user(
        &self,
        credentials: ProxiedCredentials<'_>,
    ) -> Result<LocalUser, Error> {
        self.authenticate(credentials.authorization)?;
        let user = match (credentials.user, credentials.origin) {
            (Some(user), None) => UserId::parse(user).ok(),
            (None, _) => {
                return Err(Error::InvalidProxyHeaders(
                    "X-Matrix-User-Identifier: expected a user id, found none",
                ));
            }
            (Some(_), Some(_)) => {
                return Err(Error::InvalidProxyHeaders(
                    "X-Matrix-Origin: expected none beside X-Matrix-User-Identifier",
                ));
            }
        };
        match user {
            Some(user) if *user.server() == self.server_name => Ok(LocalUser(user)),
            Some(_) => Err(Error::InvalidProxyHeaders(
                "X-Matrix-User-Identifier: expected a user of LIVEKIT_HS_SERVER_NAME",
            )),
            None => Err(Error::InvalidProxyHeaders(
                "X-Matrix-User-Identifier: expected a user id",
            )),
        }
    }

    /// Authenticates the homeserver of a request on a path of the server-server API.
    pub(crate) fn authenticate_origin(
        &self,
        credentials: ProxiedCredentials<'_>,
    ) -> Result<OriginServer, Error> {
        self.authenticate(credentials.authorization)?;
        let origin = match (credentials.origin, credentials.user) {
            (Some(origin), None) => ServerName::parse(origin).ok(),
            (None, _) => {
                return Err(Error::InvalidProxyHeaders(
                    "X-Matrix-Origin: expected a server name, found none",
                ));
            }
            (Some(_), Some(_)) => {
                return Err(Error::InvalidProxyHeaders(
                    "X-Matrix-User-Identifier: expected none beside X-Matrix-Origin",
                ));
            }
        };
        match origin {
            Some(origin) if origin != self.server_name => Ok(OriginServer(origin)),
            Some(_) => Err(Error::InvalidProxyHeaders(
                "X-Matrix-Origin: expected another server than LIVEKIT_HS_SERVER_NAME",
            )),
            None => Err(Error::InvalidProxyHeaders(
                "X-Matrix-Origin: expected a server name",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALICE: Option<&str> = Some("@alice:example.com");
    const OTHER: Option<&str> = Some("other.org");

    fn credentials<'a>(user: Option<&'a str>, origin: Option<&'a str>) -> ProxiedCredentials<'a> {
        ProxiedCredentials {
            authorization: Some("Bearer an-hs-token"),
            user,
            origin,
        }
    }

    fn authenticator() -> AppServiceAuthenticator {
        let token = AppServiceSecret::parse("an-hs-token").unwrap();
        AppServiceAuthenticator::new(token, ServerName::parse("example.com").unwrap())
    }

    #[test]
    fn only_the_hs_token_as_a_bearer_token_authenticates() {
        let authenticator = authenticator();
        for authorization in [
            None,
            Some("an-hs-token"),
            Some("Basic an-hs-token"),
            Some("Bearer"),
            Some("Bearer "),
        ] {
            let without = ProxiedCredentials {
                authorization,
                ..credentials(ALICE, None)
            };
            let error = authenticator.authenticate_user(without).unwrap_err();
            assert!(
                matches!(error, Error::NotAuthenticated),
                "{authorization:?}"
            );
        }
        for token in ["an-hs-toke", "an-hs-tokens", "An-hs-token", "*"] {
            let authorization = format!("Bearer {token}");
            let wrong = ProxiedCredentials {
                authorization: Some(&authorization),
                ..credentials(None, OTHER)
            };
            let error = authenticator.authenticate_origin(wrong).unwrap_err();
            assert!(matches!(error, Error::WrongHsToken), "{token:?}");
        }
        assert!(
            authenticator
                .authenticate_user(credentials(ALICE, None))
                .is_ok()
        );
        assert!(
            authenticator
                .authenticate(Some("bearer an-hs-token"))
                .is_ok()
        );
    }

    #[test]
    fn the_homeserver_names_one_of_its_users_or_another_server() {
        let authenticator = authenticator();
        let user = |user, origin| authenticator.authenticate_user(credentials(user, origin));
        let origin = |user, origin| authenticator.authenticate_origin(credentials(user, origin));
        assert!(user(ALICE, None).is_ok());
        assert!(origin(None, OTHER).is_ok());
        for (name, server) in [
            (None, None),
            (ALICE, OTHER),
            (None, OTHER),
            (Some("@alice:other.org"), None),
            (Some("alice"), None),
            (Some(""), None),
        ] {
            let error = user(name, server).unwrap_err();
            assert!(
                matches!(error, Error::InvalidProxyHeaders(_)),
                "{name:?} {server:?}"
            );
        }
        for (name, server) in [
            (None, None),
            (ALICE, OTHER),
            (ALICE, None),
            (None, Some("example.com")),
            (None, Some("https://other.org")),
            (None, Some("")),
        ] {
            let error = origin(name, server).unwrap_err();
            assert!(
                matches!(error, Error::InvalidProxyHeaders(_)),
                "{name:?} {server:?}"
            );
        }
    }
}
