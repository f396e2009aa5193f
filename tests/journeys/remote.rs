//! A CRM that misbehaves, once, at each stage of a session: nothing is lost, and only the ambiguous case repeats.
//!
//! Each fault has a daemon of its own, and all run at the same time, because each waits out a back-off of a second.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use crate::harness::{Answer, Crm, Setup, Stage};

const STAGES: [Stage; 6] = [Stage::Connect, Stage::Ehlo, Stage::Mail, Stage::Rcpt, Stage::Data, Stage::Dot];

#[test]
fn a_passing_fault_at_any_stage_loses_nothing() {
    let answers = [
        ("hangup", Answer::Hangup),
        ("421", say("421 4.3.2 closing")),
        ("450", say("450 4.2.0 later")),
        ("many lines", say("450-4.2.0 wait\r\n450-4.2.0 a\r\n450 4.2.0 little")),
        ("not a reply", say("banana")),
        ("mixed codes", say("450-4.2.0 no\r\n250 2.0.0 yes")),
        ("a code that is none", say("999 x")),
        ("an endless line", say(&"4".repeat(1 << 20))),
        ("endless lines", say(&"450-4.2.0 x\r\n".repeat(50_000))),
    ];
    // A few at a time, so that none waits for its processor longer than for its CRM.
    for (name, answer) in answers {
        thread::scope(|scope| {
            for stage in STAGES {
                let answer = answer.clone();
                scope.spawn(move || one_fault(name, stage, answer));
            }
        });
    }
}

fn one_fault(name: &str, at: Stage, answer: Answer) {
    let crm = Crm::start();
    let lost_after_dot = at == Stage::Dot && matches!(answer, Answer::Hangup);
    let done = AtomicBool::new(false);
    crm.follow(move |stage, _| (stage == at && !done.swap(true, Ordering::SeqCst)).then(|| answer.clone()));
    let daemon = Setup::new(crm.address()).retry("1s").start();
    let id = daemon.send("aide@solarmora.com");
    let row = daemon.wait_for_leg(&format!("{id}.1"), "delivered");
    let times = crm.mails().len();
    assert_eq!(times, if lost_after_dot { 2 } else { 1 }, "{name} at {at:?}: {row}");
    // And the next message finds nothing left over from it.
    let next = daemon.send("ventes@solarmora.com");
    daemon.wait_for_leg(&format!("{next}.1"), "delivered");
    assert_eq!(crm.mails().last().expect("it was delivered").recipients(), ["ventes@mon-crm.com"], "{name} at {at:?}");
}

#[test]
fn surplus_replies_do_not_answer_the_next_transaction() {
    let crm = Crm::start();
    let daemon = Setup::new(crm.address()).concurrency(1).retry("1s").start();
    // Two answers to the first dot: taken for the next session's, the second message would be lost.
    let first = AtomicBool::new(true);
    crm.follow(move |stage, _| {
        let surplus = stage == Stage::Dot && first.swap(false, Ordering::SeqCst);
        surplus.then(|| say("250 2.0.0 ok\r\n250 2.1.0 ok\r\n250 2.1.5 ok\r\n354 go\r\n250 2.0.0 ok"))
    });
    for _ in 0..3 {
        let id = daemon.send("aide@solarmora.com");
        daemon.wait_for_leg(&format!("{id}.1"), "delivered");
    }
    assert_eq!(crm.mails().len(), 3);
}

fn say(text: &str) -> Answer {
    Answer::Say(text.to_owned())
}
