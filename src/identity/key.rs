use super::SpiffeId;
use secrecy::SecretString;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KeyAlgorithm {
    #[default]
    EcdsaP256,
    EcdsaP384,
    Rsa2048,
    Rsa3072,
    Rsa4096,
}
// FromStr + Display: "ecdsa-p256" "ecdsa-p384" "rsa-2048" "rsa-3072" "rsa-4096"

#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("stub")]
    Stub,
}

/// A private key and its public half. Debug shows nothing of the key.
pub struct KeyPair {
    _inner: (),
}
impl KeyPair {
    pub fn generate(_algorithm: KeyAlgorithm) -> Result<Self, KeyError> {
        todo!()
    }
    /// PEM, PKCS#8
    pub fn private_key_pem(&self) -> &SecretString {
        todo!()
    }
    pub fn csr_pem(&self, _id: &SpiffeId) -> Result<String, KeyError> {
        todo!()
    }
}
