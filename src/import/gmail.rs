//! Gmail's routing settings as rules.
//!
//! There every setting that matches applies, and one that rejects wins. So here the rejecting ones stand first and end
//! the search, and all others go on (`continue`). What another setting would make of the recipients that a setting adds
//! is settled here: their targets are final. Copies get no spam and tell nobody when they fail, as there.

use std::collections::{BTreeMap, HashSet};

use crate::address::{Domain, Mailbox, ReversePath};

use super::draft::{
    Body, DomainDraft, Draft, RouteDraft, RuleDraft, TargetDraft, TestDraft, Toml, each_once, quoted, unique,
};
use super::settings::{self, Match, Setting};
use super::{Imported, Options, language_has};

/// Rules out of the table `text`; or every mistake in it, a sentence each.
pub fn import(text: &str, options: &Options) -> Result<Imported, Vec<String>> {
    let settings = settings::read(text)?;
    let mut importer = Importer::new(&settings, options)?;
    options.role_is_elsewhere(&importer.domains, |role| importer.singles.contains_key(&role.key()))?;
    let (rejecting, changing): (Vec<&Setting>, Vec<&Setting>) =
        settings.iter().filter(|setting| importer.applies(setting)).partition(|setting| setting.reject);
    let mut rules: Vec<Made<'_>> = rejecting.into_iter().map(|setting| importer.reject(setting)).collect();
    let changed: Vec<Made<'_>> = changing.into_iter().filter_map(|setting| importer.change(setting)).collect();
    // What has nothing but copies must name its recipient in the end, when all others have had their say.
    let ends: Vec<Made<'_>> = changed.iter().filter_map(|made| importer.end(made)).collect();
    rules.extend(changed);
    rules.extend(ends);
    importer.test(&rules);
    importer.draft.rules = rules.into_iter().map(|made| made.rule).collect();
    Ok(importer.draft.finish("Gmail's routing settings"))
}

/// A rule, and what a test needs to know of it.
struct Made<'s> {
    setting: &'s Setting,
    rule: RuleDraft,
    ends: bool,
    to: Option<Mailbox>,
    also: Vec<Mailbox>,
    route: Option<String>,
    reject: Option<String>,
}

struct Importer<'s> {
    options: &'s Options,
    domains: Vec<Domain>,
    singles: BTreeMap<String, Vec<&'s Setting>>,
    names: HashSet<String>,
    draft: Draft,
}

impl<'s> Importer<'s> {
    fn new(settings: &'s [Setting], options: &'s Options) -> Result<Importer<'s>, Vec<String>> {
        let mut domains = options.domains.clone();
        for setting in settings {
            if let Match::Single(addresses) = &setting.recipient {
                domains.extend(addresses.iter().map(|address| address.domain().clone()));
            }
        }
        let domains = each_once(domains, Domain::to_string);
        if domains.is_empty() {
            return Err(vec![
                "no setting names an address of ours: say with --domain which domains are ours".to_owned(),
            ]);
        }
        let mut draft = Draft::default();
        let role = options.role.as_ref().map(ToString::to_string);
        for name in &domains {
            let mailboxes = options.mailboxes.clone();
            draft.domains.push(DomainDraft { name: name.clone(), role: role.clone(), mailboxes, catch_all: None });
        }
        if role.is_none() && options.mailboxes.is_none() {
            draft.leave_out("domains", "postmaster@ and abuse@", "nobody is named who reads them: say so with --role");
        }
        Ok(Importer { options, domains, singles: settings::by_single(settings), names: HashSet::new(), draft })
    }

    fn is_ours(&self, address: &Mailbox) -> bool {
        self.domains.contains(address.domain())
    }

    /// Tells of a setting that is not carried over at all.
    fn applies(&mut self, setting: &Setting) -> bool {
        // A rule that is off still keeps its address from being another's target.
        if !setting.enabled && (replaces(setting) || !language_has("enabled = false")) {
            self.tell(setting, "the setting", "it is off there");
            return false;
        }
        true
    }

    fn tell(&mut self, setting: &Setting, what: impl Into<String>, why: impl Into<String>) {
        let what = what.into();
        self.draft.leave_out(&format!("line {}, {}", setting.line, setting.name), what, why);
    }

    fn named(&mut self, setting: &Setting) -> String {
        let plain: String = setting.name.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let stem = plain.trim().to_owned();
        unique(if stem.is_empty() { "setting" } else { &stem }, &mut self.names)
    }

    fn reject(&mut self, setting: &'s Setting) -> Made<'s> {
        let (when, _) = self.when(setting);
        let text = setting.reject_text.clone().unwrap_or_else(|| REJECTED.to_owned());
        // RFC 5321 §2.4: a reply is ASCII, and a line of it has an end.
        let text = match (1..=REJECT_OCTETS_MAX).contains(&text.len())
            && text.bytes().all(|b| (b' '..=b'~').contains(&b))
        {
            true => text,
            false => {
                self.tell(setting, format!("the text `{text}`"), "a reply has printable ASCII characters, at most 400");
                REJECTED.to_owned()
            }
        };
        let mut body: Body = vec![("reject", Toml::Text(text.clone()))];
        self.switch(setting, &mut body);
        self.unrecognized(setting);
        let rule = RuleDraft { name: self.named(setting), comment: written(setting), when, body };
        Made { setting, rule, ends: true, to: None, also: Vec::new(), route: None, reject: Some(text) }
    }

    /// A rule that goes on; none where nothing is left of the setting.
    fn change(&mut self, setting: &'s Setting) -> Option<Made<'s>> {
        let (when, lists) = self.when(setting);
        let (to, also) = self.recipients(setting);
        let route = setting.route.as_ref().map(|(name, hosts)| self.route(setting, name, hosts));
        let mut body: Body = Vec::new();
        body.extend(to.as_ref().map(|to| ("to", Toml::Text(to.to_string()))));
        if !also.is_empty() {
            body.push(("also", Toml::Texts(self.copies(setting, &also))));
        }
        body.extend(route.iter().map(|route| ("route", Toml::Text(route.clone()))));
        if setting.bypass_spam {
            body.push(("on-spam", Toml::Text("deliver".to_owned())));
        } else if setting.reroute_spam && route.is_some() {
            body.push(("on-spam", Toml::Text("tag".to_owned())));
        }
        self.alter(setting, &mut body);
        self.switch(setting, &mut body);
        self.unrecognized(setting);
        if body.is_empty() {
            self.tell(setting, "the setting", "nothing is left of it");
            return None;
        }
        if to.is_none()
            && self.options.mailboxes.is_none()
            && matches!(setting.recipient, Match::All | Match::Pattern(..))
        {
            self.tell(
                setting,
                "delivery to the recipient's own mailbox",
                "no route to it is known (--mailboxes): what no other setting redirects is refused",
            );
        }
        lists.into_iter().for_each(|list| {
            if !self.draft.lists.contains(&list) {
                self.draft.lists.push(list);
            }
        });
        body.push(("continue", Toml::Truth(true)));
        let rule = RuleDraft { name: self.named(setting), comment: written(setting), when, body };
        Some(Made { setting, rule, ends: false, to, also, route, reject: None })
    }

    /// The rule that takes what `made` adds copies to or routes, where nobody else gives the recipient a place.
    fn end(&mut self, made: &Made<'s>) -> Option<Made<'s>> {
        let named = matches!(made.setting.recipient, Match::Single(_) | Match::Group(_));
        let goes = !made.also.is_empty() || made.route.is_some();
        if self.options.mailboxes.is_some() || made.to.is_some() || !named || !goes {
            return None;
        }
        let kept = ["also", "route", "enabled"];
        let body: Body = made.rule.body.iter().filter(|(key, _)| kept.contains(key)).cloned().collect();
        let name = unique(&format!("{}, and no other", made.rule.name), &mut self.names);
        let comment = Some("No mailbox is known here (--mailboxes): this alone says where the mail goes.".to_owned());
        let rule = RuleDraft { name, comment, when: made.rule.when.clone(), body };
        let (also, route) = (made.also.clone(), made.route.clone());
        Some(Made { setting: made.setting, rule, ends: true, to: None, also, route, reject: None })
    }

    /// The conditions, and the lists that they name.
    fn when(&mut self, setting: &Setting) -> (Vec<(&'static str, Vec<String>)>, Vec<String>) {
        let mut lists = Vec::new();
        let recipient = match &setting.recipient {
            Match::All => ("recipient-domain", self.domains.iter().map(Domain::to_string).collect()),
            Match::Single(addresses) => ("recipient", addresses.iter().map(Mailbox::to_string).collect()),
            Match::Pattern(_, translated) => ("recipient-matches", vec![translated.ours.clone()]),
            Match::Group(name) => ("recipient-in", vec![name.clone()]),
        };
        let sender = match &setting.sender {
            Match::All => None,
            Match::Single(addresses) => Some(("sender", addresses.iter().map(sender_text).collect())),
            Match::Pattern(_, translated) => Some(("sender-matches", vec![translated.ours.clone()])),
            Match::Group(name) => Some(("sender-in", vec![name.clone()])),
        };
        for name in [group(&setting.recipient), group(&setting.sender)].into_iter().flatten() {
            lists.push(name.to_owned());
            self.tell(setting, format!("the members of the group `{name}`"), "fill in the list of that name");
        }
        if let Some(list) = &setting.address_list {
            self.tell(setting, format!("the address list `{list}`"), "it looks at header fields; use `sender-in`");
        }
        if setting.reject {
            lists.iter().for_each(|list| {
                if !self.draft.lists.contains(list) {
                    self.draft.lists.push(list.clone());
                }
            });
        }
        (std::iter::once(recipient).chain(sender).collect(), lists)
    }

    /// Where the mail goes, with what other settings say about those addresses.
    fn recipients(&mut self, setting: &Setting) -> (Option<Mailbox>, Vec<Mailbox>) {
        let to = setting.change_recipient.clone().or_else(|| self.changed_part(setting));
        let (mut finals, mut also) = (Vec::new(), Vec::new());
        for address in to.iter() {
            self.settle(setting, address, &mut Vec::new(), &mut finals);
        }
        for address in &setting.also {
            self.settle(setting, address, &mut Vec::new(), &mut also);
        }
        let mut finals = finals.into_iter();
        let to = finals.next();
        let mut also: Vec<Mailbox> = each_once(finals.chain(also).collect(), Mailbox::key);
        also.retain(|address| to.as_ref().is_none_or(|to| to.key() != address.key()));
        (to, also)
    }

    /// "Replace username" and "replace domain" of a single recipient.
    fn changed_part(&mut self, setting: &Setting) -> Option<Mailbox> {
        let (username, domain) = (setting.change_username.as_ref(), setting.change_domain.as_ref());
        if username.is_none() && domain.is_none() {
            return None;
        }
        if let Match::Single(addresses) = &setting.recipient
            && let [address] = &addresses[..]
        {
            let local = username.map_or(address.local(), String::as_str);
            let domain = domain.map_or(address.domain().as_str(), String::as_str);
            match Mailbox::parse(&format!("{local}@{}", domain.trim_start_matches('@'))) {
                Ok(changed) if changed.key() != address.key() => return Some(changed),
                Ok(_) => return None,
                Err(error) => self.tell(setting, format!("the recipient {local}@{domain}"), error.to_string()),
            }
            return None;
        }
        self.tell(
            setting,
            "a part of the recipient that is replaced",
            "write it as a rule with `to-local` or `to-domain`",
        );
        None
    }

    /// The final targets of mail to `address`. What is an alias of ours has its own.
    fn settle(&mut self, setting: &Setting, address: &Mailbox, way: &mut Vec<String>, finals: &mut Vec<Mailbox>) {
        let key = address.key();
        if !self.is_ours(address) {
            finals.push(address.clone());
            return;
        }
        if way.contains(&key) {
            way.push(key);
            self.tell(setting, format!("the recipient {address}"), format!("a circle: {}", way.join(" -> ")));
            return;
        }
        let own = self.singles.get(&key).cloned().unwrap_or_default();
        let replaced: Vec<&Setting> =
            own.into_iter().filter(|other| other.enabled && !other.reject && replaces(other)).collect();
        if let Some(other) = replaced.first() {
            if replaced.iter().any(|other| !matches!(other.sender, Match::All)) {
                self.tell(
                    setting,
                    format!("the recipient {address}"),
                    "where its mail goes depends on the sender: name its target",
                );
                return;
            }
            way.push(key);
            let next = other.change_recipient.clone().or_else(|| self.changed_part(other));
            let also = replaced.iter().flat_map(|other| other.also.clone()).collect::<Vec<_>>();
            for next in next.into_iter().chain(also) {
                self.settle(setting, &next, way, finals);
            }
            way.pop();
        } else if self.options.mailboxes.is_some() {
            finals.push(address.clone());
        } else {
            self.tell(
                setting,
                format!("the recipient {address}"),
                "it is a mailbox of ours, and no route to it is known (--mailboxes)",
            );
        }
    }

    /// The targets of copies: they get no spam and tell nobody of failures, unless the setting says so.
    fn copies(&mut self, setting: &Setting, also: &[Mailbox]) -> Vec<String> {
        let target = |address: &Mailbox| TargetDraft {
            address: address.to_string(),
            route: None,
            on_spam: Some(if setting.spam_also { "tag" } else { "omit" }),
            bounces: Some(if setting.suppress_bounces { "suppress" } else { "sender" }),
        };
        also.iter().map(|address| self.draft.targets.name(address, target(address))).collect()
    }

    fn route(&mut self, setting: &Setting, name: &str, hosts: &[String]) -> String {
        if self.options.mailboxes.as_deref() == Some(name) && hosts.is_empty() {
            return name.to_owned();
        }
        match self.draft.routes.iter().position(|route| route.name == name) {
            Some(at) if self.draft.routes[at].hosts.is_empty() => self.draft.routes[at].hosts = hosts.to_vec(),
            Some(_) => {}
            None => {
                self.draft.routes.push(RouteDraft { name: name.to_owned(), hosts: hosts.to_vec(), comment: None });
                if hosts.is_empty() {
                    self.tell(setting, format!("the hosts of route `{name}`"), "write them into pointsman.toml");
                }
            }
        }
        name.to_owned()
    }

    /// What changes the message or its way, as far as the language has it.
    fn alter(&mut self, setting: &Setting, body: &mut Body) {
        let mut wanted: Vec<(&str, &'static str, Vec<Toml>)> = Vec::new();
        if let Some(prefix) = &setting.subject_prefix {
            wanted.push(("the subject prefix", "subject-prefix", vec![Toml::Text(prefix.clone())]));
        }
        if setting.remove_attachments {
            let all = [Toml::Truth(true), Toml::Text("*".to_owned()), Toml::Raw("{ type = \"*\" }".to_owned())];
            wanted.push(("the removal of attachments", "strip-attachments", all.to_vec()));
        }
        if setting.gmail_headers {
            wanted.push(("the fields X-Gm-…", "headers", vec![Toml::Raw("{ gmail = true }".to_owned())]));
        }
        if !setting.headers.is_empty() {
            let fields: Vec<String> =
                setting.headers.iter().map(|(name, value)| format!("{}: {}", name, value)).collect();
            let pairs = setting.headers.iter().map(|(name, value)| format!("{} = {}", quoted(name), quoted(value)));
            let table = format!("{{ {} }}", pairs.collect::<Vec<_>>().join(", "));
            wanted.push(("the header fields", "add-header", vec![Toml::Raw(table), Toml::Texts(fields)]));
        }
        if setting.require_tls {
            wanted.push(("TLS on the way", "tls", vec![Toml::Text("require".to_owned())]));
        }
        for (what, key, ways) in wanted {
            match ways.into_iter().find(|value| language_has(&super::draft::line(key, value))) {
                Some(value) => body.push((key, value)),
                None if key == "tls" => self.tell(setting, what, "a route decides that here: `tls` in pointsman.toml"),
                None => self.tell(setting, what, "the rules cannot do that yet"),
            }
        }
    }

    fn switch(&self, setting: &Setting, body: &mut Body) {
        if !setting.enabled {
            body.push(("enabled", Toml::Truth(false)));
        }
    }

    /// "Only unrecognised": without mailboxes here nobody is recognised.
    fn unrecognized(&mut self, setting: &Setting) {
        if setting.unrecognized_only && self.options.mailboxes.is_some() {
            self.tell(
                setting,
                "the limit to unrecognised recipients",
                "which the mail host knows is not known here: it applies to all",
            );
        }
    }

    /// A test for each setting, with what Gmail would do with an address that it is about.
    fn test(&mut self, rules: &[Made<'_>]) {
        let mut names = HashSet::new();
        for made in rules.iter().filter(|made| made.setting.enabled) {
            let setting = made.setting;
            if !names.insert(setting.line) || group(&setting.recipient).is_some() || group(&setting.sender).is_some() {
                continue;
            }
            let (Some(recipient), Some(sender)) = (self.a_recipient(setting), a_sender(setting)) else {
                self.tell(setting, "a test", "no address of our domains was found that its patterns match");
                continue;
            };
            let test = self.expect(rules, &made.rule.name, &recipient, &sender);
            self.draft.tests.push(test);
        }
    }

    fn a_recipient(&self, setting: &Setting) -> Option<Mailbox> {
        let found = match &setting.recipient {
            Match::All => vec![format!("somebody@{}", self.domains[0])],
            Match::Single(addresses) => return addresses.first().cloned(),
            Match::Pattern(_, translated) => candidates(translated.sample.as_deref()?, &self.domains),
            Match::Group(_) => return None,
        };
        let mut parsed = found.iter().filter_map(|text| Mailbox::parse(text).ok());
        parsed.find(|address| self.is_ours(address) && matches(&setting.recipient, address.as_str(), |_| false))
    }

    /// What Gmail makes of mail from `sender` to `recipient`.
    fn expect(&self, rules: &[Made<'_>], name: &str, recipient: &Mailbox, sender: &ReversePath) -> TestDraft {
        let applies = |made: &&Made<'_>| {
            let (key, from) = (recipient.key(), sender.to_string());
            made.setting.enabled
                && matches(&made.setting.recipient, recipient.as_str(), |single| single.key() == key)
                && matches(&made.setting.sender, from.trim_matches(['<', '>']), |single| same_sender(single, sender))
        };
        let mut applied: Vec<&Made<'_>> = Vec::new();
        for made in rules.iter().filter(applies) {
            applied.push(made);
            if made.ends {
                break;
            }
        }
        let names = applied.iter().map(|made| made.rule.name.clone()).collect();
        let mut test = TestDraft {
            name: name.to_owned(),
            recipient: recipient.to_string(),
            sender: (!matches!(sender, ReversePath::Mailbox(sender) if sender.as_str() == SENDER))
                .then(|| sender_text(sender)),
            rules: Some(names),
            legs: None,
            action: None,
        };
        let local = recipient.plain_local().to_lowercase();
        if local == "postmaster" || local == "abuse" {
            // They are taken whatever the settings say; where to, the domain's `role` says.
            return test;
        }
        if let Some(text) = applied.iter().find_map(|made| made.reject.clone()) {
            test.action = Some(("reject", Some(text)));
            return test;
        }
        let to = applied.iter().find_map(|made| made.to.clone());
        let route = applied.iter().find_map(|made| made.route.clone());
        let ended = applied.last().is_some_and(|made| made.ends);
        if to.is_none() && !ended && self.options.mailboxes.is_none() {
            test.action = Some(("reject", None));
            test.rules = Some(applied.iter().map(|made| made.rule.name.clone()).collect());
            return test;
        }
        let own = (route.is_some() || self.options.mailboxes.is_some()).then(|| recipient.clone());
        // By which route a copy goes its target says: none here does, so that one address is one copy of those without.
        let main = to.clone().map(|to| (to, route.clone())).or(own.map(|own| (own, route)));
        let copies = applied.iter().flat_map(|made| made.also.clone()).map(|copy| (copy, None));
        let by = |(address, route): &(Mailbox, Option<String>)| {
            let mailboxes = self.options.mailboxes.as_deref().filter(|_| self.is_ours(address));
            format!("{} {}", address.key(), route.as_deref().or(mailboxes).unwrap_or("default"))
        };
        let legs = each_once(main.into_iter().chain(copies).collect(), by);
        test.legs = Some(legs.into_iter().map(|(address, _)| address.to_string()).collect());
        test
    }
}

/// A pattern as it stands in the settings, so that it can be found again.
fn written(setting: &Setting) -> Option<String> {
    match &setting.recipient {
        Match::Pattern(pattern, _) => Some(format!("There: {pattern}")),
        Match::All | Match::Single(_) | Match::Group(_) => None,
    }
}

fn replaces(setting: &Setting) -> bool {
    setting.change_recipient.is_some() || setting.change_username.is_some() || setting.change_domain.is_some()
}

fn group<T>(matching: &Match<T>) -> Option<&str> {
    match matching {
        Match::Group(name) => Some(name),
        Match::All | Match::Single(_) | Match::Pattern(..) => None,
    }
}

fn matches<T>(matching: &Match<T>, text: &str, is_single: impl Fn(&T) -> bool) -> bool {
    match matching {
        Match::All => true,
        Match::Single(singles) => singles.iter().any(is_single),
        Match::Pattern(_, translated) => translated.search.is_match(text),
        // Nobody is in it yet.
        Match::Group(_) => false,
    }
}

fn same_sender(a: &ReversePath, b: &ReversePath) -> bool {
    match (a, b) {
        (ReversePath::Null, ReversePath::Null) => true,
        (ReversePath::Mailbox(a), ReversePath::Mailbox(b)) => a.key() == b.key(),
        (ReversePath::Null, ReversePath::Mailbox(_)) | (ReversePath::Mailbox(_), ReversePath::Null) => false,
    }
}

fn a_sender(setting: &Setting) -> Option<ReversePath> {
    let default = || ReversePath::parse(SENDER).ok();
    match &setting.sender {
        Match::All => default(),
        Match::Single(senders) => senders.first().cloned(),
        Match::Pattern(_, translated) => {
            let found = candidates(translated.sample.as_deref()?, &[Domain::parse("example.org").ok()?]);
            let mut found = found.iter().filter_map(|text| ReversePath::parse(text).ok());
            found.find(|sender| sender.mailbox().is_some_and(|sender| translated.search.is_match(sender.as_str())))
        }
        Match::Group(_) => None,
    }
}

fn sender_text(sender: &ReversePath) -> String {
    match sender {
        ReversePath::Null => "<>".to_owned(),
        ReversePath::Mailbox(sender) => sender.to_string(),
    }
}

/// Addresses in which `sample` may stand.
fn candidates(sample: &str, domains: &[Domain]) -> Vec<String> {
    let mut found =
        vec![sample.to_owned(), format!("somebody{sample}"), format!("somebody@{sample}"), format!("x{sample}")];
    for domain in domains {
        found.extend([
            format!("{sample}@{domain}"),
            format!("x{sample}@{domain}"),
            format!("{sample}x@{domain}"),
            format!("x{sample}x@{domain}"),
            format!("{sample}{domain}"),
            format!("x{sample}{domain}"),
            format!("somebody@{domain}"),
            format!("x@{domain}"),
        ]);
    }
    found
}

const SENDER: &str = "sender@example.org";
const REJECTED: &str = "message rejected";
/// What the rules take.
const REJECT_OCTETS_MAX: usize = 400;
