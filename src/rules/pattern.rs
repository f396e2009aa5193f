//! Patterns: regular expressions, without case, in linear time. Those of addresses match the whole, those of texts search.
//!
//! The `regex` crate never backtracks, so a pattern costs time linear in the address; what a pattern may cost in
//! memory is bounded here. `(?-i)` inside a pattern restores case.

use regex::{Regex, RegexBuilder};

/// A pattern, compiled once.
#[derive(Clone, Debug)]
pub struct Pattern {
    text: String,
    regex: Regex,
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Pattern) -> bool {
        self.text == other.text
    }
}

impl Eq for Pattern {}

impl Pattern {
    /// Takes a regular expression; the error says what is wrong with it in one line.
    pub fn parse(text: &str) -> Result<Pattern, String> {
        if text.len() > PATTERN_OCTETS_MAX {
            return Err(format!("a pattern has at most {PATTERN_OCTETS_MAX} octets"));
        }
        // Alone first: `a)|(b` is no pattern although it would be one between our parentheses.
        compile(text)?;
        let regex = compile(&format!(r"\A(?:{text})\z"))?;
        Ok(Pattern { text: text.to_owned(), regex })
    }

    /// As [`Pattern::parse`], of a pattern that matches where it occurs in a text; `^` and `$` are a line's ends.
    pub fn parse_search(text: &str) -> Result<Pattern, String> {
        if text.len() > PATTERN_OCTETS_MAX {
            return Err(format!("a pattern has at most {PATTERN_OCTETS_MAX} octets"));
        }
        compile(text)?;
        Ok(Pattern { text: text.to_owned(), regex: compile(&format!("(?m:{text})"))? })
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    #[must_use]
    pub fn matches(&self, text: &str) -> bool {
        self.regex.is_match(text)
    }

    /// The template with what the groups captured in `text`; `None` where the pattern does not match.
    #[must_use]
    pub fn expand(&self, text: &str, template: &str) -> Option<String> {
        let captures = self.regex.captures(text)?;
        let mut out = String::new();
        captures.expand(template, &mut out);
        Some(out)
    }

    /// Whether it has the group, by number or by name.
    #[must_use]
    pub fn has_group(&self, group: &str) -> bool {
        match group.parse::<usize>() {
            Ok(number) => number < self.regex.captures_len(),
            Err(_) => self.regex.capture_names().flatten().any(|name| name == group),
        }
    }

    /// Dots before a literal that are probably meant as dots: `mail.example` also matches `mailxexample`.
    #[must_use]
    pub fn has_unescaped_dot(&self) -> bool {
        let bytes = self.text.as_bytes();
        let (mut at, mut in_class) = (0, false);
        while at < bytes.len() {
            match bytes[at] {
                b'\\' => at += 1,
                b'[' => in_class = true,
                b']' => in_class = false,
                b'.' if !in_class && bytes.get(at + 1).is_some_and(u8::is_ascii_alphanumeric) => return true,
                _ => {}
            }
            at += 1;
        }
        false
    }

    /// `^` or `$` around the pattern, which say again what holds anyway.
    #[must_use]
    pub fn has_needless_anchor(&self) -> bool {
        self.text.starts_with('^') || (self.text.ends_with('$') && !self.text.ends_with("\\$"))
    }
}

fn compile(text: &str) -> Result<Regex, String> {
    RegexBuilder::new(text)
        .case_insensitive(true)
        .size_limit(COMPILED_BYTES_MAX)
        .dfa_size_limit(COMPILED_BYTES_MAX)
        .nest_limit(NEST_MAX)
        .build()
        .map_err(|error| match error {
            regex::Error::CompiledTooBig(limit) => format!("the pattern is over {limit} bytes when compiled"),
            // The crate draws over several lines; its last line says what is wrong.
            other => {
                let drawn = other.to_string();
                let last = drawn.lines().last().unwrap_or("not a regular expression");
                last.trim_start_matches("error: ").to_owned()
            }
        })
}

/// As long as Gmail's longest, which administrators have been content with.
const PATTERN_OCTETS_MAX: usize = 4_000;
/// Keeps a thousand patterns within some hundred MiB even where each is a horror; a plain one takes a few KiB.
const COMPILED_BYTES_MAX: usize = 1 << 20;
const NEST_MAX: u32 = 50;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_patterns_match_the_whole_address_without_case() {
        for (pattern, address, matches) in [
            (r"aide@solarmora\.com", "Aide@Solarmora.COM", true),
            (r"aide@solarmora\.com", "xaide@solarmora.com", false),
            (r"aide@solarmora\.com", "aide@solarmora.com.evil.example", false),
            (r"(?-i)Aide@d", "aide@d", false),
            (r"(?-i)Aide@d", "Aide@d", true),
            (r"a@d|ab@d", "ab@d", true),
            (r"case-\d+@d", "case-12@d", true),
            (r"", "", true),
            (r".*@d", "a\nb@d", false),
        ] {
            assert_eq!(Pattern::parse(pattern).unwrap().matches(address), matches, "{pattern} {address}");
        }
    }

    #[test]
    fn text_patterns_match_where_they_occur_and_know_lines() {
        for (pattern, text, matches) in [
            ("rechnung", "Ihre RECHNUNG 12", true),
            ("^order", "an\norder", true),
            ("order$", "order\nnow", true),
            (r"\Aorder", "an\norder", false),
            ("(?-i)Order", "order", false),
        ] {
            assert_eq!(Pattern::parse_search(pattern).unwrap().matches(text), matches, "{pattern} {text}");
        }
        assert!(Pattern::parse_search("a)|(b").is_err());
    }

    #[test]
    fn patterns_that_are_none() {
        for pattern in ["(", "a)|(b", "[", "*a", r"(a)\1", "(?=a)", r"\p{Nonsense}", "(?x)a # b"] {
            let error = Pattern::parse(pattern).unwrap_err();
            assert!(!error.contains('\n') && !error.is_empty(), "{pattern}: {error}");
        }
    }

    #[test]
    fn patterns_have_limits() {
        assert!(Pattern::parse(&"a".repeat(PATTERN_OCTETS_MAX)).is_ok());
        assert!(Pattern::parse(&"a".repeat(PATTERN_OCTETS_MAX + 1)).is_err());
        assert!(Pattern::parse("((a{100}){100}){100}").is_err());
    }

    #[test]
    fn a_hostile_pattern_takes_linear_time() {
        let pattern = Pattern::parse("(a+)+b").unwrap();
        assert!(!pattern.matches(&"a".repeat(10_000)));
    }

    #[test]
    fn what_looks_wrong_in_a_pattern() {
        for (pattern, dot, anchor) in [
            (r"a@mail.example", true, false),
            (r"a@mail\.example", false, false),
            (r".*@d", false, false),
            (r"a[.x]b", false, false),
            (r"^a@d$", false, true),
            (r"a\$", false, false),
        ] {
            let pattern = Pattern::parse(pattern).unwrap();
            assert_eq!((pattern.has_unescaped_dot(), pattern.has_needless_anchor()), (dot, anchor), "{pattern:?}");
        }
    }
}
