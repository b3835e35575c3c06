"""What the test cases on booted VMs share."""

import json
import sys
import unittest

import bed
from bed import LAB, curl, until

DETAILS, CALLER = "http://details.internal.com/", "http://caller.internal.com/"


class Case(unittest.TestCase):
    maxDiff = None

    def run(self, result=None):
        before = len(result.failures) + len(result.errors)
        outcome = super().run(result)
        if len(result.failures) + len(result.errors) > before:
            for machine in bed.MACHINES.values():
                if machine.leader():
                    print(f"--- the last of {machine.name}'s journal ---\n{machine.journal()[-4000:]}", file=sys.stderr)
        return outcome

    def story(self, client, server):
        """Answered calls over mutual TLS in both directions, a path that the policy denies, and nothing in plain text."""
        for caller, url, answering, ours, theirs in (
                (client, DETAILS, server, "client", "details-legacy"), (server, CALLER, client, "details-legacy", "client")):
            # Others may serve as well.
            told = until(f"{answering.name} answers {caller.name}", lambda: answer_of(answering, caller, url), limit=60, pause=0.1)
            certificate = told["headers"]["x-forwarded-client-cert"]
            self.assertIn(f"URI=spiffe://cluster.local/ns/vms/sa/{ours}", certificate)
            self.assertIn(f"By=spiffe://cluster.local/ns/vms/sa/{theirs}", certificate)
        # A program that runs as root is no exception.
        for user in ("nobody", "root"):
            self.assertEqual(curl(client, f"{DETAILS}secret", user=user)[0], 403)
        outside = LAB.run("cp", "curl", "-s", "-m", "5", f"http://{server.ip}:9080/", check=False)
        self.assertNotEqual(outside.returncode, 0, "somebody outside the mesh was answered")


def answer_of(machine, caller, url):
    """What the machine answers; `None` when another one does."""
    code, body = curl(caller, url)
    told = json.loads(body) if code == 200 else {}
    return told if told.get("name") == machine.name else None


def table(title, rows):
    """Rows of words, the first one the head."""
    widths = [max(len(str(row[column])) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(str(cell).ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    print("\n".join([f"\n{title}", *(f"  {line}" for line in lines)]), file=sys.stderr, flush=True)
