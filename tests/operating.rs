//! The operator's commands, through the real daemon and its command line: what they do, and what they leave alone.
//!
//! `steering` has pauses, the drain and the book of commands, `probing` probes, `doctor` the doctor, `backup` copies and
//! what comes of them, `erasing` what is erased or handed over of one person or message, `redelivering` what goes out once more. `contained` has panics, `shortage`
//! descriptors that run out and clients that want too much.

mod backup;
mod contained;
mod doctor;
mod erasing;
mod probing;
mod redelivering;
mod shortage;
mod steering;
