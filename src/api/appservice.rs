//! The endpoints of application-service mode, which only our homeserver may use. Browsers talk to the homeserver, so that responses have
//! no CORS header fields.

use log::{debug, info};
use serde::Serialize;

use super::refusal::Refusal;
use super::request::{ApiRequest, RequestContext};
use super::{request_body, transaction};
use crate::exchange::access::AccessLevel;
use crate::exchange::appservice::{
    AppServiceExchange, AppServiceToken, HomeserverProof, HsTokenError, MscVersion, ProxyHeaders,
};
use crate::matrix::id::{RoomId, UserId};
use crate::membership::Membership;
use crate::server::HttpResponse;
use crate::util::metrics;
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
        let (homeserver, headers) = (context.homeserver?, proxy_headers(context.request));
        let user = exchange
            .authenticator
            .authenticate_user(homeserver, headers)?;
        let request = request_body::parse_client_token(context.request.body)?;
        let (server, membership) = (request.server.as_ref(), &request.membership);
        let token = exchange.issue_client_token(&user, server, membership, version)?;
        let (user, room) = (user.id(), &membership.room);
        Ok(token_response(
            context,
            user,
            AccessLevel::Full,
            room,
            &token,
        ))
    }

    /// `federation/…/get_token`: a token for a user of another homeserver.
    pub(super) fn issue_federation_token(
        &self,
        context: &RequestContext<'_>,
    ) -> Result<HttpResponse, Refusal> {
        let exchange = self.exchange.get();
        let (homeserver, headers) = (context.homeserver?, proxy_headers(context.request));
        let origin = exchange
            .authenticator
            .authenticate_origin(homeserver, headers)?;
        let request = request_body::parse_federation_token(context.request.body)?;
        let (user, membership) = (&request.user, &request.membership);
        let token = exchange.issue_federation_token(&origin, user, membership)?;
        let room = &membership.room;
        Ok(token_response(
            context,
            user,
            AccessLevel::Restricted,
            room,
            &token,
        ))
    }

    /// `client/…/delegate_delayed_leave`.
    pub(super) fn delegate_leave(
        &self,
        context: &RequestContext<'_>,
    ) -> Result<HttpResponse, Refusal> {
        let exchange = self.exchange.get();
        let (homeserver, headers) = (context.homeserver?, proxy_headers(context.request));
        let user = exchange
            .authenticator
            .authenticate_user(homeserver, headers)?;
        let request = request_body::parse_client_delegate(context.request.body)?;
        let (membership, delay_id) = (&request.membership, &request.delay_id);
        let leave = exchange.delegate_leave(&user, membership, delay_id)?;
        context.log_delegated(user.id(), &leave);
        Ok(HttpResponse::empty_object())
    }

    /// `app/v1/ping`: the homeserver tests the connection (Matrix spec v1.16, application service API, "Pinging").
    pub(super) fn ping(&self, context: &RequestContext<'_>) -> Result<HttpResponse, Refusal> {
        context.homeserver?;
        Ok(HttpResponse::empty_object())
    }

    /// `app/v1/transactions/…`: the homeserver pushes events (the same, "Pushing events"). They are unverified: a departure is a reason
    /// to check the membership, and a repeated transaction does no harm.
    pub(super) fn receive_transaction(
        &self,
        context: &RequestContext<'_>,
    ) -> Result<HttpResponse, Refusal> {
        context.homeserver?;
        let departures = transaction::parse_departures(context.request.body)?;
        let participants: usize = departures
            .iter()
            .map(|departure| self.membership.recheck(departure))
            .sum();
        debug!(
            request:% = context.id,
            client:% = context.request.client,
            departures = departures.len(),
            participants;
            "transaction received"
        );
        Ok(HttpResponse::empty_object())
    }
}

fn proxy_headers<'a>(request: &ApiRequest<'a>) -> ProxyHeaders<'a> {
    ProxyHeaders {
        user: request.matrix_user,
        origin: request.matrix_origin,
    }
}

/// Logs and counts a token, and puts it into a response.
fn token_response(
    context: &RequestContext<'_>,
    user: &UserId,
    access: AccessLevel,
    matrix_room: &RoomId,
    token: &AppServiceToken,
) -> HttpResponse {
    let access = access.as_str();
    let (jwt, participant) = match token {
        AppServiceToken::Issued(token, participant) => (token.expose(), Some(participant)),
        AppServiceToken::Relayed(token) => (&**token, None),
    };
    info!(
        request:% = context.id,
        client:% = context.request.client,
        endpoint = context.endpoint,
        user:%,
        access,
        matrix_room = matrix_room.as_str(),
        room = participant.map(|participant| participant.room.as_str()),
        identity = participant.map(|participant| participant.identity.as_str()),
        ms = context.elapsed_ms();
        "{}", if participant.is_some() { "token issued" } else { "token relayed" }
    );
    let source = match participant {
        Some(_) => "appservice",
        None => "appservice_relay",
    };
    metrics::count_token_issued(source, access);
    HttpResponse::json(200, &JwtResponse { jwt })
}
