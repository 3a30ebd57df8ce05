//! The endpoints of standalone mode: `/get_token`, `/sfu/get` and `/delegate_delayed_leave`.

use serde::Serialize;

use super::refusal::{ExchangeOperation, Refusal};
use super::request::RequestContext;
use super::request_body;
use crate::exchange::standalone::{Exchange, ExchangeRequest};
use crate::server::HttpResponse;
use crate::util::sync::Swappable;

/// What a reload of the settings replaces.
#[derive(Debug)]
pub(crate) struct MatrixApiState {
    pub exchange: Exchange,
    /// The SFU's URL for clients.
    pub livekit_url: String,
}

/// The endpoints of standalone mode.
#[derive(Debug)]
pub(crate) struct MatrixApi(Swappable<MatrixApiState>);

#[derive(Serialize)]
struct TokenResponse<'a> {
    jwt: &'a str,
    url: &'a str,
}

impl MatrixApi {
    pub(crate) fn new(state: MatrixApiState) -> Self {
        Self(Swappable::new(state))
    }

    /// Replaces the state for later requests.
    pub(crate) fn replace_state(&self, state: MatrixApiState) {
        self.0.replace(state);
    }

    /// `/get_token` and `/sfu/get`, which differ in their body.
    pub(super) fn issue_token(
        &self,
        context: &RequestContext<'_>,
        parse: fn(&[u8]) -> Result<ExchangeRequest, request_body::Error>,
    ) -> Result<HttpResponse, Refusal> {
        let request = parse(context.request.body)?;
        let state = self.0.get();
        let client = context.client().0;
        let issued = state.exchange.issue_token(&request, client);
        let issued = issued.map_err(|error| {
            let operation = ExchangeOperation::IssueToken;
            Refusal::from_exchange(&error, operation).with_server(&request.server_name)
        })?;
        let (user, room) = (issued.user.id(), &request.room);
        let (participant, leave) = (Some(&issued.participant), issued.leave.as_ref());
        context.record_token(
            "matrix",
            user,
            issued.access_level,
            room,
            participant,
            leave,
        );
        let response = TokenResponse {
            jwt: issued.access_token.expose(),
            url: &state.livekit_url,
        };
        Ok(HttpResponse::json(200, &response))
    }

    /// `/delegate_delayed_leave`.
    pub(super) fn delegate_leave(
        &self,
        context: &RequestContext<'_>,
    ) -> Result<HttpResponse, Refusal> {
        let parsed = request_body::parse_delegate_delayed_leave(context.request.body);
        let (request, leave) = parsed.map_err(|error| match context.is_capability_probe() {
            true => Refusal::capability_probe(error),
            false => error.into(),
        })?;
        let client = context.client().0;
        let delegated = self
            .0
            .get()
            .exchange
            .delegate_leave(&request, leave, client);
        let (user, leave) = delegated.map_err(|error| {
            let operation = ExchangeOperation::DelegateLeave;
            Refusal::from_exchange(&error, operation).with_server(&request.server_name)
        })?;
        context.record_leave(user.id(), &leave);
        Ok(HttpResponse::empty_object())
    }
}
