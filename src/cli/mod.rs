//! The command line: arguments, help, and the commands other than running the service.

pub(crate) mod check_config;
pub(crate) mod doctor;
pub(crate) mod generate;
pub(crate) mod healthcheck;
#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::fmt;
use std::io::{self, Write};
use std::path::Path;

use crate::config::Error;
use crate::config::table::{SETTINGS, Setting};
use crate::matrix::id::ServerName;
use crate::net::base_url::BaseUrl;
use crate::token::CallerName;
use crate::util::logging::escape_control_chars;
use crate::util::text::truncate_chars;

/// Exit code after unknown arguments, as of most programs.
pub(crate) const EXIT_USAGE: u8 = 2;
/// Exit code after wrong settings (`EX_CONFIG` of sysexits.h): the systemd unit does not restart the service then.
pub(crate) const EXIT_CONFIG: u8 = 78;
/// The name that `keygen` gives a caller.
const DEFAULT_CALLER_NAME: &str = "app";
/// The service's URL in a registration, for a homeserver on the same host.
const DEFAULT_SERVICE_URL: &str = "http://localhost:8080";
/// Longest part of an unknown argument in the error, in characters.
const MAX_ARGUMENT_CHARS: usize = 80;
/// Program of images of lk-jwt-service, which is called with the settings of the service.
const HEALTHCHECK_PROGRAM: &str = "lk-jwt-service-healthcheck";

const USAGE: &str = "usage: livekit-token-service [serve | check-config | healthcheck | doctor [URL] | keygen [NAME] | generate-registration SERVER_NAME [URL] | --dev | --help | --version]";

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Command {
    /// Run the service; the default.
    Serve,
    /// Run the service beside an SFU in its own `--dev` mode.
    Dev,
    /// Print all settings.
    CheckConfig,
    /// Check the running service.
    Healthcheck,
    /// Check the servers that the service calls, and the service itself at a public URL.
    Doctor(Option<BaseUrl>),
    /// Generate an API key for a caller of `/token`.
    Keygen(CallerName),
    /// Generate a registration for a homeserver that reaches this service at a URL.
    GenerateRegistration(ServerName, BaseUrl),
    Help,
    Version,
}

/// An argument that no command takes; displayed with the usage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct UnknownArgument(String);

impl fmt::Display for UnknownArgument {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unknown argument {:?}\n{USAGE}", self.0)
    }
}

impl std::error::Error for UnknownArgument {}

impl Command {
    /// Parses the program's name, and its arguments.
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
            Some("doctor") => {
                let url = args
                    .next()
                    .map(|url| parse(url, |url| BaseUrl::parse(url).ok()));
                Self::Doctor(url.transpose()?)
            }
            Some("keygen") => {
                let name = args.next().unwrap_or_else(|| DEFAULT_CALLER_NAME.into());
                Self::Keygen(parse(name, CallerName::parse)?)
            }
            Some("generate-registration") => {
                let server = args.next().unwrap_or_default();
                let url = args.next().unwrap_or_else(|| DEFAULT_SERVICE_URL.into());
                Self::GenerateRegistration(
                    parse(server, |server| ServerName::parse(server).ok())?,
                    parse(url, parse_http_url)?,
                )
            }
            Some("--help" | "-h" | "help") => Self::Help,
            Some("--version" | "-V") => Self::Version,
            _ => return Err(UnknownArgument::new(first)),
        };
        args.next()
            .map_or(Ok(command), |more| Err(UnknownArgument::new(more)))
    }
}

impl UnknownArgument {
    fn new(argument: OsString) -> Self {
        let text = argument.to_string_lossy();
        Self(truncate_chars(&text, MAX_ARGUMENT_CHARS).to_owned())
    }
}

fn parse<T>(
    argument: OsString,
    parse: impl FnOnce(&str) -> Option<T>,
) -> Result<T, UnknownArgument> {
    let parsed = argument.to_str().and_then(parse);
    parsed.ok_or_else(|| UnknownArgument::new(argument))
}

/// Parses a URL that a homeserver can call.
fn parse_http_url(text: &str) -> Option<BaseUrl> {
    let url = BaseUrl::parse(text).ok()?;
    text.to_ascii_lowercase().starts_with("http").then_some(url)
}

pub(crate) fn print_version(out: &mut impl Write) -> io::Result<()> {
    let (name, version) = (env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"));
    writeln!(out, "{name} {version}")
}

/// Prints the commands and all settings.
pub(crate) fn print_help(out: &mut impl Write) -> io::Result<()> {
    print_version(out)?;
    writeln!(
        out,
        "\
{}.

{USAGE}

  serve         run the service (the default)
  check-config  print every setting as the service understands it, where it comes from, and which endpoints are open
  healthcheck   check the service that runs with the same settings; exit code 0 if it is healthy
  doctor        check the SFU, the homeservers and, at its public URL, the service itself; print problems and what to do
  keygen        generate an API key for a caller of /token, and the line that the service needs to accept it
  generate-registration
                generate the file that registers this service, at URL, as an application service of the homeserver SERVER_NAME
  --dev         run beside `livekit-server --dev`, on loopback, with full access for all homeservers
  --help        print this
  --version     print the version

Settings are environment variables; an empty one counts as not set. Each may also be a file
of its name (or in lower case with dashes) in $CREDENTIALS_DIRECTORY.
",
        env!("CARGO_PKG_DESCRIPTION")
    )?;
    let width = SETTINGS.iter().map(|setting| setting.name.len()).max();
    let width = width.unwrap_or_default();
    for setting in SETTINGS {
        writeln!(out, "  {:width$}  {}", setting.name, setting.description())?;
    }
    let not_reloaded: Vec<_> = settings_not_reloaded()
        .map(|setting| setting.name)
        .collect();
    writeln!(
        out,
        "
A wrong setting ends the service with exit code {EXIT_CONFIG} and an error with its name.

SIGHUP reads files and credentials of settings again, except {}.",
        not_reloaded.join(", ")
    )
}

/// The settings that SIGHUP does not re-read.
fn settings_not_reloaded() -> impl Iterator<Item = &'static Setting> {
    let not_reloaded = |setting: &&Setting| !setting.is_reloaded() && setting.is_current();
    SETTINGS.iter().copied().filter(not_reloaded)
}

/// Prints errors of settings, a line each.
pub(crate) fn print_errors(errors: &[Error], err: &mut impl Write) -> io::Result<()> {
    errors
        .iter()
        .try_for_each(|error| writeln!(err, "{}", escape_control_chars(&error.to_string())))
}
