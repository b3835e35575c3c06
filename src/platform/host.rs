//! What the host tells of itself: operating system, machine ID, firmware.

use std::path::Path;

use sysinfo::System;

use super::cloud::Provider;
use super::facts::{Host, clean};
use super::machine_id::MachineId;
use crate::base::fsio;

/// Where the host's files lie.
pub(super) struct Places<'a> {
    /// The firmware's table (Linux: `/sys/class/dmi/id`).
    pub(super) firmware: &'a Path,
    /// `/etc/machine-id` (systemd: machine-id(5)).
    pub(super) machine_id: &'a Path,
}

/// The host's own files.
pub(super) const PLACES: (&str, &str) = ("/sys/class/dmi/id", "/etc/machine-id");

/// What the firmware says (SMBIOS, DMTF DSP0134).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Firmware {
    pub(super) vendor: Option<String>,
    pub(super) product: Option<String>,
    pub(super) asset_tag: Option<String>,
    pub(super) bios: Option<String>,
    /// Only root may read it.
    pub(super) uuid: Option<String>,
}

impl Firmware {
    pub(super) fn read(directory: &Path) -> Self {
        let line = |name: &str| {
            fsio::read(&directory.join(name), LINE)
                .ok()
                .and_then(|bytes| clean(&String::from_utf8_lossy(&bytes)))
        };
        Self {
            vendor: line("sys_vendor"),
            product: line("product_name"),
            asset_tag: line("chassis_asset_tag"),
            bios: line("bios_version"),
            uuid: line("product_uuid"),
        }
    }

    /// The cloud that the machine is in, by the words that each cloud documents for it. A Hyper-V
    /// of one's own has Azure's vendor, but not its asset tag.
    pub(super) fn provider(&self) -> Option<Provider> {
        let is = |text: &Option<String>, word: &str| text.as_deref() == Some(word);
        let says = |text: &Option<String>, word: &str| {
            text.as_ref().is_some_and(|text| text.to_ascii_lowercase().contains(word))
        };
        if is(&self.vendor, "Amazon EC2") || says(&self.bios, "amazon") {
            Some(Provider::Aws)
        } else if is(&self.product, "Google Compute Engine") {
            Some(Provider::Gcp)
        } else if is(&self.asset_tag, AZURE_TAG) {
            Some(Provider::Azure)
        } else {
            None
        }
    }
}

pub(super) fn host(firmware: &Firmware, machine_id: &Path) -> Host {
    let said = |text: Result<String, sysinfo::Error>| text.ok().and_then(|text| clean(&text));
    let known_as = MachineId::read(machine_id).map(|id| id.known_as());
    Host {
        hostname: super::host_name(),
        machine_id: known_as.and_then(|hash| hash.get(..SHOWN).map(str::to_owned)),
        os_name: said(System::name()),
        os_version: said(System::os_version()),
        kernel: said(System::kernel_version()),
        arch: clean(&System::cpu_arch()),
        vendor: firmware.vendor.clone(),
        product: firmware.product.clone(),
    }
}

/// Which machine this is, for what is remembered on its disk: a copy of the disk is another one,
/// as far as its firmware and its name tell.
pub(super) fn machine(firmware: &Firmware, host: &Host, machine_id: &Path) -> String {
    let uuid = firmware.uuid.as_deref().unwrap_or_default();
    let name = host.hostname.as_deref().unwrap_or_default();
    let id = MachineId::read(machine_id).unwrap_or_else(|| MachineId::of(""));
    id.hash(&format!("{RECORD} {uuid} {name}"))
}

/// Microsoft's tag of every machine in Azure.
const AZURE_TAG: &str = "7783-7084-3265-9085-8269-3286-77";
/// What the hash on the disk is for; it is another one than what others know the machine by.
const RECORD: &str = "vm-agent facts";
/// Enough to tell a thousand machines apart with certainty, and short enough for names.
const SHOWN: usize = 12;
/// One line; the kernel's files are at most a page.
const LINE: u64 = 4096;
