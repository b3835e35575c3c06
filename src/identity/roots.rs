use std::sync::Arc;
#[derive(Debug, thiserror::Error)]
pub enum RootsError {
    #[error("stub")]
    Stub,
}
/// A non-empty set of root certificates: parsed, de-duplicated, order kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Roots {
    _pem: Arc<str>,
}
impl Roots {
    /// Every certificate block of a PEM text; other text is skipped; none, or a broken block, is an error.
    pub fn from_pem(_pem: &[u8]) -> Result<Self, RootsError> {
        todo!()
    }
    pub fn pem(&self) -> &str {
        &self._pem
    }
    pub fn len(&self) -> usize {
        todo!()
    }
    pub fn union(&self, _other: &Self) -> Self {
        todo!()
    }
    /// for rustls
    pub fn store(&self) -> rustls::RootCertStore {
        todo!()
    }
}
