//! What goes wrong on purpose, per service, switched while the mesh runs. It breaks nothing by
//! itself: the services ask it.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tonic::{Code, Status};

use super::lock;

/// A service that can go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Service {
    /// Configuration streams.
    Ads,
    /// Certificates.
    Ca,
    /// The Kubernetes API.
    Kube,
}

/// What goes wrong. A fault that has no meaning for a service changes nothing there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fault {
    /// The certificate has expired already (CA).
    ExpiredCertificate,
    /// Calls are never answered, also not when the fault has been taken back.
    Hang,
    /// Every answer waits this long first.
    Latency(Duration),
    /// Nothing.
    #[default]
    None,
    /// The certificate is valid from tomorrow on (CA).
    NotYetValid,
    /// The certificate is for somebody else (CA).
    OtherIdentity,
    /// Calls are refused as unauthenticated.
    Refuse,
    /// The answer is no certificate (CA), no protocol buffer (ADS), no JSON (Kubernetes).
    Rubbish,
    /// Calls are refused with this code and message. Kubernetes answers the HTTP status that has
    /// the code's meaning.
    Status(Code, &'static str),
    /// The certificate is signed by an unknown root (CA).
    UntrustedRoot,
    /// The certificate is for another key than the request's (CA).
    WrongKey,
}

/// The switches. Clones are the same switches.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    switches: Arc<Mutex<Switches>>,
}

#[derive(Debug, Default)]
struct Switches {
    ads: Fault,
    ca: Fault,
    kube: Fault,
}

impl Switches {
    fn of(&mut self, service: Service) -> &mut Fault {
        match service {
            Service::Ads => &mut self.ads,
            Service::Ca => &mut self.ca,
            Service::Kube => &mut self.kube,
        }
    }
}

impl Faults {
    /// Lets a service go wrong like this from now on.
    pub fn set(&self, service: Service, fault: Fault) {
        *lock(&self.switches).of(service) = fault;
    }

    /// Takes all faults back.
    pub fn clear(&self) {
        *lock(&self.switches) = Switches::default();
    }

    /// What goes wrong with a service now.
    #[must_use]
    pub fn of(&self, service: Service) -> Fault {
        *lock(&self.switches).of(service)
    }

    /// Waits or refuses as the service's fault says; else returns the fault, which the service has
    /// to act on.
    pub(super) async fn pass(&self, service: Service) -> Result<Fault, Status> {
        let fault = self.of(service);
        match fault {
            Fault::Hang => std::future::pending().await,
            Fault::Latency(delay) => tokio::time::sleep(delay).await,
            Fault::Refuse => return Err(Status::unauthenticated("authentication failure")),
            Fault::Status(code, message) => return Err(Status::new(code, message)),
            _ => {}
        }
        Ok(fault)
    }
}
