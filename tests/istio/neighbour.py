"""Who is not in the mesh: neighbours on the same network, and other users of the same machine. Nothing that policy denies reaches
the application, and nothing that a program sends reaches another program than the proxy."""

import json
import subprocess
import sys

from case import LAB, Case, Traffic
from lab import until

#: Listens where it can at the proxy's ports, and says what it gets. Ends when it is killed.
THIEF = r"""
import socket, sys, threading, time
def serve(listener, name):
    while True:
        connection, _ = listener.accept()
        connection.settimeout(5)
        try:
            print("stolen", name, connection.recv(4096), flush=True)
        except OSError as error:
            print("stolen", name, error, flush=True)
places = [(family, host, port) for port in map(int, sys.argv[1:]) for family, host in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::"))]
print("trying", flush=True)
while places:
    for place in list(places):
        family, host, port = place
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            listener.bind((host, port))
            listener.listen()
        except OSError:
            listener.close()
            continue
        places.remove(place)
        print("listening", host, port, flush=True)
        threading.Thread(target=serve, args=(listener, f"{host} {port}"), daemon=True).start()
    time.sleep(0.001)
time.sleep(1000)
"""
#: A chain before ours that decides about the connections that the rules are tried with.
DECIDED = """table ip other {
  chain output {
    type nat hook output priority -150; policy accept;
    ip daddr 127.0.0.6 dnat to 127.0.0.6
  }
}
"""
NOBODY = 65534


def link_local(name):
    shown = json.loads(LAB.run(name, "ip", "-6", "-j", "address", "show", "dev", "eth0", "scope", "link").stdout)
    return next((address["local"] for link in shown for address in link.get("addr_info", []) if "local" in address and "tentative" not in address), None)


class Neighbour(Traffic):
    """vm3 is on the same network as the others, and in no mesh."""

    def addresses(self, *, only_link_local=False):
        """All kinds of addresses of vm2, as vm3 writes them in a URL."""
        six = f"[{until('vm2 has a link-local address', lambda: link_local('vm2'))}%25eth0]"
        if only_link_local:
            return ["10.99.0.12", six]
        for name, number in (("vm1", 11), ("vm2", 12), ("vm3", 13)):
            for net in ("fd99::", "2001:db8:99::"):
                LAB.run(name, "ip", "-6", "address", "replace", f"{net}{number}/64", "dev", "eth0", "nodad")
                self.addCleanup(LAB.run, name, "ip", "-6", "address", "del", f"{net}{number}/64", "dev", "eth0")
        return ["10.99.0.12", six, "[fd99::12]", "[2001:db8:99::12]"]

    def reached(self, addresses):
        """What of the machine the neighbour gets an answer from: its HTTP, its denied path, its other TCP."""
        found = []
        for address in addresses:
            for url in (f"http://{address}:9080/", f"http://{address}:9080/secret", f"telnet://{address}:9090"):
                made = LAB.run("vm3", "curl", "-s", "-m", "5", "--http0.9", url, input="", check=False)
                found += [url] if made.stdout else []
        return found

    def kept_out(self, *flags, capture="nftables", only_link_local=False):
        addresses = self.addresses(only_link_local=only_link_local)
        self.serve("vm2")
        self.assertEqual(len(self.reached(addresses)), 3 * len(addresses), "before it joins, everybody is answered")
        for vm in (self.vm1, self.vm2):
            vm.capture = capture
            vm.join(*flags)
        for vm in (self.vm1, self.vm2):
            vm.until_ready()
        self.assertEqual(self.reached(addresses), [])
        until("the mesh is served", lambda: LAB.curl("vm1", "http://details.internal.com/")[0] == 200)
        self.assertEqual(LAB.curl("vm1", "http://details.internal.com/secret")[0], 403)
        return self.vm2.status()["capture"]

    def test_link_local_addresses_are_no_way_around_policy(self):
        self.assertEqual(self.kept_out(only_link_local=True)["ipv6"], "reject")

    def test_no_address_is_a_way_around_policy(self):
        found = self.kept_out()
        self.assertEqual((found["ipv6"], found["probed"]), ("reject", "connections are redirected in both directions"))
        self.assertIn("IPv6 is refused inbound and passes outbound", self.vm2.command("status").stdout)

    def test_no_address_is_a_way_around_policy_with_iptables(self):
        self.kept_out(capture="iptables-nft")

    def test_no_address_is_a_way_around_policy_with_legacy_iptables(self):
        self.kept_out(capture="iptables-legacy")

    def test_no_address_is_a_way_around_policy_with_transparent_sockets(self):
        self.kept_out("--set", "capture.interception=tproxy")

    def test_outbound_ipv6_passes_where_the_proxy_does_not_listen_on_it(self):
        self.addresses()
        self.serve("vm3")
        urls = ["http://[fd99::13]:9080/", "http://[2001:db8:99::13]:9080/", f"http://[{link_local('vm3')}%25eth0]:9080/", "http://10.99.0.13:9080/"]
        answered = lambda: [LAB.curl("vm1", url)[0] for url in urls]
        self.assertEqual(answered(), [200] * 4)
        self.vm1.join().until_ready()
        self.assertEqual(answered(), [200] * 4)

    def test_both_families_go_through_a_proxy_that_listens_on_both(self):
        LAB.istiod_stop()
        LAB.istiod_environment["ISTIO_DUAL_STACK"] = "true"
        LAB.istiod_start()
        self.addCleanup(LAB.istiod_start)
        self.addCleanup(LAB.istiod_stop)
        self.addCleanup(LAB.istiod_environment.clear)
        self.assertEqual(self.kept_out()["ipv6"], "redirect")
        self.serve("vm3")
        self.assertEqual(LAB.curl("vm1", "http://[fd99::13]:9080/")[0], 200)
        held = "import socket; line = socket.create_connection(('fd99::13', 9090)); line.recv(1); input()"
        process = subprocess.Popen(["ip", "netns", "exec", LAB.namespace("vm1"), sys.executable, "-c", held], stdin=subprocess.PIPE)
        self.addCleanup(process.communicate)
        owners = lambda: LAB.run("vm1", "ss", "-Htne", "state", "established", "dst", "[fd99::13]:9090").stdout
        until("the proxy has the connection to the world, and the program one to the proxy",
              lambda: len(owners().splitlines()) == 2 and "uid:1337" in owners(), limit=20)

    def test_what_is_left_alone_is_said(self):
        addresses = self.addresses()
        self.serve("vm2")
        self.vm2.join("--set", "capture.ipv6=leave").until_ready()
        self.assertEqual(len(self.reached(addresses)), 9, "IPv6 only")
        self.assertIn("IPv6 is left alone", self.vm2.command("status").stdout)

    def test_a_closed_policy_holds_while_rules_are_broken_and_tried_in_vain(self):
        addresses = self.addresses()
        self.serve("vm2")
        self.vm2.join("--set", "capture.failPolicy=closed").until_ready()
        LAB.run("vm2", "nft", "-f", "-", input=DECIDED)
        LAB.run("vm2", "nft", "flush", "chain", "inet", "vm_agent", "nat_output")
        flushed = lambda: "redirect to :15001" not in LAB.run("vm2", "nft", "list", "table", "inet", "vm_agent").stdout
        condition = lambda: [one["what"] for one in self.vm2.status()["conditions"] if one["room"] == "capture"]
        reached = []
        until("the chain is back", lambda: reached.extend(self.reached(addresses)) or not flushed(), limit=30)
        [what] = until("it is said", condition, limit=30)
        self.assertIn("connections do not follow them", what)
        self.assertFalse(flushed())
        LAB.run("vm2", "nft", "delete", "table", "ip", "other")
        until("all is well", lambda: self.vm2.status()["ready"] or reached.extend(self.reached(addresses)), limit=30)
        self.assertEqual(reached, [])


class LocalUser(Traffic):
    """Another user of the same machine, with a program of his own."""

    def thief(self, *ports):
        name = f"thief-{self.id()}-{len(LAB.processes)}.log"
        process = LAB.start("vm1", "setpriv", "--reuid", NOBODY, "--regid", NOBODY, "--clear-groups", sys.executable, "-c", THIEF, *map(str, ports), log=name)
        self.addCleanup(LAB.stop, process)
        until("the thief tries", lambda: "trying" in LAB.log(name))
        return name

    def call(self):
        """A request of root's with a secret in it; its outcome does not matter, but where it arrives."""
        return LAB.run("vm1", "curl", "-s", "-m", "3", "-o", "/dev/null", "-w", "%{http_code}", "-H", "Authorization: Bearer secret",
                       "--resolve", "details.internal.com:80:240.1.2.3", "http://details.internal.com/", check=False).stdout

    def condition(self):
        return [one["what"] for one in self.vm1.status().get("conditions", []) if one["room"] == "capture"]

    def test_the_admin_port_is_for_root_and_the_proxy_only(self):
        self.vm1.join().until_ready()
        pid = self.vm1.status()["proxy"]["pid"]
        for method, path in (("POST", "quitquitquit"), ("GET", "config_dump"), ("POST", "logging?level=trace"), ("POST", "healthcheck/fail")):
            made = LAB.run("vm1", "setpriv", "--reuid", NOBODY, "--regid", NOBODY, "--clear-groups",
                           "curl", "-s", "-m", "5", "-X", method, f"http://127.0.0.1:15000/{path}", check=False)
            self.assertEqual((made.returncode, made.stdout), (7, ""), f"{path}: refused")
        self.assertTrue(self.vm1.admin("/server_info"))
        self.assertEqual(self.vm1.status()["proxy"]["pid"], pid)

    def test_nobody_gets_the_ports_of_a_proxy_that_has_ended(self):
        self.serve("vm2")
        for vm in (self.vm1, self.vm2):
            vm.join()
        for vm in (self.vm1, self.vm2):
            vm.until_ready()
        until("the story works", lambda: self.call() == "200")
        thief = self.thief(15001, 15006, 15008, 15021, 15090)
        for _ in range(3):
            pid = self.vm1.status()["proxy"]["pid"]
            LAB.run("vm1", "kill", "-9", str(pid))
            until("the proxy is another one, and serves", lambda: self.call() == "200" and self.vm1.status()["proxy"]["pid"] != pid)
        self.assertEqual(LAB.log(thief), "trying\n")
        self.assertEqual(self.vm1.status()["capture"]["held_ports"], [15001, 15006, 15008, 15021, 15090])

    def test_rules_without_an_agent_lead_to_nobody_else(self):
        for capture in ("nftables", "iptables-nft", "iptables-legacy"):
            self.vm1.capture = capture
            self.vm1.join("--set", "capture.failPolicy=closed").until_ready()
            self.assertEqual(self.vm1.stop(), 0)
            thief = self.thief(15001, 15006)
            until("the ports are taken", lambda: LAB.log(thief).count("listening") == 6)
            self.assertNotEqual(self.call(), "200")
            self.assertNotIn("stolen", LAB.log(thief), capture)
            LAB.stop(LAB.processes[-1])
            self.vm1.command("leave", "--force")
            LAB.forget_rules("vm1")

    def test_a_port_that_another_user_has_is_said(self):
        self.vm1.join().until_ready()
        self.assertEqual(self.vm1.stop(), 0)
        thief = self.thief(15001)
        until("the port is taken", lambda: "listening" in LAB.log(thief))
        self.vm1.run()
        [what] = until("it is said", self.condition, limit=30)
        self.assertEqual(what, "port 15001 is held by user nobody (uid 65534)")
        self.assertFalse(self.vm1.status()["ready"])
        self.assertNotIn("vm_agent", LAB.run("vm1", "nft", "list", "tables").stdout)
        self.call()
        self.assertNotIn("stolen", LAB.log(thief))
