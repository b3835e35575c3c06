use std::fmt;
use std::str::FromStr;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpiffeIdError {
    #[error("stub")]
    Stub,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TrustDomain(String);
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Namespace(String);
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServiceAccount(String);
macro_rules! name {
    ($t:ident) => {
        impl $t {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl FromStr for $t {
            type Err = SpiffeIdError;
            fn from_str(s: &str) -> Result<Self, SpiffeIdError> {
                Ok(Self(s.to_owned()))
            }
        }
        impl fmt::Display for $t {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}
name!(TrustDomain);
name!(Namespace);
name!(ServiceAccount);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SpiffeId {
    trust_domain: TrustDomain,
    namespace: Namespace,
    service_account: ServiceAccount,
}
impl SpiffeId {
    pub fn new(
        trust_domain: TrustDomain,
        namespace: Namespace,
        service_account: ServiceAccount,
    ) -> Self {
        Self { trust_domain, namespace, service_account }
    }
    /// strict `spiffe://{td}/ns/{ns}/sa/{sa}`
    pub fn parse(_text: &str) -> Result<Self, SpiffeIdError> {
        todo!()
    }
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }
    pub fn service_account(&self) -> &ServiceAccount {
        &self.service_account
    }
}
impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "spiffe://{}/ns/{}/sa/{}",
            self.trust_domain, self.namespace, self.service_account
        )
    }
}
