//! The names of what our homeserver can be asked for, while its MSCs are unstable and when they are not.

/// What it can be asked for, and the versions of the client-server API that have it.
pub(super) struct Api {
    pub(super) index: usize,
    pub(super) name: &'static str,
    pub(super) unstable: &'static str,
    pub(super) stable: &'static str,
}

pub(super) const IS_JOINED: Api = Api {
    index: 0,
    name: "is_joined (MSC4502)",
    unstable: "unstable/io.element.msc4502",
    stable: "v3",
};
pub(super) const FED_PROXY: Api = Api {
    index: 1,
    name: "fed_proxy (MSC4512)",
    unstable: "unstable/io.element.msc4512",
    stable: "v1",
};
pub(super) const DELAYED_EVENTS: Api = Api {
    index: 2,
    name: "delayed events (MSC4140)",
    unstable: "unstable/org.matrix.msc4140",
    stable: "v1",
};
