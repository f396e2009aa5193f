//! Hostile input, row by row: what attackers are known to send, and what must come of it.
//!
//! `hostile.md` beside this file says which test holds which row of the catalogue; [`ledger`] keeps it true. What can be
//! shown in a dialog stands in `dialogs/`; here is what needs a reference, a counter, or another protocol below.

mod addresses;
mod bdat;
mod downstream;
mod framing;
mod injection;
mod ledger;
mod orders;
mod replay;
mod tls;
