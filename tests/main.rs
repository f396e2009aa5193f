//! The integration tests, in one binary.

mod dialog;
