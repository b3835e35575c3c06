use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, SanType};
use time::OffsetDateTime;

use super::*;
use crate::identity::{KeyAlgorithm, KeyPair};

const ID: &str = "spiffe://cluster.local/ns/vms/sa/client";

struct Authority(CertifiedIssuer<'static, rcgen::KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().unwrap();
        Self(CertifiedIssuer::self_signed(params, key).unwrap())
    }

    fn roots(&self) -> Roots {
        Roots::from_pem(self.0.pem().as_bytes()).unwrap()
    }

    /// A certificate for `names`, valid from `start` to `end` seconds from now.
    fn sign(&self, key: &KeyPair, names: &[&str], start: i64, end: i64) -> String {
        let pair = rcgen::KeyPair::from_pem(key.private_key_pem().expose_secret()).unwrap();
        let mut params = CertificateParams::default();
        let uri = |name: &&str| SanType::URI((*name).try_into().unwrap());
        params.subject_alt_names = names.iter().map(uri).collect();
        let at = |offset| OffsetDateTime::from(now()) + time::Duration::seconds(offset);
        params.not_before = at(start);
        params.not_after = at(end);
        params.signed_by(&pair, &self.0).unwrap().pem()
    }
}

fn now() -> SystemTime {
    from_unix_seconds(1_790_000_000)
}

fn id() -> SpiffeId {
    SpiffeId::parse(ID).unwrap()
}

fn candidate(chain_pem: String, key: &KeyPair) -> Candidate {
    let key_pem = SecretString::from(key.private_key_pem().expose_secret());
    Candidate { chain_pem, key_pem, anchors: Anchors::Trusted }
}

fn key() -> KeyPair {
    KeyPair::generate(KeyAlgorithm::EcdsaP256).unwrap()
}

#[test]
fn a_good_certificate_is_believed_and_its_root_is_not_shown_to_peers() {
    let (ca, key) = (Authority::new(), key());
    let chain = ca.sign(&key, &[ID], -60, 3600) + &ca.0.pem();
    let identity =
        IssuedIdentity::verify(candidate(chain, &key), &id(), &ca.roots(), now()).unwrap();
    assert_eq!(identity.chain_pem().matches("BEGIN CERTIFICATE").count(), 1);
    assert_eq!(identity.not_after(), now() + Duration::from_secs(3600));
    assert!(identity.is_valid_at(now()) && !identity.is_valid_at(identity.not_after()));
    assert_eq!(identity.key_kind(), "ECDSA 256");
    assert!(!format!("{identity:?}").contains("PRIVATE"));
}

#[test]
fn every_lie_is_refused_with_its_own_words() {
    let (ca, other, key) = (Authority::new(), Authority::new(), key());
    let verify = |chain: String, key: &KeyPair| {
        IssuedIdentity::verify(candidate(chain, key), &id(), &ca.roots(), now()).unwrap_err()
    };
    let stranger = "spiffe://cluster.local/ns/vms/sa/admin";
    let cases = [
        (
            verify(ca.sign(&key, &[stranger], -60, 60), &key),
            "is for spiffe://cluster.local/ns/vms/sa/admin",
        ),
        (verify(ca.sign(&key, &[ID, stranger], -60, 60), &key), "not for"),
        (verify(ca.sign(&key, &[], -60, 60), &key), "is for nobody"),
        (verify(ca.sign(&key, &[ID], -60, -1), &key), "expired at 2026-09-21T14:13:19Z"),
        (verify(ca.sign(&key, &[ID], 301, 600), &key), "valid only from"),
        (verify(ca.sign(&key, &[ID], -60, 60), &self::key()), "another key"),
        (verify(other.sign(&key, &[ID], -60, 60), &key), "no trusted root"),
        (verify("rubbish".to_owned(), &key), "no certificate"),
        (
            verify("-----BEGIN CERTIFICATE-----\naGk=\n-----END CERTIFICATE-----".to_owned(), &key),
            "not X.509",
        ),
    ];
    for (refusal, words) in cases {
        assert!(refusal.to_string().contains(words), "{refusal} / {words}");
    }
}

#[test]
fn a_certificate_that_begins_in_a_moment_is_believed_but_not_valid_yet() {
    let (ca, key) = (Authority::new(), key());
    let soon = candidate(ca.sign(&key, &[ID], 300, 600), &key);
    let identity = IssuedIdentity::verify(soon, &id(), &ca.roots(), now()).unwrap();
    assert!(!identity.is_valid_at(now()) && identity.is_valid_at(identity.not_before()));
}

#[test]
fn a_new_root_is_believed_beside_one_that_is_known_and_never_alone() {
    let (old, new, key) = (Authority::new(), Authority::new(), key());
    let verify = |anchors: Anchors| {
        let key_pem = SecretString::from(key.private_key_pem().expose_secret());
        let chain_pem = new.sign(&key, &[ID], -60, 60);
        let candidate = Candidate { chain_pem, key_pem, anchors };
        IssuedIdentity::verify(candidate, &id(), &old.roots(), now())
    };
    let both = old.roots().union(&new.roots());
    assert_eq!(verify(Anchors::Sent(both.clone())).unwrap().roots(), &both);
    assert!(matches!(verify(Anchors::Sent(new.roots())), Err(Refusal::Untrusted { .. })));
    assert!(matches!(verify(Anchors::Trusted), Err(Refusal::Untrusted { .. })));
    assert_eq!(verify(Anchors::Vouched(new.roots())).unwrap().roots(), &both);
}

#[test]
fn what_comes_in_der_is_read_as_what_comes_in_pem() {
    let (ca, key) = (Authority::new(), key());
    let pem = ca.sign(&key, &[ID], -60, 3600);
    let chain = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
    let secret = PrivateKeyDer::from_pem_slice(key.private_key_pem().expose_secret().as_bytes());
    let secret = secret.unwrap();
    let roots = Roots::from_der(ca.roots().certificates().first().unwrap()).unwrap();
    assert_eq!(roots, ca.roots());
    let chain_der = [chain.as_ref(), ca.0.der().as_ref()].concat();
    let found = Candidate::from_der(&chain_der, secret.secret_der(), Anchors::Vouched(roots));
    let identity = IssuedIdentity::verify(found.unwrap(), &id(), &ca.roots(), now()).unwrap();
    assert_eq!(identity.chain_pem().lines().collect::<String>(), pem.lines().collect::<String>());
    let cut = chain_der.get(..chain_der.len() - 1).unwrap();
    assert!(Candidate::from_der(cut, secret.secret_der(), Anchors::Trusted).is_err());
    assert!(Roots::from_der(&[]).is_err());
}
