"""The redirect rules: what is planned is what is there, and what is removed leaves nothing."""

import pathlib
import re
import subprocess
import sys

from case import LAB, Case
from lab import CONTROL_PLANE

LINE = pathlib.Path(__file__).parent / "line.py"


def rules(name):
    """All of a machine's rules, of every tool, without what counts packets."""
    text = LAB.run(name, "nft", "list", "ruleset").stdout
    for tool in ("iptables-legacy-save", "ip6tables-legacy-save"):
        saved = LAB.run(name, tool, check=False).stdout
        text += "\n".join(line for line in saved.splitlines() if not line.startswith("#"))
    text += LAB.run(name, "ip", "rule", "show").stdout + LAB.run(name, "ip", "-6", "address", "show", "dev", "lo").stdout
    return re.sub(r"packets \d+ bytes \d+|\[\d+:\d+\]", "", text)


THIEF = """table ip thief {
  chain output {
    type nat hook output priority -150; policy accept;
    ip daddr 127.0.0.6 dnat to 127.0.0.6
  }
}
"""


class End:
    """One end of a connection: `listen` or `call`."""

    def __init__(self, case, machine, how, address, port):
        command = ["ip", "netns", "exec", LAB.namespace(machine), sys.executable, LINE, how, address, str(port)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        case.addCleanup(self.process.communicate)
        case.addCleanup(self.process.kill)

    def say(self, text):
        print(text, file=self.process.stdin, flush=True)

    def hear(self):
        return self.process.stdout.readline().strip()


class Capture(Case):
    """Configured machines whose daemon does not run: only the rules are looked at."""

    def setUp(self):
        super().setUp()
        self.vm1.join().until_ready()
        self.vm1.stop()

    def vm_agent(self, *args, check=True):
        made = self.vm1.command(*args)
        if check:
            self.assertEqual(made.returncode, 0, made.stderr)
        return made

    def test_nftables_shows_what_was_planned_and_removal_leaves_nothing(self):
        # A table of somebody else, as firewalld has one, and one of a container engine.
        others = """table inet firewalld {
  chain input {
    type filter hook input priority 10; policy accept;
    ct state established accept
    tcp dport 22 accept
  }
}
table ip nat {
  chain DOCKER { }
  chain PREROUTING {
    type nat hook prerouting priority dstnat; policy accept;
    fib daddr type local counter jump DOCKER
  }
}
"""
        LAB.run("vm1", "nft", "-f", "-", input=others)
        before = rules("vm1")
        for flags in ([], ["--set", "capture.interception=tproxy"], ["--set", "capture.outboundRanges=10.0.0.0/8", "--set", "dns.enabled=false"]):
            planned = self.vm_agent("capture", "plan", "--capture", "nftables", *flags).stdout
            self.assertEqual(rules("vm1"), before, "a plan changes nothing")
            applied = self.vm_agent("capture", "apply", "--capture", "nftables", *flags).stderr
            self.assertIn("in place", applied)
            table = LAB.run("vm1", "nft", "list", "table", "inet", "vm_agent").stdout
            tidy = lambda text: [line for line in text.splitlines() if line.strip()]
            self.assertEqual(tidy(table), tidy(planned[planned.index("table inet vm_agent {"):planned.index("END\n", planned.index("{"))]))
            self.vm_agent("capture", "remove")
            self.assertEqual(rules("vm1"), before)

    def test_a_plan_is_a_script_that_does_the_same(self):
        for backend in ("nftables", "iptables-nft"):
            script = self.vm_agent("capture", "plan", "--capture", backend).stdout
            self.vm_agent("capture", "apply", "--capture", backend)
            applied = rules("vm1")
            self.vm_agent("capture", "remove")
            LAB.run("vm1", "bash", "-e", input=script)
            self.assertEqual(rules("vm1"), applied)
            LAB.run("vm1", "nft", "flush", "ruleset")

    def test_iptables_keeps_what_others_have_and_takes_only_its_own_away(self):
        LAB.run("vm1", "iptables-nft", "-t", "nat", "-A", "OUTPUT", "-p", "tcp", "--dport", "4444", "-j", "RETURN")
        before = rules("vm1")
        for backend in ("iptables", "iptables-nft"):
            self.vm_agent("capture", "apply", "--capture", backend)
            self.assertIn("VM_AGENT_NAT_OUT", rules("vm1"))
            self.vm_agent("capture", "apply", "--capture", backend)
            jumps = rules("vm1").count("-A OUTPUT -j VM_AGENT_NAT_OUT") + rules("vm1").count("jump VM_AGENT_NAT_OUT")
            self.assertEqual(jumps, 2, "one for each family of addresses")
            self.vm_agent("capture", "remove")
            self.assertEqual(rules("vm1"), before)

    def test_legacy_iptables_works_where_it_has_rules(self):
        # Its tables cannot be taken away by anybody once they are there.
        LAB.run("vm1", "iptables-legacy-restore", "--wait=30", input="*raw\nCOMMIT\n*mangle\nCOMMIT\n*filter\nCOMMIT\n*nat\n-A OUTPUT -p tcp --dport 4444 -j RETURN\nCOMMIT\n")
        LAB.run("vm1", "ip6tables-legacy-restore", "--wait=30", input="*raw\nCOMMIT\n*mangle\nCOMMIT\n*filter\nCOMMIT\n*nat\nCOMMIT\n")
        self.addCleanup(LAB.run, "vm1", "iptables-legacy-restore", "--wait=30", input="*nat\nCOMMIT\n")
        before = rules("vm1")
        self.vm_agent("capture", "apply", "--capture", "iptables")
        self.assertIn("-A OUTPUT -j VM_AGENT_NAT_OUT", LAB.run("vm1", "iptables-legacy-save").stdout)
        self.vm_agent("capture", "remove")
        self.assertEqual(rules("vm1"), before)

    def test_a_change_of_the_configuration_is_no_obstacle_to_removal(self):
        before = rules("vm1")
        self.vm_agent("capture", "apply", "--capture", "iptables-nft", "--set", "capture.interception=tproxy")
        self.vm_agent("capture", "apply", "--capture", "nftables")
        self.assertNotIn("VM_AGENT", rules("vm1"))
        self.assertNotIn("fwmark", rules("vm1"))
        (self.vm1.root / "etc/vm-agent/config.yaml").write_text("rubbish: [")
        self.vm_agent("capture", "remove")
        self.assertEqual(rules("vm1"), before)

    def test_a_kill_at_any_moment_leaves_what_removal_undoes(self):
        LAB.run("vm1", "iptables-nft", "-t", "filter", "-A", "INPUT", "-p", "tcp", "--dport", "4444", "-j", "ACCEPT")
        before = rules("vm1")
        command = [*self.vm1.command_line("capture", "apply", "--set", "capture.interception=tproxy", "--capture")]
        for backend in ("nftables", "iptables-nft"):
            # From before its first step to after its last one, a little later each time.
            for point in range(1, 13):
                LAB.run("vm1", "timeout", "-s", "KILL", str(0.004 * point), *command, backend, check=False)
                self.vm_agent("capture", "remove")
                self.assertEqual(rules("vm1"), before, f"{backend}, cut after {4 * point} ms")

    def test_an_agent_of_another_root_leaves_the_rules_alone(self):
        self.vm_agent("capture", "apply", "--capture", "nftables")
        before = rules("vm1")
        other = LAB.run("vm1", self.vm1.command_line()[0], "--root", LAB.directory / "other", "leave")
        self.assertIn("was not in a mesh", other.stderr)
        self.assertEqual(rules("vm1"), before)
        self.vm_agent("capture", "remove")

    def test_rules_that_somebody_broke_are_said_and_repaired(self):
        self.vm_agent("capture", "apply", "--capture", "nftables")
        whole = rules("vm1")
        LAB.run("vm1", "nft", "flush", "chain", "inet", "vm_agent", "nat_output")
        self.assertIn("are repaired", self.vm_agent("capture", "apply", "--capture", "nftables").stderr)
        self.assertEqual(rules("vm1"), whole)
        self.assertIn("applied anew", self.vm_agent("capture", "apply", "--capture", "nftables").stderr)
        self.vm_agent("capture", "remove")
        self.assertIn("nothing to remove", self.vm_agent("capture", "remove").stderr)

    def test_rules_that_do_not_work_are_taken_back(self):
        # A chain before ours that decides about every local connection.
        LAB.run("vm1", "nft", "-f", "-", input=THIEF)
        before = rules("vm1")
        made = self.vm_agent("capture", "apply", "--capture", "nftables", check=False)
        self.assertEqual(made.returncode, 9, made.stderr)
        self.assertIn("taken back", made.stderr)
        self.assertIn("nft list ruleset", made.stderr)
        self.assertEqual(rules("vm1"), before)

    def test_without_the_right_or_the_tools_nothing_is_changed_and_the_reason_is_said(self):
        before = rules("vm1")
        no_right = LAB.run("vm1", "setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin", *self.vm1.command_line("capture", "apply", "--capture", "nftables"), check=False)
        self.assertEqual(no_right.returncode, 9, no_right.stderr)
        self.assertIn("no right", no_right.stderr)
        hide = "mount -t tmpfs none /usr/sbin && exec \"$@\""
        for backend, other in (("nftables", "nftables"), ("iptables", "nftables or iptables")):
            made = LAB.run("vm1", "unshare", "-m", "bash", "-c", hide, "-", *self.vm1.command_line("capture", "apply", "--capture", backend), check=False)
            self.assertEqual(made.returncode, 9, made.stderr)
            self.assertIn("is not installed", made.stderr)
            self.assertIn(f"install the package {other}", made.stderr)
        self.assertEqual(rules("vm1"), before)

    def connection(self, caller, called, address, port):
        """A connection that stands: the caller's end and the called one's."""
        there = End(self, called, "listen", address, port)
        self.assertEqual(there.hear(), "listening")
        here = End(self, caller, "call", address, port)
        self.assertEqual((here.hear(), there.hear()), ("connected", "connected"))
        return here, there

    def test_connections_that_are_older_than_the_rules_go_on(self):
        for number, flags in enumerate((["nftables"], ["nftables", "--set", "capture.interception=tproxy"], ["iptables-nft"], ["iptables-legacy"])):
            port = 7000 + 10 * number
            ours = [self.connection("vm1", "cp", CONTROL_PLANE, port + one) for one in (1, 2)]
            others = [self.connection("cp", "vm1", self.vm1.ip, port + one) for one in (3, 4)]
            self.vm_agent("capture", "apply", "--capture", *flags)
            # Whoever speaks first: it is the first packet that the kernel sees of this connection.
            for (here, there), turns in zip(ours + others, ((0, 1), (1, 0)) * 2):
                for turn in turns:
                    speaker, hearer = (here, there) if turn == 0 else (there, here)
                    speaker.say("still there?")
                    self.assertEqual(hearer.hear(), "still there?", flags)
            LAB.forget_rules("vm1")

    def test_settings_with_rubbish_are_named(self):
        for setting, words in (("capture.inboundPorts=80,http", "http"), ("capture.outboundRanges=10.0.0.0/33", "10.0.0.0/33"),
                               ("capture.excludeInterfaces=[\"a b\"]", "a b"), ("capture.mode=magic", "magic"), ("dns.upstreams=127.0.0.1:15053", "the agent itself")):
            made = self.vm_agent("capture", "plan", "--set", setting, check=False)
            self.assertEqual(made.returncode, 4, made.stderr)
            self.assertIn(words, made.stderr)
            self.assertIn(setting.split("=")[0], made.stderr)
