//! Strict SPIFFE IDs of the form that Istio uses: `spiffe://{trust domain}/ns/{ns}/sa/{sa}`.
//!
//! Source: the SPIFFE ID standard, sections 2.1 and 2.3; Kubernetes' DNS label and subdomain rules.

use std::fmt;
use std::str::FromStr;

/// What is wrong with a SPIFFE ID or one of its parts.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpiffeIdError {
    /// The ID has another form.
    #[error("{found:?} is not of the form spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT")]
    Form {
        /// The text, cut to a readable length.
        found: String,
    },
    /// A part breaks its rule.
    #[error("{found:?} is no {part}: {rule}")]
    Part {
        /// Which part.
        part: &'static str,
        /// The text, cut to a readable length.
        found: String,
        /// The rule.
        rule: &'static str,
    },
}

/// The name of a mesh's root of trust, such as `cluster.local`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TrustDomain(String);

/// A Kubernetes namespace.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Namespace(String);

/// A Kubernetes service account.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServiceAccount(String);

/// A workload's identity in an Istio mesh.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SpiffeId {
    trust_domain: TrustDomain,
    namespace: Namespace,
    service_account: ServiceAccount,
}

impl SpiffeId {
    /// The identity of a service account.
    #[must_use]
    pub fn new(
        trust_domain: TrustDomain,
        namespace: Namespace,
        service_account: ServiceAccount,
    ) -> Self {
        Self { trust_domain, namespace, service_account }
    }

    /// Parses the text form; nothing is normalised or tolerated.
    ///
    /// # Errors
    /// When the form or a part is not exactly as the standard says.
    pub fn parse(text: &str) -> Result<Self, SpiffeIdError> {
        let form = || SpiffeIdError::Form { found: short(text) };
        if text.len() > ID_BYTES {
            return Err(form());
        }
        let rest = text.strip_prefix("spiffe://").ok_or_else(form)?;
        let parts: Vec<&str> = rest.split('/').collect();
        let [trust_domain, "ns", namespace, "sa", account] = parts.as_slice() else {
            return Err(form());
        };
        Ok(Self::new(trust_domain.parse()?, namespace.parse()?, account.parse()?))
    }

    /// The trust domain.
    #[must_use]
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The namespace.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// The service account.
    #[must_use]
    pub fn service_account(&self) -> &ServiceAccount {
        &self.service_account
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { trust_domain, namespace, service_account } = self;
        write!(f, "spiffe://{trust_domain}/ns/{namespace}/sa/{service_account}")
    }
}

impl FromStr for TrustDomain {
    type Err = SpiffeIdError;

    fn from_str(text: &str) -> Result<Self, SpiffeIdError> {
        let fits = (1..=255).contains(&text.len())
            && text
                .bytes()
                .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_'))
            && text != "."
            && text != "..";
        let rule = "1 to 255 of a-z, 0-9, '.', '-' and '_'";
        checked(fits, text, "trust domain", rule).map(Self)
    }
}

impl FromStr for Namespace {
    type Err = SpiffeIdError;

    fn from_str(text: &str) -> Result<Self, SpiffeIdError> {
        let rule = "1 to 63 of a-z, 0-9 and '-', with a letter or digit at both ends";
        checked(is_label(text), text, "namespace", rule).map(Self)
    }
}

impl FromStr for ServiceAccount {
    type Err = SpiffeIdError;

    fn from_str(text: &str) -> Result<Self, SpiffeIdError> {
        let fits = text.len() <= 253
            && text.split('.').all(|label| !label.is_empty() && is_label_bytes(label));
        let rule = "1 to 253 of a-z, 0-9, '-' and '.', with a letter or digit at both ends";
        checked(fits, text, "service account", rule).map(Self)
    }
}

macro_rules! text {
    ($name:ident) => {
        impl $name {
            /// The text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

text!(TrustDomain);
text!(Namespace);
text!(ServiceAccount);

fn checked(
    fits: bool,
    text: &str,
    part: &'static str,
    rule: &'static str,
) -> Result<String, SpiffeIdError> {
    let wrong = || SpiffeIdError::Part { part, found: short(text), rule };
    if fits { Ok(text.to_owned()) } else { Err(wrong()) }
}

fn is_label(text: &str) -> bool {
    (1..=63).contains(&text.len()) && is_label_bytes(text)
}

fn is_label_bytes(text: &str) -> bool {
    let edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    bytes.iter().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'))
        && edge(bytes.first())
        && edge(bytes.last())
}

fn short(text: &str) -> String {
    text.chars().take(SHOWN_CHARS).collect()
}

/// SPIFFE ID standard 2.3: implementations must support 2,048 bytes and need no more.
const ID_BYTES: usize = 2048;
/// An error must stay readable whatever it quotes.
const SHOWN_CHARS: usize = 120;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_the_exact_form_is_an_id() {
        let good = "spiffe://cluster.local/ns/vms/sa/details-legacy";
        assert_eq!(SpiffeId::parse(good).unwrap().to_string(), good);
        for bad in [
            "",
            "spiffe://",
            "SPIFFE://cluster.local/ns/vms/sa/x",
            "https://cluster.local/ns/vms/sa/x",
            "spiffe://Cluster.local/ns/vms/sa/x",
            "spiffe://cluster.local:80/ns/vms/sa/x",
            "spiffe://user@cluster.local/ns/vms/sa/x",
            "spiffe://cluster.local/ns/vms/sa/x/",
            "spiffe://cluster.local//ns/vms/sa/x",
            "spiffe://cluster.local/ns/vms/sa/",
            "spiffe://cluster.local/ns/vms/sa/x?y",
            "spiffe://cluster.local/ns/vms/sa/x#y",
            "spiffe://cluster.local/ns/%76ms/sa/x",
            "spiffe://cluster.local/ns/../sa/x",
            "spiffe://cluster.local/sa/x/ns/vms",
            "spiffe://cluster.local/ns/-vms/sa/x",
        ] {
            assert!(SpiffeId::parse(bad).is_err(), "{bad}");
        }
        let long = format!("spiffe://cluster.local/ns/vms/sa/{}", "x".repeat(2048));
        assert!(SpiffeId::parse(&long).unwrap_err().to_string().len() < 300);
    }

    proptest! {
        #[test]
        fn whatever_parses_prints_as_it_was(text in "spiffe://[a-z.]{1,9}/ns/[a-z-]{1,9}/sa/[a-z.-]{1,9}") {
            if let Ok(id) = SpiffeId::parse(&text) {
                prop_assert_eq!(id.to_string(), text);
            }
        }

        #[test]
        fn no_text_panics(text in ".*") {
            drop(SpiffeId::parse(&text));
        }
    }
}
