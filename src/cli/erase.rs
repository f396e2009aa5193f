//! `erase`: what is kept of a person, or of a message, for good.

use std::path::Path;

use clap::Args;

use super::ask::{daemon, not_running};
use super::steer::follow;
use super::{Ended, Output};
use crate::admin::control::Request;
use crate::admin::erase::EraseSelect;

/// Whose: one of the three.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("whose").required(true).args(["address", "id", "message_id"]))]
pub(super) struct EraseArgs {
    /// All messages of which somebody is the sender, is in From, the alias or the target
    #[arg(long)]
    address: Option<String>,
    /// One message
    #[arg(long)]
    id: Option<String>,
    /// All messages with this Message-ID
    #[arg(long)]
    message_id: Option<String>,
    /// Messages with open legs, too: nobody gets them any more
    #[arg(long)]
    open: bool,
    /// Show what would be erased, and change nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    output: Output,
}

/// Ends with findings where something stays because it is open.
pub(super) fn run(config: &Path, args: &EraseArgs) -> anyhow::Result<Ended> {
    let Some(socket) = daemon(config)? else { return Ok(not_running()) };
    let EraseArgs { address, id, message_id, open, dry_run, output } = args;
    let select = EraseSelect { address: address.clone(), id: id.clone(), message_id: message_id.clone(), open: *open };
    follow(&socket, &Request::Erase { select, dry_run: *dry_run }, *output)
}
