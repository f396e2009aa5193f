//! A target that is made of the recipient: another local part, another domain, with what a pattern captured.
//!
//! A capture is a peer's text, so it may stand in the local part alone: the domain is the administrator's.

use crate::address::{Domain, Mailbox};

use super::eval::Subject;
use super::pattern::Pattern;

/// `to-local`, `to-domain`, or a `to` with captures.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Rewrite {
    /// `None`: the recipient's own. Otherwise a template of the `regex` crate: `$1`, `${name}`, `$$`.
    pub local: Option<String>,
    /// `None`: the recipient's own.
    pub domain: Option<Domain>,
    /// The rule's `recipient-matches`; the first that matches is what is captured from.
    pub patterns: Vec<Pattern>,
}

impl Rewrite {
    /// The address for this recipient; `None` where what came out is none.
    pub(super) fn apply(&self, subject: &Subject<'_>) -> Option<Mailbox> {
        let recipient = subject.recipient;
        let domain = self.domain.as_ref().unwrap_or(recipient.domain());
        let local = match &self.local {
            None => recipient.local().to_owned(),
            Some(template) => self.expand(template, subject),
        };
        Mailbox::parse(&format!("{local}@{domain}")).ok()
    }

    fn expand(&self, template: &str, subject: &Subject<'_>) -> String {
        if self.patterns.is_empty() {
            return template.to_owned();
        }
        let texts = &subject.recipient_texts;
        let mut captured = self.patterns.iter().flat_map(|p| texts.iter().filter_map(|text| p.expand(text, template)));
        captured.next().unwrap_or_default()
    }
}

/// The groups that a template asks for.
pub(super) fn groups(template: &str) -> Vec<String> {
    let mut groups = Vec::new();
    let mut rest = template;
    while let Some(at) = rest.find('$') {
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            rest = after;
            continue;
        }
        let (name, after) = match rest.strip_prefix('{').and_then(|inner| inner.split_once('}')) {
            Some((name, after)) => (name, after),
            None => rest.split_at(rest.find(|c: char| c != '_' && !c.is_ascii_alphanumeric()).unwrap_or(rest.len())),
        };
        groups.push(name.to_owned());
        rest = after;
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_what_the_template_names() {
        for (template, wanted) in [
            ("case-$1", vec!["1"]),
            ("${1}x-$name", vec!["1", "name"]),
            ("$1x", vec!["1x"]),
            ("a$$1", vec![]),
            ("a$", vec![""]),
            ("plain", vec![]),
        ] {
            assert_eq!(groups(template), wanted, "{template}");
        }
    }
}
