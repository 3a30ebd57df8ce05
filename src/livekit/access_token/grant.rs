//! What a token lets its holder do: LiveKit's `video` grant. Its fields are set by the constructors here only.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::livekit::id::RoomName;

/// What a participant may do in the room that they join.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JoinPermissions {
    /// May send audio, video and data.
    pub can_publish: bool,
    /// May receive what others send.
    pub can_subscribe: bool,
    /// May change their own name, metadata and attributes.
    pub can_update_own_metadata: bool,
}

macro_rules! string_enum {
    ($(#[$doc:meta])* $name:ident { $($(#[$of:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum $name { $($(#[$of])* $variant,)* }

        impl $name {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// Reads LiveKit's word for it.
            pub fn parse(word: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|known| known.as_str() == word)
            }

            /// LiveKit's word for it.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)* }
            }
        }
    };
}

string_enum! {
    /// What a participant can be given. What would let one rule over rooms (`roomCreate`, `roomAdmin`, `roomList`, `roomRecord`,
    /// `ingressAdmin`) is not among it.
    Grant {
        /// May send audio and video.
        Publish = "canPublish",
        /// May receive what others send.
        Subscribe = "canSubscribe",
        /// May send data messages.
        PublishData = "canPublishData",
        /// May change their own name, metadata and attributes.
        UpdateOwnMetadata = "canUpdateOwnMetadata",
        /// May receive the metrics of others.
        SubscribeMetrics = "canSubscribeMetrics",
        /// Is not shown to others.
        Hidden = "hidden",
        /// Is shown to others as a recorder.
        Recorder = "recorder",
        /// Is an agent.
        Agent = "agent",
    }
}

string_enum! {
    /// What a participant can send.
    TrackSource {
        /// A camera.
        Camera = "camera",
        /// A microphone.
        Microphone = "microphone",
        /// A screen.
        ScreenShare = "screen_share",
        /// What is heard with it.
        ScreenShareAudio = "screen_share_audio",
    }
}

/// As it stands in a token.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct VideoGrant {
    #[serde(skip_serializing_if = "Option::is_none")]
    room_create: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    room_list: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    room_record: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    room_admin: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    room_join: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    room: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    can_publish: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    can_subscribe: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    can_publish_data: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    can_publish_sources: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    can_update_own_metadata: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    can_subscribe_metrics: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hidden: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    recorder: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    agent: Option<bool>,
}

impl VideoGrant {
    pub(super) fn join(room: &RoomName, may: JoinPermissions) -> Self {
        Self {
            room_join: Some(true),
            room: Some(room.as_str().to_owned()),
            room_create: Some(false),
            hidden: Some(false),
            can_publish: Some(may.can_publish),
            can_subscribe: Some(may.can_subscribe),
            can_update_own_metadata: may.can_update_own_metadata.then_some(true),
            ..Self::default()
        }
    }

    /// What is absent means yes for some grants and no for others: the former are always written.
    pub(super) fn join_with_grants(
        room: &RoomName,
        grants: &BTreeSet<Grant>,
        sources: &BTreeSet<TrackSource>,
    ) -> Self {
        let granted = |grant| grants.contains(&grant);
        let only = |grant| granted(grant).then_some(true);
        let named = || sources.iter().map(|s| s.as_str().to_owned()).collect();
        Self {
            room_join: Some(true),
            room: Some(room.as_str().to_owned()),
            can_publish: Some(granted(Grant::Publish)),
            can_subscribe: Some(granted(Grant::Subscribe)),
            can_publish_data: Some(granted(Grant::PublishData)),
            // an empty list would mean all of them
            can_publish_sources: (!sources.is_empty()).then(named),
            can_update_own_metadata: only(Grant::UpdateOwnMetadata),
            can_subscribe_metrics: only(Grant::SubscribeMetrics),
            hidden: only(Grant::Hidden),
            recorder: only(Grant::Recorder),
            agent: only(Grant::Agent),
            ..Self::default()
        }
    }

    pub(super) fn room_admin(room: &RoomName) -> Self {
        Self {
            room_admin: Some(true),
            room: Some(room.as_str().to_owned()),
            ..Self::default()
        }
    }

    pub(super) fn list_rooms() -> Self {
        Self {
            room_list: Some(true),
            ..Self::default()
        }
    }

    pub(super) fn create_room() -> Self {
        Self {
            room_create: Some(true),
            ..Self::default()
        }
    }
}
