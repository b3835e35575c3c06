"""Disks that boot again: the same machine after a reboot and after a power loss, a copy of it, and an image that many start from."""

import re

import bed
from bed import LAB, curl, joined, status, until, until_ready
from case import DETAILS, Case, table
from disruption import endpoints
from story import monotonic


class Images(Case):
    def setUp(self):
        self.web1, self.web2 = joined("web1", "client"), joined("web2", "details-legacy")

    def known_by(self, machine):
        """What a machine is to the mesh: its entry, and its certificate."""
        now = until_ready(machine)
        entry = LAB.entries()[now["registration"]["name"]]
        return entry["metadata"]["name"], entry["metadata"]["uid"], entry["spec"]["address"], now["identity"]["serial"]

    def requests(self, address):
        """How many requests the caller's proxy has sent to a machine of the service."""
        line = rf"outbound\|80\|\|details\.internal\.com::{re.escape(address)}:9080::rq_success::(\d+)"
        return sum(int(count) for count in re.findall(line, endpoints(self.web1)))

    def both_are_asked(self, *machines):
        for _ in range(20):
            self.assertEqual(curl(self.web1, DETAILS)[0], 200)
        return all(self.requests(machine.ip) for machine in machines)

    def test_a_machine_that_boots_again_is_the_same_to_the_mesh(self):
        before, rows = self.known_by(self.web2), [("", "network is online", "agent starts", "ready")]
        for name, again in (("reboot", self.web2.reboot), ("power loss", lambda: (self.web2.power_loss(), self.web2.power_on().until_up()))):
            again()
            self.assertEqual(self.known_by(self.web2), before, name)
            rows.append((name, *(f"{second:.2f}" for second in next_boot(self.web2))))
        self.story(self.web1, self.web2)
        table("From the start of systemd at a later boot (seconds):", rows)

    def test_a_copied_disk_is_another_machine_and_leaves_the_original_alone(self):
        before = self.known_by(self.web2)
        bed.MACHINES["copy"] = copy = self.web2.clone("copy", next(bed.ADDRESSES))
        self.addCleanup(bed.destroy, "copy")
        # The worst case: not even the host name is another.
        copy.seed("#cloud-config\n{}\n", host_name="web2")
        copy.power_on().until_up()
        name, uid, address, serial = self.known_by(copy)
        self.assertEqual(address, copy.ip)
        self.assertTrue({name, uid, serial}.isdisjoint(before), (name, before))
        self.assertEqual(self.known_by(self.web2), before, "the original was changed")
        until("both get requests", lambda: self.both_are_asked(self.web2, copy), limit=30)

    def test_an_image_with_the_package_needs_its_configuration_only(self):
        image = bed.boot("image", f"""#cloud-config
runcmd:
- [curl, -fsS, -o, /run/vm-agent.deb, "http://{bed.GATEWAY}:8000/vm-agent.deb"]
- [apt-get, install, -y, /run/vm-agent.deb]
""")
        self.addCleanup(bed.destroy, "image")
        image.until_up()
        self.assertEqual(image.exec("systemctl", "is-enabled", "vm-agent", check=False).stdout.strip(), "disabled")
        image.exec("cloud-init", "clean", "--logs", "--machine-id", check=False)
        image.power_off()
        bed.MACHINES["baked"] = baked = image.clone("baked", next(bed.ADDRESSES))
        self.addCleanup(bed.destroy, "baked")
        baked.seed(bed.with_token("details-legacy"))
        baked.power_on().until_up()
        registered = until_ready(baked)["registration"]
        self.assertEqual((registered["mode"], registered["phase"]), ("istiod", "registered"))
        self.story(self.web1, baked)


def next_boot(machine):
    """Seconds from the start of systemd: until the network is online, until the agent starts, until the machine is in the mesh."""
    began = monotonic(machine, "", "UserspaceTimestampMonotonic")
    online = monotonic(machine, "network-online.target", "ActiveEnterTimestampMonotonic")
    started = monotonic(machine, "vm-agent.service", "ExecMainStartTimestampMonotonic")
    return online - began, started - began, started - began + status(machine)["timings"]["ready_ms"] / 1000
