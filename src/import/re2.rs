//! A pattern of RE2 that is searched for with regard to case, as a pattern of ours that matches the whole address.
//!
//! The two languages differ in little, and where they do the meaning of RE2 is kept: `\d`, `\w`, `\s` and `\b` know ASCII
//! only, `\Q…\E` quotes, and in brackets `[`, `&&`, `--` and `~~` mean themselves.

use regex_syntax::ast::{AssertionKind, Ast};
use regex_syntax::hir::{Class, Hir, HirKind};

use crate::rules::pattern::Pattern;

/// A translated pattern.
#[derive(Clone, Debug)]
pub(super) struct Translated {
    /// For `recipient-matches`.
    pub(super) ours: String,
    /// What RE2 would search for, to be held against addresses.
    pub(super) search: regex::Regex,
    /// A shortest text that it finds, where one is easily made.
    pub(super) sample: Option<String>,
}

/// The error says why there is none.
pub(super) fn translate(pattern: &str) -> Result<Translated, String> {
    let same = Scanner { rest: pattern.chars().peekable(), out: String::new() }.scan()?;
    let search = regex::Regex::new(&same).map_err(|error| {
        let drawn = error.to_string();
        let last = drawn.lines().last().unwrap_or("it is no pattern");
        last.trim_start_matches("error: ").to_owned()
    })?;
    let ours = whole(&same);
    Pattern::parse(&ours)?;
    let sample = regex_syntax::parse(&same).ok().and_then(|hir| sample(&hir));
    Ok(Translated { ours, search, sample })
}

/// Where the pattern begins with `^` or ends with `$` nothing can stand there; else anything can.
fn whole(pattern: &str) -> String {
    if let Ok(Ast::Concat(parts)) = &regex_syntax::ast::parse::Parser::new().parse(pattern) {
        let anchor = |part: Option<&Ast>, kinds: [AssertionKind; 2]| match part {
            Some(Ast::Assertion(assertion)) => kinds.contains(&assertion.kind),
            _ => false,
        };
        let starts = anchor(parts.asts.first(), [AssertionKind::StartLine, AssertionKind::StartText]);
        let ends = anchor(parts.asts.last(), [AssertionKind::EndLine, AssertionKind::EndText]);
        let first = if starts { parts.asts[0].span().end.offset } else { 0 };
        let last = parts.asts.last().filter(|_| ends && parts.asts.len() > usize::from(starts));
        let last = last.map_or(pattern.len(), |last| last.span().start.offset);
        let inner = pattern.get(first..last).unwrap_or(pattern);
        // What is searched for may begin or end in the middle, and may hold flags of its own: it keeps its parentheses.
        let (before, behind) = (if starts { "" } else { ".*" }, if ends { "" } else { ".*" });
        let plain = !inner.contains("(?");
        return match plain {
            true => format!("(?-i){before}{inner}{behind}"),
            false => format!("(?-i){before}(?:{inner}){behind}"),
        };
    }
    format!("(?-i).*(?:{pattern}).*")
}

/// Writes what RE2 means in the syntax of the `regex` crate.
struct Scanner<'p> {
    rest: std::iter::Peekable<std::str::Chars<'p>>,
    out: String,
}

impl Scanner<'_> {
    fn scan(mut self) -> Result<String, String> {
        while let Some(c) = self.rest.next() {
            match c {
                '\\' => self.escape(false)?,
                '[' => self.class()?,
                c => self.out.push(c),
            }
        }
        Ok(self.out)
    }

    fn class(&mut self) -> Result<(), String> {
        self.out.push('[');
        if self.rest.next_if_eq(&'^').is_some() {
            self.out.push('^');
        }
        // A bracket that stands first is a member.
        let mut first = true;
        loop {
            let Some(c) = self.rest.next() else { return Err("a bracket is not closed".to_owned()) };
            match c {
                ']' if !first => break self.out.push(']'),
                ']' => self.out.push_str("\\]"),
                '[' if self.rest.peek() == Some(&':') => {
                    self.out.push('[');
                    // `[:alpha:]` is the same in both.
                    for c in self.rest.by_ref() {
                        self.out.push(c);
                        if c == ']' {
                            break;
                        }
                    }
                }
                '[' | '&' | '~' => self.out.extend(['\\', c]),
                '\\' => self.escape(true)?,
                '-' if self.rest.peek() == Some(&'-') => self.out.push_str("\\-"),
                c => self.out.push(c),
            }
            first = false;
        }
        Ok(())
    }

    fn escape(&mut self, in_class: bool) -> Result<(), String> {
        let Some(c) = self.rest.next() else { return Err("it ends with a backslash".to_owned()) };
        let ascii = match c {
            'd' => Some("[0-9]"),
            'D' => Some("[^0-9]"),
            'w' => Some("[0-9A-Za-z_]"),
            'W' => Some("[^0-9A-Za-z_]"),
            's' => Some(r"[\t\n\x0C\r ]"),
            'S' => Some(r"[^\t\n\x0C\r ]"),
            'b' if !in_class => Some(r"(?-u:\b)"),
            _ => None,
        };
        match (c, ascii) {
            (_, Some(ascii)) => self.out.push_str(ascii),
            ('Q', None) if !in_class => self.quoted(),
            ('C', None) => return Err("`\\C` means an octet, and here there are characters".to_owned()),
            ('0'..='7', None) => self.octal(c)?,
            ('<' | '>', None) => self.out.push(c),
            (c, None) => self.out.extend(['\\', c]),
        }
        Ok(())
    }

    fn octal(&mut self, first: char) -> Result<(), String> {
        let mut digits = String::from(first);
        while digits.len() < 3 {
            let Some(digit) = self.rest.next_if(|c| ('0'..='7').contains(c)) else { break };
            digits.push(digit);
        }
        // RE2 has no references back, and takes `\1` for a mistake unless more digits follow.
        if first != '0' && digits.len() == 1 {
            return Err(format!("`\\{first}` is no escape"));
        }
        let value = u32::from_str_radix(&digits, 8).unwrap_or(0);
        self.out.push_str(&format!("\\x{{{value:X}}}"));
        Ok(())
    }

    fn quoted(&mut self) {
        let mut text = String::new();
        while let Some(c) = self.rest.next() {
            if c == '\\' && self.rest.next_if_eq(&'E').is_some() {
                break;
            }
            text.push(c);
        }
        self.out.push_str(&regex::escape(&text));
    }
}

/// A text that the expression matches: the first branch, the fewest repetitions, a letter where there is a choice.
fn sample(hir: &Hir) -> Option<String> {
    match hir.kind() {
        HirKind::Empty | HirKind::Look(_) => Some(String::new()),
        HirKind::Literal(literal) => String::from_utf8(literal.0.to_vec()).ok(),
        HirKind::Class(Class::Unicode(class)) => {
            let holds = |c: char| class.ranges().iter().any(|range| range.start() <= c && c <= range.end());
            let c = "xa0-_.@".chars().chain('a'..='z').chain('A'..='Z').chain('0'..='9').find(|c| holds(*c));
            c.or_else(|| class.ranges().first().map(|range| range.start())).map(String::from)
        }
        HirKind::Class(Class::Bytes(_)) => None,
        HirKind::Repetition(repetition) => {
            let one = sample(&repetition.sub)?;
            let least = usize::try_from(repetition.min).ok()?;
            // One where none would do: `.*` in an address is better seen than left out.
            let times = if repetition.max == Some(0) { 0 } else { least.max(1) };
            (one.len() * times <= SAMPLE_OCTETS_MAX).then(|| one.repeat(times))
        }
        HirKind::Capture(capture) => sample(&capture.sub),
        HirKind::Concat(parts) => parts.iter().map(sample).collect(),
        HirKind::Alternation(branches) => branches.iter().find_map(sample),
    }
}

/// Longer than an address may be.
const SAMPLE_OCTETS_MAX: usize = 300;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_search_becomes_a_match_of_the_whole() {
        for (re2, ours) in [
            ("sales", "(?-i).*sales.*"),
            ("^sales@d$", "(?-i)sales@d"),
            ("^sales", "(?-i)sales.*"),
            (r"@d\.example$", r"(?-i).*@d\.example"),
            ("^a$|^b$", "(?-i).*(?:^a$|^b$).*"),
            ("a|b", "(?-i).*(?:a|b).*"),
            (r"a\$", r"(?-i).*a\$.*"),
            ("(?i)^a", "(?-i).*(?:(?i)^a).*"),
            (r"\d\Q.+\E[[&&]", r"(?-i).*[0-9]\.\+[\[\&\&].*"),
            ("", "(?-i).*(?:).*"),
            ("^", "(?-i).*(?:^).*"),
        ] {
            assert_eq!(translate(re2).unwrap().ours, ours, "{re2}");
        }
    }

    #[test]
    fn both_find_the_same_addresses() {
        let addresses = [
            "sales@d.example",
            "Sales@d.example",
            "presales@d.example",
            "a-b@d.example",
            "x@d.example.org",
            "9@é.example",
        ];
        let patterns = [
            "sales",
            "^sales",
            "(?i)^sales@",
            r"d\.example$",
            "^(a|x)-?b?@",
            r"^\d@",
            r"\bsales\b",
            "^$",
            "[^a-z@.-]",
            "s{1,2}",
            "^sales@d.example$|^x@",
            "(?U)s.*s",
            r"^[[:alpha:]]+@",
            r"[\w]@",
            "^[a-]+",
            r"\x40d",
            r"\100d",
        ];
        for re2 in patterns {
            let translated = translate(re2).unwrap();
            let ours = Pattern::parse(&translated.ours).unwrap();
            for address in addresses {
                assert_eq!(ours.matches(address), translated.search.is_match(address), "{re2} {address}");
            }
        }
        assert!(!Pattern::parse(&translate("sales").unwrap().ours).unwrap().matches("SALES@d"));
    }

    #[test]
    fn what_is_no_pattern_says_why() {
        for re2 in ["(", "[a", r"\", r"\1", r"\C", "(?=a)", "a**b("] {
            let error = translate(re2).unwrap_err();
            assert!(!error.is_empty() && !error.contains('\n'), "{re2}: {error}");
        }
    }

    #[test]
    fn samples_are_found() {
        for re2 in ["sales", r"^case-\d{3}@d\.example$", "^(a|b)+@", "[^a]x", r"\.fr$"] {
            let translated = translate(re2).unwrap();
            let sample = translated.sample.unwrap();
            assert!(translated.search.is_match(&sample), "{re2}: {sample}");
        }
    }
}
