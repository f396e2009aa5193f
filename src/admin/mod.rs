//! What operators and their machines talk to: `http` for scrapers and probes, `control` for the command line.

pub mod view;
pub mod redecide;
pub mod control;
pub mod http;
