"""The judge is tried with made-up records: what no fault explains has to fail. It needs no root and takes no time."""

import pathlib
import sys
import unittest

sys.path.append(str(pathlib.Path(__file__).parent))

import costs  # noqa: E402
import resources  # noqa: E402
from judge import LIFE, SEEN_WITHIN, Fault, Judge  # noqa: E402
from schedule import PLANS, schedule  # noqa: E402

MACHINES = {"a1": "alpha", "a2": "alpha", "b1": "beta", "b2": "beta"}
DOCS = pathlib.Path(__file__).parents[2] / "docs/reliability.md"


def service_of_address(text):
    other = {"a1": "beta", "a2": "beta", "b1": "alpha", "b2": "alpha"}
    return other.get(text) or next(name for name in ("alpha", "beta") if name in text)


def loss(source="b1", to="alpha", at=100.0, flow="http", by=None, took=0.1):
    return {"lost": flow, "from": source, "to": to, "begin": at, "end": at + took, "by": by, "why": "503"}


def answered(machines=MACHINES, seconds=range(0, 300), ok=10):
    """What everybody answers all the time."""
    pairs = {"a1": "b1", "a2": "b2", "b1": "a1", "b2": "a2"}
    return [{"second": second, "flow": "http", "from": pairs[name], "ok": ok, "slowest": 0.1, "by": {name: ok}} for second in seconds for name in machines]


def judged(faults, losses, seconds=None, certificates=None):
    judge = Judge(faults, losses + (answered() if seconds is None else seconds), MACHINES, service_of_address, certificates or {})
    return judge, judge.verdict()


class Losses(unittest.TestCase):
    def unexplained(self, faults, *losses):
        return len(judged(faults, list(losses))[1].unexplained)

    def test_a_loss_without_a_fault_is_unexplained(self):
        self.assertEqual(self.unexplained([], loss()), 1)

    def test_faults_that_may_cost_nothing_explain_nothing_and_are_named(self):
        for kind in costs.COSTS:
            if costs.COSTS[kind].allows in ((), costs.DRAINED):
                fault = Fault(kind, "a1", "alpha", 90, 110)
                judge, verdict = judged([fault], [loss(source="a1", to="beta"), loss(), loss(flow="dns", source="a1")])
                self.assertEqual(len(verdict.unexplained), 3, kind)
                self.assertEqual(judge.active(100, 100.1), [fault])

    def test_an_allowance_holds_for_its_machine_its_service_its_flow_and_its_time_only(self):
        fault = Fault("envoy-kill", "a1", "alpha", 90, 95)
        settle = costs.COSTS["envoy-kill"].settle
        self.assertEqual(self.unexplained([fault], loss(source="a1", to="beta")), 0)
        self.assertEqual(self.unexplained([fault], loss(source="b1", to="alpha")), 0)
        self.assertEqual(self.unexplained([fault], loss(source="a2", to="beta")), 1, "another machine's own request")
        self.assertEqual(self.unexplained([fault], loss(source="a1", to="beta", flow="dns")), 1, "another flow")
        self.assertEqual(self.unexplained([fault], loss(source="b1", to="alpha", flow="echo", by="a2")), 1, "a connection to the other machine")
        self.assertEqual(self.unexplained([fault], loss(at=80.0)), 1, "before")
        self.assertEqual(self.unexplained([fault], loss(at=95 + settle + 1)), 1, "after it has to be well")
        self.assertEqual(self.unexplained([Fault("envoy-kill", "a1", "alpha", 90)], loss(at=500.0)), 0, "it lasts still")

    def test_more_than_the_allowed_share_is_a_finding(self):
        fault, seconds = Fault("envoy-kill", "a1", "alpha", 90, 95), answered(seconds=range(80, 200), ok=1)
        self.assertEqual(judged([fault], [loss()], seconds)[1].findings, [])
        self.assertTrue(any("is allowed" in one for one in judged([fault], [loss()] * 100, seconds)[1].findings))

    def test_an_ended_certificate_explains_losses_only_where_faults_left_no_time_to_renew_it(self):
        # The last one before ends at 100, the next one is issued at 110.
        certificates = {"a1": [40.0, 70.0, 100.0, 110.0 + LIFE]}
        row = [Fault("istiod-kill", None, None, 60, 80), Fault("istiod-path-cut", "a1", "alpha", 85, 108)]
        losses = [loss(at=105.0), loss(source="a1", to="beta", at=105.0)]
        verdict = judged(row, losses, certificates=certificates)[1]
        self.assertEqual((verdict.unexplained, verdict.findings), ([], []))
        for faults in ([], row[:1], row[1:], [Fault("istiod-kill", None, None, 60, 70), row[1]]):
            verdict = judged(faults, losses, certificates=certificates)[1]
            self.assertEqual((len(verdict.unexplained), len(verdict.findings)), (2, 1), faults)
        self.assertEqual(len(judged(row, [loss(source="b2", to="beta", at=105.0)], certificates=certificates)[1].unexplained), 1, "another machine's is valid")
        self.assertEqual(len(judged(row, [loss(at=90.0)], certificates=certificates)[1].unexplained), 1, "it was still valid")
        in_time = {"a1": [40.0, 70.0, 100.0, 99.0 + LIFE]}
        self.assertEqual(len(judged(row, losses, certificates=in_time)[1].unexplained), 2, "it was renewed")


    def test_drained_connections_may_end_later_and_nothing_else_may(self):
        fault = Fault("entry-delete", "a1", "alpha", 50, 51)
        self.assertEqual(self.unexplained([fault], loss(flow="echo", by="a1", at=100.0)), 0)
        self.assertEqual(self.unexplained([fault], loss(flow="echo", by="a1", at=130.0), loss(flow="echo", by="a2", at=100.0), loss(at=60.0)), 3)


class Machines(unittest.TestCase):
    def test_a_machine_that_does_not_serve_again_is_a_finding(self):
        fault = Fault("entry-delete", "a1", "alpha", 50, 51)
        others = answered(["a2", "b1", "b2"])
        self.assertEqual(judged([fault], [])[1].findings, [])
        found = judged([fault], [], others + answered(["a1"], range(0, 50)))[1].findings
        self.assertEqual(len(found), 1, found)
        self.assertIn("a1 answered nothing", found[0])
        back = answered(["a1"], range(51 + int(costs.COSTS["entry-delete"].settle + SEEN_WITHIN) + 2, 300))
        self.assertEqual(len(judged([fault], [], others + back)[1].findings), 1, "it was too late")

    def test_other_faults_put_off_when_it_has_to_serve_again(self):
        fault, istiod = Fault("entry-delete", "a1", "alpha", 50, 51), Fault("istiod-kill", None, None, 60, 120)
        late = answered(["a2", "b1", "b2"]) + answered(["a1"], range(125, 300))
        self.assertEqual(judged([fault, istiod], [], late)[1].findings, [])
        self.assertEqual(len(judged([fault], [], late)[1].findings), 1)

    def test_growth_is_found(self):
        first = {"a1": {"memory_kb": 20000, "descriptors": 30, "processes": ["envoy", "vm-agent"], "rules": ["a", "b"], "log_bytes": 1000}}
        self.assertEqual(resources.compare(first, first, 5, {}), [])
        for change in ({"memory_kb": 60000}, {"descriptors": 90}, {"processes": ["envoy", "envoy", "vm-agent"]}, {"rules": ["a"]}, {"log_bytes": 10**8}):
            self.assertEqual(len(resources.compare(first, {"a1": {**first["a1"], **change}}, 5, {})), 1, change)


class Plans(unittest.TestCase):
    def test_the_schedule_follows_from_the_seed_and_has_every_kind(self):
        self.assertEqual(schedule(7, 300), schedule(7, 300))
        self.assertNotEqual(schedule(7, 300), schedule(8, 300))
        for seed in range(20):
            self.assertEqual({event.kind for event in schedule(seed, 300)}, {plan.kind for plan in PLANS if plan.weight})
        self.assertEqual(schedule(7, 300, {"none"}), [])

    def test_faults_that_are_left_out_are_documented_as_gaps_and_can_be_asked_for(self):
        gaps = DOCS.read_text().partition("## Known gaps")[2]
        for plan in PLANS:
            if not plan.weight:
                self.assertIn(f"`{plan.kind}`", gaps)
                self.assertTrue(schedule(7, 300, {plan.kind}))

    def test_only_faults_that_take_a_proxy_or_its_network_away_may_cost_anything(self):
        beyond = {kind for kind, cost in costs.COSTS.items() if set(cost.allows) - set(costs.DRAINED)}
        self.assertEqual(beyond, {"agent-stop", "envoy-kill", "link-cut", "certificate-over"})
        for kind, cost in costs.COSTS.items():
            self.assertTrue(cost.out or not cost.allows, f"{kind} may cost something although its machine stays in traffic")
        self.assertEqual({plan.kind for plan in PLANS}, set(costs.COSTS) - {"certificate-over"})

    def test_the_documented_table_is_this_one(self):
        self.assertIn(costs.table(), DOCS.read_text())


if __name__ == "__main__":
    unittest.main()
