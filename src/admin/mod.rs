//! What operators and their machines talk to: `http` for scrapers and probes, `control` for the command line.

pub mod configuration;
pub mod peer;
pub mod secrecy;
pub mod view;
pub mod pages;
pub mod replan;
pub mod operate;
pub mod control;
pub mod audit;
pub mod pause;
pub mod drain;
pub mod probe;
pub mod doctor;
pub mod examine;
pub mod erase;
pub mod redeliver;
pub mod http;
