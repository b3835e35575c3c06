"""The web pages in a real browser: `python3 tests/page/suite.py [-v] [CLASS[.TEST]]`, in namespaces of its own.

Three machines live in the embedded mesh, with certificates of half a minute. What the pages look like is left in target/page/.
"""

import pathlib
import sys
import tempfile
import unittest

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(ROOT / "demo"), str(ROOT / "tests/istio")]

import browser  # noqa: E402
import demo as story  # noqa: E402
import namespaces  # noqa: E402
from lab import CONTROL_PLANE, until  # noqa: E402

PICTURES = ROOT / "target/page"
LIFE = "30s"
BED = None


def setUpModule():
    global BED
    BED = story.Demo(DIRECTORY, ttl=LIFE)
    BED.up()
    BED.joined()
    until("both endpoints answer", lambda: {BED.told("/").get("name") for _ in range(6)} == {"vm2", "vm3"}, limit=30, pause=0.1)


def tearDownModule():
    BED.lab.down()


class Page(unittest.TestCase):
    """A page in a tab of its own; it must never complain."""

    namespace, url, name = None, None, None

    def setUp(self):
        self.browser = browser.Browser("ip", "netns", "exec", BED.lab.namespace(self.namespace))
        self.addCleanup(self.browser.close)
        self.browser.size(1180)
        self.browser.prefer(color_scheme="light", reduced_motion="no-preference")
        self.browser.open(self.url)

    def tearDown(self):
        self.assertEqual(self.browser.complaints, [])

    def look(self, kind):
        self.browser.picture(PICTURES / f"{self.name}-{kind}.png")

    def readable(self):
        """What both pages promise in all shapes and shades."""
        self.filled()
        backgrounds = set()
        for width, scheme in ((1180, "light"), (1180, "dark"), (400, "light"), (400, "dark")):
            self.browser.size(width, scale=2 if width < 600 else 1)
            self.browser.prefer(color_scheme=scheme)
            self.browser.ask("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
            self.assertEqual(self.browser.overflow(), {"pixels": 0, "what": []}, f"{width} px")
            self.assertEqual(self.browser.contrasts(), [], f"contrast, {scheme}")
            backgrounds.add(self.browser.ask("getComputedStyle(document.documentElement).backgroundColor"))
            self.look(f"{width}-{scheme}")
        self.assertEqual(len(backgrounds), 2, "the dark page is dark")

    def named(self):
        """What a screen reader says of what is drawn."""
        return self.browser.ask("""[...document.querySelectorAll("[role=meter],[role=img],[role=group],section,figure,[role=log]")]
            .filter((one) => !(one.getAttribute("aria-label") || document.getElementById(one.getAttribute("aria-labelledby"))?.textContent)).map((one) => one.outerHTML.slice(0, 90))""")


class Mesh(Page):
    namespace, url, name = "cp", f"http://{CONTROL_PLANE}:8080/", "mesh"

    def machine(self, name, what):
        return f"""document.querySelector('.node[data-machine="{name}"]'){what}"""

    def filled(self):
        self.browser.until("requests flow", """[...document.querySelectorAll(".flow")].filter((one) => one.dataset.is === "good").length === 2""")
        self.browser.until("all certificates", """document.querySelectorAll(".life[aria-valuenow]").length === 3""")

    def test_it_shows_machines_proxies_certificates_endpoints_requests_and_policies(self):
        self.filled()
        self.assertEqual(self.browser.ask("[...document.querySelectorAll('.node')].map((one) => one.dataset.machine).sort()"), ["vm1", "vm2", "vm3"])
        self.assertEqual(self.browser.ask("[...document.querySelectorAll('[data-identity]')].map((one) => one.dataset.identity)"),
                         ["spiffe://cluster.local/ns/vms/sa/client", "spiffe://cluster.local/ns/vms/sa/details-legacy"], "the caller stands first")
        self.assertIn("Envoy ready", self.browser.ask(self.machine("vm2", ".textContent")))
        self.assertIn("endpoint healthy", self.browser.ask(self.machine("vm2", ".textContent")))
        self.assertRegex(self.browser.ask(self.machine("vm1", ".querySelector('.life').getAttribute('aria-valuetext')")), r"^\d+s of (30|29|31)s left$")
        flow = self.browser.attribute('[data-flow="vm1>vm2"]', "aria-label")
        self.assertRegex(flow, r"^vm1 calls vm2 as details.internal.com over mutual TLS: [0-9.]+ requests a second")
        self.assertEqual(self.browser.ask("getComputedStyle(document.querySelector('[data-flow=\"vm1>vm2\"] .lock')).visibility"), "visible")
        self.browser.until("dots move along the lines", "document.querySelectorAll('.dot').length > 0")
        self.assertEqual(self.browser.texts('#services [data-host="details.internal.com"] .badge'), ["vm2 healthy", "vm3 healthy"])
        self.assertIn("10.99.0.11", self.browser.text('#machines [data-machine="vm1"]'))
        self.assertIn("vms/client may not call /secret* of app=details-legacy", self.browser.text('[data-policy="no-secret-for-client"]'))
        self.assertIn("STRICT", self.browser.text('[data-policy="mutual TLS"]'))
        self.assertIn("root devmesh", self.browser.text("#control"))
        self.assertEqual(self.named(), [])

    def test_it_shows_who_was_refused(self):
        self.filled()
        counts = lambda: [sum(report[what] for report in BED.lab.view()["reports"]) for what in ("denied", "plain")]
        denied, plain = counts()
        for _ in range(3):
            self.assertEqual(BED.lab.curl("vm1", f"{story.HOST}/secret")[0], 403)
            self.assertNotEqual(BED.lab.run("cp", "curl", "-s", "-m", "5", "http://10.99.0.12:9080/", check=False).returncode, 0)
        until("Envoy has counted them", lambda: counts() >= [denied + 3, plain + 3], limit=15)
        self.browser.until("refusals by number", f"Number((document.getElementById('refusals').textContent.match(/([0-9,]+) refused by policy/) || [0, 0])[1]) >= {denied + 3}")
        self.browser.until("plain calls", f"Number((document.getElementById('refusals').textContent.match(/([0-9,]+) without mutual TLS/) || [0, 0])[1]) >= {plain + 3}")
        self.assertRegex(self.browser.ask(self.machine("vm2", ".querySelector('.stamp').textContent")), r"^\d+ refused$")
        self.browser.until("the log tells it", "/vm[23] refused \\d+ requests? by policy/.test(document.getElementById('events').textContent)")
        self.browser.until("the log tells of plain ones", "/vm2 refused \\d+ requests? without mutual TLS/.test(document.getElementById('events').textContent)")

    def test_a_certificate_that_is_renewed_is_whole_again(self):
        self.filled()
        left = self.machine("vm2", ".querySelector('.life').getAttribute('aria-valuenow')")
        serial = BED.vms["vm2"].status()["identity"]["serial"]
        self.browser.ask("window.least = 1e9, window.watch = setInterval(() => { window.least = Math.min(window.least, Number(" + left + ")); }, 50)")
        until("a new certificate", lambda: BED.vms["vm2"].status()["identity"]["serial"] != serial, limit=60, pause=0.2)
        self.browser.until("the log tells it", "document.getElementById('events').textContent.includes('vm2 got a new certificate')", limit=60)
        self.browser.until("it had run down and is whole again", f"window.least < 26 && Number({left}) > window.least", limit=30)
        fresh = BED.vms["vm2"].status()["identity"]["serial"]
        self.assertIn(fresh[:8], self.browser.text('#machines [data-machine="vm2"]'))
        self.assertTrue(self.browser.ask(self.machine("vm2", ".classList.contains('renewed')")), "it is shown where it happened")

    def test_a_machine_that_dies_is_shown_and_comes_back(self):
        self.filled()
        vm = BED.vms["vm3"]
        vm.end()
        self.browser.until("it is gone", self.machine("vm3", "?.dataset.is === 'gone'"))
        self.look("death")
        self.browser.until("its endpoint is unhealthy or gone", """!document.querySelector('[data-host="details.internal.com"]').textContent.includes("vm3 healthy")""")
        self.browser.until("nobody calls it", """(document.querySelector('[data-flow="vm1>vm3"]')?.dataset.is ?? "idle") === "idle" """)
        self.browser.until("the log tells it", "document.getElementById('events').textContent.includes('vm3 lost its connection to the control plane')")
        BED.serve(vm)
        vm.run().until_ready()
        self.browser.until("it is here again", self.machine("vm3", "?.dataset.is === 'here'"))
        self.filled()

    def test_what_is_wrong_with_a_machine_is_shown(self):
        self.filled()
        # Whoever removes the rules behind the agent's back, is told of; a resolver that is gone, too.
        resolver = BED.resolver
        resolver.terminate()
        self.addCleanup(lambda: BED.resolve())
        BED.lab.run("vm1", "curl", "-s", "-m", "3", "http://nowhere.example/", check=False)
        self.browser.until("the condition", """document.querySelector('#machines [data-machine="vm1"] [data-room="dns"]')?.textContent""", limit=40)
        self.assertIn("! dns", self.browser.ask(self.machine("vm1", ".textContent")))
        self.look("condition")

    def test_it_says_when_the_mesh_is_silent(self):
        self.filled()
        BED.lab.istiod_process.send_signal(19)
        try:
            self.browser.until("it is said", "!document.getElementById('lost').hidden")
        finally:
            BED.lab.istiod_process.send_signal(18)
        self.browser.until("it is well", "document.getElementById('lost').hidden")

    def test_nothing_moves_for_those_who_want_that(self):
        self.browser.prefer(color_scheme="light", reduced_motion="reduce")
        self.filled()
        self.browser.until("the dots of before are gone", "document.querySelectorAll('.dot').length === 0")
        self.browser.ask("window.seen = 0, new MutationObserver(() => { window.seen += document.querySelectorAll('.dot').length; }).observe(document.getElementById('picture'), { subtree: true, childList: true })")
        calls = self.browser.ask("scene.flows.reduce((sum, flow) => sum + flow.total, 0)")
        self.browser.until("requests go on", f"scene.flows.reduce((sum, flow) => sum + flow.total, 0) > {calls} + 5")
        self.assertEqual(self.browser.ask("window.seen"), 0)

    def test_it_can_be_read_small_and_in_the_dark(self):
        self.readable()


class Status(Page):
    namespace, url, name = "vm2", "http://127.0.0.1:15020/", "status"

    def filled(self):
        self.browser.until("all is there", "document.querySelectorAll('main .card').length === 8 && document.getElementById('phase').textContent === 'ready'")

    def test_it_shows_the_machine_as_the_command_does(self):
        self.filled()
        status = BED.vms["vm2"].status()
        self.assertEqual(self.browser.text("h1"), "vm2")
        self.assertEqual(self.browser.text("#id"), status["identity"]["id"])
        for card, words in {"control-plane": ("connected", "istiod.istio-system.svc:15012"), "proxy": ("ready", f"pid {status['proxy']['pid']}"), "registration": ("registered", "vms/details-legacy-10.99.0.12"),
                            "capture": ("active", "nftables"), "dns": ("answering", "of the mesh"), "health": ("healthy", "readiness"), "machine": ("app=details-legacy",)}.items():
            for word in words:
                self.assertIn(word, self.browser.text(f"#{card}"), card)
        self.assertRegex(self.browser.attribute(".ring", "aria-valuetext"), r"^\d+s of (30|29|31)s left$")
        self.assertEqual(self.named(), [])

    def test_it_lives(self):
        self.filled()
        before = self.browser.text("#certificate")
        self.browser.until("the time left runs down", f"Number(document.querySelector('.ring').getAttribute('aria-valuenow')) < {self.browser.attribute('.ring', 'aria-valuenow')}")
        self.browser.ask(f"window.serial = {before!r}")
        serial = BED.vms["vm2"].status()["identity"]["serial"]
        self.browser.until("a renewed certificate", f"!document.getElementById('certificate').textContent.includes('{serial}')", limit=60)

    def test_it_says_what_is_wrong(self):
        self.filled()
        BED.lab.istiod_process.send_signal(19)
        try:
            BED.lab.run("vm2", "ss", "-K", "dport", "=", "15012", check=False)
            self.browser.until("the condition", "document.querySelector('#conditions [data-room=\"control-plane\"]')?.textContent", limit=60)
            self.look("condition")
        finally:
            BED.lab.istiod_process.send_signal(18)
        self.browser.until("it is well", "!document.querySelector('#conditions [data-room=\"control-plane\"]')", limit=60)

    def test_it_can_be_read_small_and_in_the_dark(self):
        self.readable()


def main():
    global DIRECTORY
    if sys.argv[1:2] == ["--inside"]:
        DIRECTORY = pathlib.Path(sys.argv[2])
        namespaces.enter()
        try:
            made = unittest.main(argv=["suite", *sys.argv[3:]], exit=False)
        finally:
            if BED:
                BED.lab.down()
        return 0 if made.result.wasSuccessful() and made.result.testsRun and not made.result.skipped else 1
    browser.binary()
    directory = pathlib.Path(tempfile.mkdtemp(prefix="vm-agent-page-"))
    directory.chmod(0o755)
    return namespaces.run([sys.executable, HERE / "suite.py", "--inside", directory, *sys.argv[1:]], directory)


if __name__ == "__main__":
    sys.exit(main())
