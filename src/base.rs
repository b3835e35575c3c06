//! The cellar: what every room may use and what owns no behaviour of the agent.
//!
//! The list of files is closed; a new one needs a decision record.

pub mod backoff;
pub mod cidr;
pub mod clock;
pub mod excerpt;
pub mod fsio;
pub mod log;
pub mod net;
pub mod page;
pub mod passing;
pub mod printable;
pub mod problem;
pub mod program;
pub mod redact;
pub mod socket_owner;
pub mod tasks;
pub mod trouble;
pub mod uds;
pub mod user_file;
