//! `resolve` on strings.

use super::*;
use crate::relay::Accept;
use crate::relay::profile::Profile;
use crate::spam::blocklist::LISTS_MAX;
use crate::spam::{Bands, Engine, OnError};

fn try_resolve(text: &str) -> (Option<Config>, Report) {
    resolve_with(text, Vec::new())
}

/// With these rules.
pub(super) fn try_resolve_with(text: &str, rules: &str) -> (Option<Config>, Report) {
    let path = PathBuf::from("/etc/p/rules.toml");
    let source = Source::new(path.display().to_string(), rules);
    resolve_with(text, vec![RuleSource { path, source }])
}

fn resolve_with(text: &str, rules: Vec<RuleSource>) -> (Option<Config>, Report) {
    let mut report = Report::default();
    let source = Source::new("/etc/p/pointsman.toml", text);
    let raw = raw::read(&source, &mut report);
    let read = |_: &str, name: &str| match name {
        "none" => Err("no such file".to_owned()),
        _ => Ok("one line\nanother\n".to_owned()),
    };
    let config = raw.and_then(|raw| resolve(Path::new("/etc/p/pointsman.toml"), raw, rules, &read, &mut report));
    (config.filter(|_| report.errors() == 0), report)
}

fn config(text: &str) -> Config {
    let (config, report) = try_resolve(&format!("hostname = 'MX.d.example'\n{text}"));
    config.unwrap_or_else(|| panic!("{}", report.render(false)))
}

fn errors(text: &str) -> Vec<String> {
    let (_, report) = try_resolve(&format!("hostname = 'mx.d.example'\n{text}"));
    report.diagnostics().iter().map(|d| d.message.clone()).collect()
}

#[test]
fn the_example_of_the_design_loads() {
    let text = include_str!("../../tests/configs/design/pointsman.toml");
    let (config, report) = try_resolve(text);
    let config = config.unwrap_or_else(|| panic!("{}", report.render(false)));
    assert_eq!(config.hostname, "mx.solarmora.com");
    assert_eq!(config.data, Path::new("/var/lib/pointsman"));
    assert_eq!(config.listeners[0].tls, ListenerTls::StartTls);
    assert_eq!(config.listeners[0].proxy.len(), 1);
    assert_eq!(config.upstream, [Network::parse("192.0.2.0/28").unwrap()]);
    let limits = Limits {
        message_size: 50 * units::MIB,
        recipients: 100,
        legs: 200,
        sessions_per_client: 50,
        sessions: 15_000,
        memory: None,
    };
    assert_eq!(config.limits, limits);
    assert_eq!(config.routes.keys().collect::<Vec<_>>(), ["crm", "default", "google"]);
    assert_eq!(config.routes["crm"].tls, TlsMode::Verify);
    assert_eq!(config.tls.unwrap().certificate, Path::new("/etc/p/fullchain.pem"));
    assert_eq!(config.queue.retry.len(), 5);
    assert_eq!(config.admin.unwrap().token_file, Path::new("/etc/p/admin.token"));
    let spam = config.spam.unwrap();
    assert_eq!((&spam.engine, spam.bands, spam.on_error), (&Engine::Builtin, Bands::default(), OnError::Accept));
    assert!(!config.inert.contains(&"listener.proxy".to_owned()));
}

#[test]
fn the_example_and_the_defaults_agree() {
    let text = include_str!("../../tests/configs/design/pointsman.toml");
    let example = try_resolve(text).0.unwrap();
    let plain = config("");
    assert_eq!(plain.hostname, "mx.d.example");
    assert_eq!((plain.limits, &plain.queue, plain.retention), (example.limits, &example.queue, example.retention));
    assert_eq!((plain.data, plain.log), (example.data, example.log));
    let listener = &plain.listeners[0];
    assert_eq!((listener.name.as_str(), listener.address.to_string()), ("0", "0.0.0.0:25".to_owned()));
    assert_eq!(plain.routes["default"].concurrency, 20);
    assert!(plain.admin.is_none());
}

#[test]
fn hosts_take_the_ports_of_the_route() {
    let config = config("[route.crm]\nport = 587\nhosts = ['a.example', 'b.example:25', '[::1]']\ndedupe = '1h'\n");
    let hosts: Vec<String> = config.routes["crm"].hosts.iter().map(|h| format!("{} {}", h.name, h.port)).collect();
    assert_eq!(hosts, ["a.example 587", "b.example 25", "::1 587"]);
    assert_eq!(config.routes["crm"].wishes.dedupe, Some(Some(Duration::from_secs(3600))));
}

#[test]
fn a_route_without_hosts_has_a_port_and_dials_the_public_only() {
    let config = config("[dns]\nservers = ['127.0.0.1:5353']\n[route.in]\nport = 2525\nprivate-networks = true\n");
    let seen = |name: &str| (config.routes[name].port, config.routes[name].private_networks);
    assert_eq!((seen("in"), seen("default")), ((2525, true), (25, false)));
    assert_eq!(config.dns_servers, ["127.0.0.1:5353".parse().unwrap()]);
    assert_eq!(config.inert, Vec::<String>::new());
}

#[test]
fn paths_are_relative_to_the_file() {
    let config = config("data = 'state'\n[admin]\naddress = '127.0.0.1:0'\n");
    assert_eq!(config.data, Path::new("/etc/p/state"));
    assert_eq!(config.admin.unwrap().token_file, Path::new("/etc/p/state/admin.token"));
}

#[test]
fn a_ca_stands_beside_the_file_and_is_looked_at_by_verify_alone() {
    let config = config("[route.crm]\ntls = 'verify'\nca = 'crm.pem'\n");
    assert_eq!(config.routes["crm"].ca.as_deref(), Some(Path::new("/etc/p/crm.pem")));
    for tls in ["off", "opportunistic", "require"] {
        let found = errors(&format!("[route.crm]\ntls = '{tls}'\nca = 'crm.pem'\n"));
        assert_eq!(found, ["`route.crm.ca` is not looked at"], "{tls}");
    }
}

#[test]
fn wrong_values_are_errors() {
    for (text, expected) in [
        ("[queue]\nurl = 'postgres://x'\n", "`queue.url` cannot be `postgres://x`"),
        ("[queue]\nretry = []\n", "`queue.retry`: expected 1 to 100 durations"),
        ("[queue]\nretry = ['99ms']\n", "`queue.retry` cannot be `99ms`"),
        ("[limits]\nmessage-size = '65535B'\n", "RFC 5321 §4.5.3.1.7 wants messages of 64 KiB to be taken"),
        ("[[listener]]\nname = 'x'\n", "`listener` has no `address`"),
        ("[[listener]]\naddress = 'mx:25'\n", "`listener.address` cannot be `mx:25`"),
        ("[[listener]]\naddress = '[::]:25'\ntls = 'implicit'\n", "the listener wants TLS, and there is no `[tls]`"),
        (
            "[[listener]]\naddress = '[::]:25'\n[[listener]]\nname = '0'\naddress = '[::]:26'\n",
            "two listeners are called `0`",
        ),
        ("[route.a]\nhosts = ['x:y']\n", "`route.a.hosts` cannot be `x:y`"),
        ("[route.a]\nfallback = 'b'\n", "there is no route `b`"),
        ("[route.a]\nhosts = ['h']\nfallback = 'a'\n", "route `a` cannot stand in for itself"),
        ("[route.a]\nhosts = ['h']\nfallback = 'default'\n", "route `default` has no `hosts`"),
        ("[route.a]\nfallback = {}\n", "the fallback names neither `route` nor `to`"),
        ("[route.a]\nfallback = { after = '4h' }\n", "there is no target to go on to"),
        ("[route.a]\nfallback = { to = 'sales' }\n", "there is no target `sales`"),
        (
            "[route.a]\nfallback = { to = 'a@b.example', after = '5d' }\n",
            "a leg expires before it goes on to the fallback target",
        ),
        (
            "[route.a]\nhosts = ['h']\nfallback = 'b'\n[route.b]\nhosts = ['i']\nfallback = 'a'\n",
            "the fallbacks lead round: a, then b, then a",
        ),
        ("[route.a]\nconcurrency = 0\n", "`route.a.concurrency`: expected a number from 1 to 1000"),
        ("[route.a]\nconcurrency = 1001\n", "`route.a.concurrency`: expected a number from 1 to 1000"),
        ("[limits]\nrecipients = 10001\n", "`limits.recipients`: expected a number from 1 to 10000"),
        ("[limits]\nmessage-size = '50MB'\n", "`limits.message-size` cannot be `50MB`"),
        ("[spam]\ntag = 9\nquarantine = 8.0\n", "`spam.quarantine` is below `spam.tag`"),
        ("[auth]\ndmarc = 'on'\n", "`auth.dmarc` cannot be `on`"),
        ("[srs]\ndomain = 'x'\n", "`srs` has no `secrets`"),
        ("[log]\nformat = 'xml'\n", "`log.format` cannot be `xml`"),
        ("listener = 7\n", "`listener` must be an array of tables, written `[[listener]]`, not an integer"),
        ("[limit]\n", "unknown key `limit`"),
    ] {
        assert_eq!(errors(text), [expected], "{text}");
    }
    assert_eq!(try_resolve("").1.diagnostics()[0].message, "the file has no `hostname`");
}

proptest::proptest! {
    /// Whatever an editor leaves behind is drawn, in both files, and nothing panics.
    #[test]
    fn damaged_examples_are_drawn(cut in 0usize..3000, length in 0usize..40, put in "[\\PC\n\"'\\[\\]{}=]{0,6}") {
        let files = [
            include_str!("../../tests/configs/design/pointsman.toml"),
            include_str!("../../tests/configs/design/rules/solarmora.toml"),
        ];
        for text in files {
            let at = |byte: usize| (0..=byte.min(text.len())).rev().find(|b| text.is_char_boundary(*b)).unwrap();
            let damaged = format!("{}{put}{}", &text[..at(cut)], &text[at(cut + length)..]);
            let mut report = try_resolve(&damaged).1;
            let source = Source::new("rules.toml", damaged.as_str());
            let routes = BTreeMap::from([("default".to_owned(), false), ("crm".to_owned(), true)]);
            let read = |_: &str, _: &str| Ok("a@b.example".to_owned());
            let parsed = rules::parse(&[source], &Surroundings { routes: &routes, looks_up_mx: false, checks: [true; 4], scores: true, now: crate::clock::Timestamp(0), read: &read }, &mut report);
            report.diagnostics().iter().for_each(|d| drop((d.render(true), d.json())));
            if let Some(parsed) = parsed {
                drop(parsed.rules.run_tests(&Default::default()));
            }
        }
    }
}

#[test]
fn the_lines_of_a_file_of_secrets_sign_and_verify_in_their_order() {
    let config = config("[srs]\ndomain = 'srs.d.example'\nsecrets = ['file:two', 'plain']\n");
    assert_eq!(config.srs.unwrap().domain().as_str(), "srs.d.example");
    for secrets in ["['file:none']", "['']", "[]"] {
        let (config, report) =
            try_resolve(&format!("hostname = 'mx.d.example'\n[srs]\ndomain = 'srs.d.example'\nsecrets = {secrets}\n"));
        assert!(config.unwrap().srs.is_none(), "{secrets}");
        assert_eq!((report.errors(), report.diagnostics().len()), (0, 1), "{secrets}");
    }
}

#[test]
fn the_words_of_profiles_are_taken() {
    for profile in Profile::ALL {
        let config = config(&format!("[route.a]\nprofile = '{profile}'\n"));
        assert_eq!((config.routes["a"].wishes.profile, config.inert.len()), (Some(profile), 0), "{profile}");
    }
    assert_eq!(config("[route.a]\nprofile = 'auto'\n").routes["a"].wishes.profile, None);
}

#[test]
fn the_words_of_acceptance_are_taken() {
    for (word, accept) in [("store", Accept::Store), ("online", Accept::Online), ("auto", Accept::Auto)] {
        let config = config(&format!("[route.a]\naccept = '{word}'\n"));
        assert_eq!((config.routes["a"].accept, config.inert.len()), (accept, 0), "{word}");
    }
    for (key, word) in [("profile", "crm"), ("accept", "queue")] {
        assert_eq!(errors(&format!("[route.a]\n{key} = '{word}'\n")), [format!("`route.a.{key}` cannot be `{word}`")]);
    }
}

#[test]
fn conditions_on_checks_that_do_not_run_are_named() {
    let inert = |main: &str| {
        let mut report = Report::default();
        let text = format!("hostname = 'mx.d.example'\n{main}");
        let raw = raw::read(&Source::new("p.toml", text), &mut report).unwrap();
        let rules = "[[rule]]\nname = 'r'\nwhen = { spf = 'pass', dmarc = 'pass' }\nreject = 'no'\n";
        let sources = vec![RuleSource { path: "r.toml".into(), source: Source::new("r.toml", rules) }];
        let config = resolve(Path::new("p.toml"), raw, sources, &|_, _| Err("none".to_owned()), &mut report);
        config.unwrap_or_else(|| panic!("{}", report.render(false))).inert
    };
    let named = |check| format!("conditions on {check} (`[auth]` does not check it: they hold in tests only)");
    assert_eq!(inert(""), [named("dmarc"), named("spf")]);
    assert_eq!(inert("[auth]\nspf = 'off'\n"), [named("spf")]);
    assert_eq!(inert("[auth]\ndmarc = 'off'\n"), [named("dmarc")]);
    assert_eq!(inert("[auth]\n"), [""; 0]);
}

#[test]
fn what_a_route_asks_of_tls_is_built_and_not_named() {
    for word in ["off", "opportunistic", "require", "verify"] {
        let config = config(&format!("[route.a]\nhosts = 'h'\ntls = '{word}'\n"));
        assert_eq!((config.routes["a"].tls.as_str(), config.inert.len()), (word, 0));
    }
}

#[test]
fn a_limit_itself_is_allowed() {
    let steps = |n: usize| format!("[queue]\nretry = [{}]\n", "'1m',".repeat(n));
    assert_eq!(config(&steps(100)).queue.retry.len(), 100);
    assert_eq!(errors(&steps(101)).len(), 1);
    let limits = config("[limits]\nrecipients = 10000\nlegs = 10000\n[route.a]\nconcurrency = 1000\n");
    assert_eq!((limits.limits.recipients, limits.routes["a"].concurrency), (10_000, 1_000));
}

#[test]
fn bands_ascend_with_those_that_are_not_named() {
    for (text, ok) in [
        ("", true),
        ("tag = 8.0", true),
        ("tag = 8.1", false),
        ("quarantine = 4.9", false),
        ("quarantine = 15", true),
        ("quarantine = 15.1", false),
        ("tag = 20\nquarantine = 20\nreject = 20", true),
        ("reject = 7", false),
        ("tag = -5", true),
    ] {
        assert_eq!(try_resolve(&format!("hostname = 'mx.d.example'\n[spam]\n{text}\n")).0.is_some(), ok, "{text}");
    }
}

#[test]
fn rspamd_has_an_address_a_password_and_a_time_limit() {
    let settings = |text: &str| config(&format!("[spam]\nengine = 'rspamd'\n{text}\n")).spam.unwrap();
    let Engine::Rspamd(usual) = settings("").engine else { panic!("rspamd") };
    assert_eq!((usual.host.as_str(), usual.port, usual.timeout), ("127.0.0.1", 11_333, Duration::from_secs(10)));
    let named = settings("rspamd = 'http://filter.example:1234'\ntimeout = '2s'\non-error = 'builtin'");
    let Engine::Rspamd(rspamd) = named.engine else { panic!("rspamd") };
    assert_eq!((rspamd.host.as_str(), rspamd.port, rspamd.timeout), ("filter.example", 1234, Duration::from_secs(2)));
    assert_eq!(named.on_error, OnError::Builtin);
    assert!(config("[spam]\nengine = 'off'\n").spam.is_none());
    let errors = |text: &str| try_resolve(&format!("hostname = 'mx.d.example'\n[spam]\n{text}\n")).1.errors();
    for (text, wrong) in [("100ms", 0), ("99ms", 1), ("2m", 0), ("121s", 1)] {
        assert_eq!(errors(&format!("engine = 'rspamd'\ntimeout = '{text}'")), wrong, "{text}");
    }
    let lists = |n: usize| (0..n).map(|n| format!("'bl{n}.example'")).collect::<Vec<_>>().join(", ");
    assert_eq!(errors(&format!("blocklists = [{}]", lists(LISTS_MAX))), 0);
    assert_eq!(errors(&format!("blocklists = [{}]", lists(LISTS_MAX + 1))), 1);
}
