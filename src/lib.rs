//! Pointsman: an inbound SMTP router.

#![forbid(unsafe_code)]

pub mod address;
pub mod network;
pub mod reply;
pub mod envelope;
pub mod clock;
pub mod id;
pub mod diagnostic;
pub mod document;
pub mod events;
pub mod smtp;
pub mod message;
pub mod rules;
pub mod stamp;
pub mod queue;
pub mod relay;
pub mod inbound;
pub mod outbound;
pub mod config;
pub mod admin;
pub mod daemon;
pub mod cli;
