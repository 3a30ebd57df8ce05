//! The black-box suite: it starts the real binary and sends requests as clients do, with fake homeservers and fake SFUs for the calls of
//! the service. It uses the service's interfaces only, and needs only the toolchain and loopback.
//!
//! Tests that need the ports 443 or 8448, DNS, a real homeserver or LiveKit's SDKs are in `tests/e2e`.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test fails by panicking, and prints measurements on stderr"
)]

// fake servers, clients and helpers
mod appservice_setup;
mod call;
mod certificate;
mod client;
mod fake_delayed_events;
mod fake_issuer;
mod fields;
mod forward_proxy;
mod homeserver;
mod jwt;
mod listen;
mod process;
mod request;
mod settings;
mod setup;
mod sfu;
mod silent_listener;
mod token_client;

// the tests
mod access_token;
mod activation;
mod addresses;
mod appservice_concurrency;
mod appservice_dialects;
mod appservice_doctor;
mod appservice_endpoints;
mod appservice_hostile;
mod appservice_participants;
mod appservice_reload;
mod appservice_removal;
mod appservice_restart;
mod concurrent_users;
mod config;
mod credentials;
mod dev;
mod doctor;
mod egress;
mod endless;
mod flood;
mod forged;
mod grants;
mod healthcheck;
mod hostile;
mod leave_delegation;
mod leave_hostile;
mod leave_kills;
mod leave_lifecycle;
mod leave_restart;
mod logging;
mod malformed;
mod metrics;
mod notify;
mod readiness;
mod reload;
mod resolution;
mod reuse;
mod room;
mod routes;
mod ssrf;
mod status;
mod tarpit;
mod token_attack_api_key;
mod token_attack_bounds;
mod token_attack_jwks;
mod token_attack_jwt;
mod token_attack_policy;
mod token_attack_rate;
mod token_attack_reload;
mod token_endpoint_log;
mod token_endpoint_response;
mod token_endpoint_settings;
mod token_endpoint_vectors;
mod trust;
mod webhook_flood;
mod webhook_order;
mod webhook_signature;
