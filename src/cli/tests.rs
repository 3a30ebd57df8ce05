use super::check_config;
use super::generate::keygen;
use super::*;
use crate::config::table::Relation;
use crate::token::api_key;

fn parse(args: &[&str]) -> Result<Command, UnknownArgument> {
    called("livekit-token-service", args)
}

fn called(name: &str, args: &[&str]) -> Result<Command, UnknownArgument> {
    Command::parse([&name].into_iter().chain(args).map(OsString::from))
}

fn printed(print: impl FnOnce(&mut Vec<u8>) -> io::Result<()>) -> String {
    let mut out = Vec::new();
    print(&mut out).unwrap();
    String::from_utf8(out).unwrap()
}

fn check(variables: &[(&str, &str)]) -> (u8, String, String) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let env = variables.iter().copied().collect();
    let code = check_config::run(&env, &mut out, &mut err).unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (code, text(out), text(err))
}

#[test]
fn every_command_is_parsed_and_serve_is_the_default() {
    for (args, command) in [
        (&[][..], Command::Serve),
        (&["serve"], Command::Serve),
        (&["check-config"], Command::CheckConfig),
        (&["healthcheck"], Command::Healthcheck),
        (&["--dev"], Command::Dev),
        (&["--help"], Command::Help),
        (&["-h"], Command::Help),
        (&["help"], Command::Help),
        (&["--version"], Command::Version),
        (&["-V"], Command::Version),
        (
            &["keygen"],
            Command::Keygen(CallerName::parse("app").unwrap()),
        ),
        (
            &["keygen", "a.b"],
            Command::Keygen(CallerName::parse("a.b").unwrap()),
        ),
        (
            &["generate-registration", "hs.org"],
            registration("hs.org", "http://localhost:8080"),
        ),
        (
            &["generate-registration", "hs.org:8448", "https://rtc"],
            registration("hs.org:8448", "https://rtc"),
        ),
    ] {
        assert_eq!(parse(args), Ok(command));
    }
}

fn registration(server: &str, url: &str) -> Command {
    let server = ServerName::parse(server).unwrap();
    Command::GenerateRegistration(server, BaseUrl::parse(url).unwrap())
}

#[test]
fn program_names_of_lk_jwt_service_are_commands() {
    for (name, args, command) in [
        ("/lk-jwt-service", &[][..], Command::Serve),
        ("/lk-jwt-service", &["check-config"], Command::CheckConfig),
        ("/lk-jwt-service-healthcheck", &[], Command::Healthcheck),
        ("lk-jwt-service-healthcheck", &["--help"], Command::Help),
        ("", &[], Command::Serve),
    ] {
        assert_eq!(called(name, args), Ok(command), "{name} {args:?}");
    }
    assert_eq!(Command::parse([]), Ok(Command::Serve));
}

#[test]
fn unknown_arguments_are_refused_with_the_usage() {
    for args in [
        &["--serve"][..],
        &[""],
        &["--"],
        &["serve", "--dev"],
        &["--help", "me"],
        &["--port=8080"],
        &["keygen", "a b"],
        &["generate-registration", ""],
        &["generate-registration", "https://hs.org"],
        &["generate-registration", "hs.org", "wss://rtc"],
        &["generate-registration", "hs.org", "http://rtc", "x"],
        &["keygen", "a", "b"],
    ] {
        let error = parse(args).unwrap_err().to_string();
        let last = args.last().unwrap();
        assert!(error.starts_with(&format!("unknown argument {last:?}\nusage: ")));
    }
    let error = parse(&[&"\u{1b}".repeat(1000)]).unwrap_err().to_string();
    assert!(!error.contains('\u{1b}') && error.len() < 1000);
}

#[test]
fn keygen_prints_the_key_once_and_its_hash_to_store() {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    keygen(&CallerName::parse("app").unwrap(), &mut out, &mut err).unwrap();
    let [out, err] = [out, err].map(|bytes| String::from_utf8(bytes).unwrap());
    let lines: Vec<&str> = out.lines().collect();
    let [key, stored] = lines[..] else {
        panic!("{out}");
    };
    assert!(key.starts_with(api_key::API_KEY_PREFIX));
    let secret = key.rsplit('_').next().unwrap();
    assert!(!stored.contains(secret) && !err.contains(secret));
    let (name, hash) = stored.split_once(':').unwrap();
    let hash = api_key::ApiKeyHash::parse(hash).unwrap();
    let keys = api_key::CallerApiKeys::new(vec![(hash, CallerName::parse(name).unwrap())]);
    assert_eq!(keys.find(key).unwrap().0.as_str(), "app");
}

#[test]
fn help_has_a_line_for_every_setting() {
    let help = printed(print_help);
    for setting in SETTINGS {
        let lines = help
            .lines()
            .filter(|line| line.split_whitespace().next() == Some(setting.name));
        assert_eq!(lines.count(), 1, "{}", setting.name);
    }
    let fixed = help.rsplit("except ").next().unwrap();
    assert!(fixed.contains("LIVEKIT_JWT_BIND") && !fixed.contains("LIVEKIT_KEY"));
    assert!(printed(print_version).starts_with("livekit-token-service 0."));
}

#[test]
fn check_config_prints_all_settings_in_columns_and_masks_secrets() {
    let (code, out, err) = check(&[
        ("LIVEKIT_URL", "wss://sfu.example.com"),
        ("LIVEKIT_KEY", "APIx"),
        ("LIVEKIT_SECRET", "0123456789abcdef0123456789abcdef"),
        ("LIVEKIT_FULL_ACCESS_HOMESERVERS", "example.com"),
        ("LIVEKIT_SERCET", "x"),
        ("TOKEN_EXPIRY_HOURS", "24"),
    ]);
    assert_eq!((code, err.as_str()), (0, ""));
    let lines: Vec<_> = out.lines().collect();
    let row = |name: &str| {
        let mut lines = lines.iter();
        let line = lines.find(|line| line.split(' ').next() == Some(name));
        line.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
    };
    for setting in SETTINGS
        .iter()
        .filter(|setting| matches!(setting.relation, Relation::Main))
    {
        assert!(row(setting.name).is_some(), "{}", setting.name);
    }
    for (name, expected) in [
        ("LIVEKIT_URL", "wss://sfu.example.com environment"),
        (
            "LIVEKIT_API_URL",
            "https://sfu.example.com from LIVEKIT_URL",
        ),
        ("LIVEKIT_SECRET", "APIx (set, 32 characters) environment"),
        ("LIVEKIT_JWT_BIND", ":8080 default"),
        ("LIVEKIT_REDIS_URL", "(not set) default: none"),
        ("CORS_ORIGINS", "(not set) default: http://localhost:3000"),
        ("TOKEN_EXPIRY_HOURS", "(set, not read) environment"),
        (
            "LIVEKIT_TOKEN_LIFETIME_SECONDS",
            "3600; 600 in application-service mode default",
        ),
        ("LIVEKIT_KEYS", "(not set)"),
    ] {
        assert_eq!(row(name).unwrap(), format!("{name} {expected}"));
    }
    assert_eq!(row("LIVEKIT_API_KEY"), None, "another name that is not set");
    let column = |line: &str, word: &str| line.find(word).unwrap();
    assert_eq!(column(lines[0], "wss://"), column(lines[1], "https://sfu"));
    let origin = column(lines[0], "environment");
    assert_eq!(origin, column(lines[1], "from LIVEKIT_URL"));
    assert!(!out.contains("0123456789abcdef"));
    let end = lines.iter().position(|line| line.is_empty()).unwrap();
    let [matrix, token, appservice, memory, unread, unknown, valid] = lines[end + 1..] else {
        panic!("{out}")
    };
    assert!(
        matrix.ends_with("are open, since LIVEKIT_KEY is set"),
        "{matrix}"
    );
    assert!(
        token.starts_with("/token is closed, since none of "),
        "{token}"
    );
    assert!(
        appservice.contains(" closed, since none of LIVEKIT_AS_"),
        "{appservice}"
    );
    assert!(memory.starts_with("warning: delegated leaves are stored in memory"));
    assert_eq!(
        unread,
        "warning: TOKEN_EXPIRY_HOURS has no effect: /token is closed"
    );
    assert_eq!(
        unknown,
        "warning: LIVEKIT_SERCET is unknown; did you mean LIVEKIT_SECRET?"
    );
    assert_eq!(valid, "configuration is valid");
}

#[test]
fn check_config_prints_errors_to_stderr() {
    let (code, out, err) = check(&[
        ("LIVEKIT_URL", "wss://sfu.example.com"),
        ("LIVEKIT_KEY", "APIx"),
        ("LIVEKIT_SERCET", "x"),
    ]);
    assert_eq!((code, out.as_str()), (EXIT_CONFIG, ""));
    assert!(err.contains("\nLIVEKIT_SECRET: expected the secret of LIVEKIT_KEY"));
    assert!(err.contains("did you mean LIVEKIT_SECRET?"));
}
