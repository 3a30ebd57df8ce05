//! Who may have rooms created on our SFU.

use std::collections::BTreeSet;

use crate::matrix::id::ServerName;

/// What a user of a homeserver gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// The LiveKit room is created for them.
    Full,
    /// They get a token; the room has to exist.
    Restricted,
}

impl Access {
    /// The word for the log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Restricted => "restricted",
        }
    }
}

/// `LIVEKIT_FULL_ACCESS_HOMESERVERS`: the homeservers whose users have full access.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FullAccess {
    everyone: bool,
    listed: BTreeSet<ServerName>,
}

impl FullAccess {
    /// `*`: users of every homeserver have full access.
    pub fn everyone() -> Self {
        Self {
            everyone: true,
            listed: BTreeSet::new(),
        }
    }

    /// Users of exactly these homeservers have full access.
    pub fn listed(names: impl IntoIterator<Item = ServerName>) -> Self {
        Self {
            everyone: false,
            listed: names.into_iter().collect(),
        }
    }

    /// The access of the users of `server`.
    pub fn of(&self, server: &ServerName) -> Access {
        if self.everyone || self.lists(server) {
            Access::Full
        } else {
            Access::Restricted
        }
    }

    /// Whether the administrator named this very server. `*` names nobody.
    fn lists(&self, server: &ServerName) -> bool {
        self.listed.contains(server)
    }

    /// Whether everyone has full access.
    pub fn is_everyone(&self) -> bool {
        self.everyone
    }

    /// Whether nobody has full access.
    pub fn is_nobody(&self) -> bool {
        !self.everyone && self.listed.is_empty()
    }

    /// The listed homeservers, in order.
    pub fn names(&self) -> impl Iterator<Item = &ServerName> {
        self.listed.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_matched_exactly_and_a_star_vouches_for_nobody() {
        let name = |text| ServerName::parse(text).unwrap();
        let some = FullAccess::listed([name("example.com")]);
        assert_eq!(some.of(&name("example.com")), Access::Full);
        for other in [
            "Example.com",
            "example.com:8448",
            "a.example.com",
            "example.co",
        ] {
            assert_eq!(some.of(&name(other)), Access::Restricted);
        }
        let all = FullAccess::everyone();
        assert_eq!(all.of(&name("example.com")), Access::Full);
        assert!(!all.lists(&name("example.com")));
        assert!(FullAccess::default().is_nobody());
    }
}
