//! Restarts or sends a delayed event (MSC4140), and says what the answer means.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::matrix::client_api::{self, Api, ClientApi, PathForm, Support};
use crate::matrix::escaped;
use crate::matrix::id::{ServerName, UserId};
use crate::matrix::registration::SharedToken;
use crate::net::breaker::Breakers;
use crate::net::bulkhead::{PER_NEIGHBOURHOOD, PerKey};
use crate::net::fetch::{self, Fetcher, Limits, Request};

pub use crate::matrix::id::DelayId;

mod answer;

use answer::Meaning;

/// For one call in all. It is tried again anyway.
const BUDGET: Duration = Duration::from_secs(10);
const LIMITS: Limits = Limits {
    kind: "delayed_event",
    connect: Duration::from_secs(5),
    head: Duration::from_secs(8),
    body: Duration::from_secs(3),
    // `{}`, or an error of some 100 bytes; a proxy's error page may be longer
    max_body: 64 * 1024,
    neighbours: PER_NEIGHBOURHOOD,
};
/// Calls that may be under way to one server, whatever those who call think of it: half of the 24 that there are at most.
const PER_SERVER: usize = 12;
/// How long a server that does not answer is left alone: short, for a leave with a short delay has to be restarted as soon as it is
/// back.
const REST: Duration = Duration::from_secs(2);
/// The same for a stranger that has not answered for long.
const LONGEST_REST: Duration = Duration::from_secs(30);
/// When to try again where there was no place.
const CROWDED_RETRY: Duration = Duration::from_secs(1);

/// What came of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// 2xx.
    Done,
    /// 404, 410: sent or cancelled already.
    Gone,
    /// 409: finalised the other way.
    Finalised,
    /// Another 4xx, 401 and 403 above all: the server wants to know who asks. Final.
    Denied(u16),
    /// 429, with the time to wait, if it says; at most 5 minutes.
    SlowDown(Option<Duration>),
    /// The server was not called at all, as it did not answer lately or has enough calls under way; when to try again.
    NotNow(Duration),
    /// Anything that may be better next time: 5xx, 408, 425, no answer. Short, and fit for the log.
    Failed(String),
}

/// What is done to a delayed event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Deed {
    /// Its delay begins anew.
    Restart,
    /// It is sent now.
    Send,
}

impl Deed {
    /// As it is spelled in a path.
    fn action(self) -> &'static str {
        match self {
            Self::Restart => "restart",
            Self::Send => "send",
        }
    }
}

/// The delayed events of all homeservers.
#[derive(Debug)]
pub struct DelayedEvents {
    fetcher: Fetcher,
    client_api: ClientApi,
    breakers: Breakers<ServerName>,
    under_way: Arc<PerKey<ServerName>>,
    /// The server whose application service we are, what it knows us by, and the way to it.
    own: Option<(ServerName, SharedToken, Fetcher)>,
}

impl DelayedEvents {
    /// Calls homeservers where `client_api` finds them.
    pub fn new(fetcher: Fetcher, client_api: ClientApi) -> Self {
        Self {
            fetcher,
            client_api,
            breakers: Breakers::new(REST, LONGEST_REST),
            under_way: PerKey::new(),
            own: None,
        }
    }

    /// Acts for the users of this homeserver with the as_token that it knows us by: it may want to know who asks, and if not, each
    /// user has a rate of their own, or none. The token, which opens more than a user's, goes by this way only.
    pub fn acting_as(self, own: Option<(ServerName, SharedToken, Fetcher)>) -> Self {
        Self { own, ..self }
    }

    /// Where homeservers are found, and what they support.
    pub fn client_api(&self) -> &ClientApi {
        &self.client_api
    }

    /// Makes one call, which ends by `deadline`, and after 10 s at the latest.
    pub fn call(&self, deed: Deed, user: &UserId, id: &DelayId, deadline: Instant) -> Outcome {
        let server = user.server();
        let now = Instant::now();
        let deadline = deadline.min(now + BUDGET);
        let Some(_place) = self.under_way.enter(server.clone(), PER_SERVER) else {
            return Outcome::NotNow(CROWDED_RETRY);
        };
        let attempt = match self.breakers.attempt(server, now) {
            Ok(attempt) => attempt,
            Err(left) => return Outcome::NotNow(left),
        };
        let api = match self.client_api.find(server, deadline) {
            Ok(api) => api,
            Err(client_api::Error::Busy(after)) => return Outcome::NotNow(after),
            Err(error) => return Outcome::Failed(error.to_string()),
        };
        match self.act_or_ask(deed, user, id, &api, deadline) {
            Ok(outcome) => {
                attempt.succeeded();
                outcome
            }
            Err(error) if error.is_ours() => Outcome::NotNow(CROWDED_RETRY),
            Err(error) => {
                // what had no time to answer has not failed to
                let had_time = deadline.saturating_duration_since(now) >= LIMITS.connect;
                if error.is_silence() && had_time {
                    attempt.failed(self.client_api.knows(server), Instant::now());
                    self.client_api.doubt(server, now);
                }
                Outcome::Failed(format!("{}: {error}", api.base))
            }
        }
    }

    /// Calls in the user's name where we can, and as anybody can where we may not.
    fn act_or_ask(
        &self,
        deed: Deed,
        user: &UserId,
        id: &DelayId,
        api: &Api,
        deadline: Instant,
    ) -> Result<Outcome, fetch::Error> {
        let own = self.own.as_ref();
        if let Some((_, as_token, way)) = own.filter(|(own, ..)| own == user.server()) {
            let acting = Some((user, as_token.bearer(), way));
            let outcome = self.try_forms(deed, user.server(), id, api, acting, deadline)?;
            if !matches!(outcome, Outcome::Denied(401 | 403)) {
                return Ok(outcome);
            }
        }
        self.try_forms(deed, user.server(), id, api, None, deadline)
    }

    /// Calls in the form that the server is known to understand, and in the others if it turns out not to.
    fn try_forms(
        &self,
        deed: Deed,
        server: &ServerName,
        id: &DelayId,
        api: &Api,
        acting: Option<(&UserId, String, &Fetcher)>,
        deadline: Instant,
    ) -> Result<Outcome, fetch::Error> {
        let known = match api.support {
            Support::Yes(form) => form,
            Support::No => PathForm::Unstable,
        };
        let others = [PathForm::Unstable, PathForm::InBody, PathForm::Stable];
        let others = others.into_iter().filter(|form| *form != known);
        for form in [known].into_iter().chain(others) {
            let (mut target, body) = request(form, api.base.path(), deed, id);
            if let Some((user, ..)) = &acting {
                target += &format!("?user_id={}", escaped(user.as_str()));
            }
            let request = Request {
                target: &target,
                authorization: acting.as_ref().map(|(_, bearer, _)| bearer.as_str()),
                post: Some(("application/json", body.as_bytes())),
            };
            let way = acting.as_ref().map_or(&self.fetcher, |(.., way)| *way);
            let answer = way.fetch(&api.route, request, LIMITS, deadline)?;
            if let Meaning::Clear(outcome) = answer::meaning(&answer) {
                if form != known {
                    log::debug!("delayed_events server={server} form={form:?}");
                    self.client_api.learn(server, form);
                }
                return Ok(outcome);
            }
        }
        // no form of it is known there (any more), so the event is not either
        Ok(Outcome::Gone)
    }
}

/// The target and the body of a call.
fn request(form: PathForm, prefix: &str, deed: Deed, id: &DelayId) -> (String, String) {
    const UNSTABLE: &str = "/_matrix/client/unstable/org.matrix.msc4140/delayed_events";
    const STABLE: &str = "/_matrix/client/v1/delayed_events";
    let id = escaped(id.as_str());
    let action = deed.action();
    match form {
        PathForm::Unstable => (format!("{prefix}{UNSTABLE}/{id}/{action}"), "{}".into()),
        PathForm::Stable => (format!("{prefix}{STABLE}/{id}/{action}"), "{}".into()),
        PathForm::InBody => (
            format!("{prefix}{UNSTABLE}/{id}"),
            format!(r#"{{"action":"{action}"}}"#),
        ),
    }
}

/// See [`crate::fuzzing`].
#[cfg(fuzzing)]
pub mod fuzzing {
    pub use super::answer::fuzzing::retry_after;

    use super::{Deed, DelayId, PathForm, request};

    /// The target of a restart in the form that most servers speak.
    pub fn restart_target(id: &DelayId) -> String {
        request(PathForm::Unstable, "", Deed::Restart, id).0
    }
}

#[cfg(test)]
mod tests;
