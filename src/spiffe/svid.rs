//! Our certificate among those that a Workload API sent.

use zeroize::{Zeroize, Zeroizing};

use crate::identity::{Anchors, Candidate, Refusal, Roots, RootsError, SpiffeId};
use crate::proto::spiffe::X509svidResponse;

/// Why a push holds no certificate for us.
#[derive(Debug, thiserror::Error)]
pub enum SvidError {
    /// It has certificates for others only.
    #[error("the SPIFFE Workload API has no certificate for {expected} but for {offered}")]
    NotOurs {
        /// Our identity.
        expected: String,
        /// The identities that were sent.
        offered: String,
    },
    /// The certificate cannot be read.
    #[error("the SPIFFE Workload API sent an unusable certificate")]
    Certificate(#[source] Refusal),
    /// The roots cannot be read.
    #[error("the SPIFFE Workload API sent unusable roots")]
    Bundle(#[source] RootsError),
}

impl SvidError {
    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NotOurs { expected, .. } => Some(format!(
                "register {expected} for the user that this agent runs as (`spire-server entry \
                 create -spiffeID {expected} -parentID … -selector unix:uid:0`)"
            )),
            Self::Certificate(_) | Self::Bundle(_) => None,
        }
    }
}

/// Takes our certificate out of an answer. All keys of the answer are wiped.
///
/// # Errors
/// When there is none for us, or it cannot be read.
pub fn choose(answer: X509svidResponse, id: &SpiffeId) -> Result<Candidate, SvidError> {
    let expected = id.to_string();
    let (mut found, mut offered) = (None, Vec::new());
    for mut svid in answer.svids {
        if svid.spiffe_id == expected && found.is_none() {
            let key = Zeroizing::new(std::mem::take(&mut svid.x509_svid_key));
            found = Some((svid.x509_svid, key, svid.bundle));
        } else {
            svid.x509_svid_key.zeroize();
            if offered.len() < SHOWN {
                offered.push(svid.spiffe_id.chars().take(SHOWN_CHARS).collect::<String>());
            }
        }
    }
    let Some((chain, key, bundle)) = found else {
        let nobody = || "nobody".to_owned();
        let offered = if offered.is_empty() { nobody() } else { offered.join(", ") };
        return Err(SvidError::NotOurs { expected, offered });
    };
    let roots = Roots::from_der(&bundle).map_err(SvidError::Bundle)?;
    Candidate::from_der(&chain, &key, Anchors::Vouched(roots)).map_err(SvidError::Certificate)
}

/// Identities that an error quotes.
const SHOWN: usize = 5;
const SHOWN_CHARS: usize = 300;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message;

    use super::*;
    use crate::proto::spiffe::X509svid;

    const ID: &str = "spiffe://cluster.local/ns/vms/sa/client";

    fn id() -> SpiffeId {
        SpiffeId::parse(ID).unwrap()
    }

    fn svid(spiffe_id: &str) -> X509svid {
        let key = rcgen::KeyPair::generate().unwrap();
        let root = rcgen::CertificateParams::default().self_signed(&key).unwrap();
        X509svid {
            spiffe_id: spiffe_id.to_owned(),
            x509_svid: root.der().to_vec(),
            x509_svid_key: key.serialize_der(),
            bundle: root.der().to_vec(),
        }
    }

    #[test]
    fn ours_is_chosen_among_others() {
        let (other, ours) = (svid("spiffe://cluster.local/ns/vms/sa/admin"), svid(ID));
        let expected = Roots::from_der(&ours.bundle).unwrap();
        let answer = X509svidResponse { svids: vec![other, ours, svid(ID)] };
        let candidate = choose(answer, &id()).unwrap();
        assert_eq!(candidate.chain_pem, expected.pem());
        assert_eq!(candidate.anchors, Anchors::Vouched(expected));
    }

    #[test]
    fn what_is_not_for_us_or_broken_is_said() {
        let other = svid("spiffe://cluster.local/ns/vms/sa/admin");
        let wrong = |svid: X509svid| {
            choose(X509svidResponse { svids: vec![svid] }, &id()).err().unwrap().to_string()
        };
        assert!(wrong(other).contains("sa/client but for spiffe://cluster.local/ns/vms/sa/admin"));
        assert!(wrong(X509svid { bundle: vec![], ..svid(ID) }).contains("unusable roots"));
        assert!(wrong(X509svid { x509_svid: vec![48, 1], ..svid(ID) }).contains("certificate"));
        let nothing = choose(X509svidResponse { svids: vec![] }, &id());
        assert!(nothing.err().unwrap().to_string().ends_with("but for nobody"));
    }

    proptest! {
        #[test]
        fn no_answer_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200), cut in 0_usize..400) {
            if let Ok(answer) = X509svidResponse::decode(bytes.as_slice()) {
                drop(choose(answer, &id()));
            }
            let mut broken = svid(ID);
            broken.x509_svid.truncate(cut);
            broken.bundle.extend_from_slice(&bytes);
            drop(choose(X509svidResponse { svids: vec![broken] }, &id()));
        }
    }
}
