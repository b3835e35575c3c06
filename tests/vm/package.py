"""The package under test, and the same as a later version."""

import os
import pathlib
import shutil
import subprocess

TOP = pathlib.Path(__file__).parents[2]
AGENT = pathlib.Path(os.environ.get("VM_AGENT", TOP / "target/release/vm-agent")).absolute()
FILE = pathlib.Path("/tmp/vmdeb/vm-agent.deb")

def dev():
    root = FILE.parent / "root"
    shutil.rmtree(root, ignore_errors=True)
    for d in ("DEBIAN", "usr/bin", "usr/lib/systemd/system", "usr/lib/sysusers.d", "usr/lib/tmpfiles.d"):
        (root / d).mkdir(parents=True)
    shutil.copy(AGENT, root / "usr/bin/vm-agent")
    subprocess.run(["strip", root / "usr/bin/vm-agent"])
    for f in [*(TOP / "systemd").glob("*.service"), *(TOP / "systemd").glob("*.target")]:
        shutil.copy(f, root / "usr/lib/systemd/system")
    for k in ("sysusers", "tmpfiles"):
        f = TOP / f"systemd/vm-agent.{k}"
        if f.exists():
            shutil.copy(f, root / f"usr/lib/{k}.d/vm-agent.conf")
    for f in ("postinst", "prerm", "postrm"):
        (root / "DEBIAN" / f).write_text((TOP / "packaging/debian" / f).read_text().replace("@GECOS@", "Envoy of vm-agent"))
        (root / "DEBIAN" / f).chmod(0o755)
    (root / "DEBIAN/control").write_text("Package: vm-agent\nVersion: 0.1.0\nArchitecture: amd64\nMaintainer: x <x@x.test>\nDescription: x\n")
    subprocess.run(["dpkg-deb", "--root-owner-group", "-Znone", "-b", root, FILE], check=True)


def later(version, directory):
    """The same package as a later version, in this directory."""
    tree, file = directory / "later", directory / f"vm-agent-{version}.deb"
    shutil.rmtree(tree, ignore_errors=True)
    subprocess.run(["dpkg-deb", "--raw-extract", FILE, tree], check=True)
    control = tree / "DEBIAN/control"
    lines = [f"Version: {version}" if line.startswith("Version:") else line for line in control.read_text().splitlines()]
    control.write_text("\n".join(lines) + "\n")
    # Replaced by dpkg, as a new build is; its time is part of what an agent is told apart by.
    os.utime(tree / "usr/bin/vm-agent")
    subprocess.run(["dpkg-deb", "--root-owner-group", "-Znone", "--build", tree, file], check=True, capture_output=True)
    shutil.rmtree(tree)
    return file
