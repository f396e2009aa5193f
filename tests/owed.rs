//! What a forwarder owes to those whose mail it passes on: the rows of that table, each by its name.
//!
//! Bytes in `owed/bytes`, header fields in `owed/fields`, loops in `owed/loops`, ARC in `owed/sealing`, control headers in
//! `owed/control`, secrecy in `owed/secrecy`. Rows that other files hold are not here again: duplicates in
//! `journeys/duplicates`, SRS in `journeys/returns`, Authentication-Results in `auth`, notifications in `notices`.

mod bytes;
mod control;
mod fields;
mod loops;
mod sealing;
mod secrecy;
