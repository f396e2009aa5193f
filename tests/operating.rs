//! The operator's commands, through the real daemon and its command line: what they do, and what they leave alone.
//!
//! `steering` has pauses, the drain and the book of commands, `contained` panics, `shortage` descriptors that run out and
//! clients that want too much, `probing` probes.

mod contained;
mod probing;
mod shortage;
mod steering;
