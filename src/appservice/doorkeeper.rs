//! Who asks: the homeserver shows its token, and only then is it believed about its users and about other homeservers (MSC4512).

use super::Error;
use crate::matrix::id::{ServerName, UserId};
use crate::matrix::registration::SharedToken;

/// Who shows what, as it came: nothing of it is believed.
#[derive(Clone, Copy)]
pub struct Shown<'a> {
    /// `Authorization`.
    pub authorization: Option<&'a str>,
    /// `X-Matrix-User-Identifier`.
    pub user: Option<&'a str>,
    /// `X-Matrix-Origin`.
    pub origin: Option<&'a str>,
}

/// One of our homeserver's own users, whom it has authenticated. Nothing but [`Doorkeeper::user`] makes one.
#[derive(Debug)]
pub struct LocalUser(UserId);

impl LocalUser {
    /// Who it is.
    pub fn id(&self) -> &UserId {
        &self.0
    }
}

/// Another homeserver, which ours has authenticated. Nothing but [`Doorkeeper::origin`] makes one.
#[derive(Debug)]
pub struct Origin(ServerName);

impl Origin {
    /// Its name.
    pub fn name(&self) -> &ServerName {
        &self.0
    }
}

/// Knows the homeserver, and whom it may speak for.
#[derive(Debug)]
pub struct Doorkeeper {
    hs_token: SharedToken,
    name: ServerName,
}

impl Doorkeeper {
    /// The homeserver called `name` is known by `hs_token`.
    pub fn new(hs_token: SharedToken, name: ServerName) -> Self {
        Self { hs_token, name }
    }

    /// Whether it is the homeserver that asks.
    pub fn authenticate(&self, authorization: Option<&str>) -> Result<(), Error> {
        let shown = authorization.ok_or(Error::NotAuthenticated)?;
        let bearer = shown
            .split_once(' ')
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
        let (_, token) = bearer.ok_or(Error::NotAuthenticated)?;
        if self.hs_token.is(token.trim()) {
            Ok(())
        } else {
            Err(Error::NotTheHomeserver)
        }
    }

    /// The user who asks on a path of the client-server API.
    pub fn user(&self, shown: Shown<'_>) -> Result<LocalUser, Error> {
        self.authenticate(shown.authorization)?;
        let user = match (shown.user, shown.origin) {
            (Some(user), None) => user,
            (None, _) => return Err(Error::NoCaller("no X-Matrix-User-Identifier")),
            (Some(_), Some(_)) => return Err(Error::NoCaller("X-Matrix-Origin of a user")),
        };
        let user = UserId::parse(user)
            .map_err(|_| Error::NoCaller("X-Matrix-User-Identifier is no user id"))?;
        if *user.server() != self.name {
            return Err(Error::NoCaller(
                "X-Matrix-User-Identifier is of another server than LIVEKIT_HS_SERVER_NAME",
            ));
        }
        Ok(LocalUser(user))
    }

    /// The homeserver that asks on a path of the server-server API.
    pub fn origin(&self, shown: Shown<'_>) -> Result<Origin, Error> {
        self.authenticate(shown.authorization)?;
        let origin = match (shown.origin, shown.user) {
            (Some(origin), None) => origin,
            (None, _) => return Err(Error::NoCaller("no X-Matrix-Origin")),
            (Some(_), Some(_)) => {
                return Err(Error::NoCaller("X-Matrix-User-Identifier of a server"));
            }
        };
        let origin = ServerName::parse(origin)
            .map_err(|_| Error::NoCaller("X-Matrix-Origin is no server name"))?;
        if origin == self.name {
            return Err(Error::NoCaller("X-Matrix-Origin is our own homeserver"));
        }
        Ok(Origin(origin))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown<'a>(user: Option<&'a str>, origin: Option<&'a str>) -> Shown<'a> {
        Shown {
            authorization: Some("Bearer an-hs-token"),
            user,
            origin,
        }
    }

    fn doorkeeper() -> Doorkeeper {
        let token = SharedToken::parse("an-hs-token").unwrap();
        Doorkeeper::new(token, ServerName::parse("example.com").unwrap())
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
            let shown = Shown {
                authorization,
                ..shown(alice, None)
            };
            let error = doorkeeper.user(shown).unwrap_err();
            assert!(
                matches!(error, Error::NotAuthenticated),
                "{authorization:?}"
            );
        }
        for token in ["an-hs-toke", "an-hs-tokens", "An-hs-token", "", "*"] {
            let authorization = format!("Bearer {token}");
            let shown = Shown {
                authorization: Some(&authorization),
                ..shown(None, Some("other.org"))
            };
            let error = doorkeeper.origin(shown).unwrap_err();
            assert!(matches!(error, Error::NotTheHomeserver), "{token:?}");
        }
        assert!(doorkeeper.user(shown(alice, None)).is_ok());
        assert!(doorkeeper.authenticate(Some("bearer an-hs-token")).is_ok());
    }

    #[test]
    fn the_homeserver_speaks_for_its_own_users_and_for_other_servers() {
        let (alice, other) = (Some("@alice:example.com"), Some("other.org"));
        let doorkeeper = doorkeeper();
        assert!(doorkeeper.user(shown(alice, None)).is_ok());
        assert!(doorkeeper.origin(shown(None, other)).is_ok());
        for (user, origin) in [
            (None, None),
            (alice, other),
            (None, other),
            (Some("@alice:other.org"), None),
            (Some("alice"), None),
            (Some(""), None),
        ] {
            let error = doorkeeper.user(shown(user, origin)).unwrap_err();
            assert!(matches!(error, Error::NoCaller(_)), "{user:?} {origin:?}");
        }
        for (user, origin) in [
            (None, None),
            (alice, other),
            (alice, None),
            (None, Some("example.com")),
            (None, Some("https://other.org")),
            (None, Some("")),
        ] {
            let error = doorkeeper.origin(shown(user, origin)).unwrap_err();
            assert!(matches!(error, Error::NoCaller(_)), "{user:?} {origin:?}");
        }
    }
}
