//! Composition of the token endpoint.

use std::io;
use std::sync::Arc;

use crate::api::token::TokenApi;
use crate::config::{Config, TokenEndpointConfig};
use crate::livekit::access_token::SharedApiKeys;
use crate::token::TokenSource;
use crate::token::jwks::JwksRefresher;

/// The handler of `/token`. Rate limits and the fetched keys of logins outlast a reload.
pub(super) struct TokenHandlers {
    api: Arc<TokenApi>,
    source: Arc<TokenSource>,
    jwks: JwksRefresher,
}

impl TokenHandlers {
    /// # Errors
    ///
    /// If the thread that fetches keys of logins cannot be started.
    pub(super) fn build(
        config: &Config,
        endpoint: &TokenEndpointConfig,
        keys: &SharedApiKeys,
    ) -> io::Result<Self> {
        let fetchers = config.network.fetchers(0);
        let mut jwks = JwksRefresher::new(move || fetchers.jwks());
        let callers = endpoint.callers.start(&mut jwks)?;
        let source = Arc::new(TokenSource::new(keys.clone(), callers));
        let (url, origins) = (config.sfu.url.clone(), endpoint.allowed_origins.clone());
        let api = Arc::new(TokenApi::new(source.clone(), url, origins));
        Ok(Self { api, source, jwks })
    }

    /// Replaces the callers, and what else differs between two configurations.
    ///
    /// # Errors
    ///
    /// If the thread that fetches keys of logins cannot be started; the callers stay as they were.
    pub(super) fn reload(&mut self, old: &Config, new: &Config) -> io::Result<()> {
        if new.network != old.network {
            let fetchers = new.network.fetchers(0);
            self.jwks.replace_fetchers(move || fetchers.jwks());
        }
        if new.sfu.url != old.sfu.url {
            self.api.replace_livekit_url(new.sfu.url.clone());
        }
        if let Some(endpoint) = &new.token_endpoint {
            let callers = endpoint.callers.start(&mut self.jwks)?;
            self.source.replace_registry(callers);
        }
        Ok(())
    }

    pub(super) fn api(&self) -> Arc<TokenApi> {
        self.api.clone()
    }
}
