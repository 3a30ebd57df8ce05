//! Access tokens, RoomService client and webhooks of LiveKit.

pub(crate) mod access_token;
pub(crate) mod id;
pub(crate) mod room_service;
pub(crate) mod sealed_attribute;
pub(crate) mod webhook;
