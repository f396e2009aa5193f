//! `redeliver`: a CRM that has lost what it took.

use crate::harness::{Crm, Setup, Stage, wait_for};

#[test]
fn what_a_route_delivered_goes_out_once_more_and_is_marked() {
    let crm = Crm::start();
    let daemon = Setup::new(crm.address()).more("[retention]\nbodies = \"1d\"\n").start();
    let ids: Vec<String> = (0..3).map(|_| daemon.send("aide@solarmora.com")).collect();
    let pair = daemon.send("factures@solarmora.com");
    for leg in ids.iter().chain([&pair]).map(|id| format!("{id}.1")).chain([format!("{pair}.2")]) {
        daemon.wait_for_leg(&leg, "delivered");
    }
    let before = crm.wait_for_mails(5);
    let dry = daemon.cli(&["redeliver", "--route", "crm", "--since", "1h", "--dry-run"]).succeeds();
    assert!(dry.out.contains("5 legs would be redelivered") && dry.out.contains(&format!("{}.1", ids[0])), "{dry:?}");
    assert_eq!(daemon.rows(&["trace"]).len(), 5, "a dry run changes nothing");

    daemon.cli(&["redeliver", "--route", "crm", "--since", "1h"]).succeeds().says(&["5 legs are redelivered"]);
    let after = crm.wait_for_mails(10);
    let copies = |recipient: &str| after.iter().filter(|mail| mail.recipients() == [recipient]).count();
    assert_eq!((copies("case@mon-crm.com"), copies("ventes@mon-crm.com")), (8, 2));
    assert!(after[5..].iter().all(|mail| before.iter().any(|first| first.bytes == mail.bytes)), "octet for octet");
    let copy = daemon.wait_for_leg(&format!("{}.2", ids[0]), "delivered");
    assert_eq!((&copy["target"], &copy["attempts"]), (&"case@mon-crm.com".into(), &1.into()), "{copy}");
    let story = daemon.cli(&["trace", "--id", &ids[0]]).succeeds().out;
    assert!(story.contains("redeliver") && story.contains(&format!("{}.1", ids[0])), "{story}");
    let audit = daemon.rows(&["audit", "--action", "redeliver"]);
    assert_eq!((audit.len(), &audit[0]["outcome"]), (1, &"5 legs".into()), "{audit:?}");
    daemon.cli(&["doctor"]).says(&["ledger"]);

    // A second time nothing happens, unless it is meant.
    let again = daemon.rows(&["redeliver", "--route", "crm", "--since", "1h"]);
    let end = again.last().unwrap();
    assert_eq!((&end["redelivered"], &end["before"]), (&0.into(), &10.into()), "{end}");
    daemon.cli(&["redeliver", "--route", "crm", "--since", "1h", "--again"]).succeeds().says(&["10 legs"]);
    crm.wait_for_mails(20);
    // What was delivered before or after is left alone.
    let none = daemon.rows(&["redeliver", "--route", "crm", "--since", "3h", "--until", "2h"]);
    assert_eq!((&none[0]["total"], &none.last().unwrap()["redelivered"]), (&0.into(), &0.into()));
}

#[test]
fn redelivery_is_refused_in_clear_words_where_it_cannot_be() {
    let crm = Crm::start();
    let daemon = Setup::new(crm.address()).start();
    let redeliver = |more: &[&str]| daemon.cli(&[&["redeliver", "--since", "1h"], more].concat());
    redeliver(&["--route", "crm"]).exits(1).says(&["bodies are not kept", "retention.bodies"]);
    redeliver(&["--route", "nowhere"]).exits(1).says(&["there is no route `nowhere`", "crm"]);
    redeliver(&["--route", "crm", "--until", "2h"]).exits(1).says(&["`--until` is not behind `--since`"]);
    redeliver(&["--route", "crm", "--until", "soon"]).exits(1).says(&["`soon` is no time"]);
    // A body that the retention has ended is said, one by one.
    let daemon = Setup::new(crm.address()).more("[retention]\nbodies = \"1s\"\n").start();
    let id = daemon.send("aide@solarmora.com");
    daemon.wait_for_leg(&format!("{id}.1"), "delivered");
    let end = wait_for("the body to be swept", || {
        let said = daemon.cli(&["redeliver", "--route", "crm", "--since", "1h", "--dry-run", "--json"]);
        let last = said.out.lines().last().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())?;
        (last["without_body"] == 1).then_some(said.code)
    });
    assert_eq!(end, Some(1), "findings");
}

#[test]
fn a_redelivered_leg_is_tried_like_a_new_one() {
    let crm = Crm::start();
    let more = "[retention]\nbodies = \"1d\"\n";
    let daemon = Setup::new(crm.address()).retry("1s").more(more).start();
    daemon.reconfigure("[queue]\n", "[queue]\nexpire = \"3s\"\n");
    daemon.cli(&["reload"]).succeeds();
    let id = daemon.send("aide@solarmora.com");
    daemon.wait_for_leg(&format!("{id}.1"), "delivered");
    // Its message is older than `expire` by now.
    wait_for("the message to be old", || {
        let old = daemon.rows(&["trace", "--until", "3s"]);
        (!old.is_empty()).then_some(())
    });
    crm.answer(Stage::Dot, "451 4.3.0 later");
    daemon.cli(&["redeliver", "--route", "crm", "--since", "1h"]).succeeds();
    let copy = format!("{id}.2");
    wait_for("two attempts", || {
        let row = daemon.rows(&["trace", "--id", &copy]).into_iter().find(|row| row["id"] == copy.as_str())?;
        (row["attempts"].as_u64() >= Some(2)).then_some(())
    });
    crm.take_all();
    daemon.wait_for_leg(&copy, "delivered");
}
