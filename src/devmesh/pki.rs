//! The mesh's own certificate authority.

use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, CertifiedIssuer, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, SanType,
};

use crate::base::clock::{Clock, SystemClock};

/// A root that signs.
pub(super) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    pub(super) fn new(name: &str) -> Result<Self, rcgen::Error> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::OrganizationName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        Ok(Self { issuer: CertifiedIssuer::self_signed(params, KeyPair::generate()?)? })
    }

    pub(super) fn root_pem(&self) -> String {
        self.issuer.pem()
    }

    pub(super) fn root_der(&self) -> rustls_pki_types::CertificateDer<'static> {
        self.issuer.der().clone()
    }

    /// A certificate for the mesh's own servers, with its key.
    pub(super) fn server(&self) -> Result<(rcgen::Certificate, KeyPair), rcgen::Error> {
        let names = ["istiod.istio-system.svc", "localhost", "127.0.0.1"].map(str::to_owned);
        let mut params = CertificateParams::new(names.to_vec())?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate()?;
        Ok((params.signed_by(&key, &self.issuer)?, key))
    }

    /// Signs a request for an identity. As istiod does, the names in the request do not count, and
    /// the start is dated back.
    pub(super) fn sign(&self, csr: &str, id: &str, life: Duration) -> Result<String, rcgen::Error> {
        let mut request = CertificateSigningRequestParams::from_pem(csr)?;
        let now = SystemClock.now();
        let end = now.checked_add(life).unwrap_or(now);
        request.params.subject_alt_names = vec![SanType::URI(id.try_into()?)];
        request.params.not_before =
            now.checked_sub(BACKDATED).unwrap_or(SystemTime::UNIX_EPOCH).into();
        request.params.not_after = end.into();
        request.params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        Ok(request.signed_by(&self.issuer)?.pem())
    }
}

/// istiod's allowance for clocks that are behind.
const BACKDATED: Duration = Duration::from_secs(120);
