"""A few dozen agents on one machine: istiod and the API server see a fleet that starts in one moment."""

import collections
import json
import re

from case import LAB, Case
from lab import CONTROL_PLANE, until
from vm import AGENT, FAKE_ENVOY

MACHINES = 36
#: Seconds of life of the certificates.
LIFE = 60


class Fleet(Case):
    def start(self, number, token):
        root = LAB.directory / f"fleet-{number}"
        (root / "etc/vm-agent").mkdir(parents=True)
        source = LAB.join_directory("details-legacy")
        for name, target in (("root-cert.pem", "etc/vm-agent/root-cert.pem"), ("istio-token", "istio-token")):
            (root / target).write_bytes((source / name).read_bytes())
        config = {
            "workload": {"name": f"fleet-{number}", "namespace": "vms", "serviceAccount": "details-legacy", "address": f"10.99.1.{number + 1}",
                         "labels": {"app": "fleet"}},
            "mesh": {"discoveryAddress": "istiod.istio-system.svc:15012", "connectTo": CONTROL_PLANE},
            "credential": {"tokenFile": str(root / "istio-token")},
            "identity": {"ttl": f"{LIFE}s"},
            "registration": {"mode": "kubernetes", "kubernetes": {"server": f"https://{CONTROL_PLANE}:6443", "caFile": str(LAB.server_ca), "tokenFile": str(token)}},
            "proxy": {"binary": str(FAKE_ENVOY), "adminPort": 20000 + number, "terminationDrainDuration": "100ms"},
            "capture": {"mode": "none"},
            "status": {"address": "127.0.0.1", "port": 21000 + number},
        }
        (root / "etc/vm-agent/config.yaml").write_text(json.dumps(config))
        return LAB.start("vm3", AGENT, "--root", root, "run", log=f"fleet-{number}.log")

    def certificates(self, number):
        """When the agent got each of its certificates, by the second."""
        lines = re.findall(r"^\S*T(\d\d):(\d\d):(\d\d)\S* +INFO New certificate\.", LAB.log(f"fleet-{number}.log"), re.M)
        return [(int(hour) * 60 + int(minute)) * 60 + int(second) for hour, minute, second in lines]

    def test_agents_that_start_together_are_all_served_and_renew_at_different_moments(self):
        token = LAB.directory / "fleet-token"
        token.write_text(LAB.token("details-legacy", "https://kubernetes.default.svc"))
        agents = [self.start(number, token) for number in range(MACHINES)]
        self.addCleanup(lambda: [LAB.stop(agent) for agent in agents])
        self.addCleanup(LAB.kubectl, "-n", "vms", "delete", "workloadentries", "--all")
        mine = lambda: {name for name in LAB.entries() if name.startswith("fleet-")}
        until("all are registered", lambda: len(mine()) == MACHINES, limit=120)
        seen = lambda number: len(self.certificates(number)) > 1
        until("all have renewed", lambda: all(map(seen, range(MACHINES))), limit=3 * LIFE, pause=1)
        by_second = collections.Counter(self.certificates(number)[1] for number in range(MACHINES))
        print(f"{MACHINES} agents renewed in {len(by_second)} different seconds, at most {max(by_second.values())} in one")
        self.assertLess(max(by_second.values()), MACHINES // 3)
        refused = [number for number in range(MACHINES) if "No new certificate" in LAB.log(f"fleet-{number}.log")]
        self.assertEqual(refused, [])
