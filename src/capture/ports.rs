//! Lists of ports, as settings and Istio's variables write them.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

/// Which ports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ports {
    /// All of them.
    All,
    /// These; none when empty.
    Only(BTreeSet<u16>),
}

impl Ports {
    /// Reads `*`, or a list such as `80,8080`; an empty text means none.
    ///
    /// # Errors
    /// With the first part that is no port.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text.trim() {
            "*" => Ok(Self::All),
            list => Ok(Self::Only(parse_ports(list)?)),
        }
    }
}

/// Reads a list such as `80,8080`; spaces and empty parts are skipped.
///
/// # Errors
/// With the first part that is no port, and when there are too many.
pub fn parse_ports(text: &str) -> Result<BTreeSet<u16>, String> {
    let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
    let port = |part: &str| {
        let number = part.parse::<u16>().ok().filter(|port| *port > 0);
        let found: String = part.chars().take(40).collect();
        number.ok_or_else(|| {
            format!("found {found:?}, expected ports from 1 to 65535 such as 80,8080")
        })
    };
    let ports: BTreeSet<u16> = parts.map(port).collect::<Result<_, _>>()?;
    if ports.len() > PORTS {
        return Err(format!("{} ports, expected at most {PORTS}", ports.len()));
    }
    Ok(ports)
}

/// Each is a rule that packets may have to pass.
const PORTS: usize = 1024;
