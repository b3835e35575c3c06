"""The user's story on VMs that were given nothing but user data, and where the time goes from power to mesh."""

import re

import bed
from bed import until_ready
from case import Case, table


class Story(Case):
    def test_two_machines_given_only_user_data_boot_into_the_mesh(self):
        machines = []
        # One has its bundle in the user data, the other fetches it.
        for name, seed in (("web1", bed.with_bundle("client")), ("web2", bed.with_url("details-legacy"))):
            if name in bed.MACHINES:
                bed.destroy(name)
            machines.append(bed.boot(name, seed))
        for machine in machines:
            machine.until_up()
            until_ready(machine)
            cloud = machine.exec("cloud-init", "status", check=False)
            self.assertEqual(cloud.stdout.strip(), "status: done", machine.journal("cloud-final"))
            failed = machine.exec("systemctl", "list-units", "--failed", "--plain", "--no-legend").stdout
            self.assertEqual(failed, "")
        self.story(*machines)
        phases = [first_boot(machine) for machine in machines]
        table("From the start of systemd to ready, at the first boot (seconds; the control plane and both VMs share this machine):", [
            ("", *(machine.name for machine in machines)),
            *((name, *(f"{one[name]:6.2f}" for one in phases)) for name in phases[0])])


def first_boot(machine):
    """What each phase took, in the order in which they came."""
    began = monotonic(machine, "", "UserspaceTimestampMonotonic")
    cloud = machine.journal("cloud-final")
    marks = {
        "network is online": monotonic(machine, "network-online.target", "ActiveEnterTimestampMonotonic"),
        "cloud-init comes to the user data": monotonic(machine, "cloud-final.service", "InactiveExitTimestampMonotonic"),
        "package is installed": float(re.findall(r"\[ *([\d.]+)\].*Setting up vm-agent", cloud)[0]),
        "join has checked, and starts the service": monotonic(machine, "vm-agent.service", "InactiveExitTimestampMonotonic"),
    }
    took, last = {}, began
    for name, at in marks.items():
        took[name], last = at - last, at
    timings, before = bed.status(machine)["timings"], 0
    for name, key in (("certificate", "certificate_ms"), ("registration", "registered_ms"), ("proxy is configured", "proxy_ready_ms"), ("ready", "ready_ms")):
        took[f"agent: {name}"], before = max(0, timings[key] - before) / 1000, max(before, timings[key])
    took["in all"] = last - began + before / 1000
    return took


def monotonic(machine, unit, name):
    """A time stamp of systemd, in seconds."""
    shown = machine.exec("systemctl", "show", *([unit] if unit else []), f"--property={name}", "--value").stdout
    return int(shown) / 1e6
