"""A real SPIRE server and agent on one machine of a lab: SPIFFE's Workload API for the programs of that machine."""

from lab import BIN, until

SERVER = """
server {{
  bind_address = "127.0.0.1"
  bind_port = "8081"
  socket_path = "{directory}/server.sock"
  trust_domain = "cluster.local"
  data_dir = "{directory}/server"
  log_level = "WARN"
}}
plugins {{
  DataStore "sql" {{ plugin_data {{ database_type = "sqlite3" connection_string = "{directory}/server/datastore.sqlite3" }} }}
  NodeAttestor "join_token" {{ plugin_data {{}} }}
  KeyManager "memory" {{ plugin_data {{}} }}
  UpstreamAuthority "disk" {{ plugin_data {{ cert_file_path = "{authority}/ca-cert.pem" key_file_path = "{authority}/ca-key.pem" }} }}
}}
"""
AGENT = """
agent {{
  data_dir = "{directory}/agent"
  log_level = "WARN"
  server_address = "127.0.0.1"
  server_port = "8081"
  socket_path = "{directory}/agent.sock"
  trust_domain = "cluster.local"
  insecure_bootstrap = true
  join_token = "{token}"
}}
plugins {{
  NodeAttestor "join_token" {{ plugin_data {{}} }}
  KeyManager "memory" {{ plugin_data {{}} }}
  WorkloadAttestor "unix" {{ plugin_data {{}} }}
}}
"""


class Spire:
    """SPIRE under an authority whose certificate and key (`ca-cert.pem`, `ca-key.pem`) lie in a directory. Root's programs get `identity`."""

    def __init__(self, lab, name, authority, identity, life):
        self.lab, self.name, self.identity, self.life = lab, name, identity, life
        self.directory = lab.directory / f"spire-{name}"
        (self.directory / "server").mkdir(parents=True, exist_ok=True)
        (self.directory / "server.conf").write_text(SERVER.format(directory=self.directory, authority=authority))
        self.processes = []

    @property
    def socket(self):
        return self.directory / "agent.sock"

    def server(self, *args, check=True):
        command = [BIN / "spire-server", *args, "-socketPath", self.directory / "server.sock"]
        return self.lab.run(self.name, *command, check=check)

    def start(self):
        run = lambda program: self.lab.start(self.name, BIN / program, "run", "-config", self.directory / f"{program.removeprefix('spire-')}.conf",
                                             log=f"{program}-{self.name}.log")
        self.processes.append(run("spire-server"))
        until("the SPIRE server is up", lambda: self.server("healthcheck", check=False).returncode == 0)
        node = f"spiffe://cluster.local/node/{self.name}"
        token = self.server("token", "generate", "-spiffeID", node).stdout.split()[-1]
        self.server("entry", "create", "-parentID", node, "-spiffeID", self.identity, "-selector", "unix:uid:0", "-x509SVIDTTL", str(self.life))
        (self.directory / "agent.conf").write_text(AGENT.format(directory=self.directory, token=token))
        self.processes.append(run("spire-agent"))
        until("the SPIRE agent is up", self.socket.exists)
        return self

    def stop(self):
        for process in reversed(self.processes):
            self.lab.stop(process)
