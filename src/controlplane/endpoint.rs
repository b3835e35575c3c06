use std::fmt;
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    #[error("stub")]
    Stub,
}
/// `host:port` (IPv6 in brackets).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub host: String,
    pub port: u16,
}
impl std::str::FromStr for Endpoint {
    type Err = EndpointError;
    fn from_str(_s: &str) -> Result<Self, EndpointError> {
        todo!()
    }
}
impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}
