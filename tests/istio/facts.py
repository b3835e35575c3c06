"""Facts of a machine: its cloud places it, and templates name it."""

import json
import pathlib
import sys

from case import LAB, Traffic
from lab import until

CLOUD = pathlib.Path(__file__).parent / "cloud.py"
METADATA = "169.254.169.254"


class Facts(Traffic):
    def setUp(self):
        super().setUp()
        LAB.kubectl("-n", "vms", "delete", "workloadentries", "--all")

    def in_cloud(self, name):
        LAB.run(name, "ip", "addr", "replace", f"{METADATA}/32", "dev", "lo")
        self.addCleanup(LAB.run, name, "ip", "addr", "del", f"{METADATA}/32", "dev", "lo")
        self.cloud = LAB.start(name, sys.executable, CLOUD, METADATA, log="cloud.log")
        self.addCleanup((LAB.directory / "cloud.log").unlink)
        self.addCleanup(LAB.stop, self.cloud)
        until("the metadata service listens", lambda: "listening" in LAB.log("cloud.log"))

    def test_a_clouds_facts_place_and_label_a_machine_that_istiod_registers(self):
        self.in_cloud("vm1")
        templates = ["--set", "workload.name=vm-{{cloud.instanceId}}", "--label", "zone={{cloud.zone}}", "--label", "size={{cloud.instanceType}}"]
        self.vm1.join("--set", "workload.facts.source=aws", "--set", "workload.facts.tags=team", *templates)
        status = self.vm1.until_ready()
        self.assertEqual((status["workload"]["name"], status["facts"]["source"]), ("vm-i-0abc", "metadata"))
        [entry] = LAB.entries().values()
        self.assertEqual(entry["spec"]["locality"], "eu-west-1/eu-west-1a")
        wanted = {"zone": "eu-west-1a", "size": "m7i.large", "team": "Web-Shop"}
        self.assertEqual({key: entry["spec"]["labels"].get(key) for key in wanted}, wanted)
        node = json.loads(self.vm1.admin("/server_info"))["node"]
        self.assertEqual((node["locality"]["region"], node["locality"]["zone"]), ("eu-west-1", "eu-west-1a"))
        self.assertEqual(node["metadata"]["PLATFORM_METADATA"]["aws_instance_id"], "i-0abc")
        # The next start knows at once what the cloud said, which is silent now.
        self.assertEqual(self.vm1.stop(), 0)
        LAB.stop(self.cloud)
        self.vm1.run()
        status = self.vm1.until_ready()
        self.assertEqual((status["workload"]["name"], status["facts"]["source"]), ("vm-i-0abc", "remembered"))
        self.assertEqual(status["workload"]["locality"], "eu-west-1/eu-west-1a")
