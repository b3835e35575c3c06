"""A machine that joined, left, and lost the package is what it was: files, users, rules, units, sockets, mounts, processes, the cluster."""

import re

import bed
from bed import LAB, until, until_ready
from case import Case

#: What is looked at, and the command that lists it. What changes by itself on any machine is left out.
LISTINGS = {
    "files": r"""find / -xdev \( -path /proc -o -path /sys -o -path /dev -o -path /tmp -o -path /var/log -o -path /var/tmp -o -path /var/cache/apt -o -path /var/lib/apt
        -o -path /var/lib/cloud -o -path /var/lib/dpkg -o -path /root \) -prune -o ! -type d -printf '%p %y %m %u %g %s %l\n' -o -type d -printf '%p %y %m %u %g\n'""",
    "runtime files": r"""find /run \( -path /run/systemd -o -path /run/udev -o -path /run/log -o -path /run/cloud-init -o -path /run/credentials -o -path /run/host -o -path /run/user -o -name agetty.reload \)
        -prune -o -printf '%p %y %m %u %g\n'""",
    "content of /etc": "find /etc -xdev -type f -exec sha256sum {} +",
    "users and groups": "getent passwd; getent group; getent shadow | cut -d: -f1",
    "rules": "nft list ruleset; iptables-legacy-save; ip6tables-legacy-save",
    "addresses and routes": "ip -o address | sed 's/valid_lft.*//'; ip rule; ip -6 rule; ip route show table all; ip -6 route show table all | sed 's/expires.*//'",
    "kernel settings": "sysctl --all 2>/dev/null | grep -E '^net\\.(ipv4|ipv6)\\.(conf|ip_)' || true",
    "units": "systemctl list-unit-files --plain --no-legend --no-pager; systemctl list-units --all --plain --no-legend --no-pager '*agent*' '*envoy*' | awk '{$1 = $1; print}'",
    "sockets": "ss -Hlntu | awk '{print $1, $5}'; ss -Hlx | awk '{print $5}'",
    "mounts": "findmnt --raw --noheadings --output TARGET,FSTYPE | grep -v /run/credentials",
    "processes": "ps -e -o user=,comm= | grep -E 'agent|envoy|istio' || true",
}
#: What differs all the same, by the lines in which that shows. packaging/README.md says so ("What stays").
AFTER_LEAVE = []
AFTER_PURGE = [
    # useradd and userdel keep the files as they were before.
    r"/etc/(passwd|group|shadow|gshadow)-( |$)",
    # Of all programs with iptables.
    r"runtime files: \+ /run/xtables\.lock ",
]
NOT_LEFT = [r"cluster: \+ workloadentry"]


class Gone(Case):
    def listing(self, vm):
        return {name: set(vm.shell(command.replace("\n", " "), timeout=60).stdout.splitlines()) for name, command in LISTINGS.items()} | {"cluster": cluster()}

    def same(self, before, after, documented):
        """Nothing differs but what is documented."""
        differing = [f"{name}: {sign} {line}" for name in before
                     for sign, lines in (("+", after[name] - before[name]), ("-", before[name] - after[name])) for line in sorted(lines)]
        left = [line for line in differing if not any(re.search(expression, line) for expression in documented)]
        self.assertEqual(left, [])

    def test_leave_and_purge_give_the_machine_back_as_it_was(self):
        vm = bed.boot("gone", "#cloud-config\n{}\n")
        self.addCleanup(bed.destroy, "gone")
        vm.until_up()
        bundle = bed.bundle("details-legacy")
        vm.exec("tee", "/root/join.yaml", input=bundle.read_text())
        vm.exec("curl", "-fsS", "-o", "/root/vm-agent.deb", f"http://{bed.GATEWAY}:8000/vm-agent.deb")
        # Any program that looks at the rules has the kernel make its tables.
        vm.shell(LISTINGS["rules"])
        fresh = self.listing(vm)
        vm.exec("apt-get", "install", "-y", "/root/vm-agent.deb")
        installed = self.listing(vm)
        vm.exec("vm-agent", "join", "/root/join.yaml")
        until_ready(vm)
        self.assertNotEqual(self.listing(vm)["cluster"], installed["cluster"])
        told = vm.exec("vm-agent", "leave")
        print(told.stdout + told.stderr)
        self.same(installed, self.listing(vm), AFTER_LEAVE)
        vm.exec("apt-get", "purge", "-y", "vm-agent")
        self.same(fresh, self.listing(vm), AFTER_PURGE)
        # And where nobody left before.
        vm.exec("apt-get", "install", "-y", "/root/vm-agent.deb")
        vm.exec("vm-agent", "join", "/root/join.yaml")
        until_ready(vm)
        vm.exec("apt-get", "purge", "-y", "vm-agent")
        self.same(fresh, self.listing(vm), AFTER_PURGE + NOT_LEFT)


def cluster():
    """What the cluster has of the namespace."""
    kinds = "workloadentries,workloadgroups,serviceentries,serviceaccounts,secrets,roles,rolebindings,configmaps"
    return set(LAB.kubectl("-n", "vms", "get", kinds, "-o", "name").stdout.split())
