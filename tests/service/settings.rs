//! The environment that a service is started with, and the files that it names.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::certificate::authority_pem;

/// Begins every secret and OpenID token of the suite: no log may contain it.
pub(crate) const NEVER_LOGGED: &str = "never-logged";
/// The API key of most tests.
pub(crate) const KEY: &str = "APItestkey";
/// The API secret of most tests.
pub(crate) const SECRET: &str = "never-logged-api-secret-of-the-black-box-suite";

/// Variables for a service, with a directory for the files that they name.
#[derive(Clone)]
pub(crate) struct Settings {
    variables: BTreeMap<String, String>,
    directory: Arc<Directory>,
}

impl Settings {
    /// Nothing is set at all.
    pub(crate) fn none() -> Self {
        Self {
            variables: BTreeMap::new(),
            directory: Arc::new(Directory::new()),
        }
    }

    /// A free port of loopback, everything in the log, and the suite's authority: no credentials, no SFU.
    pub(crate) fn listening() -> Self {
        Self::none()
            .set("LIVEKIT_JWT_BIND", "127.0.0.1:0")
            .set("LIVEKIT_LOG_LEVEL", "trace")
            .set_file("LIVEKIT_CA_FILE", authority_pem())
    }

    /// [`Settings::listening`] with credentials and an SFU that is never reached.
    pub(crate) fn complete() -> Self {
        Self::listening()
            .set("LIVEKIT_URL", "wss://sfu.example.com")
            .set("LIVEKIT_KEY", KEY)
            .set("LIVEKIT_SECRET", SECRET)
    }

    pub(crate) fn set(mut self, name: &str, value: impl Into<String>) -> Self {
        self.variables.insert(name.to_owned(), value.into());
        self
    }

    pub(crate) fn unset(mut self, name: &str) -> Self {
        self.variables.remove(name);
        self
    }

    /// Sets `name` to the path of a file with this content.
    pub(crate) fn set_file(self, name: &str, content: &str) -> Self {
        let path = self.path(name);
        fs::write(&path, content).unwrap();
        self.set(name, path.to_str().unwrap())
    }

    /// A path in the directory that is removed with the last clone of these settings.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.0.join(name)
    }

    pub(crate) fn variables(&self) -> impl Iterator<Item = (&String, &String)> {
        self.variables.iter()
    }
}

/// Short, because the path of a unix socket has 108 bytes at most.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("lts-{}-{number}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
