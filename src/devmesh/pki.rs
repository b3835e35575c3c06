//! The mesh's own certificate authorities: roots, an intermediate, what they sign. It opens no
//! socket and asks nobody who calls.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DistinguishedName, DnType, Error,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
    SerialNumber,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde_json::{Value, json};

/// A root that signs, by itself or through an intermediate.
pub(super) struct Authority {
    root: Signer,
    intermediate: Option<Signer>,
}

/// A certificate that signs others, and its key.
struct Signer {
    issuer: Issuer<'static, KeyPair>,
    der: CertificateDer<'static>,
    pem: String,
}

/// What a certificate shall be.
pub(super) struct Order {
    pub(super) names: Vec<SanType>,
    pub(super) subject: DistinguishedName,
    pub(super) not_before: SystemTime,
    pub(super) not_after: SystemTime,
}

impl Order {
    /// A workload's certificate.
    pub(super) fn workload(
        id: &str,
        not_before: SystemTime,
        not_after: SystemTime,
    ) -> Result<Self, Error> {
        let names = vec![SanType::URI(id.try_into()?)];
        Ok(Self { names, subject: DistinguishedName::new(), not_before, not_after })
    }
}

impl Signer {
    fn new(params: CertificateParams, above: Option<&Self>) -> Result<Self, Error> {
        let key = KeyPair::generate()?;
        let certificate = match above {
            Some(above) => params.signed_by(&key, &above.issuer)?,
            None => params.self_signed(&key)?,
        };
        let (der, pem) = (certificate.der().clone(), certificate.pem());
        Ok(Self { issuer: Issuer::new(params, key), der, pem })
    }

    /// `None` for what was not written by [`Signer::write`].
    fn read(kept: &Value) -> Option<Self> {
        let text = |name: &str| kept.get(name).and_then(Value::as_str);
        let (pem, key) = (text("certificate")?.to_owned(), text("key")?);
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).ok()?;
        let issuer = Issuer::from_ca_cert_der(&der, KeyPair::from_pem(key).ok()?).ok()?;
        Some(Self { issuer, der, pem })
    }

    fn write(&self) -> Value {
        json!({"certificate": self.pem, "key": self.issuer.key().serialize_pem()})
    }
}

impl Authority {
    pub(super) fn new(name: &str, now: SystemTime, intermediate: bool) -> Result<Self, Error> {
        let root = Signer::new(authority(name, now), None)?;
        let below = || Signer::new(authority(&format!("{name} intermediate"), now), Some(&root));
        let intermediate = intermediate.then(below).transpose()?;
        Ok(Self { intermediate, root })
    }

    fn read(kept: &Value) -> Option<Self> {
        let intermediate = match kept.get("intermediate")? {
            Value::Null => None,
            kept => Some(Signer::read(kept)?),
        };
        Some(Self { root: Signer::read(kept.get("root")?)?, intermediate })
    }

    fn write(&self) -> Value {
        let intermediate = self.intermediate.as_ref().map(Signer::write);
        json!({"root": self.root.write(), "intermediate": intermediate})
    }

    pub(super) fn root_pem(&self) -> String {
        self.root.pem.clone()
    }

    pub(super) fn root_der(&self) -> CertificateDer<'static> {
        self.root.der.clone()
    }

    /// The intermediate, PEM.
    pub(super) fn intermediate_pem(&self) -> Option<String> {
        self.intermediate.as_ref().map(|signer| signer.pem.clone())
    }

    /// Signs a certificate for a key.
    pub(super) fn sign(
        &self,
        order: Order,
        key: &impl PublicKeyData,
    ) -> Result<Certificate, Error> {
        let mut params = CertificateParams::default();
        params.subject_alt_names = order.names;
        params.distinguished_name = order.subject;
        params.not_before = order.not_before.into();
        params.not_after = order.not_after.into();
        params.serial_number = Some(random_serial());
        params.use_authority_key_identifier_extension = true;
        params.key_usages =
            vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.signed_by(key, &self.intermediate.as_ref().unwrap_or(&self.root).issuer)
    }

    /// A certificate for one of the mesh's own servers: its chain and its key.
    pub(super) fn server(
        &self,
        names: &[&str],
        now: SystemTime,
    ) -> Result<(Vec<CertificateDer<'static>>, KeyPair), Error> {
        let names = names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        let order = Order {
            names: CertificateParams::new(names)?.subject_alt_names,
            subject: DistinguishedName::new(),
            not_before: before(now, DAY),
            not_after: after(now, 365 * DAY),
        };
        let key = KeyPair::generate()?;
        let mut chain = vec![self.sign(order, &key)?.der().clone()];
        chain.extend(self.intermediate.as_ref().map(|signer| signer.der.clone()));
        Ok((chain, key))
    }
}

/// The authorities of the mesh at one time.
#[derive(Clone)]
pub(super) struct Authorities {
    /// Signs workloads' certificates.
    pub(super) signing: Arc<Authority>,
    /// Has signed istiod's certificate.
    pub(super) serving: Arc<Authority>,
    /// Has signed the Kubernetes API's certificate.
    pub(super) kubernetes: Arc<Authority>,
    /// All that are trusted, the newest first.
    pub(super) trusted: Vec<Arc<Authority>>,
}

impl Authorities {
    pub(super) fn new(first: Authority) -> Self {
        let first = Arc::new(first);
        Self {
            signing: Arc::clone(&first),
            serving: Arc::clone(&first),
            kubernetes: Arc::clone(&first),
            trusted: vec![first],
        }
    }

    /// `None` for what was not written by [`Authorities::write`].
    pub(super) fn read(kept: &Value) -> Option<Self> {
        let all = kept.get("all")?.as_array()?.iter();
        let all: Vec<Arc<Authority>> =
            all.map(|one| Authority::read(one).map(Arc::new)).collect::<Option<_>>()?;
        let nth = |number: &Value| all.get(usize::try_from(number.as_u64()?).ok()?).cloned();
        Some(Self {
            signing: nth(kept.get("signing")?)?,
            serving: nth(kept.get("serving")?)?,
            kubernetes: nth(kept.get("kubernetes")?)?,
            trusted: kept.get("trusted")?.as_array()?.iter().map(nth).collect::<Option<_>>()?,
        })
    }

    /// All of them with their keys, and who does what.
    pub(super) fn write(&self) -> Value {
        let mut all: Vec<&Arc<Authority>> = Vec::new();
        let mut place = |one| {
            let known = all.iter().position(|other| Arc::ptr_eq(other, one));
            known.unwrap_or_else(|| {
                all.push(one);
                all.len() - 1
            })
        };
        let (signing, serving) = (place(&self.signing), place(&self.serving));
        let kubernetes = place(&self.kubernetes);
        let trusted: Vec<usize> = self.trusted.iter().map(place).collect();
        let all: Vec<Value> = all.into_iter().map(|one| one.write()).collect();
        json!({
            "all": all, "signing": signing, "serving": serving, "kubernetes": kubernetes,
            "trusted": trusted,
        })
    }

    /// A new root is trusted beside the others.
    pub(super) fn introduce(&mut self, new: Authority) {
        self.trusted.insert(0, Arc::new(new));
    }

    /// The newest root signs from now on; servers stay with the old one.
    pub(super) fn promote(&mut self) {
        if let Some(newest) = self.trusted.first() {
            self.signing = Arc::clone(newest);
        }
    }

    /// Only the signing root is left, for everything.
    pub(super) fn retire(&mut self) {
        self.retire_for_workloads();
        self.kubernetes = Arc::clone(&self.signing);
    }

    /// Only the signing root is left, but the Kubernetes API keeps its own.
    pub(super) fn retire_for_workloads(&mut self) {
        self.serving = Arc::clone(&self.signing);
        self.trusted = vec![Arc::clone(&self.signing)];
    }

    /// All trusted roots, PEM.
    pub(super) fn roots_pem(&self) -> String {
        self.trusted.iter().map(|authority| authority.root_pem()).collect()
    }
}

/// A serial number as text: lower-case hex without colons.
pub(super) fn serial_of(der: &[u8]) -> Option<String> {
    let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
    Some(certificate.raw_serial().iter().map(|byte| format!("{byte:02x}")).collect())
}

pub(super) fn before(at: SystemTime, by: Duration) -> SystemTime {
    at.checked_sub(by).unwrap_or(SystemTime::UNIX_EPOCH)
}

pub(super) fn after(at: SystemTime, by: Duration) -> SystemTime {
    at.checked_add(by).unwrap_or(at)
}

fn authority(name: &str, now: SystemTime) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, name);
    // Roots of one name are told apart by their keys, but people look at the subject.
    params
        .distinguished_name
        .push(DnType::CommonName, format!("{name} {:08x}", rand::random::<u32>()));
    params.not_before = before(now, DAY).into();
    params.not_after = after(now, 3650 * DAY).into();
    params.serial_number = Some(random_serial());
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// Positive, and with 20 octets at the most (RFC 5280, 4.1.2.2).
fn random_serial() -> SerialNumber {
    let number = rand::random::<u128>() >> 1 | 1 << 120;
    SerialNumber::from_slice(&number.to_be_bytes())
}

pub(super) const DAY: Duration = Duration::from_secs(24 * 3600);
