//! What a leg's end may be told, as its row holds it.

use serde::{Deserialize, Serialize};

use crate::address::Mailbox;
use crate::envelope::{Notify, OriginalRecipient, RecipientDsn, Ret};
use crate::queue::{NoticeTo, Notices};

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    #[serde(skip_serializing_if = "Option::is_none")]
    sender: Option<String>,
    /// Address and route.
    #[serde(skip_serializing_if = "Option::is_none")]
    admin: Option<(String, String)>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    suppressed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    notify: Option<String>,
    /// Type and address.
    #[serde(skip_serializing_if = "Option::is_none")]
    orcpt: Option<(String, String)>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ret: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    envid: Option<String>,
}

/// `None` where nothing was asked and nobody may be told, which is nearly always.
pub(super) fn to_json(notices: &Notices) -> Option<String> {
    if *notices == Notices::default() {
        return None;
    }
    let (mut sender, mut admin, mut suppressed) = (None, None, false);
    match &notices.to {
        NoticeTo::Nobody => {}
        NoticeTo::Sender(mailbox) => sender = Some(mailbox.as_str().to_owned()),
        NoticeTo::Admin { address, route } => admin = Some((address.as_str().to_owned(), route.clone())),
        NoticeTo::Suppressed => suppressed = true,
    }
    let row = Row {
        sender,
        admin,
        suppressed,
        notify: notices.asked.notify.map(|notify| notify.to_string()),
        orcpt: notices.asked.orcpt.as_ref().map(|orcpt| (orcpt.address_type.clone(), orcpt.address.clone())),
        ret: notices.ret.map(|ret| ret.as_str().to_owned()),
        envid: notices.envid.clone(),
    };
    Some(serde_json::to_string(&row).expect("texts are JSON"))
}

/// `None` where the text is nothing that we write.
pub(super) fn from_json(json: Option<String>) -> Option<Notices> {
    let Some(json) = json else { return Some(Notices::default()) };
    let row: Row = serde_json::from_str(&json).ok()?;
    let to = match (row.sender, row.admin, row.suppressed) {
        (Some(sender), _, _) => NoticeTo::Sender(Mailbox::parse(&sender).ok()?),
        (None, Some((address, route)), _) => NoticeTo::Admin { address: Mailbox::parse(&address).ok()?, route },
        (None, None, true) => NoticeTo::Suppressed,
        (None, None, false) => NoticeTo::Nobody,
    };
    let notify = match row.notify {
        Some(text) => Some(Notify::parse(&text)?),
        None => None,
    };
    let ret = match row.ret {
        Some(text) => Some(Ret::parse(&text)?),
        None => None,
    };
    let orcpt = row.orcpt.map(|(address_type, address)| OriginalRecipient { address_type, address });
    Some(Notices { to, asked: RecipientDsn { notify, orcpt }, ret, envid: row.envid })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notices_are_read_back_as_written_and_nonsense_is_refused() {
        let mailbox = Mailbox::parse("client@example.org").unwrap();
        let asked = RecipientDsn {
            notify: Some(Notify::Never),
            orcpt: Some(OriginalRecipient { address_type: "rfc822".into(), address: "a b".into() }),
        };
        for to in [
            NoticeTo::Nobody,
            NoticeTo::Suppressed,
            NoticeTo::Sender(mailbox.clone()),
            NoticeTo::Admin { address: mailbox, route: "default".into() },
        ] {
            let plain = Notices { to, ..Notices::default() };
            let full =
                Notices { asked: asked.clone(), ret: Some(Ret::Headers), envid: Some("x\"y".into()), ..plain.clone() };
            for notices in [plain, full] {
                assert_eq!(from_json(to_json(&notices)), Some(notices));
            }
        }
        assert_eq!(to_json(&Notices::default()), None);
        for text in ["", "[]", "{\"sender\":\"\"}", "{\"notify\":\"MAYBE\"}", "{\"who\":1}", "{\"ret\":\"ALL\"}"] {
            assert_eq!(from_json(Some(text.to_owned())), None, "{text}");
        }
    }
}
