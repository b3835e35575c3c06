//! Who is connected with what configuration, which certificates were issued, and who was refused:
//! what `picture` draws. It never decides anything.

use std::collections::{BTreeMap, VecDeque};
use std::time::SystemTime;

use tokio::sync::watch;

use super::proxy::Proxy;
use super::seen::Proof;

/// The streams, certificates and refusals. Clones are the same ledger.
#[derive(Clone, Debug, Default)]
pub(super) struct Ledger {
    pages: watch::Sender<Pages>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Pages {
    next: u64,
    /// By the number that [`Ledger::open`] gave.
    pub(super) streams: BTreeMap<u64, Stream>,
    /// The newest certificate of each identity and machine.
    pub(super) certificates: BTreeMap<String, Issued>,
    /// Oldest first.
    pub(super) denials: VecDeque<Denied>,
}

/// A proxy's configuration stream.
#[derive(Clone, Debug)]
pub(super) struct Stream {
    pub(super) proxy: Proxy,
    /// The SPIFFE ID of whoever opened it.
    pub(super) id: String,
    pub(super) proof: Proof,
    pub(super) since: SystemTime,
    /// By type URL.
    pub(super) types: BTreeMap<String, Progress>,
}

/// How far a proxy is with a type.
#[derive(Clone, Debug, Default)]
pub(super) struct Progress {
    pub(super) resources: usize,
    pub(super) sent: String,
    pub(super) taken: Option<String>,
    /// The proxy's words about the newest version.
    pub(super) refused: Option<String>,
}

/// A certificate of a workload.
#[derive(Clone, Debug)]
pub(super) struct Issued {
    pub(super) id: String,
    pub(super) serial: String,
    pub(super) proof: Proof,
    pub(super) at: SystemTime,
    pub(super) expires: SystemTime,
}

/// Somebody who did not get what they asked for.
#[derive(Clone, Debug)]
pub(super) struct Denied {
    pub(super) at: SystemTime,
    pub(super) who: String,
    pub(super) what: &'static str,
    pub(super) why: String,
}

impl Ledger {
    pub(super) fn pages(&self) -> watch::Receiver<Pages> {
        self.pages.subscribe()
    }

    /// Wakes those who look: something beside the ledger has changed.
    pub(super) fn touch(&self) {
        self.pages.send_modify(|_| ());
    }

    /// Notes a stream, and returns its number.
    pub(super) fn open(&self, stream: Stream) -> u64 {
        let mut number = 0;
        self.pages.send_modify(|pages| {
            pages.next += 1;
            number = pages.next;
            pages.streams.insert(number, stream);
        });
        number
    }

    pub(super) fn close(&self, number: u64) {
        self.pages.send_modify(|pages| drop(pages.streams.remove(&number)));
    }

    /// Changes what is known of a type on a stream.
    pub(super) fn progress(&self, number: u64, type_url: &str, change: impl FnOnce(&mut Progress)) {
        self.pages.send_modify(|pages| {
            if let Some(stream) = pages.streams.get_mut(&number) {
                change(stream.types.entry(type_url.to_owned()).or_default());
            }
        });
    }

    /// Notes a certificate under the serial number of the one that it replaces, where that is
    /// known: so there is one for each machine and not one for each renewal.
    pub(super) fn issue(&self, issued: Issued) {
        self.pages.send_modify(|pages| {
            if let Proof::Certificate { serial } = &issued.proof {
                pages.certificates.remove(serial);
            }
            while pages.certificates.len() >= KEPT {
                let oldest = pages.certificates.iter().min_by_key(|(_, one)| one.at);
                let Some(oldest) = oldest.map(|(serial, _)| serial.clone()) else { break };
                pages.certificates.remove(&oldest);
            }
            pages.certificates.insert(issued.serial.clone(), issued);
        });
    }

    pub(super) fn deny(&self, denied: Denied) {
        self.pages.send_modify(|pages| {
            if pages.denials.len() >= KEPT {
                pages.denials.pop_front();
            }
            pages.denials.push_back(denied);
        });
    }
}

/// Certificates and refusals that are kept.
const KEPT: usize = 1000;
