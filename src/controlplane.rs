//! The line to istiod: where it is, which roots it must show, how we authenticate, and one
//! connection at a time with errors that say which step failed.

mod alert;
mod dialer;
mod endpoint;
mod error;
mod trust;

pub use alert::RefusedCertificate;
pub use dialer::{Config, Connection, Dialer, Headers};
pub use endpoint::{Endpoint, EndpointError};
pub use error::{DialError, Step};
pub use trust::{RootFileError, RootQuestion, RootRefresh, Trust, read_roots};
