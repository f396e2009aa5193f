//! What is compared: a way from the source to a sink.

use std::net::SocketAddr;
use std::time::Duration;

use clap::ValueEnum;

use crate::machine;
use crate::pointsman::Pointsman;
use crate::postfix::Postfix;
use crate::sender::Sender;
use crate::tools::Sink;

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum System {
    /// No relay: what source and sink can do by themselves
    Direct,
    Pointsman,
    Postfix,
}

impl System {
    pub(crate) fn name(self) -> &'static str {
        match self {
            System::Direct => "direct",
            System::Pointsman => "pointsman",
            System::Postfix => "postfix",
        }
    }
}

/// A system that runs, with a port of its own for its sink: what one relay still holds never lands in another's count.
pub(crate) struct Contender {
    sink: SocketAddr,
    relay: Relay,
}

enum Relay {
    None,
    Pointsman(Pointsman),
    Postfix(Postfix),
}

impl Contender {
    /// Starts one. With a `sender` our daemon checks who sent; the others do not.
    pub(crate) fn start(system: System, sender: Option<&Sender>) -> anyhow::Result<Contender> {
        let sink = machine::free_port()?;
        let relay = match system {
            System::Direct => Relay::None,
            System::Pointsman => Relay::Pointsman(Pointsman::start(sink, sender.map(Sender::name_server))?),
            System::Postfix => Relay::Postfix(Postfix::start(sink)?),
        };
        Ok(Contender { sink, relay })
    }

    pub(crate) fn system(&self) -> System {
        match self.relay {
            Relay::None => System::Direct,
            Relay::Pointsman(_) => System::Pointsman,
            Relay::Postfix(_) => System::Postfix,
        }
    }

    /// Where messages go in.
    pub(crate) fn entry(&self) -> SocketAddr {
        match &self.relay {
            Relay::None => self.sink,
            Relay::Pointsman(daemon) => daemon.address(),
            Relay::Postfix(postfix) => postfix.address(),
        }
    }

    /// Where they must come out.
    pub(crate) fn sink(&self) -> SocketAddr {
        self.sink
    }

    /// The process from which all of the relay's descend.
    pub(crate) fn relay_id(&self) -> Option<u32> {
        match &self.relay {
            Relay::None => None,
            Relay::Pointsman(daemon) => Some(daemon.id()),
            Relay::Postfix(postfix) => Some(postfix.id()),
        }
    }

    /// CPU time that the relay has used until now; nothing without one.
    pub(crate) fn cpu(&self) -> anyhow::Result<Duration> {
        self.relay_id().map_or(Ok(Duration::ZERO), machine::cpu_of_tree)
    }

    /// How many messages our daemon has seen pass DMARC by a signature that it verified; of the others nobody knows.
    pub(crate) fn verified(&self) -> anyhow::Result<Option<u64>> {
        match &self.relay {
            Relay::None | Relay::Postfix(_) => Ok(None),
            Relay::Pointsman(daemon) => daemon.verified().map(Some),
        }
    }

    /// Lets the relay deliver what it still has, that is, the message on whose end the sink left, so that a round
    /// begins with an empty queue.
    pub(crate) fn drain(&self) -> anyhow::Result<()> {
        let _sink = Sink::endless(self.sink)?;
        machine::wait_for("empty queue", DRAIN_LIMIT, || {
            let empty = match &self.relay {
                Relay::None => true,
                Relay::Pointsman(daemon) => daemon.is_empty()?,
                Relay::Postfix(postfix) => postfix.is_empty()?,
            };
            Ok(empty.then_some(()))
        })
    }
}

/// It takes a second or two; a relay that needs more has lost its way.
const DRAIN_LIMIT: Duration = Duration::from_secs(60);
