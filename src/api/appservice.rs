//! The endpoints of application-service mode, which only our homeserver may use. Browsers talk to the homeserver, so that responses have
//! no CORS header fields.

use log::debug;
use serde::Serialize;

use super::refusal::Refusal;
use super::request::RequestContext;
use super::{request_body, transaction};
use crate::exchange::access::AccessLevel;
use crate::exchange::appservice::{
    AppServiceExchange, AppServiceToken, Error, HomeserverProof, HsTokenError, LocalUser,
    MscVersion, ProxyHeaders,
};
use crate::matrix::id::{RoomId, UserId};
use crate::membership::Membership;
use crate::server::HttpResponse;
use crate::util::sync::Swappable;

/// The endpoints of application-service mode.
#[derive(Debug)]
pub(crate) struct AppServiceApi {
    /// Replaced by a reload of the settings.
    exchange: Swappable<AppServiceExchange>,
    membership: Membership,
}

#[derive(Serialize)]
struct JwtResponse<'a> {
    jwt: &'a str,
}

impl AppServiceApi {
    pub(crate) fn new(exchange: AppServiceExchange, membership: Membership) -> Self {
        Self {
            exchange: Swappable::new(exchange),
            membership,
        }
    }

    /// Replaces the exchange for later requests.
    pub(crate) fn replace_state(&self, exchange: AppServiceExchange) {
        self.exchange.replace(exchange);
    }

    /// Checks that our homeserver sends the request.
    pub(super) fn authenticate(
        &self,
        authorization: Option<&str>,
    ) -> Result<HomeserverProof, HsTokenError> {
        self.exchange
            .get()
            .authenticator
            .authenticate(authorization)
    }

    /// `client/…/get_token`: a token for a user of our homeserver.
    pub(super) fn issue_client_token(
        &self,
        context: &RequestContext<'_>,
        version: MscVersion,
    ) -> Result<HttpResponse, Refusal> {
        let exchange = self.exchange.get();
        let user = authenticate_user(&exchange, context)?;
        let request = request_body::parse_client_token(context.request.body)?;
        let token = exchange.issue_client_token(&user, &request, version)?;
        let (user, access, membership) = (user.id(), AccessLevel::Full, &request.membership);
        Ok(token_response(
            context,
            user,
            access,
            &membership.room,
            &token,
        ))
    }

    /// `federation/…/get_token`: a token for a user of another homeserver.
    pub(super) fn issue_federation_token(
        &self,
        context: &RequestContext<'_>,
    ) -> Result<HttpResponse, Refusal> {
        let exchange = self.exchange.get();
        let (homeserver, headers) = (authenticated(context)?, proxy_headers(context));
        let authenticator = &exchange.authenticator;
        let origin = authenticator.authenticate_origin(homeserver, headers)?;
        let request = request_body::parse_federation_token(context.request.body)?;
        let token = exchange.issue_federation_token(&origin, &request)?;
        let (user, membership) = (&request.user, &request.membership);
        let access = AccessLevel::Restricted;
        Ok(token_response(
            context,
            user,
            access,
            &membership.room,
            &token,
        ))
    }

    /// `client/…/delegate_delayed_leave`.
    pub(super) fn delegate_leave(
        &self,
        context: &RequestContext<'_>,
    ) -> Result<HttpResponse, Refusal> {
        let exchange = self.exchange.get();
        let user = authenticate_user(&exchange, context)?;
        let parsed = request_body::parse_client_delegate(context.request.body);
        let request = parsed.map_err(|error| match context.is_capability_probe() {
            true => Refusal::capability_probe(error),
            false => error.into(),
        })?;
        let leave = exchange.delegate_leave(&user, &request)?;
        context.record_leave(user.id(), &leave);
        Ok(HttpResponse::empty_object())
    }

    /// `app/v1/ping`: the homeserver tests the connection (Matrix spec v1.16, application service API, "Pinging").
    pub(super) fn ping(&self, context: &RequestContext<'_>) -> Result<HttpResponse, Refusal> {
        authenticated(context)?;
        Ok(HttpResponse::empty_object())
    }

    /// `app/v1/transactions/…`: the homeserver pushes events (the same, "Pushing events"). They are unverified: a departure is a reason
    /// to check the membership, and a repeated transaction does no harm.
    pub(super) fn receive_transaction(
        &self,
        context: &RequestContext<'_>,
    ) -> Result<HttpResponse, Refusal> {
        authenticated(context)?;
        let departures = transaction::parse_departures(context.request.body)?;
        let participants: usize = departures
            .iter()
            .map(|departure| self.membership.recheck(departure))
            .sum();
        debug!(
            request:% = context.id,
            client:% = context.client(),
            departures = departures.len(),
            participants;
            "transaction received"
        );
        Ok(HttpResponse::empty_object())
    }
}

fn authenticated(context: &RequestContext<'_>) -> Result<HomeserverProof, Error> {
    context.route.homeserver.map_err(Error::from)
}

fn authenticate_user(
    exchange: &AppServiceExchange,
    context: &RequestContext<'_>,
) -> Result<LocalUser, Error> {
    let (homeserver, headers) = (authenticated(context)?, proxy_headers(context));
    exchange
        .authenticator
        .authenticate_user(homeserver, headers)
}

fn proxy_headers<'a>(context: &RequestContext<'a>) -> ProxyHeaders<'a> {
    ProxyHeaders {
        user: context.single_header("X-Matrix-User-Identifier"),
        origin: context.single_header("X-Matrix-Origin"),
    }
}

fn token_response(
    context: &RequestContext<'_>,
    user: &UserId,
    access: AccessLevel,
    matrix_room: &RoomId,
    token: &AppServiceToken,
) -> HttpResponse {
    let (jwt, source, participant) = match token {
        AppServiceToken::Issued(token, key) => (token.expose(), "appservice", Some(key)),
        AppServiceToken::Relayed(token) => (&**token, "appservice_relay", None),
    };
    context.record_token(source, user, access, matrix_room, participant, None);
    HttpResponse::json(200, &JwtResponse { jwt })
}
