//! A table as spreadsheets write it (RFC 4180): the one place that reads CSV.

use std::collections::BTreeMap;

use crate::document::list;

/// A line of the table by column; cells that are empty are not there.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) line: u64,
    pub(super) cells: BTreeMap<&'static str, String>,
}

/// Reads a table whose first line names the columns, in any order and case. Commas, semicolons or tabs separate the
/// cells, whichever the first line has. The error is a sentence.
pub(super) fn read(text: &str, columns: &[&'static str]) -> Result<Vec<Row>, String> {
    // Spreadsheets mark their UTF-8; and of lines that end in CR LF the reader counts one less.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text).replace("\r\n", "\n");
    let first = text.lines().next().unwrap_or_default();
    let separator =
        [b',', b';', b'\t'].into_iter().max_by_key(|s| (first.bytes().filter(|b| b == s).count(), *s == b','));
    let mut reader = csv::ReaderBuilder::new()
        .delimiter(separator.unwrap_or(b','))
        .trim(csv::Trim::All)
        .flexible(true)
        .from_reader(text.as_bytes());
    let header = reader.headers().map_err(|error| error.to_string())?.clone();
    let mut named: Vec<&'static str> = Vec::new();
    for name in &header {
        let plain = name.to_lowercase().replace([' ', '_'], "-");
        let Some(known) = columns.iter().find(|column| **column == plain) else {
            return Err(format!("there is no column `{name}`; there are: {}", list(columns)));
        };
        if named.contains(known) {
            return Err(format!("the column `{known}` stands there twice"));
        }
        named.push(known);
    }
    let mut rows = Vec::new();
    for record in reader.records() {
        let record = record.map_err(|error| error.to_string())?;
        let line = record.position().map_or(0, csv::Position::line);
        if record.len() > named.len() {
            return Err(format!("line {line} has {} cells, and there are {} columns", record.len(), named.len()));
        }
        let cells = named.iter().zip(&record).filter(|(_, cell)| !cell.is_empty());
        let cells: BTreeMap<&'static str, String> = cells.map(|(name, cell)| (*name, cell.to_owned())).collect();
        // A line of separators alone is what a spreadsheet leaves behind a table.
        if !cells.is_empty() {
            rows.push(Row { line, cells });
        }
        if rows.len() > ROWS_MAX {
            return Err(format!("the table has more than {ROWS_MAX} lines"));
        }
    }
    Ok(rows)
}

/// Gmail has 1,000 settings and maps of 5,000 entries at the most.
const ROWS_MAX: usize = 100_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_in_any_order_case_and_separator() {
        for text in ["B c,A\n\"x, y\",1\n", "\u{feff}a;B_C\r\n1;\"x, y\"\r\n;\r\n", "A\tb-c\n1\tx, y\n\t\n"] {
            let rows = read(text, &["a", "b-c"]).unwrap();
            assert_eq!(rows.len(), 1, "{text:?}");
            assert_eq!((rows[0].cells["a"].as_str(), rows[0].cells["b-c"].as_str(), rows[0].line), ("1", "x, y", 2));
        }
    }

    #[test]
    fn wrong_tables_are_told_in_a_sentence() {
        for (text, told) in [
            ("a,x\n", "there is no column `x`; there are: a, b"),
            ("a,A\n", "the column `a` stands there twice"),
            ("a,b\n1,2,3\n", "line 2 has 3 cells, and there are 2 columns"),
        ] {
            let error = read(text, &["a", "b"]).unwrap_err();
            assert!(error.starts_with(told.split("; there").next().unwrap()), "{error}");
        }
    }
}
