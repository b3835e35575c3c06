"""What each fault may cost: the one source of the table in docs/reliability.md (`suite.py --table` prints it).

Whatever no line here allows is an unexplained loss, and fails the tier.
"""

import dataclasses

ALL = ("http", "echo", "dns")


@dataclasses.dataclass(frozen=True)
class Allow:
    """Losses that a fault explains, from `after` seconds after its begin until its machine is well again."""

    flows: tuple
    #: `own`: requests of the machine itself. `to`: requests to its service; of a long-lived connection, to the machine.
    whose: str
    why: str
    after: float = 0.0
    #: Seconds after the fault's end, where that is longer than the machine needs to be well again.
    until: float = 0.0
    #: The largest part of such requests that may be lost while it lasts.
    share: float = 1.0


@dataclasses.dataclass(frozen=True)
class Cost:
    title: str
    #: Seconds after its end within which everything is as before. Far above what is measured: a busy machine has two cores.
    settle: float
    allows: tuple = ()
    #: Whether its machine may be no endpoint while it lasts.
    out: bool = False


#: While a machine is no endpoint, istiod takes its inbound listener's parts away. Envoy ends the connections that came in by them after
#: its drain time (`drainDuration` of ProxyConfig, 45 s). Requests in connections of their own are not concerned.
DRAINED = (Allow(("echo",), "to", "connections that are older end after Envoy's drain time (45 s)", until=75.0),)

COSTS = {
    "agent-kill": Cost("agent: `kill -9`, one to four times in a row", 30),
    "agent-restart": Cost("agent: restarted in order (`systemctl restart`)", 30),
    "agent-freeze": Cost("agent: frozen for 2 to 12 s; the watchdog ends one that is frozen for 6 s", 30),
    "agent-stop": Cost("agent: stopped in order and started again later (`systemctl stop`, `start`)", 30, (
        Allow(ALL, "own", "the machine is not in the mesh while its agent is stopped (`failPolicy: open`)"),
        Allow(("http", "echo"), "own", "what was sent meanwhile stays in the kernel's table of connections (unanswered: 120 s), and a new connection "
              "from the same port passes by the redirect rules as a part of it", until=150.0, share=0.02),
        Allow(("echo",), "to", "long-lived connections to the machine end after the drain"),
        Allow(("http",), "to", "where istiod or the API server is away too, callers hear of it late; their Envoys try three times, and may meet the "
              "stopped machine each time", share=0.02),
    ), out=True),
    "envoy-kill": Cost("Envoy: `kill -9`", 30, (
        Allow(("http", "echo"), "own", "refused until the next Envoy has its configuration"),
        Allow(("dns",), "own", "where istiod is away too, so that no next Envoy gets its configuration: after 30 s all rules go (`failPolicy: open`)", after=30.0),
        Allow(("http", "echo"), "own", "where the rules went, what was sent meanwhile stays in the kernel's table of connections (unanswered: 120 s)",
              after=30.0, until=150.0, share=0.02),
        Allow(("http",), "to", "requests under way on the connections that ended", share=0.2),
        Allow(("echo",), "to", "the long-lived connections that ended"),
    ), out=True),
    "istiod-restart": Cost("istiod: restarted", 30),
    "istiod-kill": Cost("istiod: killed, away for 3 to 12 s", 30),
    "istiod-freeze": Cost("istiod: frozen for 3 to 15 s", 30),
    "api-stop": Cost("API server: killed, away for 3 to 10 s", 30),
    "api-freeze": Cost("API server: frozen for 3 to 12 s", 30),
    "api-429": Cost("API server: answers machines with 429 for 3 to 20 s", 30),
    "api-500": Cost("API server: answers machines with 500 for 3 to 20 s", 30),
    "api-refuse": Cost("API server: resets connections of machines for 3 to 20 s", 30),
    "api-hang": Cost("API server: does not answer machines for 3 to 20 s", 30),
    "entry-delete": Cost("WorkloadEntry: deleted (mode `kubernetes`)", 30, DRAINED, out=True),
    "entry-delete-istiod": Cost("WorkloadEntry: deleted (mode `istiod`)", 30, DRAINED, out=True),
    "entry-edit": Cost("WorkloadEntry: fields and annotations edited by somebody else", 30, DRAINED, out=True),
    "entry-relabel": Cost("WorkloadEntry: its label taken away for 3 to 10 s (mode `kubernetes`: put back by the agent at once)", 30, DRAINED, out=True),
    "group-edit": Cost("WorkloadGroup: edited and restored", 15),
    "service-edit": Cost("ServiceEntry: a port added and taken away", 15),
    "health-flap": Cost("application: its probe fails for 4 to 10 s", 30, DRAINED, out=True),
    "reload-labels": Cost("configuration: another label, and `reload`", 40, DRAINED, out=True),
    "reload-address": Cost("configuration: another address and back, and `reload` (mode `kubernetes`)", 30, DRAINED, out=True),
    "packet-loss": Cost("network: every tenth packet of a machine lost for 5 to 20 s", 40),
    "link-cut": Cost("network: a machine cut off for 5 to 15 s", 60, (
        Allow(("http", "echo"), "own", "nothing leaves the machine; TCP repeats what was lost only seconds later"),
        Allow(("http",), "to", "callers learn of it by time limits only", share=0.7),
        Allow(("echo",), "to", "no answer within the caller's time limit"),
    ), out=True),
    "istiod-path-cut": Cost("network: the way of a machine to istiod cut off for 5 to 25 s (half-open connections)", 60, DRAINED, out=True),
    "disk-full": Cost("disk of the agent's state: full for 5 to 20 s", 30),
    "clock-step": Cost("clock: 20 s forward or back for 5 to 15 s", 30),
    "envoy-reject": Cost("istiod: sends a configuration that Envoy rejects, for 4 to 10 s", 30),
    "certificate-over": Cost("no certificate could be renewed for longer than one lives (faults in a row; 60 s here, a day by default)", 30, (
        Allow(("http", "echo"), "own", "the certificate has expired"),
        Allow(("http", "echo"), "to", "the certificate has expired"),
    ), out=True),
}

#: Faults during which the certificates of a machine cannot be renewed.
NO_RENEWAL = ("agent-freeze", "agent-stop", "istiod-restart", "istiod-kill", "istiod-freeze", "link-cut", "istiod-path-cut")
#: Faults that hold up what brings a machine back into traffic.
HINDRANCES = tuple(kind for kind in COSTS if kind.startswith(("agent-", "istiod-", "api-", "link-", "packet-", "envoy-kill")))
FLOWS = {"http": "requests", "echo": "long-lived connections", "dns": "DNS queries"}


def allowed(cost):
    """The allowances of a fault in words."""
    parts = []
    for one in cost.allows:
        which = ", ".join(FLOWS[flow] for flow in one.flows)
        side = "of the machine itself" if one.whose == "own" else "to the machine's service"
        share = f"at most {one.share:.0%} of the " if one.share < 1 else ""
        parts.append(f"{share}{which} {side}: {one.why}{f', until {one.until:.0f} s after the end' if one.until else ''}")
    return "; ".join(parts) or "nothing"


def table():
    """The table in Markdown."""
    lines = ["| fault | may cost | all as before within |", "| --- | --- | --- |"]
    lines += [f"| {cost.title} | {allowed(cost)} | {cost.settle:.0f} s |" for cost in COSTS.values()]
    return "\n".join(lines)
