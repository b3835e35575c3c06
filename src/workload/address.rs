use std::fmt;
use std::net::{IpAddr, SocketAddr};
#[derive(Debug, thiserror::Error)]
pub enum AddressError {
    #[error("stub")]
    Stub,
}
/// A WorkloadEntry address: an IP or a DNS name (validated).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    Ip(IpAddr),
    Name(String),
}
impl std::str::FromStr for Address {
    type Err = AddressError;
    fn from_str(_s: &str) -> Result<Self, AddressError> {
        todo!()
    }
}
impl fmt::Display for Address {
    fn fmt(&self, _f: &mut fmt::Formatter<'_>) -> fmt::Result {
        todo!()
    }
}
/// The source address of the route to `target` (UDP connect, nothing is sent). Never loopback (unless the target is), link-local or unspecified.
pub fn source_address_towards(_target: SocketAddr) -> Result<IpAddr, AddressError> {
    todo!()
}
