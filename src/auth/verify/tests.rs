//! Whole messages, checked.
