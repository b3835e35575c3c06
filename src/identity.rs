//! Who this machine is: SPIFFE ID, key pair, CSR, verified certificates, and what a token says of
//! its bearer. It opens no file and no socket.

mod claims;
mod files;
mod issued;
mod key;
mod roots;
mod spiffe_id;

pub use claims::{Account, BoundObject, Claims, ClaimsError, check_token};
pub use files::{PemPair, certificates_of};
pub use issued::{Candidate, IssuedIdentity, Refusal};
pub use key::{KeyAlgorithm, KeyError, KeyPair};
pub use roots::{Anchors, RootCertificate, Roots, RootsError};
pub use spiffe_id::{Namespace, ServiceAccount, SpiffeId, SpiffeIdError, TrustDomain};
