//! The table of all settings: `--help`, `check-config`, the environment file of `contrib` and the settings of README.md are made from it.

use std::fmt::Write as _;

use self::SettingDefault::{Described, Required, Value};
use super::Mode;
use super::values::{
    API_KEY_EXPECTED, BIND_EXPECTED, BOOLEAN_EXPECTED, CALLER_KEYS_EXPECTED, HOMESERVERS_EXPECTED,
    HTTP_URL_EXPECTED, NETWORKS_EXPECTED, ORIGINS_EXPECTED, SERVER_NAME_EXPECTED, SFU_URL_EXPECTED,
    URL_OVERRIDES_EXPECTED,
};

/// A group of settings that is read as a whole: if one of them is wrong, a reload keeps all of the group as they were.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Section {
    SfuUrl,
    SfuKeys,
    Listen,
    Homeservers,
    Network,
    AccessTokens,
    DelegatedLeaves,
    AppService,
    CallerKeys,
    Login,
    Policy,
    Callers,
    Log,
}

impl Section {
    /// The name in logs and headings.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::SfuUrl => "SFU URL",
            Self::SfuKeys => "SFU keys",
            Self::Listen => "listening",
            Self::Homeservers => "homeservers",
            Self::Network => "network",
            Self::AccessTokens => "access tokens",
            Self::DelegatedLeaves => "delegated leaves",
            Self::AppService => "application service",
            Self::CallerKeys => "caller keys",
            Self::Login => "login",
            Self::Policy => "policy",
            Self::Callers => "callers",
            Self::Log => "log",
        }
    }

    fn is_reloaded(self) -> bool {
        !matches!(self, Self::Listen | Self::DelegatedLeaves)
    }
}

/// Endpoints that are open or closed together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EndpointGroup {
    /// For users of any homeserver, by OpenID token.
    Matrix,
    /// For applications.
    Token,
    /// For the homeserver that has this service as an application service.
    AppService,
}

impl EndpointGroup {
    pub(crate) const ALL: [Self; 3] = [Self::Matrix, Self::Token, Self::AppService];

    /// The paths, for messages.
    pub(crate) fn paths(self) -> &'static str {
        match self {
            Self::Matrix => "/get_token, /sfu/get and /delegate_delayed_leave",
            Self::Token => "/token",
            Self::AppService => "the endpoints of application-service mode",
        }
    }

    /// "is" or "are", for [`Self::paths`].
    pub(crate) fn verb(self) -> &'static str {
        match self {
            Self::Token => "is",
            Self::Matrix | Self::AppService => "are",
        }
    }
}

/// How a variable relates to the setting that it sets.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Relation {
    /// The setting itself.
    Main,
    /// Another name of a setting.
    SameAs(&'static Setting),
    /// The path of a file with the value of a setting.
    FileOf(&'static Setting),
    /// A name that predecessors of this service had; still read, with a warning.
    OlderName(&'static Setting),
}

/// The default of a setting.
#[derive(Debug, Clone, Copy)]
pub(crate) enum SettingDefault {
    /// Nothing: the service does not start.
    Required,
    /// This value.
    Value(&'static str),
    /// Described in these words; not a value.
    Described(&'static str),
}

/// An environment variable.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Setting {
    pub(crate) name: &'static str,
    pub(crate) section: Section,
    pub(crate) relation: Relation,
    /// The meaning in one line, without default and range. Empty for relations other than [`Relation::Main`].
    help: &'static str,
    /// The form of a value, for errors.
    expected: &'static str,
    pub(super) default: SettingDefault,
    dev_default: Option<&'static str>,
    /// The default in application-service mode.
    pub(crate) appservice_default: Option<&'static str>,
    pub(crate) range: Option<(u64, u64)>,
    unit: &'static str,
    /// The value in the environment file of `contrib`.
    #[cfg_attr(not(test), expect(dead_code, reason = "a test writes the file"))]
    pub(super) example: &'static str,
    /// The value must not be shown.
    pub(crate) secret: bool,
    /// The value is the path of a file; a credential of this name is the file itself.
    pub(crate) path: bool,
    /// SIGHUP does not re-read it, although it re-reads other settings of the section.
    not_reloaded: bool,
    pub(crate) read_by: &'static [EndpointGroup],
    /// The endpoints that this setting opens, and whether it does so only without application-service mode.
    pub(crate) opens: Option<(EndpointGroup, bool)>,
}

const MATRIX: &[EndpointGroup] = &[EndpointGroup::Matrix];
const TOKEN: &[EndpointGroup] = &[EndpointGroup::Token];
const APPSERVICE: &[EndpointGroup] = &[EndpointGroup::AppService];
const BOTH_MATRIX: &[EndpointGroup] = &[EndpointGroup::Matrix, EndpointGroup::AppService];

const OPENS_MATRIX: Option<(EndpointGroup, bool)> = Some((EndpointGroup::Matrix, false));
const OPENS_TOKEN: Option<(EndpointGroup, bool)> = Some((EndpointGroup::Token, false));
const OPENS_APPSERVICE: Option<(EndpointGroup, bool)> = Some((EndpointGroup::AppService, false));
const KEY_OPENS_MATRIX: Option<(EndpointGroup, bool)> = Some((EndpointGroup::Matrix, true));
const KEY_OPENS_TOKEN: Option<(EndpointGroup, bool)> = Some((EndpointGroup::Token, true));

/// Methods that set a field.
macro_rules! setters {
    ($($method:ident($field:ident: $type:ty);)*) => {
        $(const fn $method(self, $field: $type) -> Self {
            Self { $field, ..self }
        })*
    };
}

impl Setting {
    const fn new(section: Section, help: &'static str) -> Self {
        let read_by: &[EndpointGroup] = match section {
            Section::AccessTokens | Section::DelegatedLeaves => BOTH_MATRIX,
            Section::AppService => APPSERVICE,
            Section::CallerKeys | Section::Login | Section::Policy | Section::Callers => TOKEN,
            _ => &EndpointGroup::ALL,
        };
        Self {
            name: "",
            section,
            relation: Relation::Main,
            help,
            expected: "",
            default: SettingDefault::Described(""),
            dev_default: None,
            appservice_default: None,
            range: None,
            unit: "",
            example: "",
            secret: false,
            path: false,
            not_reloaded: false,
            read_by,
            opens: None,
        }
    }

    /// Another name of `main`.
    const fn alias_of(main: &'static Self) -> Self {
        Self {
            relation: Relation::SameAs(main),
            opens: None,
            ..*main
        }
    }

    const fn file_of(main: &'static Self) -> Self {
        Self {
            relation: Relation::FileOf(main),
            secret: false,
            path: true,
            opens: None,
            ..*main
        }
    }

    const fn older_name(main: &'static Self) -> Self {
        Self {
            relation: Relation::OlderName(main),
            opens: None,
            ..*main
        }
    }

    setters! {
        named(name: &'static str);
        default(default: SettingDefault);
        dev(dev_default: Option<&'static str>);
        in_appservice_mode(appservice_default: Option<&'static str>);
        expected(expected: &'static str);
        example(example: &'static str);
        secret(secret: bool);
        path(path: bool);
        not_reloaded(not_reloaded: bool);
        read_by(read_by: &'static [EndpointGroup]);
        opens(opens: Option<(EndpointGroup, bool)>);
    }

    const fn range(self, min: u64, max: u64, unit: &'static str) -> Self {
        Self {
            range: Some((min, max)),
            unit,
            ..self
        }
    }

    /// Whether SIGHUP reads the setting again, if it comes from a file.
    pub(crate) fn is_reloaded(&self) -> bool {
        self.section.is_reloaded() && !self.not_reloaded
    }

    /// Whether it is neither an older name nor one that systemd sets.
    pub(crate) fn is_current(&self) -> bool {
        !matches!(self.relation, Relation::OlderName(_))
    }

    /// The setting that this variable sets.
    pub(crate) fn main(&'static self) -> &'static Self {
        match self.relation {
            Relation::Main => self,
            Relation::SameAs(main) | Relation::FileOf(main) | Relation::OlderName(main) => main,
        }
    }

    /// The value that holds if the setting is not set; none if it has to be set or has no default value.
    pub(crate) fn default_value(&self, mode: Mode) -> Option<&'static str> {
        match (mode, self.dev_default, self.default) {
            (Mode::Dev, Some(value), _) | (_, _, SettingDefault::Value(value)) => Some(value),
            _ => None,
        }
    }

    /// The default, for messages; empty if there is none.
    pub(crate) fn default_text(&self) -> String {
        let words = match self.default {
            SettingDefault::Required => "required",
            SettingDefault::Value(words) | SettingDefault::Described(words) => words,
        };
        match self.appservice_default {
            Some(other) => format!("{words}; {other} in application-service mode"),
            None => words.to_owned(),
        }
    }

    pub(crate) fn is_required(&self) -> bool {
        matches!(self.default, SettingDefault::Required)
    }

    /// What a value looks like, for errors.
    pub(crate) fn expected_form(&self) -> String {
        match self.range {
            Some((min, max)) => format!("{min} to {max} {}", self.unit)
                .trim_end()
                .to_owned(),
            None => self.expected.to_owned(),
        }
    }

    /// Meaning and range.
    pub(crate) fn meaning(&self) -> String {
        match (self.relation, self.range) {
            (Relation::Main, Some((min, max))) => format!("{} ({min} to {max})", self.help),
            (Relation::Main, None) => self.help.to_owned(),
            (Relation::SameAs(main), _) => format!("the same as {}", main.name),
            (Relation::FileOf(main), _) => format!("path of a file with {}", main.name),
            (Relation::OlderName(main), _) => format!("older name of {}", main.name),
        }
    }

    /// Meaning, range and default.
    pub(crate) fn description(&self) -> String {
        let (mut text, default) = (self.meaning(), self.default_text().replace('`', ""));
        match (self.relation, self.default) {
            (Relation::Main, SettingDefault::Required) => text += "; required",
            (Relation::Main, _) if !default.is_empty() => {
                // writing to a String cannot fail
                let _ = write!(text, "; default: {default}");
            }
            _ => {}
        }
        text
    }
}

macro_rules! settings {
    ($($name:ident = $setting:expr;)*) => {
        $(pub(crate) static $name: Setting = $setting.named(stringify!($name));)*

        /// Every setting, in the order of all that is made from the table.
        pub(crate) static SETTINGS: &[&Setting] = &[$(&$name),*];
    };
}

settings! {
    LIVEKIT_URL = Setting::new(Section::SfuUrl, "URL of the SFU that clients are given, unchanged: ws, wss, http or https")
        .default(Required).dev(Some("ws://localhost:7880")).expected(SFU_URL_EXPECTED).example("wss://matrix-rtc.example.com/livekit/sfu");
    LIVEKIT_API_URL = Setting::new(Section::SfuUrl, "URL at which this service calls the SFU")
        .default(Described("LIVEKIT_URL")).expected(SFU_URL_EXPECTED).example("http://127.0.0.1:7880");

    LIVEKIT_KEY = Setting::new(Section::SfuKeys, "API key of the SFU; the service needs one key with its secret, from any of these settings")
        .expected(API_KEY_EXPECTED).example("APIkey").opens(KEY_OPENS_MATRIX);
    LIVEKIT_API_KEY = Setting::alias_of(&LIVEKIT_KEY).opens(KEY_OPENS_TOKEN);
    LIVEKIT_KEY_FROM_FILE = Setting::file_of(&LIVEKIT_KEY)
        .example("/run/secrets/livekit-key").opens(KEY_OPENS_MATRIX);
    LIVEKIT_SECRET = Setting::new(Section::SfuKeys, "secret of the SFU's API key")
        .secret(true).expected("a secret in one line without control characters").example("a-secret-of-at-least-thirty-two-characters");
    LIVEKIT_API_SECRET = Setting::alias_of(&LIVEKIT_SECRET);
    LIVEKIT_SECRET_FROM_FILE = Setting::file_of(&LIVEKIT_SECRET).example("/run/secrets/livekit-secret");
    LIVEKIT_SECRET_FILE = Setting::file_of(&LIVEKIT_SECRET).example("/run/secrets/livekit-secret");
    LIVEKIT_KEYS = Setting::new(Section::SfuKeys, "API keys of the SFU: `key: secret`, separated by commas or line breaks; the first signs")
        .secret(true).expected("`key: secret`").example("APIkey: a-secret-of-at-least-thirty-two-characters")
        .opens(KEY_OPENS_MATRIX);
    LIVEKIT_KEY_FILE = Setting::new(Section::SfuKeys, "path of a file with lines `key: secret`, of which the first signs; or with LIVEKIT_KEY alone")
        .path(true).expected("`key: secret`").example("/run/secrets/livekit-keys").opens(KEY_OPENS_MATRIX);

    LIVEKIT_JWT_BIND = Setting::new(Section::Listen, "address to listen on: :PORT, HOST:PORT, [IPV6]:PORT or unix:/PATH")
        .default(Value(":8080")).dev(Some("127.0.0.1:8080")).expected(BIND_EXPECTED).example("127.0.0.1:8080");
    LIVEKIT_JWT_PORT = Setting::older_name(&LIVEKIT_JWT_BIND).expected("a port from 0 to 65535");
    LK_JWT_PORT = Setting::older_name(&LIVEKIT_JWT_BIND).expected("a port from 0 to 65535");
    TOKEN_SERVER_PORT = Setting::older_name(&LIVEKIT_JWT_BIND).expected("a port from 0 to 65535").opens(OPENS_TOKEN);
    LIVEKIT_METRICS_BIND = Setting::new(Section::Listen, "address to serve /metrics on, in the forms of LIVEKIT_JWT_BIND")
        .default(Described("none")).expected(BIND_EXPECTED).example("127.0.0.1:9090");
    LIVEKIT_TRUSTED_PROXIES = Setting::new(Section::Listen, "addresses or networks of proxies whose X-Forwarded-For is trusted, in addition to loopback")
        .expected(NETWORKS_EXPECTED).example("10.1.2.3");
    LIVEKIT_MAX_CONNECTIONS = Setting::new(Section::Listen, "connections of all clients; fewer if the descriptor limit (ulimit -n) allows fewer")
        .default(Value("16384")).range(16, 1_000_000, "").example("16384");
    LIVEKIT_MAX_CONNECTIONS_PER_ADDRESS = Setting::new(Section::Listen, "connections of one public address, with IPv6 of one subnet of 64 bits")
        .default(Value("256")).range(1, 1_000_000, "").example("256");
    LIVEKIT_RATE_PER_ADDRESS = Setting::new(Section::Listen, "token requests of one public address a minute, at all endpoints together; 0 for no limit")
        .default(Value("300")).range(0, 1_000_000, "requests a minute").example("300");

    LIVEKIT_FULL_ACCESS_HOMESERVERS = Setting::new(Section::Homeservers, "homeservers whose users have rooms created: server names separated by commas or spaces, or `*` for all")
        .default(Described("none")).dev(Some("*")).expected(HOMESERVERS_EXPECTED).example("example.com").read_by(MATRIX).opens(OPENS_MATRIX);
    LIVEKIT_LOCAL_HOMESERVERS = Setting::older_name(&LIVEKIT_FULL_ACCESS_HOMESERVERS).opens(OPENS_MATRIX);
    LIVEKIT_FEDERATION_URL_OVERRIDES = Setting::new(Section::Homeservers, "federation URLs of homeservers, instead of discovery: `SERVER=URL` with http or https, separated by commas or spaces")
        .expected(URL_OVERRIDES_EXPECTED).example("example.com=http://127.0.0.1:8008").read_by(MATRIX).opens(OPENS_MATRIX);
    LIVEKIT_CS_API_URL_OVERRIDES = Setting::new(Section::Homeservers, "client-server API URLs of homeservers, for delegated leaves: `SERVER=URL` with http or https, separated by commas or spaces")
        .default(Described("`.well-known/matrix/client`")).expected(URL_OVERRIDES_EXPECTED).example("example.com=http://127.0.0.1:8008").read_by(BOTH_MATRIX);

    LIVEKIT_ALLOWED_NETWORKS = Setting::new(Section::Network, "networks where homeservers and JWKS may be, in addition to the public Internet: CIDR, separated by commas or spaces")
        .expected(NETWORKS_EXPECTED).example("10.1.0.0/16");
    LIVEKIT_DENIED_NETWORKS = Setting::new(Section::Network, "networks where homeservers and JWKS may not be, except those in LIVEKIT_ALLOWED_NETWORKS: CIDR, separated by commas or spaces")
        .expected(NETWORKS_EXPECTED).example("192.0.2.0/24,2001:db8::/32");
    LIVEKIT_HTTPS_PROXY = Setting::new(Section::Network, "proxy to homeservers and JWKS on public addresses: http://[USER:PASSWORD@]HOST:PORT; names are resolved and checked here, so it has to allow CONNECT to addresses on any port")
        .default(Described("none")).example("http://user:password@proxy.example.com:3128");
    LIVEKIT_CA_FILE = Setting::new(Section::Network, "path of a PEM file with certificate authorities to trust in addition")
        .default(Described("Mozilla's and the system's")).path(true).expected("a PEM file of certificates").example("/etc/ssl/my-ca.pem");
    SSL_CERT_FILE = Setting::new(Section::Network, "path of a PEM file with certificate authorities to trust in addition; ignored if it cannot be used")
        .path(true).example("/etc/ssl/certs/ca-certificates.crt");
    SSL_CERT_DIR = Setting::new(Section::Network, "directories of PEM files with certificate authorities to trust in addition, colon separated; ignored if they cannot be used")
        .example("/etc/ssl/certs");
    LIVEKIT_INSECURE_SKIP_VERIFY_TLS = Setting::new(Section::Network, "`YES_I_KNOW_WHAT_I_AM_DOING`: certificates of homeservers are not checked, except where this service shows its `as_token`")
        .read_by(BOTH_MATRIX);

    LIVEKIT_TOKEN_LIFETIME_SECONDS = Setting::new(Section::AccessTokens, "seconds in which a Matrix user's access token can be used to join")
        .default(Value("3600")).in_appservice_mode(Some("600")).range(60, 86_400, "seconds").example("3600");
    LIVEKIT_OPENID_CACHE_SECONDS = Setting::new(Section::AccessTokens, "seconds for which the verification of an OpenID token is cached; 0 for no cache")
        .default(Value("30")).range(0, 300, "seconds").example("30").read_by(MATRIX).opens(OPENS_MATRIX);
    LIVEKIT_CAN_UPDATE_OWN_METADATA = Setting::new(Section::AccessTokens, "whether participants may change their own name, metadata and attributes: `true` or `false`")
        .default(Value("false")).expected(BOOLEAN_EXPECTED).example("false").read_by(MATRIX).opens(OPENS_MATRIX);
    LIVEKIT_REMOTE_USERS_MAY_PUBLISH = Setting::new(Section::AccessTokens, "whether users without full access may publish audio, video and data: `true` or `false`")
        .default(Value("true")).expected(BOOLEAN_EXPECTED).example("true").read_by(MATRIX).opens(OPENS_MATRIX);

    LIVEKIT_STATE_DIR = Setting::new(Section::DelegatedLeaves, "directory where delegated leaves survive a restart, or `memory`")
        .default(Described("STATE_DIRECTORY, or else `memory`")).example("/var/lib/livekit-token-service");
    // systemd sets it, also where no endpoint needs it
    STATE_DIRECTORY = Setting::alias_of(&LIVEKIT_STATE_DIR).read_by(&EndpointGroup::ALL);
    LIVEKIT_REDIS_URL = Setting::new(Section::DelegatedLeaves, "Redis where several of these services share delegated leaves: redis://, rediss:// or unix://")
        .default(Described("none")).example("redis://127.0.0.1:6379");
    LIVEKIT_REDIS_PASSWORD = Setting::new(Section::DelegatedLeaves, "password for LIVEKIT_REDIS_URL").secret(true).example("a-password");
    LIVEKIT_REDIS_PASSWORD_FILE = Setting::file_of(&LIVEKIT_REDIS_PASSWORD).example("/run/secrets/redis-password");
    LIVEKIT_SANITY_CHECK_INTERVAL_SECONDS = Setting::new(Section::DelegatedLeaves, "seconds between checks with the SFU whether a participant is connected; 0 for checks in doubt only")
        .default(Value("60")).range(0, 86_400, "seconds").example("60");

    LIVEKIT_AS_REGISTRATION_FILE = Setting::new(Section::AppService, "path of this service's registration with a homeserver, as generate-registration prints it; turns on application-service mode")
        .path(true).example("/etc/livekit-token-service/registration.yaml").opens(OPENS_APPSERVICE);
    LIVEKIT_AS_TOKEN = Setting::new(Section::AppService, "`as_token` of the registration, if it is not read from LIVEKIT_AS_REGISTRATION_FILE")
        .secret(true).expected("the as_token that the homeserver has in its registration").example("the-as-token-of-at-least-32-characters").opens(OPENS_APPSERVICE);
    LIVEKIT_HS_TOKEN = Setting::new(Section::AppService, "`hs_token` of the registration, if it is not read from LIVEKIT_AS_REGISTRATION_FILE")
        .secret(true).expected("the hs_token that the homeserver has in its registration").example("the-hs-token-of-at-least-32-characters").opens(OPENS_APPSERVICE);
    LIVEKIT_HS_SERVER_NAME = Setting::new(Section::AppService, "server name of the homeserver that has the registration")
        .expected(SERVER_NAME_EXPECTED).example("example.com").opens(OPENS_APPSERVICE);
    LIVEKIT_HS_URL = Setting::new(Section::AppService, "URL at which this service calls the homeserver that has the registration: http or https")
        .default(Described("that of LIVEKIT_CS_API_URL_OVERRIDES")).expected(HTTP_URL_EXPECTED).example("http://synapse:8008").opens(OPENS_APPSERVICE);
    LIVEKIT_AS_MEMBERSHIP_CHECK_SECONDS = Setting::new(Section::AppService, "seconds between checks with the homeserver whether a participant is still in the Matrix room")
        .default(Value("30")).range(1, 3600, "seconds").example("30").not_reloaded(true);

    TOKEN_SERVER_API_KEYS = Setting::new(Section::CallerKeys, "callers of /token: NAME:SHA256 as keygen prints it, separated by commas or line breaks")
        .expected(CALLER_KEYS_EXPECTED).example("app:0000000000000000000000000000000000000000000000000000000000000001").opens(OPENS_TOKEN);
    TOKEN_SERVER_API_KEYS_FILE = Setting::file_of(&TOKEN_SERVER_API_KEYS).example("/run/secrets/callers").opens(OPENS_TOKEN);
    TOKEN_SERVER_JWT_ISSUER = Setting::new(Section::Login, "`iss` of the JWTs of a login whose users may call /token")
        .expected("the iss of the login's JWTs").example("https://login.example.com").opens(OPENS_TOKEN);
    TOKEN_SERVER_JWT_AUDIENCE = Setting::new(Section::Login, "`aud` of the login's JWTs for this service")
        .expected("the aud of the login's JWTs for this service").example("livekit").opens(OPENS_TOKEN);
    TOKEN_SERVER_JWT_KEYS = Setting::new(Section::Login, "path of a JWKS or PEM file with the login's keys, or https URL of its JWKS")
        .expected("a JWKS or PEM file or the https URL of a JWKS; or a secret for HS256 in TOKEN_SERVER_JWT_SECRET")
        .example("https://login.example.com/jwks.json").opens(OPENS_TOKEN);
    TOKEN_SERVER_JWT_SECRET = Setting::new(Section::Login, "secret of a login that signs with HS256, instead of TOKEN_SERVER_JWT_KEYS")
        .secret(true).example("a-secret-of-at-least-thirty-two-characters").opens(OPENS_TOKEN);
    TOKEN_SERVER_JWT_SECRET_FILE = Setting::file_of(&TOKEN_SERVER_JWT_SECRET).example("/run/secrets/login-secret").opens(OPENS_TOKEN);
    TOKEN_SERVER_JWT_IDENTITY_CLAIM = Setting::new(Section::Login, "claim of the login's JWTs that identifies the user")
        .default(Described("`sub`")).example("email").opens(OPENS_TOKEN);
    TOKEN_SERVER_POLICY_FILE = Setting::new(Section::Policy, "path of a file with callers of /token and what each may request, as contrib/policy.toml")
        .path(true).expected("a policy file as contrib/policy.toml").example("/etc/livekit-token-service/policy.toml").opens(OPENS_TOKEN);
    TOKEN_SERVER_MIN_NAME_LENGTH = Setting::new(Section::Policy, "shortest room and participant names at /token, in characters")
        .default(Value("1")).range(1, 64, "characters").example("3").opens(OPENS_TOKEN);
    TOKEN_SERVER_RATE_PER_CALLER = Setting::new(Section::Policy, "requests of one caller of /token a minute, or of one user of a login; 0 for no limit")
        .default(Value("600")).range(0, 1_000_000, "requests a minute").example("600").opens(OPENS_TOKEN);
    TOKEN_EXPIRY_HOURS = Setting::new(Section::Policy, "hours in which an access token of /token can be used to join")
        .default(Value("24")).range(1, 8760, "hours").example("24");
    TOKEN_SERVER_AUTH = Setting::new(Section::Callers, "`none`: everyone may call /token, without API key or JWT")
        .expected("none, or nothing where callers have API keys or JWTs").example("none").opens(OPENS_TOKEN);
    CORS_ORIGINS = Setting::new(Section::Callers, "origins of web pages that may call /token, separated by commas or spaces, or `*` for all (without cookies)")
        .default(Value("http://localhost:3000")).expected(ORIGINS_EXPECTED).example("https://app.example.com").not_reloaded(true);

    LIVEKIT_LOG_LEVEL = Setting::new(Section::Log, "least severe level in the log: `error`, `warn`, `info`, `debug` or `trace`")
        .default(Value("info")).expected("error, warn, info, debug or trace").example("info");
    LIVEKIT_LOG_FORMAT = Setting::new(Section::Log, "form of log lines: `logfmt` or `json`")
        .default(Value("logfmt")).expected("logfmt or json").example("logfmt").not_reloaded(true);
}

/// The setting of this name.
pub(super) fn find_setting(name: &str) -> Option<&'static Setting> {
    SETTINGS
        .iter()
        .copied()
        .find(|setting| setting.name == name)
}
