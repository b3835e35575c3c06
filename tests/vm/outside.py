"""A neighbour on the same network, in no mesh: over IPv4 and every kind of IPv6 it reaches nothing that policy denies, whatever happens
to the machine."""

import json
import signal
import subprocess
import sys

import bed
from bed import LAB, curl, joined, status, until, until_ready
from case import Case, DETAILS

#: Calls HTTP, a denied path and other TCP at each address without a pause, until it is told to end; tells the rounds and what answered.
NEIGHBOUR = r"""
import json, select, socket, sys
calls = [(9080, b"GET / HTTP/1.0\r\n\r\n"), (9080, b"GET /secret HTTP/1.0\r\n\r\n"), (9090, b"hello\n")]
answered, rounds = {}, 0
while not rounds or not select.select([sys.stdin], [], [], 0)[0]:
    for address in sys.argv[1:]:
        for port, sent in calls:
            try:
                [(family, kind, _, _, place)] = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)
                with socket.socket(family, kind) as line:
                    line.settimeout(1)
                    line.connect(place)
                    line.sendall(sent)
                    if line.recv(1):
                        call = f"{address} {port} {sent.decode().split()[-2:]}"
                        answered[call] = answered.get(call, 0) + 1
            except OSError:
                pass
    rounds += 1
print(json.dumps([rounds, answered]))
"""


class Outside(Case):
    def addresses(self, vm):
        """All kinds of addresses of the machine, as the neighbour writes them."""
        nets = ("fd99::", "2001:db8:99::")
        number = vm.ip.rpartition(".")[2]
        [link] = [link for link in json.loads(vm.exec("ip", "-j", "address").stdout) if any(one["local"] == vm.ip for one in link["addr_info"])]
        for net in nets:
            vm.exec("ip", "-6", "address", "replace", f"{net}{number}/64", "dev", link["ifname"], "nodad")
            LAB.run("cp", "ip", "-6", "address", "replace", f"{net}1/64", "dev", "br0", "nodad")
            self.addCleanup(LAB.run, "cp", "ip", "-6", "address", "del", f"{net}1/64", "dev", "br0", check=False)
        local = next(one["local"] for one in link["addr_info"] if one["family"] == "inet6" and one["scope"] == "link")
        return [vm.ip, f"{local}%br0", *(f"{net}{number}" for net in nets)]

    def reached(self, addresses, meanwhile):
        """How many rounds of calls the neighbour made meanwhile, and what answered it."""
        command = ["ip", "netns", "exec", LAB.namespace("cp"), sys.executable, "-c", NEIGHBOUR, *addresses]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.addCleanup(process.kill)
        meanwhile()
        out, _ = process.communicate("end", timeout=60)
        return json.loads(out)

    def test_a_neighbour_reaches_nothing_that_policy_denies_whatever_happens_to_the_machine(self):
        web1 = joined("web1", "client")
        vm = bed.boot("inside", "#cloud-config\n{}\n")
        self.addCleanup(bed.destroy, "inside")
        vm.until_up()
        addresses = self.addresses(vm)
        until("everybody is answered before it joins", lambda: len(self.reached(addresses, lambda: None)[1]) == 3 * len(addresses))

        vm.exec("curl", "-fsS", "-o", "/run/vm-agent.deb", f"http://{bed.GATEWAY}:8000/vm-agent.deb")
        vm.exec("apt-get", "install", "-y", "/run/vm-agent.deb")
        vm.exec("curl", "-fsS", "-o", "/run/bundle.yaml", f"http://{bed.GATEWAY}:8000/{bed.bundle('details-legacy').name}")
        vm.exec("vm-agent", "join", "/run/bundle.yaml")
        until_ready(vm)

        def disturbed():
            pid = lambda: status(vm).get("pid")
            proxy = lambda: status(vm).get("proxy", {}).get("pid")
            for command in (("vm-agent", "reload"), ("vm-agent", "proxy", "restart"), ("systemctl", "restart", "vm-agent"), ("apt-get", "install", "-y", "--reinstall", "/run/vm-agent.deb")):
                vm.exec(*command)
                until_ready(vm)
            for victim in (pid, proxy):
                old = victim()
                vm.exec("kill", f"-{signal.SIGKILL}", str(old))
                until("there is another one", lambda: victim() not in (None, old), limit=30)
                until_ready(vm)
            LAB.kubectl("-n", "vms", "delete", "workloadentry", until_ready(vm)["registration"]["name"])
            until("it serves again", lambda: curl(web1, DETAILS)[0] == 200, limit=30)
            vm.exec("nft", "flush", "chain", "inet", "vm_agent", "filter_output")
            until("the rules are in order", lambda: status(vm)["capture"]["repairs"] > 0, limit=30)

        rounds, answered = self.reached(addresses, disturbed)
        self.assertEqual(answered, {})
        self.assertGreater(rounds, 10)
        vm.reboot()
        until_ready(vm)
        rounds, answered = self.reached(self.addresses(vm), lambda: self.story(web1, vm))
        self.assertEqual(answered, {})
