"""Which faults happen when: a list that follows from the seed alone."""

import dataclasses
import random

from costs import COSTS

SERVICES = {"alpha": ("a1", "a2"), "beta": ("b1", "b2")}
#: Seconds between the begins of two faults, on average; faults last longer, so that they overlap.
GAP = 5.0


@dataclasses.dataclass(frozen=True)
class Plan:
    """A kind of fault: whom it may befall, how long it lasts, and what it must have for itself meanwhile."""

    kind: str
    machines: tuple
    seconds: tuple
    #: How many of its cards are in the deck. None: it is a known gap (docs/reliability.md) and happens only when it is asked for.
    weight: int = 1
    #: Names of what no two faults may have at once; `{machine}` and `{service}` are filled in.
    alone: tuple = ()


EVERYWHERE = ("a1", "a2", "b1", "b2")
#: At most one machine of a service is out of traffic at a time: "another endpoint can serve" is a condition of the promise.
OUT = "out of traffic: {service}"
AGENT, NODE = "agent: {machine}", "node: {machine}"
PLANS = (
    Plan("agent-kill", EVERYWHERE, (0, 0), 4, (AGENT,)),
    Plan("agent-restart", EVERYWHERE, (0, 0), 2, (AGENT,)),
    Plan("agent-freeze", EVERYWHERE, (2, 12), 2, (AGENT,)),
    Plan("agent-stop", EVERYWHERE, (2, 6), 1, (AGENT, OUT)),
    Plan("envoy-kill", EVERYWHERE, (0, 0), 1, (OUT,)),
    Plan("istiod-restart", (None,), (0, 0), 2, ("istiod",)),
    Plan("istiod-kill", (None,), (3, 12), 2, ("istiod",)),
    Plan("istiod-freeze", (None,), (3, 15), 2, ("istiod",)),
    Plan("api-stop", (None,), (3, 10), 1, ("api",)),
    Plan("api-freeze", (None,), (3, 12), 1, ("api",)),
    Plan("api-429", (None,), (3, 20), 1, ("gate",)),
    Plan("api-500", (None,), (3, 20), 1, ("gate",)),
    Plan("api-refuse", (None,), (3, 20), 1, ("gate",)),
    Plan("api-hang", (None,), (3, 20), 1, ("gate",)),
    Plan("entry-delete", ("b1", "b2"), (0, 0), 4, (OUT,)),
    Plan("entry-delete-istiod", ("a1", "a2"), (0, 0), 0, (OUT,)),
    Plan("entry-edit", EVERYWHERE, (1, 4), 1, (OUT,)),
    Plan("entry-relabel", EVERYWHERE, (3, 10), 2, (OUT,)),
    Plan("group-edit", ("a1", "b1"), (3, 8), 1, ("group: {service}",)),
    Plan("service-edit", ("a1", "b1"), (3, 8), 1, ("service: {service}",)),
    Plan("health-flap", EVERYWHERE, (4, 10), 2, (OUT,)),
    Plan("reload-labels", EVERYWHERE, (0, 0), 0, (OUT, NODE)),
    Plan("reload-address", ("b1", "b2"), (5, 10), 0, (OUT, NODE)),
    Plan("packet-loss", EVERYWHERE, (5, 20), 1, ("network: {machine}",)),
    Plan("link-cut", EVERYWHERE, (5, 15), 1, (OUT, "network: {machine}")),
    Plan("istiod-path-cut", EVERYWHERE, (5, 25), 2, (OUT, "network: {machine}")),
    Plan("disk-full", EVERYWHERE, (5, 20), 1, ("disk: {machine}",)),
    Plan("clock-step", ("a2", "b2"), (5, 15), 1, ("clock: {machine}",)),
    Plan("envoy-reject", ("a1", "b1"), (4, 10), 1, ("filter: {service}",)),
)


@dataclasses.dataclass(frozen=True)
class Event:
    at: float
    kind: str
    machine: str
    service: str
    seconds: float
    #: For whatever else a fault chooses.
    choice: float
    alone: tuple


def service_of(machine):
    return next((service for service, machines in SERVICES.items() if machine in machines), None)


def schedule(seed, seconds, kinds=None):
    """The events of a run. With `kinds` only these happen. Kinds are dealt like cards, so that each has its turn."""
    chance = random.Random(seed)
    deck = [plan for plan in PLANS if kinds is None or plan.kind in kinds for _ in range(max(plan.weight, kinds is not None))]
    events, at, cards = [], 0.0, []
    while deck:
        at += chance.uniform(0.2, 1.8) * GAP
        if at >= seconds:
            break
        cards = cards or chance.sample(deck, len(deck))
        plan = cards.pop()
        machine = chance.choice(plan.machines)
        names = {"machine": machine, "service": service_of(machine)}
        events.append(Event(round(at, 2), plan.kind, machine, service_of(machine), round(chance.uniform(*plan.seconds), 1),
                            chance.random(), tuple(sorted(one.format(**names) for one in plan.alone))))
    return events


assert {plan.kind for plan in PLANS} <= set(COSTS)
