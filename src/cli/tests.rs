use super::*;

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
    let code = check_config(&env, &mut out, &mut err).unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (code, text(out), text(err))
}

#[test]
fn every_command_has_its_word_and_serve_needs_none() {
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
fn the_names_of_the_forerunner_s_programs_are_commands() {
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
fn what_nobody_understands_is_answered_with_the_usage() {
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
fn a_key_is_printed_once_and_what_to_store_does_not_have_it() {
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
fn the_help_has_a_line_for_every_setting() {
    let help = printed(print_help);
    for known in SETTINGS {
        let lines = help
            .lines()
            .filter(|line| line.split_whitespace().next() == Some(known.name));
        assert_eq!(lines.count(), 1, "{}", known.name);
    }
    assert!(printed(print_version).starts_with("livekit-token-service 0."));
}

#[test]
fn check_config_aligns_values_and_origins_and_masks_secrets() {
    let (code, out, err) = check(&[
        ("LIVEKIT_URL", "wss://sfu.example.com"),
        ("LIVEKIT_KEY", "APIx"),
        ("LIVEKIT_SECRET", "0123456789abcdef0123456789abcdef"),
        ("LIVEKIT_FULL_ACCESS_HOMESERVERS", "example.com"),
        ("LIVEKIT_SERCET", "x"),
    ]);
    assert_eq!((code, err.as_str()), (0, ""));
    let lines: Vec<_> = out.lines().collect();
    let column = |line: &str, word: &str| line.find(word).unwrap();
    assert_eq!(
        lines[0].split_whitespace().collect::<Vec<_>>(),
        ["LIVEKIT_URL", "wss://sfu.example.com", "environment"]
    );
    assert_eq!(column(lines[0], "wss://"), column(lines[1], "https://sfu"));
    assert_eq!(
        column(lines[0], "environment"),
        column(lines[1], "from LIVEKIT_URL")
    );
    assert!(out.contains("APIx (set, 32 characters)") && !out.contains("0123456789abcdef"));
    assert_eq!(
        lines[lines.len() - 2..],
        [
            "warning: LIVEKIT_SERCET is not known; did you mean LIVEKIT_SECRET?",
            "configuration is valid"
        ]
    );
}

#[test]
fn check_config_says_what_is_wrong_on_stderr() {
    let (code, out, err) = check(&[
        ("LIVEKIT_URL", "wss://sfu.example.com"),
        ("LIVEKIT_KEY", "APIx"),
        ("LIVEKIT_SERCET", "x"),
    ]);
    assert_eq!((code, out.as_str()), (EXIT_CONFIG, ""));
    assert!(err.contains("\nLIVEKIT_SECRET: expected the secret of LIVEKIT_KEY"));
    assert!(err.contains("did you mean LIVEKIT_SECRET?"));
}

#[test]
fn the_hints_of_dev_name_the_real_port() {
    let (config, _) = Config::read_dev(&Environment::default());
    let config = config.unwrap();
    let hints = |bind| dev_hints(&config, &BindAddress::parse(bind).unwrap()).join("\n");
    let text = hints("127.0.0.1:4711");
    assert!(text.contains("curl -i http://127.0.0.1:4711/healthz"));
    assert!(text.contains("http://127.0.0.1:4711/get_token -d '{"));
    assert!(text.contains("anybody with an account"));
    assert!(!text.contains("secret"));
    assert!(hints("[::1]:1").contains("curl -i http://[::1]:1/healthz"));
    let unix = hints("unix:/run/s");
    assert!(unix.contains("curl --unix-socket /run/s -i http://localhost/healthz"));
    let (_, body) = text.split_once("-d '").unwrap();
    let (body, _) = body.split_once('\'').unwrap();
    let body: serde_json::Value = serde_json::from_str(body).unwrap();
    assert_eq!(body["slot_id"], "m.call#ROOM");
}
