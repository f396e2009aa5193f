//! Postfix's virtual(5) and transport(5) as rules.
//!
//! Postfix looks an address up until nothing is found any more; here each alias names its final targets, so that is done
//! now. All recipients of an entry are equal there; so that `also` treats none of them differently, its targets say so.
//! An address that goes to itself is a mailbox: it goes on unchanged, by the route of its domain.

use std::collections::{HashMap, HashSet};

use crate::address::{Domain, Mailbox};

use super::draft::{Body, DomainDraft, Draft, RuleDraft, TargetDraft, TestDraft, Toml, each_once};
use super::tables::{self, Entry};
use super::transport::{Transport, Way};
use super::{Imported, Options};

/// Rules out of the table `virtual_text`, and of `transport_text` the routes. The errors are sentences.
pub fn import(virtual_text: &str, transport_text: Option<&str>, options: &Options) -> Result<Imported, Vec<String>> {
    let table = tables::read(virtual_text).map_err(|error| vec![format!("virtual: {error}")])?;
    let transport = transport_text.map_or(Ok(Transport::default()), Transport::read);
    let transport = transport.map_err(|error| vec![format!("transport: {error}")])?;
    let mut importer = Importer { options, transport, ..Importer::new(options) };
    for (line, why) in table.skipped {
        importer.draft.leave_out(&format!("virtual:{line}"), "the line", why);
    }
    for entry in table.entries {
        importer.take(&entry);
    }
    for (line, what, why) in std::mem::take(&mut importer.transport.left_out) {
        importer.draft.leave_out(&format!("transport:{line}"), what, why);
    }
    options.role_is_elsewhere(&importer.domains, |role| importer.lookup(role).is_some())?;
    importer.expand_all();
    Ok(importer.finish())
}

/// An entry of the virtual table.
struct Alias {
    place: String,
    /// As Postfix would look them up next; `@domain` keeps its form.
    results: Vec<Mailbox>,
}

/// What an address comes to in the end.
struct Finals {
    place: String,
    address: Mailbox,
    to: Vec<Mailbox>,
    /// It stays where it is, too.
    itself: bool,
}

struct Importer<'o> {
    options: &'o Options,
    transport: Transport,
    domains: Vec<Domain>,
    /// Virtual alias domains: in them exists what the table names, and nothing else.
    closed: HashSet<Domain>,
    /// By address, in lower case, in the order of the table.
    aliases: HashMap<String, Alias>,
    order: Vec<Mailbox>,
    catch_alls: HashMap<Domain, Alias>,
    draft: Draft,
}

/// How mail for an address ends.
enum Ending {
    Goes(Option<String>),
    Body(Body),
    Nowhere(String),
}

impl<'o> Importer<'o> {
    fn new(options: &'o Options) -> Importer<'o> {
        Importer {
            options,
            transport: Transport::default(),
            domains: options.domains.clone(),
            closed: HashSet::new(),
            aliases: HashMap::new(),
            order: Vec::new(),
            catch_alls: HashMap::new(),
            draft: Draft::default(),
        }
    }

    fn declare(&mut self, domain: &Domain) {
        if !self.domains.contains(domain) {
            self.domains.push(domain.clone());
        }
    }

    fn take(&mut self, Entry { line, key, value }: &Entry) {
        let place = format!("virtual:{line}");
        if let Some(domain) = key.strip_prefix('@') {
            match Domain::parse(domain) {
                Ok(domain) if !domain.is_literal() => {
                    self.declare(&domain);
                    let results = self.results(&place, None, value);
                    if !results.is_empty() {
                        self.catch_alls.insert(domain, Alias { place, results });
                    }
                }
                Ok(_) | Err(_) => self.draft.leave_out(&place, format!("`{key}`"), "it is no domain"),
            }
            return;
        }
        let domain = Domain::parse(key).ok().filter(|_| !key.contains('@') && key.contains('.'));
        if let Some(domain) = domain {
            // `example.com anything` makes the domain known (virtual(5)).
            self.declare(&domain);
            self.closed.insert(domain);
            return;
        }
        let whole = match (key.contains('@'), &self.options.origin) {
            (true, _) => key.clone(),
            (false, Some(origin)) => format!("{key}@{origin}"),
            (false, None) => {
                self.draft.leave_out(&place, format!("`{key}`"), "a name without a domain: say myorigin with --origin");
                return;
            }
        };
        match Mailbox::parse(&whole) {
            Ok(address) if !address.domain().is_literal() => {
                self.declare(address.domain());
                let results = self.results(&place, Some(&address), value);
                if self.aliases.contains_key(&address.key()) {
                    self.draft.leave_out(&place, format!("`{key}`"), "it stands there already, spelled otherwise");
                } else {
                    self.order.push(address.clone());
                    self.aliases.insert(address.key(), Alias { place, results });
                }
            }
            Ok(_) => self.draft.leave_out(&place, format!("`{key}`"), "an address literal is no domain of ours"),
            Err(error) => self.draft.leave_out(&place, format!("`{key}`"), error.to_string()),
        }
    }

    /// The addresses of a value. `of` is whose they are, where that is one address.
    fn results(&mut self, place: &str, of: Option<&Mailbox>, value: &str) -> Vec<Mailbox> {
        let mut found = Vec::new();
        for (at, word) in tables::addresses(value).into_iter().enumerate() {
            let whole = match (word.strip_prefix('@'), of, &self.options.origin) {
                // virtual(5): "the result becomes the same user in otherdomain", for the first address.
                (Some(domain), Some(of), _) if at == 0 => format!("{}@{domain}", of.local()),
                (Some(_), ..) => {
                    let why = "the same name in another domain: write it as a rule with `to-domain`";
                    self.draft.leave_out(place, format!("`{word}`"), why);
                    continue;
                }
                (None, _, Some(origin)) if !word.contains('@') => format!("{word}@{origin}"),
                (None, _, None) if !word.contains('@') => {
                    self.draft.leave_out(
                        place,
                        format!("`{word}`"),
                        "a name without a domain: say myorigin with --origin",
                    );
                    continue;
                }
                (None, ..) => word.to_owned(),
            };
            match Mailbox::parse(&whole) {
                Ok(address) if !address.domain().is_literal() => found.push(address),
                Ok(_) => {
                    self.draft.leave_out(place, format!("`{word}`"), "mail goes to a domain, not to an address literal")
                }
                Err(error) => self.draft.leave_out(place, format!("`{word}`"), error.to_string()),
            }
        }
        found
    }

    fn lookup(&self, address: &Mailbox) -> Option<&Alias> {
        self.aliases.get(&address.key()).or_else(|| self.catch_alls.get(address.domain()))
    }

    /// Where mail for `address` ends, as cleanup(8) expands it: what goes to itself stays, and all else is looked up again.
    fn expand(&self, address: &Mailbox, state: &mut Expansion) -> Result<(), String> {
        let key = address.key();
        let Some(alias) = self.lookup(address).filter(|_| !state.own.contains(&key)) else {
            state.finals.push(address.clone());
            return if state.finals.len() > EXPANSION_MAX {
                Err(format!("over {EXPANSION_MAX} recipients"))
            } else {
                Ok(())
            };
        };
        if state.way.len() >= NESTING_MAX {
            return Err(endless(&state.way));
        }
        if alias.results.iter().any(|result| result.key() == key) {
            state.own.insert(key.clone());
        }
        state.way.push(key);
        for result in &alias.results {
            self.expand(result, state)?;
        }
        state.way.pop();
        Ok(())
    }

    fn expand_all(&mut self) {
        let mut all = Vec::new();
        for address in std::mem::take(&mut self.order) {
            let mut state = Expansion::default();
            let place = self.aliases.get(&address.key()).map_or_else(String::new, |alias| alias.place.clone());
            match self.expand(&address, &mut state) {
                Ok(()) => {
                    let mut to = each_once(state.finals, Mailbox::key);
                    let before = to.len();
                    to.retain(|target| target.key() != address.key());
                    all.push(Finals { place, itself: to.len() < before, address, to });
                }
                Err(why) => {
                    self.draft.leave_out(&place, format!("`{address}`"), why);
                    all.push(Finals { place, address, to: Vec::new(), itself: false });
                }
            }
        }
        let domains = self.domains.clone();
        let mut ruled: Vec<RuleDraft> = Vec::new();
        for domain in &domains {
            let (named, rest): (Vec<Finals>, Vec<Finals>) =
                all.into_iter().partition(|one| one.address.domain() == domain);
            all = rest;
            self.domain(domain, named, &mut ruled);
        }
        self.boxes(&mut ruled);
        self.draft.rules.extend(ruled);
    }

    /// A domain with all its addresses.
    fn domain(&mut self, domain: &Domain, named: Vec<Finals>, ruled: &mut Vec<RuleDraft>) {
        let postmaster = format!("postmaster@{domain}");
        let to_postmaster = named.iter().find(|one| one.address.key() == postmaster).and_then(|one| one.to.first());
        let mut role = to_postmaster.filter(|to| self.is_reachable(to)).map(|to| self.target(to));
        let catch_all = self.catch_all(domain);
        let several = catch_all.as_ref().is_some_and(|targets| targets.len() > 1);
        for one in named {
            // Where the domain itself is a rule, its addresses must stand before that rule.
            let as_rule = several || one.itself;
            if let Some(body) = self.body(&one) {
                match as_rule {
                    true => ruled.push(RuleDraft {
                        name: one.address.key(),
                        comment: None,
                        when: vec![("recipient", vec![one.address.to_string()])],
                        body,
                    }),
                    false => self.draft.alias(&one.address, body),
                }
            }
        }
        let targets = catch_all.unwrap_or_default();
        let names: Vec<String> = targets.iter().map(|target| self.target(target)).collect();
        let mailboxes = if names.is_empty() { self.mailboxes(domain) } else { None };
        role = role.or_else(|| names.first().cloned()).or_else(|| self.options.role.as_ref().map(ToString::to_string));
        if role.is_none() && mailboxes.is_none() {
            self.draft.leave_out(
                "virtual",
                format!("postmaster@{domain}"),
                "nobody is named who reads it: say so with --role",
            );
        }
        if let Some(free) = self.free(domain).filter(|_| !names.is_empty() || mailboxes.is_some()) {
            let legs = if names.is_empty() { vec![free.clone()] } else { names.clone() };
            let name = format!("any other address of {domain}");
            self.draft.tests.push(TestDraft {
                name,
                recipient: free,
                sender: None,
                rules: None,
                legs: Some(legs),
                action: None,
            });
        }
        let catch_all = match &names[..] {
            [] => None,
            [one] => Some(one.clone()),
            [first, rest @ ..] => {
                let body = vec![("to", Toml::Text(first.clone())), ("also", Toml::Texts(rest.to_vec()))];
                let when = vec![("recipient-domain", vec![domain.to_string()])];
                ruled.push(RuleDraft { name: format!("@{domain}"), comment: None, when, body });
                None
            }
        };
        self.draft.domains.push(DomainDraft { name: domain.clone(), role, mailboxes, catch_all });
    }

    /// The final targets of what no line names in the domain.
    fn catch_all(&mut self, domain: &Domain) -> Option<Vec<Mailbox>> {
        let alias = self.catch_alls.get(domain)?;
        let (place, mut state) = (alias.place.clone(), Expansion::default());
        for result in &alias.results {
            if let Err(why) = self.expand(result, &mut state) {
                self.draft.leave_out(&place, format!("`@{domain}`"), why);
                return None;
            }
        }
        let mut targets = each_once(state.finals, Mailbox::key);
        let wrong: Vec<(Mailbox, String)> =
            targets.iter().filter_map(|to| Some((to.clone(), self.unreachable(to)?))).collect();
        for (target, why) in wrong {
            targets.retain(|other| other.key() != target.key());
            self.draft.leave_out(&place, format!("`{target}` of `@{domain}`"), why);
        }
        (!targets.is_empty()).then_some(targets)
    }

    /// The route of all that exists in the domain beside the table.
    fn mailboxes(&self, domain: &Domain) -> Option<String> {
        if self.closed.contains(domain) {
            return None;
        }
        match self.transport.own(domain) {
            Some(Way::Route(route)) => Some(route),
            Some(Way::Mx | Way::Error(..) | Way::Retry(..) | Way::Discard(_) | Way::Own(_)) | None => {
                self.options.mailboxes.clone()
            }
        }
    }

    /// Addresses of ours that only the transport table names.
    fn boxes(&mut self, ruled: &mut Vec<RuleDraft>) {
        let named: Vec<(usize, Mailbox)> =
            self.transport.addresses().map(|(line, address, _)| (line, address)).collect();
        for (line, address) in named {
            let known = self.lookup(&address).is_some() || !self.domains.contains(address.domain());
            if known || self.closed.contains(address.domain()) {
                continue;
            }
            let one = Finals { place: format!("transport:{line}"), address, to: Vec::new(), itself: true };
            if let Some(body) = self.body(&one) {
                let when = vec![("recipient", vec![one.address.to_string()])];
                ruled.insert(0, RuleDraft { name: one.address.key(), comment: None, when, body });
            }
        }
    }

    /// What becomes of an address; none where nothing is left of it. Adds its test.
    fn body(&mut self, one: &Finals) -> Option<Body> {
        let mut refused: Option<Body> = None;
        let mut targets: Vec<&Mailbox> = Vec::new();
        for target in &one.to {
            match self.ending(target) {
                Ending::Goes(_) => targets.push(target),
                Ending::Body(body) => refused = refused.or(Some(body)),
                Ending::Nowhere(why) => {
                    self.draft.leave_out(&one.place, format!("`{target}` of `{}`", one.address), why)
                }
            }
        }
        let own = match self.ending(&one.address) {
            _ if !one.itself => None,
            _ if is_role(&one.address) => {
                let why = "postmaster and abuse go where the domain's `role` says";
                self.draft.leave_out(&one.place, format!("`{}` itself", one.address), why);
                None
            }
            Ending::Goes(Some(route)) => Some(route),
            Ending::Body(body) => {
                refused = refused.or(Some(body));
                None
            }
            Ending::Goes(None) | Ending::Nowhere(_) => {
                let why = "it is a mailbox, and no route to it is known (transport, --mailboxes)";
                self.draft.leave_out(&one.place, format!("`{}` itself", one.address), why);
                None
            }
        };
        if targets.is_empty() && own.is_none() {
            // Nothing may be guessed: neither the mailboxes nor the catch-all of the domain are meant.
            let not_imported = || vec![("defer", Toml::Text(NOT_IMPORTED.to_owned()))];
            return self.refusal(one, refused.unwrap_or_else(not_imported));
        }
        if refused.is_some() {
            let why = "one copy cannot be refused while others go on";
            self.draft.leave_out(&one.place, format!("the refusal of a recipient of `{}`", one.address), why);
        }
        let mut names: Vec<String> = targets.iter().map(|target| self.target(target)).collect();
        let mut legs = names.clone();
        legs.extend(own.as_ref().map(|_| one.address.to_string()));
        self.test(one, Some(legs), None);
        let mut body: Body = Vec::new();
        match own {
            Some(route) => body.push(("route", Toml::Text(route))),
            None => body.push(("to", Toml::Text(names.remove(0)))),
        }
        if !names.is_empty() {
            body.push(("also", Toml::Texts(names)));
        }
        Some(body)
    }

    fn refusal(&mut self, one: &Finals, body: Body) -> Option<Body> {
        let (key, _) = body.first()?;
        if is_role(&one.address) && *key != "discard" {
            let why = "postmaster and abuse are always taken: they go where the domain's `role` says";
            self.draft.leave_out(&one.place, format!("the refusal of `{}`", one.address), why);
            return None;
        }
        self.test(one, None, Some((key, None)));
        Some(body)
    }

    fn test(&mut self, one: &Finals, legs: Option<Vec<String>>, action: Option<(&'static str, Option<String>)>) {
        let recipient = one.address.to_string();
        self.draft.tests.push(TestDraft {
            name: one.address.key(),
            recipient,
            sender: None,
            rules: None,
            legs,
            action,
        });
    }

    fn ending(&self, target: &Mailbox) -> Ending {
        let coded = |key: &'static str, number: u16, default: &str, code: Option<String>, text: &str| {
            let enhanced = super::draft::quoted(&code.unwrap_or_else(|| default.to_owned()));
            let text = super::draft::quoted(text);
            vec![(key, Toml::Raw(format!("{{ code = {number}, enhanced = {enhanced}, text = {text} }}")))]
        };
        // Named, it has a rule of its own, which no other may lead to.
        if is_role(target) && self.aliases.contains_key(&target.key()) {
            return Ending::Nowhere("postmaster and abuse go where the domain's `role` says".to_owned());
        }
        match self.transport.way(target) {
            Way::Error(code, text) => Ending::Body(coded("reject", 550, "5.0.0", code, &text)),
            Way::Retry(code, text) => Ending::Body(coded("defer", 450, "4.0.0", code, &text)),
            Way::Discard(why) => Ending::Body(vec![("discard", Toml::Text(why))]),
            Way::Own(transport) => Ending::Nowhere(format!("its transport `{transport}` is Postfix's own")),
            Way::Route(route) => Ending::Goes(Some(route)),
            Way::Mx if !self.domains.contains(target.domain()) => Ending::Goes(None),
            // In a domain of ours the MX is ourselves.
            Way::Mx => match &self.options.mailboxes {
                Some(route) => Ending::Goes(Some(route.clone())),
                None => Ending::Nowhere(
                    "it is a mailbox of ours, and no route to it is known (transport, --mailboxes)".to_owned(),
                ),
            },
        }
    }

    fn unreachable(&self, target: &Mailbox) -> Option<String> {
        match self.ending(target) {
            Ending::Goes(_) => None,
            Ending::Body(_) => Some("Postfix refuses or discards mail for it".to_owned()),
            Ending::Nowhere(why) => Some(why),
        }
    }

    fn is_reachable(&self, target: &Mailbox) -> bool {
        self.unreachable(target).is_none()
    }

    /// The name of the target. All say the same about spam and failures, wherever they stand.
    fn target(&mut self, address: &Mailbox) -> String {
        let route = match self.ending(address) {
            Ending::Goes(route) => route,
            Ending::Body(_) | Ending::Nowhere(_) => None,
        };
        let (on_spam, bounces) = (Some("quarantine"), Some("sender"));
        self.draft.targets.name(address, TargetDraft { address: address.to_string(), route, on_spam, bounces })
    }

    /// An address of the domain that nothing names.
    fn free(&self, domain: &Domain) -> Option<String> {
        let names = std::iter::once("somebody".to_owned()).chain((2..100).map(|n| format!("somebody-{n}")));
        let mut free = names.map(|name| format!("{name}@{domain}"));
        free.find(|address| {
            Mailbox::parse(address).is_ok_and(|one| !self.aliases.contains_key(&one.key()) && self.is_unrouted(&one))
        })
    }

    fn is_unrouted(&self, address: &Mailbox) -> bool {
        self.transport.addresses().all(|(_, named, _)| named.key() != address.key())
    }

    fn finish(mut self) -> Imported {
        // Routes that nothing uses would only be in the way.
        let routes = std::mem::take(&mut self.transport.routes);
        let used: HashSet<String> = self.draft.routes_used();
        self.draft.routes = routes.into_iter().filter(|route| used.contains(&route.name)).collect();
        self.draft.finish("Postfix's virtual and transport tables")
    }
}

/// Why a way of so many aliases has no end. Postfix counts likewise: a circle that an address breaks which goes to itself
/// is none.
fn endless(way: &[String]) -> String {
    let mut seen = HashSet::new();
    match way.iter().position(|key| !seen.insert(key)) {
        Some(at) => format!("a circle: {}; Postfix defers such mail", way[..=at].join(" -> ")),
        None => format!("over {NESTING_MAX} aliases behind one another; Postfix defers such mail"),
    }
}

fn is_role(address: &Mailbox) -> bool {
    ["postmaster", "abuse"].contains(&address.plain_local().to_lowercase().as_str())
}

#[derive(Default)]
struct Expansion {
    way: Vec<String>,
    /// Addresses that go to themselves.
    own: HashSet<String>,
    finals: Vec<Mailbox>,
}

/// Postfix's `virtual_alias_expansion_limit` and `virtual_alias_recursion_limit` are 1,000.
const EXPANSION_MAX: usize = 1_000;
const NESTING_MAX: usize = 1_000;
/// What is told to senders to an address of which nothing could be carried over: they keep their mail meanwhile.
const NOT_IMPORTED: &str = "this address is not set up yet";
