//! What speaks against what a message says and carries: phrases, links, files, and ways to hide them. Pure.
//!
//! Phrases are those of advertisers and swindlers that a customer of a help desk has no reason to write; each topic counts
//! once, however often it comes. All patterns are searched in linear time.

use std::sync::LazyLock;

use regex::{Regex, RegexSet};

use super::evidence::Found;
use crate::message::content::Content;

pub(super) fn look(content: &Content) -> Found {
    let mut found = Found::default();
    let text = plain(&content.text);
    for topic in TOPICS_FOUND.matches(&text) {
        let Some(topic) = TOPICS.get(topic) else { continue };
        found.note(topic.name, topic.points, true);
    }
    found.note("html-only", 0.5, !content.has_plain);
    let letters = content.text.chars().filter(|c| c.is_alphabetic()).count();
    found.note(
        "picture-only",
        1.0,
        !content.has_plain
            && letters < 100
            && (content.images > 0 || content.html.contains("<img") || content.html.contains("<IMG")),
    );
    let capitals = content.text.chars().filter(|c| c.is_uppercase()).count();
    found.note("body-shouts", 1.0, letters > 200 && capitals * 2 > letters);
    found.note("ascii-in-base64", 1.5, content.ascii_in_base64);
    for (name, points, pattern) in MARKUP.iter() {
        found.note(name, *points, pattern.is_match(&content.html));
    }
    for (name, points, pattern) in LINKS.iter() {
        found.note(name, *points, pattern.is_match(&text) || pattern.is_match(&content.html));
    }
    found.note("executable", 4.0, content.files.iter().any(|file| is_executable(file)));
    found
}

/// Lower case, white space in one blank, so that a phrase is found across lines.
fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for word in text.split_whitespace() {
        plain.extend(word.chars().flat_map(char::to_lowercase));
        plain.push(' ');
    }
    plain
}

/// A file that runs where it is opened.
fn is_executable(file: &str) -> bool {
    file.rsplit_once('.').is_some_and(|(_, ending)| EXECUTABLE.contains(&ending.trim()))
}

/// What advertisers and swindlers write about.
struct Topic {
    name: &'static str,
    points: f64,
    pattern: &'static str,
}

const fn topic(name: &'static str, points: f64, pattern: &'static str) -> Topic {
    Topic { name, points, pattern }
}

const TOPICS: &[Topic] = &[
    topic(
        "removal",
        1.5,
        r"\bto be removed\b|remove(?:d)? (?:me )?from (?:our|this|future|the) (?:mailing|mailings|e-?mail|list|data)|\bremove in (?:the )?subject|subject (?:line )?(?:of|as) .?remove|reply with .?remove",
    ),
    topic(
        "excuse",
        1.0,
        r"this (?:e-?mail |message )?is (?:not|never) (?:a )?spam|s\. ?1618|bulk e-?mail|you (?:are receiving|received|have received) this (?:e-?mail|message|special|offer)? ?(?:because|as) (?:you|your)|compliance with (?:the )?(?:proposed|all|federal|new)|one[- ]time mailing|opt(?:ed)?[- ]in (?:list|e-?mail|member|subscri)",
    ),
    topic(
        "money",
        1.5,
        r"million (?:us |u\.s\. )?dollars|\bmake money\b|extra (?:income|cash)|earn (?:up to )?\$|\$\d[\d,.]* (?:a|per|each) (?:day|week|month)|financial (?:freedom|independence)|work (?:from|at) home|home[- ]based business|be your own boss|multi[- ]?level|get paid|income opportunity|money[- ]making",
    ),
    topic(
        "fund",
        3.0,
        r"next of kin|(?:transfer|remit) (?:of )?(?:the|this) (?:sum|fund|money)|foreign (?:partner|account)|late (?:president|general|head of state)|strictly confidential.{0,200}(?:transfer|fund)|inheritance (?:fund|claim)",
    ),
    topic(
        "credit",
        2.5,
        r"mortgage (?:rate|loan|quote|lender)|refinanc|lowest (?:interest )?rates?|consolidat\w+ (?:your )?(?:debt|bills)|debt (?:free|relief|consolidation)|bad credit|credit (?:repair|card debt)|life insurance|pre-?approved",
    ),
    topic(
        "pills",
        2.0,
        r"\bviagra|\bcialis\b|weight loss|los(?:e|ing) (?:weight|\d+ (?:pounds|lbs))|human growth hormone|\bhgh\b|herbal|penis|no prescription|online pharmacy|anti-?aging|libido",
    ),
    topic(
        "adult",
        1.5,
        r"\bporn|adult (?:site|content|entertainment|web)|hardcore|hot (?:girls|teens|babes)|live (?:girls|sex)|\bwebcam girls|barely legal",
    ),
    topic(
        "gamble",
        1.5,
        r"online casino|\bcasinos?\b.{0,80}(?:bonus|free|win)|you (?:have|'ve) (?:won|been selected)|congratulations!? you|lottery (?:win|prize|promotion)|claim your (?:prize|free|reward)",
    ),
    topic(
        "offer",
        1.5,
        r"risk[- ]free|100% (?:free|guarantee|satisfaction)|money[- ]back guarantee|limited time|act now|order (?:now|today)|no obligation|absolutely free|call now|toll[- ]free|special offer|(?:don'?t|do not) delete|amazing (?:offer|deal|product)",
    ),
    topic("click", 0.5, r"click (?:here|below|on the link)"),
    topic(
        "address-trade",
        1.5,
        r"million (?:fresh |e-?mail )?(?:e-?mail )?addresses|targeted e-?mail|e-?mail (?:marketing|list|addresses).{0,60}(?:cd|million|\$)|bulk (?:mail|e-?mail)|mass (?:mail|e-?mail)|search engine (?:submission|placement|ranking)|traffic to your (?:web)?site",
    ),
    topic(
        "shares",
        1.5,
        r"\bstock alert|strong buy|investor alert|undervalued|otc ?(?:bb)?:|price target|forward[- ]looking statements.{0,300}(?:section 27a|1995)",
    ),
    topic(
        "goods",
        2.0,
        r"cable descrambler|copy (?:any )?dvd|university diploma|diplomas?\b.{0,60}no (?:one|tests|exam)|rolex|printer cartridge|ink cartridge|satellite tv|cell(?:ular)? phone (?:booster|antenna)|vacation package|spy (?:on|software)",
    ),
];

static TOPICS_FOUND: LazyLock<RegexSet> =
    LazyLock::new(|| RegexSet::new(TOPICS.iter().map(|topic| topic.pattern)).expect("the patterns above compile"));

fn compiled(patterns: &[(&'static str, f64, &str)]) -> Vec<(&'static str, f64, Regex)> {
    let compile = |pattern: &str| Regex::new(pattern).expect("the patterns below compile");
    patterns.iter().map(|(name, points, pattern)| (*name, *points, compile(pattern))).collect()
}

static MARKUP: LazyLock<Vec<(&'static str, f64, Regex)>> = LazyLock::new(|| {
    compiled(&[
        ("form", 0.5, r"(?i)<form\b[^>]*\baction"),
        ("large-print", 0.5, r"(?i)<font[^>]*\bsize\s*=\s*[^\s>\d+]*\+?[5-9]\b"),
        ("red-print", 1.0, r"(?i)<font[^>]*\bcolor\s*=\s*[^\s>#\w]*(?:#?ff0000|red)\b"),
        ("tiny-print", 0.5, r#"(?i)font-size\s*:\s*[01](?:px|pt)?\s*[;"']|<font[^>]*\bsize\s*=\s*[^\s>\d]*[01]\b"#),
        ("split-words", 1.5, r"(?i)[a-z]<!--[^<>]*-->[a-z]+<!--[^<>]*-->[a-z]"),
    ])
});

static LINKS: LazyLock<Vec<(&'static str, f64, Regex)>> = LazyLock::new(|| {
    compiled(&[
        ("link-to-address", 2.5, r"(?i)\bhttps?://(?:\d{1,3}\.){3}\d{1,3}\b|\bhttps?://\d{8,10}\b"),
        ("link-hides-host", 2.0, r"(?i)\bhttps?://[^\s/@<>]{1,80}@[^\s/<>]|\bhttps?://[^\s/<>]*%[0-9a-f]{2}"),
    ])
});

/// Endings of files that Windows runs, and of images of disks that hide them.
const EXECUTABLE: &[&str] = &[
    "exe", "scr", "pif", "com", "bat", "cmd", "vbs", "vbe", "js", "jse", "wsf", "wsh", "hta", "lnk", "cpl", "msi",
    "jar", "iso", "img", "vhd", "ps1", "reg",
];
