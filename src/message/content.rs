//! What a reader would see of a message: authors, subject, date, decoded text and names of attachments.
//!
//! Decoded for judging only, and never sent on. Whatever is not in the first [`CONTENT_OCTETS_MAX`] octets of the message is not
//! looked at, so that the work is bounded whatever comes; messages inside the message (a notification's original, a
//! forwarded mail) are none of its own words and are left out.

use mail_parser::{Encoding, MessageParser, MessagePart, PartKind};

/// A message as it is read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Content {
    /// The mailboxes of From, at most [`AUTHORS_MAX`].
    pub from: Vec<Author>,
    /// The first mailbox of Reply-To.
    pub reply_to: Option<Author>,
    /// Decoded; empty where there is none.
    pub subject: String,
    pub date: Date,
    /// As it stands, without angle brackets.
    pub message_id: String,
    /// The text of all text parts, and of HTML parts as a reader sees it.
    pub text: String,
    /// All HTML parts as they are written.
    pub html: String,
    /// There is a text part besides the HTML, or no HTML.
    pub has_plain: bool,
    /// A part of plain ASCII text was hidden in base64.
    pub ascii_in_base64: bool,
    pub images: usize,
    /// Names of attachments, at most [`FILES_MAX`].
    pub files: Vec<String>,
}

/// A mailbox of the header. Either may be empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Author {
    /// The display name, decoded.
    pub name: String,
    pub address: String,
}

impl Author {
    /// What stands behind the last `@` of the address, in lower case.
    #[must_use]
    pub fn domain(&self) -> String {
        self.address.rsplit_once('@').map_or_else(String::new, |(_, domain)| domain.trim().to_ascii_lowercase())
    }
}

/// The Date field.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Date {
    #[default]
    Absent,
    /// There is one, and it is no date.
    Unreadable,
    /// Seconds since 1970.
    At(i64),
}

impl Content {
    /// Reads a message or its beginning. Octets behind [`CONTENT_OCTETS_MAX`] are ignored.
    #[must_use]
    pub fn read(message: &[u8]) -> Content {
        let message = &message[..message.len().min(CONTENT_OCTETS_MAX)];
        let parser = MessageParser::new().max_depth(DEPTH_MAX).max_parts(PARTS_MAX);
        let Some(parsed) = parser.parse(message) else { return Content::default() };
        let author = |mailbox: mail_parser::Mailbox<'_>| Author {
            name: mailbox.name().unwrap_or_default().to_owned(),
            address: mailbox.address().unwrap_or_default().to_owned(),
        };
        let from = parsed.from().map(|list| list.mailboxes().take(AUTHORS_MAX).map(author).collect());
        let date = match (parsed.date(), parsed.headers().contains("Date")) {
            (Some(date), _) if date.is_valid() => Date::At(date.to_timestamp()),
            (Some(_), _) | (None, true) => Date::Unreadable,
            (None, false) => Date::Absent,
        };
        let mut content = Content {
            from: from.unwrap_or_default(),
            reply_to: parsed.reply_to().and_then(|list| list.first()).map(author),
            subject: parsed.subject().unwrap_or_default().to_owned(),
            date,
            message_id: parsed.message_id().unwrap_or_default().to_owned(),
            ..Content::default()
        };
        for part in parsed.root().parts() {
            content.add(&part);
        }
        content.has_plain |= content.html.is_empty();
        content
    }

    fn add(&mut self, part: &MessagePart<'_>) {
        if let Some(name) = part.attachment_name().filter(|_| self.files.len() < FILES_MAX) {
            self.files.push(name.trim().to_lowercase());
        }
        match part.kind() {
            PartKind::Text => {
                let text = part.text().unwrap_or_default();
                self.has_plain |= !text.trim().is_empty();
                self.ascii_in_base64 |= part.encoding() == Encoding::Base64 && text.len() > 40 && text.is_ascii();
                push(&mut self.text, &text);
            }
            PartKind::Html => {
                let html = part.text().unwrap_or_default();
                push(&mut self.html, &html);
                push(&mut self.text, &mail_parser::html_to_text(&html));
            }
            PartKind::Binary | PartKind::InlineBinary => {
                let is_image = part.content_type().is_some_and(|kind| kind.ctype().eq_ignore_ascii_case("image"));
                self.images += usize::from(is_image);
            }
            PartKind::Multipart | PartKind::Message(_) => {}
        }
    }
}

/// Appends as much as [`TEXT_OCTETS_MAX`] leaves room for.
fn push(to: &mut String, text: &str) {
    let room = TEXT_OCTETS_MAX.saturating_sub(to.len());
    to.push_str(&text[..text.floor_char_boundary(room)]);
    to.push('\n');
}

/// The first quarter of a megabyte has all that a person reads before he decides; spam is small because it is many.
pub const CONTENT_OCTETS_MAX: usize = 256 * 1024;
/// Decoding may make three octets of one.
const TEXT_OCTETS_MAX: usize = 512 * 1024;
/// Mail programs make five or six levels.
const DEPTH_MAX: usize = 20;
/// A gallery of pictures has dozens.
const PARTS_MAX: usize = 500;
/// RFC 5322 §3.6.2 allows several; who writes more than these hides one.
const AUTHORS_MAX: usize = 5;
const FILES_MAX: usize = 50;
