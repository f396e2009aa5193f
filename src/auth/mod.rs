//! Who sent it: SPF, DKIM, DMARC, ARC and the client's name.

pub mod spf;
