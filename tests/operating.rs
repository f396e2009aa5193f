//! The operator's commands, through the real daemon and its command line: what they do, and what they leave alone.
//!
//! `steering` has pauses, the drain and the book of commands.

mod steering;
