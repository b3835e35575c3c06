"""DNS: names of the mesh and of the world, with the control plane and without it."""

import pathlib
import sys

from case import LAB, Traffic, on_both
from lab import CONTROL_PLANE, until


class Names(Traffic):
    def setUp(self):
        super().setUp()
        self.resolver({"world.example": "192.0.2.7"})
        self.resolvers(f"nameserver {CONTROL_PLANE}\nsearch corp.example\n")

    def look_up(self, name, *, tcp=False):
        """As an ordinary program does it, by the C library."""
        options = {"RES_OPTIONS": "use-vc"} if tcp else {}
        command = ["env", *[f"{key}={value}" for key, value in options.items()], "setpriv", "--reuid", "1000", "--clear-groups", "getent", "ahostsv4", name]
        return LAB.run("vm1", *command, check=False).stdout.split(" ")[0]

    @on_both
    def test_names_of_the_mesh_and_of_the_world_are_answered(self):
        # Before the agent has heard anything of istiod, the world is known.
        self.assertEqual(self.look_up("world.example"), "192.0.2.7")
        self.vm1.join().until_ready()
        until("the mesh's names are known", lambda: self.look_up("details.internal.com") == "240.1.2.3")
        for tcp in (False, True):
            self.assertEqual(self.look_up("details.internal.com", tcp=tcp), "240.1.2.3")
            self.assertEqual(self.look_up("details.internal.com.corp.example", tcp=tcp), "240.1.2.3", "by a search domain")
            self.assertEqual(self.look_up("world.example", tcp=tcp), "192.0.2.7")
            self.assertEqual(self.look_up("nobody.example", tcp=tcp), "")
        dns = self.vm1.status()["dns"]
        self.assertEqual((dns["trouble"], dns["from_disk"], dns["resolvers"]), (None, False, [f"{CONTROL_PLANE}:53"]))
        self.assertGreater(dns["answered"], 0)

    @on_both
    def test_names_outlive_istiod_and_a_restart_of_the_agent(self):
        self.vm1.join().until_ready()
        until("the mesh's names are known", lambda: self.look_up("details.internal.com") == "240.1.2.3")
        LAB.istiod_stop()
        try:
            self.assertEqual(self.look_up("details.internal.com"), "240.1.2.3")
            self.assertEqual(self.look_up("world.example"), "192.0.2.7")
            self.vm1.process.kill()
            self.vm1.process.wait()
            self.vm1.run()
            # The redirect rules are still there: as soon as the agent listens, names are answered.
            until("the agent is back", lambda: self.look_up("details.internal.com") == "240.1.2.3")
            self.assertEqual(self.look_up("world.example"), "192.0.2.7")
            self.assertTrue(self.vm1.status()["dns"]["from_disk"])
        finally:
            LAB.istiod_start()
        self.vm1.until_ready()

    @on_both
    def test_a_changed_resolver_is_used_and_a_silent_one_is_said(self):
        self.vm1.join().until_ready()
        self.resolvers("nameserver 10.99.0.99\n")
        until("the silent resolver is said", lambda: self.look_up("other.example") == "" and self.vm1.status()["dns"]["trouble"], limit=60)
        self.assertIn("no resolver answers", self.vm1.command("status").stdout)
        self.resolvers(f"nameserver {CONTROL_PLANE}\n")
        until("the other resolver is used", lambda: self.look_up("world.example") == "192.0.2.7", limit=60)
        until("all is well again", lambda: not self.vm1.status()["dns"]["trouble"])
