"""A real headless Chromium, driven by the DevTools protocol over its pipe: one page, what it shows, what it complains of.

https://chromedevtools.github.io/devtools-protocol/ describes the methods that are called by name here.
"""

import base64
import fcntl
import json
import os
import pathlib
import queue
import shutil
import subprocess
import tempfile
import threading
import time

#: A first start on a busy machine takes seconds.
PATIENCE = 60.0


class Failed(AssertionError):
    """The browser refused, or a page did."""


def binary():
    found = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not found:
        raise SystemExit("no Chromium: install Debian's package chromium, or say CHROMIUM=path")
    return found


class Browser:
    """`with Browser() as browser:` one tab; complaints of the page are kept in `complaints`."""

    def __init__(self, *prefix):
        """`prefix`: what the browser is started with, such as `ip netns exec NAME`."""
        self.profile = tempfile.mkdtemp(prefix="vm-agent-chromium-")
        to_read, self.to = os.pipe()
        self.come, to_write = os.pipe()
        # Chromium reads from descriptor 3 and writes to 4; bash puts them there from numbers that cannot collide.
        inner = [fcntl.fcntl(number, fcntl.F_DUPFD, 20) for number in (to_read, to_write)]
        os.close(to_read), os.close(to_write)
        command = [*prefix, binary(), "--headless", "--remote-debugging-pipe", f"--user-data-dir={self.profile}", "--no-first-run", "--disable-gpu",
                   "--disable-dev-shm-usage", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
                   "--force-color-profile=srgb", "--no-proxy-server", *(["--no-sandbox"] if os.geteuid() == 0 else []), "about:blank"]
        self.log = open(pathlib.Path(self.profile) / "chromium.log", "wb")
        self.process = subprocess.Popen(["bash", "-c", f'exec "$@" 3<&{inner[0]} 4>&{inner[1]} {inner[0]}<&- {inner[1]}>&-', "chromium", *command],
                                        pass_fds=inner, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log, start_new_session=True)
        for number in inner:
            os.close(number)
        self.answers, self.number, self.session, self.complaints, self.loaded = {}, 0, None, [], threading.Event()
        self.lock = threading.Lock()
        threading.Thread(target=self._listen, daemon=True).start()
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    # --- the pipe: JSON messages, each ended by a zero byte ---

    def _listen(self):
        rest = b""
        while True:
            got = os.read(self.come, 1 << 16)
            if not got:
                break
            *messages, rest = (rest + got).split(b"\0")
            for message in messages:
                self._hear(json.loads(message))
        for waiting in list(self.answers.values()):
            waiting.put({"error": {"message": "the browser ended"}})

    def _hear(self, message):
        if "id" in message:
            waiting = self.answers.pop(message["id"], None)
            if waiting:
                waiting.put(message)
            return
        method, what = message["method"], message.get("params", {})
        if method == "Page.loadEventFired":
            self.loaded.set()
        elif method == "Runtime.exceptionThrown":
            details = what["exceptionDetails"]
            self.complaints.append(details.get("exception", {}).get("description") or details["text"])
        elif method == "Runtime.consoleAPICalled" and what["type"] in ("error", "warning", "assert"):
            self.complaints.append(" ".join(str(one.get("value", one.get("description"))) for one in what["args"]))
        elif method == "Log.entryAdded" and what["entry"]["level"] in ("error", "warning"):
            self.complaints.append(f"{what['entry']['text']} {what['entry'].get('url', '')}".strip())

    def call(self, method, **parameters):
        with self.lock:
            self.number += 1
            number, waiting = self.number, queue.Queue()
            self.answers[number] = waiting
            message = {"id": number, "method": method, "params": parameters, **({"sessionId": self.session} if self.session else {})}
            os.write(self.to, json.dumps(message).encode() + b"\0")
        try:
            answer = waiting.get(timeout=PATIENCE)
        except queue.Empty:
            raise Failed(f"no answer to {method} within {PATIENCE} s") from None
        if "error" in answer:
            raise Failed(f"{method}: {answer['error'].get('message')}")
        return answer.get("result", {})

    # --- the page ---

    def open(self, url):
        self.loaded.clear()
        answer = self.call("Page.navigate", url=url)
        if answer.get("errorText"):
            raise Failed(f"{url}: {answer['errorText']}")
        if not self.loaded.wait(PATIENCE):
            raise Failed(f"{url} was not loaded within {PATIENCE} s")

    def size(self, width, height=900, scale=1):
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=width < 600)

    def prefer(self, **features):
        """`prefer(color_scheme="dark", reduced_motion="reduce")`"""
        self.call("Emulation.setEmulatedMedia", features=[{"name": f"prefers-{name.replace('_', '-')}", "value": value} for name, value in features.items()])

    def ask(self, expression):
        """The value of a JavaScript expression."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise Failed(f"{expression}: {answer['exceptionDetails'].get('exception', {}).get('description')}")
        return answer["result"].get("value")

    def text(self, selector):
        """The words of the first such element; `None` without one."""
        return self.ask(f"(document.querySelector({json.dumps(selector)}) || {{}}).textContent ?? null")

    def texts(self, selector):
        return self.ask(f"[...document.querySelectorAll({json.dumps(selector)})].map((one) => one.textContent)")

    def attribute(self, selector, name):
        return self.ask(f"document.querySelector({json.dumps(selector)})?.getAttribute({json.dumps(name)}) ?? null")

    def until(self, what, expression, limit=30.0):
        """Waits until a JavaScript expression gives something true, and returns that."""
        end, last = time.monotonic() + limit, None
        while time.monotonic() < end:
            last = self.ask(expression)
            if last:
                return last
            time.sleep(0.05)
        raise Failed(f"the page does not show within {limit} s: {what} (last: {last!r})\n{self.ask('document.body.innerText')}")

    def overflow(self):
        """By how many pixels the page is wider than the window, and what sticks out."""
        return self.ask("""(() => { const wide = document.documentElement.clientWidth;
            const out = [...document.body.querySelectorAll("*")].filter((one) => one.getBoundingClientRect().right > wide + 1 && !one.closest("[data-scrolls]"));
            return { pixels: document.documentElement.scrollWidth - wide, what: out.slice(0, 5).map((one) => `${one.tagName} ${one.id} ${one.getAttribute("class")}: ${one.textContent.slice(0, 40)}`) }; })()""")

    def contrasts(self, least=4.5):
        """Texts whose colour stands out from what is behind it by less than WCAG 2.2 (1.4.3) asks for."""
        return self.ask("""((least) => {
            const parse = (text) => { const all = text.match(/[\\d.]+/g).map(Number); return all.length < 4 ? [...all, 1] : all; };
            const light = ([r, g, b]) => { const [x, y, z] = [r, g, b].map((one) => { const c = one / 255; return c <= .03928 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4; }); return .2126 * x + .7152 * y + .0722 * z; };
            const behind = (node) => { for (let at = node; at; at = at.parentElement) { const found = parse(getComputedStyle(at).backgroundColor); if (found[3] === 1) return found; } return [255, 255, 255, 1]; };
            const poor = [];
            for (const node of document.body.querySelectorAll("*")) {
              const own = [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim());
              if (!own || !node.getClientRects().length || node.closest("script,style,[hidden]") || getComputedStyle(node).visibility === "hidden") continue;
              const style = getComputedStyle(node), ink = parse(node instanceof SVGElement ? style.fill : style.color);
              const [one, other] = [light(ink), light(behind(node))].sort((a, b) => b - a), ratio = (one + .05) / (other + .05);
              if (ratio < least) poor.push(`${ratio.toFixed(2)} ${node.tagName} ${node.id || node.getAttribute("class")}: ${node.textContent.trim().slice(0, 40)}`);
            }
            return [...new Set(poor)]; })(""" + str(least) + ")")

    def picture(self, path, full=True):
        """A screenshot, as PNG."""
        path = pathlib.Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png", captureBeyondViewport=full)["data"]))

    # --- the end ---

    def close(self):
        if self.process.poll() is None:
            try:
                self.session = None
                self.call("Browser.close")
                self.process.wait(10)
            except (Failed, OSError, subprocess.TimeoutExpired):
                os.killpg(self.process.pid, 9)
                self.process.wait()
        for number in (self.to, self.come):
            try:
                os.close(number)
            except OSError:
                pass
        self.log.close()
        shutil.rmtree(self.profile, ignore_errors=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
