//! A command line: what is accepted hides nothing, is written and read again as the same, and is what another parser
//! makes of it; and what is accepted leaves us as one line and no more.

use pointsman::address::{Domain, Mailbox, ReversePath};
use pointsman::envelope::BodyType;
use pointsman::smtp::client::{Capabilities, Dsn, Order, Session, Transaction};
use pointsman::smtp::command::{Command, MailParameters, Recipient, parse};
use pointsman::smtp::xtext;
use smtp_codec::types::Command as Theirs;

pub fn check(data: &[u8]) {
    if let Some(plain) = xtext::decode(data) {
        assert!(!plain.is_empty() && plain.bytes().all(|b| matches!(b, b' '..=b'~')), "{plain:?}");
        assert_eq!(xtext::decode(xtext::encode(&plain).as_bytes()), Some(plain));
    }
    // What a line reader gives.
    let line: Vec<u8> = data.iter().copied().filter(|octet| !matches!(octet, b'\r' | b'\n' | 0)).collect();
    let ours = parse(&line);
    match &ours {
        Ok(command) => {
            assert_plain(command);
            assert_eq!(parse(written(command).as_bytes()).as_ref(), Ok(command), "{}", written(command));
            assert_leaves_as_lines(command);
        }
        Err(reply) => assert!(reply.is_permanent(), "{reply}"),
    }
    let theirs = smtp_codec::parse::command::command(&[&line, &b"\r\n"[..]].concat())
        .ok()
        .filter(|(rest, _)| rest.is_empty())
        .map(|(_, command)| command);
    if let Some(theirs) = theirs {
        assert_no_stricter(&theirs, ours.ok().as_ref());
    }
}

/// All texts of a command.
fn texts(command: &Command) -> Vec<&str> {
    match command {
        Command::Ehlo { name } | Command::Helo { name } => vec![name],
        Command::Mail { sender, parameters } => {
            [Some(sender.as_str()), parameters.envid.as_deref()].into_iter().flatten().collect()
        }
        Command::Rcpt { recipient, dsn } => {
            let address = match recipient {
                Recipient::Mailbox(mailbox) => mailbox.as_str(),
                Recipient::Postmaster => "",
            };
            let orcpt = dsn.orcpt.iter().flat_map(|orcpt| [orcpt.address_type.as_str(), &orcpt.address]);
            std::iter::once(address).chain(orcpt).collect()
        }
        Command::Data | Command::StartTls | Command::Rset | Command::Noop | Command::Vrfy | Command::Help => vec![],
        Command::Quit | Command::Bdat(_) => vec![],
    }
}

fn assert_plain(command: &Command) {
    for text in texts(command) {
        assert!(!text.chars().any(char::is_control), "{command:?}");
    }
    if let Command::Mail { sender, parameters } = command {
        assert!(parameters.smtputf8 || sender.as_str().is_ascii(), "{command:?}");
    }
}

/// The command as a careful client writes it.
fn written(command: &Command) -> String {
    match command {
        Command::Ehlo { name } => format!("EHLO {name}"),
        Command::Helo { name } => format!("HELO {name}"),
        Command::Mail { sender, parameters } => format!("MAIL FROM:<{}>{}", sender.as_str(), parameters_of(parameters)),
        Command::Rcpt { recipient, dsn } => {
            let mut line = match recipient {
                Recipient::Mailbox(mailbox) => format!("RCPT TO:<{mailbox}>"),
                Recipient::Postmaster => "RCPT TO:<Postmaster>".to_owned(),
            };
            if let Some(notify) = dsn.notify {
                line += &format!(" NOTIFY={notify}");
            }
            if let Some(orcpt) = &dsn.orcpt {
                line += &format!(" ORCPT={};{}", orcpt.address_type, xtext::encode(&orcpt.address));
            }
            line
        }
        Command::Data => "DATA".to_owned(),
        Command::StartTls => "STARTTLS".to_owned(),
        Command::Rset => "RSET".to_owned(),
        Command::Noop => "NOOP".to_owned(),
        Command::Vrfy => "VRFY x".to_owned(),
        Command::Help => "HELP".to_owned(),
        Command::Quit => "QUIT".to_owned(),
        Command::Bdat(Some(chunk)) => format!("BDAT {}{}", chunk.size, if chunk.last { " LAST" } else { "" }),
        Command::Bdat(None) => "BDAT ?".to_owned(),
    }
}

fn parameters_of(parameters: &MailParameters) -> String {
    let body = parameters.body.map(|body| match body {
        BodyType::SevenBit => " BODY=7BIT".to_owned(),
        BodyType::EightBitMime => " BODY=8BITMIME".to_owned(),
    });
    let all = [
        parameters.size.map(|size| format!(" SIZE={size}")),
        body,
        parameters.smtputf8.then(|| " SMTPUTF8".to_owned()),
        parameters.ret.map(|ret| format!(" RET={}", ret.as_str())),
        parameters.envid.as_ref().map(|envid| format!(" ENVID={}", xtext::encode(envid))),
        parameters.require_tls.then(|| " REQUIRETLS".to_owned()),
    ];
    all.into_iter().flatten().collect()
}

/// What a stranger's address and parameters become in our own commands: lines that say the same to a server.
fn assert_leaves_as_lines(command: &Command) {
    let ours = Mailbox::parse("case@crm.example").expect("it is an address");
    let null = ReversePath::Null;
    let (sender, recipient, parameters, asked) = match command {
        Command::Mail { sender, parameters } => (sender, &ours, parameters.clone(), None),
        Command::Rcpt { recipient: Recipient::Mailbox(mailbox), dsn } => {
            (&null, mailbox, MailParameters::default(), Some(dsn))
        }
        _ => return,
    };
    let (ret, envid) = (parameters.ret, parameters.envid.as_deref());
    let dsn = Dsn { ret, envid, asked };
    let body = parameters.body.unwrap_or_default();
    let order = Order {
        sender,
        recipient,
        body,
        utf8_header: parameters.smtputf8,
        require_tls: parameters.require_tls,
        size: 7,
        dsn,
    };
    let capabilities = Capabilities {
        pipelining: true,
        eight_bit_mime: true,
        smtputf8: true,
        chunking: false,
        dsn: true,
        require_tls: true,
        size: true,
        size_max: None,
    };
    let mut out = Vec::new();
    Transaction::begin(&Session::new(capabilities), &order, &mut out).expect("this server takes everything");
    let lines: Vec<&[u8]> = out.split(|&octet| octet == b'\n').collect();
    assert!(lines.len() == 4 && lines[3].is_empty(), "{}", out.escape_ascii());
    let said: Vec<_> =
        lines[..3].iter().map(|line| parse(line.strip_suffix(b"\r").expect("lines end in CRLF"))).collect();
    assert!(matches!(&said[0], Ok(Command::Mail { sender: said, .. }) if said == sender), "{said:?}");
    assert!(
        matches!(&said[1], Ok(Command::Rcpt { recipient: Recipient::Mailbox(said), dsn })
        if said.as_str() == recipient.as_str() && asked.is_none_or(|asked| asked == dsn)),
        "{said:?}"
    );
    assert!(matches!(&said[2], Ok(Command::Data)), "{said:?}");
}

/// What smtp-codec takes for a command is the same to us, or one of the things that we refuse and it does not.
fn assert_no_stricter(theirs: &Theirs, ours: Option<&Command>) {
    match (theirs, ours) {
        (Theirs::Data, Some(Command::Data))
        | (Theirs::Rset, Some(Command::Rset))
        | (Theirs::Quit, Some(Command::Quit))
        | (Theirs::StartTLS, Some(Command::StartTls))
        | (Theirs::Noop { .. }, Some(Command::Noop))
        | (Theirs::Help { .. }, Some(Command::Help))
        | (Theirs::Vrfy { .. }, Some(Command::Vrfy)) => {}
        // Not offered.
        (Theirs::Expn { .. } | Theirs::AuthLogin(_) | Theirs::AuthPlain(_), None) => {}
        (Theirs::Ehlo { domain_or_address }, Some(Command::Ehlo { name }))
        | (Theirs::Helo { domain_or_address }, Some(Command::Helo { name })) => {
            let mut said = Vec::new();
            domain_or_address.serialize(&mut said).expect("writing to memory does not fail");
            assert_eq!(name.as_bytes(), said);
        }
        // A name that is too long, or a literal with characters that could not be echoed.
        (Theirs::Ehlo { .. } | Theirs::Helo { .. }, None) => {}
        (Theirs::Mail { reverse_path, .. }, Some(Command::Mail { sender, .. })) => {
            assert_eq!(reverse_path, sender.as_str());
        }
        (Theirs::Rcpt { forward_path, .. }, Some(Command::Rcpt { recipient: Recipient::Mailbox(mailbox), .. })) => {
            // It keeps the brackets where it says postmaster.
            assert_eq!(forward_path.trim_start_matches('<').trim_end_matches('>'), mailbox.as_str());
        }
        (Theirs::Rcpt { forward_path, .. }, Some(Command::Rcpt { recipient: Recipient::Postmaster, .. })) => {
            assert!(forward_path.eq_ignore_ascii_case("<postmaster>"), "{forward_path}");
        }
        (Theirs::Mail { reverse_path: path, parameters }, None)
        | (Theirs::Rcpt { forward_path: path, parameters }, None) => {
            assert!(!parameters.is_empty() || !is_ordinary(path), "{path}");
        }
        (theirs, ours) => panic!("{theirs:?} is {ours:?} to us"),
    }
}

/// An address as nearly all are: no source route, within the lengths, at a domain that is a name in plain ASCII.
fn is_ordinary(path: &str) -> bool {
    let Some((local, domain)) = path.rsplit_once('@') else { return false };
    let plain = Domain::parse(domain).is_ok() && !domain.starts_with('[');
    plain && !path.starts_with('@') && local.len() <= 64 && path.len() <= 254 && local != "\"\""
}
