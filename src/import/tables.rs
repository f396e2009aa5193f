//! The source of a Postfix table, as `postmap` reads it: a key and a value a line (postmap(1), virtual(5)).

/// A line with its continuations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) line: usize,
    /// In lower case, as Postfix compares it.
    pub(super) key: String,
    pub(super) value: String,
}

/// What stands in a table: its entries, each key once, and what `postmap` would complain of, with its line.
#[derive(Debug, Default)]
pub(super) struct Table {
    pub(super) entries: Vec<Entry>,
    pub(super) skipped: Vec<(usize, String)>,
}

/// The error says why this is no table that can be carried over.
pub(super) fn read(text: &str) -> Result<Table, String> {
    let mut table = Table::default();
    let mut seen = std::collections::HashSet::new();
    for (line, text) in logical_lines(text, &mut table.skipped) {
        if text.starts_with('/') || text.starts_with("!/") || text.starts_with("if ") || text == "endif" {
            return Err(format!(
                "line {line} belongs to a regexp or pcre table, which rewrites addresses by patterns: only tables that \
                 postmap compiles (hash, lmdb, btree, texthash) can be imported; write such lines as rules with \
                 `recipient-matches`"
            ));
        }
        match split(&text) {
            Some((key, value)) => {
                let key = key.to_lowercase();
                match seen.insert(key.clone()) {
                    true => table.entries.push(Entry { line, key, value: value.to_owned() }),
                    // postmap warns, and the first stands.
                    false => table.skipped.push((line, format!("`{key}` stands there already"))),
                }
            }
            None => table.skipped.push((line, "expected a key, white space and a value".to_owned())),
        }
    }
    Ok(table)
}

/// Lines without comments, each with those that continue it because they begin with white space.
fn logical_lines(text: &str, skipped: &mut Vec<(usize, String)>) -> Vec<(usize, String)> {
    let mut lines: Vec<(usize, String)> = Vec::new();
    for (at, line) in (1..).zip(text.lines()) {
        let bare = line.trim();
        if bare.is_empty() || bare.starts_with('#') {
            continue;
        }
        match line.starts_with([' ', '\t']) {
            false => lines.push((at, bare.to_owned())),
            true => match lines.last_mut() {
                Some((_, last)) => {
                    last.push(' ');
                    last.push_str(bare);
                }
                None => {
                    skipped.push((at, "it begins with white space, and there is no line that it continues".to_owned()))
                }
            },
        }
    }
    lines
}

/// At the first white space outside of quotes.
fn split(line: &str) -> Option<(&str, &str)> {
    let (mut quoted, mut escaped) = (false, false);
    for (at, c) in line.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => quoted = !quoted,
            c if c.is_ascii_whitespace() && !quoted => {
                let value = line[at..].trim();
                return (!value.is_empty()).then_some((&line[..at], value));
            }
            _ => {}
        }
    }
    None
}

/// The addresses of a value: separated by commas and white space outside of quotes.
pub(super) fn addresses(value: &str) -> Vec<&str> {
    let (mut quoted, mut escaped, mut from) = (false, false, 0);
    let mut found = Vec::new();
    for (at, c) in value.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => quoted = !quoted,
            c if (c == ',' || c.is_ascii_whitespace()) && !quoted => {
                found.push(&value[from..at]);
                from = at + c.len_utf8();
            }
            _ => {}
        }
    }
    found.push(&value[from..]);
    found.retain(|address| !address.is_empty());
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_continuations_quotes_and_keys_twice() {
        let table = read(
            "# comment\n\n  astray\nA@d.example  x@y.example,\n# in between\n\tz@y.example\n\"a b\"@d  q@y\nlonely\na@d.example other@y\n",
        )
        .unwrap();
        let entries: Vec<(usize, &str, &str)> =
            table.entries.iter().map(|entry| (entry.line, entry.key.as_str(), entry.value.as_str())).collect();
        assert_eq!(entries, [(4, "a@d.example", "x@y.example, z@y.example"), (7, "\"a b\"@d", "q@y")]);
        assert_eq!(table.skipped.iter().map(|(line, _)| *line).collect::<Vec<_>>(), [3, 8, 9]);
        assert_eq!(addresses("a@b, \"c, d\"@e\tf"), ["a@b", "\"c, d\"@e", "f"]);
    }

    #[test]
    fn tables_of_patterns_are_refused_in_a_sentence() {
        for text in ["/^a@/ b@c\n", "a@b c@d\nif /x/\n", "!/x/ y\n"] {
            let error = read(text).unwrap_err();
            assert!(error.contains("regexp or pcre table"), "{error}");
        }
    }
}
