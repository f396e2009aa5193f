//! What a forwarder owes to those whose mail it passes on: the rows of that table, each by its name.
//!
//! Header fields in `owed/fields`, loops in `owed/loops`; rows that other files hold are not here again: SRS in `journeys/returns`,
//! Authentication-Results in `auth`, notifications in `notices`.

mod fields;
mod loops;
