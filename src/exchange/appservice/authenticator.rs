//! Authentication of our homeserver, and of the user or homeserver in whose name it passes a request on (MSC4512).

use std::fmt;

use super::Error;
use crate::matrix::id::{ServerName, UserId};
use crate::matrix::registration::AppServiceSecret;
use crate::util::auth::parse_bearer;

/// Header fields in which our homeserver names the user or the homeserver that sends a request.
#[derive(Clone, Copy)]
pub(crate) struct ProxyHeaders<'a> {
    /// `X-Matrix-User-Identifier`.
    pub user: Option<&'a str>,
    /// `X-Matrix-Origin`.
    pub origin: Option<&'a str>,
}

/// Proof that our homeserver sends a request. Only [`AppServiceAuthenticator::authenticate`] makes one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HomeserverProof(());

/// Why a request is not authenticated as one of our homeserver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HsTokenError {
    /// The request has no bearer token.
    Missing,
    /// The bearer token is not the `hs_token`.
    Wrong,
}

impl fmt::Display for HsTokenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Missing => "expected Authorization: Bearer with the hs_token",
            Self::Wrong => {
                "the bearer token is not the hs_token: homeserver and service need the same \
                 registration"
            }
        })
    }
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
    pub(crate) fn authenticate(
        &self,
        authorization: Option<&str>,
    ) -> Result<HomeserverProof, HsTokenError> {
        match authorization.and_then(parse_bearer) {
            None => Err(HsTokenError::Missing),
            Some(token) if self.hs_token.matches(token) => Ok(HomeserverProof(())),
            Some(_) => Err(HsTokenError::Wrong),
        }
    }

    /// Authenticates the user of a request on a path of the client-server API.
    pub(crate) fn authenticate_user(
        &self,
        _homeserver: HomeserverProof,
        headers: ProxyHeaders<'_>,
    ) -> Result<LocalUser, Error> {
        let user = match (headers.user, headers.origin) {
            (Some(user), None) => UserId::parse(user).ok(),
            _ => None,
        };
        let user = user.filter(|user| *user.server() == self.server_name);
        user.map(LocalUser).ok_or(Error::InvalidProxyHeaders(
            "expected X-Matrix-User-Identifier with a user of LIVEKIT_HS_SERVER_NAME, and no X-Matrix-Origin",
        ))
    }

    /// Authenticates the homeserver of a request on a path of the server-server API.
    pub(crate) fn authenticate_origin(
        &self,
        _homeserver: HomeserverProof,
        headers: ProxyHeaders<'_>,
    ) -> Result<OriginServer, Error> {
        let origin = match (headers.origin, headers.user) {
            (Some(origin), None) => ServerName::parse(origin).ok(),
            _ => None,
        };
        let origin = origin.filter(|origin| *origin != self.server_name);
        origin.map(OriginServer).ok_or(Error::InvalidProxyHeaders(
            "expected X-Matrix-Origin with another server than LIVEKIT_HS_SERVER_NAME, and no X-Matrix-User-Identifier",
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALICE: Option<&str> = Some("@alice:example.com");
    const OTHER: Option<&str> = Some("other.org");

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
            let error = authenticator.authenticate(authorization).unwrap_err();
            assert_eq!(error, HsTokenError::Missing, "{authorization:?}");
        }
        for token in ["an-hs-toke", "an-hs-tokens", "An-hs-token", "*"] {
            let authorization = format!("Bearer {token}");
            let error = authenticator.authenticate(Some(&authorization));
            assert_eq!(error.unwrap_err(), HsTokenError::Wrong, "{token:?}");
        }
        for authorization in ["Bearer an-hs-token", "bearer an-hs-token"] {
            assert!(authenticator.authenticate(Some(authorization)).is_ok());
        }
    }

    #[test]
    fn the_homeserver_names_one_of_its_users_or_another_server() {
        let authenticator = authenticator();
        let homeserver = HomeserverProof(());
        let user = |user, origin| {
            authenticator.authenticate_user(homeserver, ProxyHeaders { user, origin })
        };
        let origin = |user, origin| {
            authenticator.authenticate_origin(homeserver, ProxyHeaders { user, origin })
        };
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
