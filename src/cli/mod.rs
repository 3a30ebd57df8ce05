//! The command line: what was asked for, and what is said about it.

pub(crate) mod doctor;
pub(crate) mod healthcheck;
#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::fmt;
use std::io::{self, Write};
use std::path::Path;

use crate::config::table::{SETTINGS, SettingKind};
use crate::config::{BindAddress, Config, ConfigReport, Environment, Error};
use crate::matrix::id::ServerName;
use crate::matrix::registration;
use crate::net::base_url::BaseUrl;
use crate::token::CallerName;
use crate::token::api_key;
use crate::util::logging::escape_control_chars;

/// Exit code after arguments that nobody understands (as most programs have it).
pub(crate) const EXIT_USAGE: u8 = 2;
/// Exit code after wrong settings (`EX_CONFIG` of sysexits.h): systemd is told not to start the service again.
pub(crate) const EXIT_CONFIG: u8 = 78;
/// What `keygen` calls a caller of whom it is told nothing.
const DEFAULT_CALLER_NAME: &str = "app";
/// Where a homeserver on the same host reaches a service that nobody told where to listen.
const DEFAULT_SERVICE_URL: &str = "http://localhost:8080";
/// Most bytes of an unknown argument that are repeated.
const MAX_ARGUMENT_CHARS: usize = 80;

/// The name under which images of the forerunner have a program of its own, with the same settings as the service.
const HEALTHCHECK_PROGRAM: &str = "lk-jwt-service-healthcheck";

const USAGE: &str = "usage: livekit-token-service [serve | check-config | healthcheck | doctor [URL] | keygen [NAME] | generate-registration SERVER_NAME [URL] | --dev | --help | --version]";

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Command {
    /// Run the service; the default.
    Serve,
    /// Print every setting as it is understood.
    CheckConfig,
    /// Ask the running service whether it is well.
    Healthcheck,
    /// Run the service beside an SFU in its own `--dev` mode.
    Dev,
    /// Find out why calls fail: ask everyone whom the service would ask, and the service itself at this public URL.
    Doctor(Option<BaseUrl>),
    /// Make an API key for a caller of the token endpoint.
    Keygen(CallerName),
    /// Make a registration for this homeserver, which reaches this service at this URL.
    GenerateRegistration(ServerName, BaseUrl),
    /// Print the help.
    Help,
    /// Print the version.
    Version,
}

/// An argument that is not one of ours; shown with the usage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct UnknownArgument(String);

impl fmt::Display for UnknownArgument {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unknown argument {:?}\n{USAGE}", self.0)
    }
}

impl std::error::Error for UnknownArgument {}

impl Command {
    /// Reads the program's name, which is a command in itself if it is `lk-jwt-service-healthcheck`, and the arguments that follow it.
    pub(crate) fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Self, UnknownArgument> {
        let mut args = args.into_iter();
        let name = args.next().unwrap_or_default();
        let default = match Path::new(&name).file_name() {
            Some(name) if name == HEALTHCHECK_PROGRAM => Self::Healthcheck,
            _ => Self::Serve,
        };
        let Some(first) = args.next() else {
            return Ok(default);
        };
        let command = match first.to_str() {
            Some("serve") => Self::Serve,
            Some("check-config") => Self::CheckConfig,
            Some("healthcheck") => Self::Healthcheck,
            Some("--dev") => Self::Dev,
            Some("doctor") => Self::Doctor(match args.next() {
                None => None,
                Some(url) => {
                    let parsed = url.to_str().map(BaseUrl::parse);
                    Some(
                        parsed
                            .and_then(Result::ok)
                            .ok_or_else(|| unknown_argument(url))?,
                    )
                }
            }),
            Some("keygen") => {
                let name = args.next().unwrap_or_else(|| DEFAULT_CALLER_NAME.into());
                let parsed = name.to_str().and_then(CallerName::parse);
                Self::Keygen(parsed.ok_or_else(|| unknown_argument(name))?)
            }
            Some("generate-registration") => {
                let server = args.next().unwrap_or_default();
                let parsed = server
                    .to_str()
                    .and_then(|name| ServerName::parse(name).ok());
                let parsed = parsed.ok_or_else(|| unknown_argument(server))?;
                let url = args.next().unwrap_or_else(|| DEFAULT_SERVICE_URL.into());
                let at = url.to_str().and_then(parse_http_url);
                Self::GenerateRegistration(parsed, at.ok_or_else(|| unknown_argument(url))?)
            }
            Some("--help" | "-h" | "help") => Self::Help,
            Some("--version" | "-V") => Self::Version,
            _ => return Err(unknown_argument(first)),
        };
        args.next()
            .map_or(Ok(command), |more| Err(unknown_argument(more)))
    }
}

/// A URL that a homeserver can post to.
fn parse_http_url(text: &str) -> Option<BaseUrl> {
    let url = BaseUrl::parse(text).ok()?;
    text.to_ascii_lowercase().starts_with("http").then_some(url)
}

fn unknown_argument(argument: OsString) -> UnknownArgument {
    UnknownArgument(
        argument
            .to_string_lossy()
            .chars()
            .take(MAX_ARGUMENT_CHARS)
            .collect(),
    )
}

/// Prints name and version.
pub(crate) fn print_version(out: &mut impl Write) -> io::Result<()> {
    writeln!(
        out,
        "{} {}",
        env!("CARGO_PKG_NAME"),
        env!("CARGO_PKG_VERSION")
    )
}

/// Prints what can be asked for and every setting.
pub(crate) fn print_help(out: &mut impl Write) -> io::Result<()> {
    print_version(out)?;
    writeln!(
        out,
        "\
{}.

{USAGE}

  serve         run the service (the default)
  check-config  print every setting as it is understood, and where it comes from
  healthcheck   ask the service that runs with the same settings; exit code 0 if it is well
  doctor        ask the SFU, the homeservers and, at its public URL, the service itself; say what is amiss and what to do
  keygen        make an API key for a caller of /token, and the line that the service needs to know it
  generate-registration
                make the file that lets the homeserver SERVER_NAME have this service, at URL, for an application service
  --dev         run beside `livekit-server --dev`, on loopback, with rooms for everyone
  --help        print this
  --version     print the version

Settings come from the environment; an empty one is unset. Each may also be a file of
its name (or in lower case with dashes) in $CREDENTIALS_DIRECTORY.
",
        env!("CARGO_PKG_DESCRIPTION")
    )?;
    let width = SETTINGS.iter().map(|known| known.name.len()).max();
    let width = width.unwrap_or_default();
    for known in SETTINGS {
        match known.kind {
            SettingKind::Value | SettingKind::Path => {
                writeln!(out, "  {:width$}  {}", known.name, known.help)?
            }
            SettingKind::Deprecated => {
                writeln!(out, "  {:width$}  older name of {}", known.name, known.help)?
            }
        }
    }
    writeln!(
        out,
        "\nA wrong setting ends the service with exit code {EXIT_CONFIG} and a line that names it."
    )
}

/// Makes an API key. On `out`: the key, and below it what to store; on `err` what to do with them.
pub(crate) fn keygen(
    name: &CallerName,
    out: &mut impl Write,
    err: &mut impl Write,
) -> io::Result<()> {
    let (key, hash) = api_key::generate_api_key();
    writeln!(out, "{key}\n{name}:{hash}")?;
    writeln!(
        err,
        "The first line is the API key: give it to {name}, it is stored nowhere. The second is for TOKEN_SERVER_API_KEYS, \
         or in the policy file: [callers.{name:?}] keys = [\"sha256:{hash}\"]",
        name = name.as_str()
    )
}

/// Makes a registration. On `out`: the file; on `err` what to do with it.
pub(crate) fn generate_registration(
    server: &ServerName,
    url: &BaseUrl,
    out: &mut impl Write,
    err: &mut impl Write,
) -> io::Result<()> {
    out.write_all(registration::generate(server, url).as_bytes())?;
    writeln!(
        err,
        "Store it where the homeserver and this service can read it, and nobody else: app_service_config_files of Synapse, with \
         msc4502_enabled and msc4512_enabled among its experimental_features, and LIVEKIT_AS_REGISTRATION_FILE with \
         LIVEKIT_HS_SERVER_NAME={server} and LIVEKIT_HS_URL here"
    )
}

/// Prints every setting to `out`, or everything that is wrong to `err`. Gives the exit code.
pub(crate) fn check_config(
    env: &Environment,
    out: &mut impl Write,
    err: &mut impl Write,
) -> io::Result<u8> {
    let (config, report) = Config::read_with_defaults(env);
    match config {
        Ok(_) => {
            print_settings(&report, out)?;
            print_warnings(&report, out)?;
            writeln!(out, "configuration is valid")?;
            Ok(0)
        }
        Err(errors) => {
            print_warnings(&report, err)?;
            print_errors(&errors, err)?;
            Ok(EXIT_CONFIG)
        }
    }
}

/// Prints wrong settings, a line each.
pub(crate) fn print_errors(errors: &[Error], err: &mut impl Write) -> io::Result<()> {
    errors
        .iter()
        .try_for_each(|error| writeln!(err, "{}", escape_control_chars(&error.to_string())))
}

fn print_settings(report: &ConfigReport, out: &mut impl Write) -> io::Result<()> {
    let rows: Vec<_> = report
        .settings()
        .iter()
        .map(|s| {
            (
                s.name,
                escape_control_chars(&s.display_value),
                escape_control_chars(&s.origin.to_string()),
            )
        })
        .collect();
    let width = |column: fn(&(&str, String, String)) -> usize| rows.iter().map(column).max();
    let names = width(|row| row.0.len()).unwrap_or_default();
    let values = width(|row| row.1.chars().count()).unwrap_or_default();
    for (name, value, origin) in &rows {
        writeln!(out, "{name:names$}  {value:values$}  {origin}")?;
    }
    Ok(())
}

fn print_warnings(report: &ConfigReport, out: &mut impl Write) -> io::Result<()> {
    report
        .warnings()
        .iter()
        .try_for_each(|warning| writeln!(out, "warning: {}", escape_control_chars(warning)))
}

/// What `--dev` says at start, a line each: what is open, and how to try it. `listening` has the real port.
pub(crate) fn dev_hints(config: &Config, listening: &BindAddress) -> Vec<String> {
    let (curl, base) = match listening {
        BindAddress::Unix(path) => (
            format!("curl --unix-socket {}", path.display()),
            "http://localhost".into(),
        ),
        BindAddress::AllInterfaces(port) => ("curl".into(), format!("http://localhost:{port}")),
        BindAddress::Tcp { host, port } => ("curl".into(), format!("http://{host}:{port}")),
    };
    let token =
        r#"-H 'Content-Type: application/json' -d '{"room_name":"test","participant_name":"me"}'"#;
    let body = r#"{"room_id":"!room:example.org","slot_id":"m.call#ROOM","openid_token":{"access_token":"FROM_YOUR_HOMESERVER","token_type":"Bearer","matrix_server_name":"example.org","expires_in":3600},"member":{"id":"me","claimed_user_id":"@you:example.org","claimed_device_id":"DEVICE"}}"#;
    let mut hints = vec![
        "DEVELOPMENT MODE: not for a host that others reach".into(),
        format!(
            "tokens are for {}, signed with API key {}",
            config.sfu_url,
            config.api_keys.first().map_or("(none)", |key| key.id())
        ),
        format!("try it: {curl} -i {base}/healthz"),
        format!("with an OpenID token (POST /_matrix/client/v3/user/USER/openid/request_token): {curl} {base}/get_token -d '{body}'"),
        format!("without Matrix: {curl} {base}/token {token}"),
        "a homeserver on this host or on the LAN is asked only with LIVEKIT_ALLOWED_NETWORKS=127.0.0.0/8,::1 or the like".into(),
    ];
    if config.full_access.is_all() {
        hints.insert(
            1,
            "anybody with an account on any Matrix homeserver can create rooms".into(),
        );
    }
    hints
}
