//! What is wrong with a file that an administrator wrote, drawn like a good compiler draws it.
//!
//! A [`Diagnostic`] points at a [`Place`]: a span of bytes in a [`Source`] that is kept whole, so that the line can
//! be shown. A [`Report`] collects them, so that one run tells everything. `annotate-snippets` does the drawing.
//!
//! Left out: exit codes and colour detection, which are the command line's.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};

/// A file as read, with the path that messages show.
#[derive(Debug, PartialEq, Eq)]
pub struct Source {
    pub path: String,
    pub text: String,
    // Invariant: the first byte of each line, ascending, from 0. Ten thousand rules are named by their lines.
    line_starts: Vec<usize>,
}

impl Source {
    #[must_use]
    pub fn new(path: impl Into<String>, text: impl Into<String>) -> Arc<Source> {
        let text = text.into();
        let line_starts = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Arc::new(Source { path: path.into(), text, line_starts })
    }

    /// The line and the column (in characters) of a byte, both counted from 1.
    #[must_use]
    pub fn position(&self, byte: usize) -> (usize, usize) {
        let byte = self.floor(byte);
        let line = self.line_starts.partition_point(|start| *start <= byte);
        (line, self.text[self.line_starts[line - 1]..byte].chars().count() + 1)
    }

    /// The last character boundary at or before `byte`.
    fn floor(&self, byte: usize) -> usize {
        (0..=byte.min(self.text.len())).rev().find(|at| self.text.is_char_boundary(*at)).unwrap_or(0)
    }
}

/// A span of bytes in a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub source: Arc<Source>,
    pub span: Range<usize>,
}

/// `path:line`.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.source.path, self.source.position(self.span.start).0)
    }
}

/// A value and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed<T> {
    pub value: T,
    pub place: Place,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    Error,
    Warning,
    /// A warning about what many do and mean: shown like any other, but `check` passes with it.
    Advice,
}

impl Severity {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Severity::Error => "error",
            Severity::Warning | Severity::Advice => "warning",
        }
    }
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    pub severity: Severity,
    pub message: String,
    /// `None` where there is no text to point at: a file that cannot be read.
    pub place: Option<Place>,
    /// Stands beside the caret.
    pub label: Option<String>,
    /// A second place, such as the first of two definitions, and what to say there.
    pub context: Option<(Place, String)>,
    /// What would be accepted, or what to do.
    pub help: Vec<String>,
}

impl Diagnostic {
    #[must_use]
    pub fn error(message: impl Into<String>) -> Diagnostic {
        Diagnostic::new(Severity::Error, message.into())
    }

    #[must_use]
    pub fn warning(message: impl Into<String>) -> Diagnostic {
        Diagnostic::new(Severity::Warning, message.into())
    }

    #[must_use]
    pub fn advice(message: impl Into<String>) -> Diagnostic {
        Diagnostic::new(Severity::Advice, message.into())
    }

    #[must_use]
    pub fn new(severity: Severity, message: String) -> Diagnostic {
        Diagnostic { severity, message, place: None, label: None, context: None, help: Vec::new() }
    }

    #[must_use]
    pub fn at(mut self, place: &Place) -> Diagnostic {
        self.place = Some(place.clone());
        self
    }

    #[must_use]
    pub fn label(mut self, label: impl Into<String>) -> Diagnostic {
        self.label = Some(label.into());
        self
    }

    #[must_use]
    pub fn context(mut self, place: &Place, label: impl Into<String>) -> Diagnostic {
        self.context = Some((place.clone(), label.into()));
        self
    }

    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Diagnostic {
        self.help.push(help.into());
        self
    }

    /// The drawing, without a line end behind it; `coloured` with ANSI colours.
    #[must_use]
    pub fn render(&self, coloured: bool) -> String {
        let level = match self.severity {
            Severity::Error => Level::ERROR,
            Severity::Warning | Severity::Advice => Level::WARNING,
        };
        let mut group = Group::with_title(level.primary_title(&self.message));
        if let Some(place) = &self.place {
            group = group.element(snippet(place, AnnotationKind::Primary, self.label.as_deref()));
        }
        if let Some((place, label)) = &self.context {
            group = group.element(snippet(place, AnnotationKind::Context, Some(label)));
        }
        let group = group.elements(self.help.iter().map(|help| Level::HELP.message(help)));
        let renderer = if coloured { Renderer::styled() } else { Renderer::plain() };
        renderer.render(&[group])
    }

    /// One object: severity, message, file, line, column (null where there is no place), help.
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        let position = self.place.as_ref().map(|place| place.source.position(place.span.start));
        serde_json::json!({
            "severity": self.severity.as_str(),
            "message": self.message,
            "file": self.place.as_ref().map(|place| &place.source.path),
            "line": position.map(|(line, _)| line),
            "column": position.map(|(_, column)| column),
            "help": self.label.iter().chain(&self.help).collect::<Vec<_>>(),
        })
    }
}

/// Only the first line of a span is drawn, and only that line is handed over: a table may be a page long, and the
/// renderer reads all that it gets.
fn snippet<'a>(
    place: &'a Place,
    kind: AnnotationKind,
    label: Option<&'a str>,
) -> Snippet<'a, annotate_snippets::Annotation<'a>> {
    let Source { path, text, .. } = &*place.source;
    let start = place.source.floor(place.span.start);
    let end = place.source.floor(place.span.end).max(start);
    let line_start = text[..start].rfind('\n').map_or(0, |newline| newline + 1);
    let line_end = text[start..].find('\n').map_or(text.len(), |newline| start + newline);
    let line = text[line_start..line_end].trim_end_matches('\r');
    let clip = |byte: usize| (byte - line_start).min(line.len());
    let (number, _) = place.source.position(start);
    Snippet::source(line).path(path).line_start(number).annotation(kind.span(clip(start)..clip(end)).label(label))
}

/// Everything that was found, in the order in which it was.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    diagnostics: Vec<Diagnostic>,
}

impl Report {
    pub fn add(&mut self, diagnostic: Diagnostic) {
        self.diagnostics.push(diagnostic);
    }

    pub fn append(&mut self, other: Report) {
        self.diagnostics.extend(other.diagnostics);
    }

    #[must_use]
    pub fn diagnostics(&self) -> &[Diagnostic] {
        &self.diagnostics
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.diagnostics.is_empty()
    }

    #[must_use]
    pub fn errors(&self) -> usize {
        self.count(Severity::Error)
    }

    /// Advice is among them.
    #[must_use]
    pub fn warnings(&self) -> usize {
        self.count(Severity::Warning) + self.count(Severity::Advice)
    }

    /// Errors, and warnings that are more than advice: with one of them `check` does not pass.
    #[must_use]
    pub fn findings(&self) -> usize {
        self.count(Severity::Error) + self.count(Severity::Warning)
    }

    fn count(&self, severity: Severity) -> usize {
        self.diagnostics.iter().filter(|d| d.severity == severity).count()
    }

    /// All drawings, an empty line between them, cut at [`RENDERED_MAX`] with a word about the rest.
    #[must_use]
    pub fn render(&self, coloured: bool) -> String {
        let mut out = String::new();
        for diagnostic in self.diagnostics.iter().take(RENDERED_MAX) {
            out.push_str(&diagnostic.render(coloured));
            out.push_str("\n\n");
        }
        if self.diagnostics.len() > RENDERED_MAX {
            out.push_str(&format!("and {} further findings\n", self.diagnostics.len() - RENDERED_MAX));
        }
        out
    }

    /// One JSON object a line.
    #[must_use]
    pub fn json_lines(&self) -> String {
        self.diagnostics.iter().map(|d| format!("{}\n", d.json())).collect()
    }
}

/// Nobody reads further before mending the first ones; `--json` has them all.
const RENDERED_MAX: usize = 100;

#[cfg(test)]
mod tests {
    use super::*;

    fn finding() -> Diagnostic {
        let source = Source::new("rules/a.toml", "# ü\nto = \"x\"\n[rule]\n");
        let span = source.text.find("\"x\"").unwrap();
        Diagnostic::error("no target `x`")
            .at(&Place { source, span: span..span + 3 })
            .label("not declared")
            .help("declared are `crm`, `ventes`")
    }

    #[test]
    fn a_finding_shows_file_line_column_source_caret_and_help() {
        let expected = "\
error: no target `x`
 --> rules/a.toml:2:6
  |
2 | to = \"x\"
  |      ^^^ not declared
  |
  = help: declared are `crm`, `ventes`";
        assert_eq!(finding().render(false), expected);
    }

    #[test]
    fn json_names_the_same_place() {
        let json = finding().json();
        assert_eq!((&json["file"], &json["line"], &json["column"]), (&"rules/a.toml".into(), &2.into(), &6.into()));
        assert_eq!(json["severity"], "error");
    }

    #[test]
    fn a_finding_without_a_place_is_a_line() {
        assert_eq!(Diagnostic::warning("nothing there").render(false), "warning: nothing there");
    }

    #[test]
    fn spans_beyond_the_text_and_inside_a_character_are_drawn_all_the_same() {
        let source = Source::new("f", "ü\n");
        for span in [0..0, 1..1, 0..1, 3..3, 3..99, 99..100] {
            let place = Place { source: source.clone(), span };
            assert!(Diagnostic::error("x").at(&place).render(false).contains("--> f:"));
        }
    }

    #[test]
    fn a_report_counts_and_cuts_at_its_limit() {
        let mut report = Report::default();
        for _ in 0..RENDERED_MAX {
            report.add(Diagnostic::warning("w"));
        }
        assert!(!report.render(false).contains("further"));
        report.add(Diagnostic::error("e"));
        assert!(report.render(false).ends_with("and 1 further findings\n"));
        assert_eq!((report.errors(), report.warnings()), (1, RENDERED_MAX));
        assert_eq!(report.json_lines().lines().count(), RENDERED_MAX + 1);
    }

    #[test]
    fn advice_is_shown_as_a_warning_and_is_no_finding() {
        let mut report = Report::default();
        report.add(Diagnostic::advice("perhaps"));
        assert_eq!(report.render(false), "warning: perhaps\n\n");
        assert_eq!((report.errors(), report.warnings(), report.findings()), (0, 1, 0));
        report.add(Diagnostic::warning("w"));
        report.add(Diagnostic::error("e"));
        assert_eq!((report.errors(), report.warnings(), report.findings()), (1, 2, 2));
    }
}
