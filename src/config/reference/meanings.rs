//! The table of settings: paths, meanings, names of Istio.

/// What each setting is for, and what Istio calls it.
pub(super) const MEANINGS: &[(&str, &str, &str)] = &[
    (
        "workload.name",
        "Name of the WorkloadEntry and of the machine; without one the short host name. May be a template",
        "`POD_NAME`",
    ),
    ("workload.namespace", "Namespace; there is no default", "`POD_NAMESPACE`"),
    (
        "workload.serviceAccount",
        "Service account whose identity the machine gets",
        "`SERVICE_ACCOUNT`, `spec.serviceAccount`",
    ),
    (
        "workload.group",
        "WorkloadGroup; needed where istiod registers the machine",
        "`ISTIO_META_AUTO_REGISTER_GROUP`",
    ),
    (
        "workload.address",
        "What others connect to: an IP address, a DNS name or `unix:///PATH`; without one the source address of the route to istiod. May be a template",
        "`ISTIO_SVC_IP`, `INSTANCE_IP`, `spec.address`",
    ),
    (
        "workload.instanceIps",
        "Addresses that istiod finds the machine's services by; without them those of its interfaces",
        "`INSTANCE_IPS`",
    ),
    (
        "workload.labels",
        "Labels. Values may be templates",
        "`ISTIO_METAJSON_LABELS`, `spec.labels`",
    ),
    ("workload.ports", "Ports: `NAME: PORT`", "`ISTIO_META_POD_PORTS`, `spec.ports`"),
    (
        "workload.network",
        "Network of the mesh. May be a template",
        "`ISTIO_META_NETWORK`, `spec.network`",
    ),
    (
        "workload.locality",
        "Place: `REGION[/ZONE[/SUBZONE]]`; without one that of a label, then the cloud's. May be a template",
        "`spec.locality`",
    ),
    ("workload.weight", "Share of the load among endpoints", "`spec.weight`"),
    (
        "workload.facts.source",
        "Who tells facts of the cloud; `auto` asks the cloud that firmware or cloud-init names",
        "",
    ),
    (
        "workload.facts.budget",
        "How long a start waits for the metadata service, where it has to; at most `60s`, `0s` to wait never",
        "",
    ),
    ("workload.facts.address", "Metadata service", "`GCE_METADATA_HOST`"),
    ("workload.facts.instanceData", "File of cloud-init", ""),
    ("workload.facts.tags", "Tags of the instance that become labels", ""),
    (
        "mesh.proxyConfig",
        "Istio's ProxyConfig for this machine; unknown fields are kept for Envoy's node",
        "`PROXY_CONFIG`, `defaultConfig`",
    ),
    (
        "mesh.discoveryAddress",
        "istiod, `HOST:PORT`; also the name that its certificate must have",
        "`PILOT_ADDRESS`, `discoveryAddress`",
    ),
    ("mesh.caAddress", "Certificate service, `HOST:PORT`; without one istiod", "`CA_ADDR`"),
    (
        "mesh.connectTo",
        "Dial this host or address instead of resolving istiod's name: the gateway",
        "`hosts`",
    ),
    (
        "mesh.serverName",
        "Name that istiod's certificate must have, where it is not that of `mesh.discoveryAddress`",
        "`ISTIOD_SAN`",
    ),
    ("mesh.trustDomain", "Trust domain", "`TRUST_DOMAIN`"),
    (
        "mesh.clusterId",
        "Name of the cluster that the machine belongs to",
        "`ISTIO_META_CLUSTER_ID`",
    ),
    ("mesh.meshId", "Name of the mesh", "`ISTIO_META_MESH_ID`"),
    ("mesh.rootCert", "PEM roots of the control plane, below `/etc/vm-agent`", "`root-cert.pem`"),
    (
        "mesh.metadata",
        "Further metadata of Envoy's node, without the prefix `ISTIO_META_`",
        "`ISTIO_META_*`",
    ),
    (
        "credential.audience",
        "Audience that a token for istiod must name",
        "`TOKEN_AUDIENCES` of istiod",
    ),
    (
        "credential.tokenFile",
        "Token that somebody writes, below `/var/lib/vm-agent`; read at every use",
        "`istio-token`",
    ),
    (
        "credential.kubernetes",
        "Have the Kubernetes API make tokens, where `registration.kubernetes` names one",
        "",
    ),
    ("credential.tokenLife", "Life of such a token; the API server may give less", ""),
    ("credential.command", "Program with its arguments that prints a token", ""),
    (
        "credential.platform",
        "Platform that makes tokens for its machines",
        "`CREDENTIAL_FETCHER_TYPE`",
    ),
    ("credential.platformAddress", "Where the platform answers", ""),
    (
        "credential.oidcTokenFile",
        "Token of another issuer, below `/var/lib/vm-agent`; the last resort",
        "",
    ),
    ("identity.source", "Where certificates come from", "`CA_PROVIDER`"),
    (
        "identity.keyAlgorithm",
        "`ecdsa-p256`, `ecdsa-p384`, `rsa-2048`, `rsa-3072` or `rsa-4096`",
        "`ECC_SIGNATURE_ALGORITHM`, `ECC_CURVE`, `WORKLOAD_RSA_KEY_SIZE`",
    ),
    ("identity.ttl", "Life to ask for", "`SECRET_TTL`"),
    (
        "identity.renewAt",
        "Share of its life after which a certificate is renewed",
        "1 less `SECRET_GRACE_PERIOD_RATIO`",
    ),
    (
        "identity.renewJitter",
        "Largest random change of that share, up or down",
        "`SECRET_GRACE_PERIOD_RATIO_JITTER`",
    ),
    (
        "identity.exportDirectory",
        "Directory where key, chain and roots are written for other programs, below `/var/lib/vm-agent`",
        "`OUTPUT_CERTS`",
    ),
    (
        "identity.signerName",
        "Signer of requests, with the source `kubernetes`",
        "`ISTIO_META_CERT_SIGNER`",
    ),
    (
        "identity.rootCert",
        "PEM roots of that signer, below `/etc/vm-agent`, where they are not those of the mesh",
        "",
    ),
    (
        "identity.files.certFile",
        "PEM certificate and chain, below `/etc/vm-agent`, with the source `files`",
        "`FILE_MOUNTED_CERTS`",
    ),
    ("identity.files.keyFile", "PEM key, below `/etc/vm-agent`, with the source `files`", ""),
    (
        "identity.files.rootFile",
        "PEM roots, below `/etc/vm-agent`, trusted beside `mesh.rootCert`",
        "",
    ),
    ("identity.spiffeSocket", "Workload API, `unix:///PATH`, with the source `spiffe`", ""),
    (
        "registration.mode",
        "Who writes the WorkloadEntry: `istiod`, `kubernetes` (the agent) or `none`",
        "",
    ),
    (
        "registration.removeOnStop",
        "Remove the entry when the agent stops, in the mode `kubernetes`",
        "",
    ),
    ("registration.force", "Take over fields of the entry that somebody else owns", ""),
    ("registration.kubernetes.server", "Kubernetes API, `https://HOST:PORT`", ""),
    ("registration.kubernetes.caFile", "PEM roots of the API server, below `/etc/vm-agent`", ""),
    (
        "registration.kubernetes.tokenFile",
        "Token for the API, below `/etc/vm-agent`; `kube-token` is the one that `join` placed and the agent renews",
        "",
    ),
    (
        "registration.kubernetes.kubeconfig",
        "Kubeconfig below `/etc/vm-agent`, in the place of the three before",
        "",
    ),
    ("registration.kubernetes.context", "Context of the kubeconfig, if not the current one", ""),
    (
        "registration.leaveDelay",
        "How long the machine serves on after it has said that it leaves",
        "",
    ),
    (
        "registration.takeOverAfter",
        "Absence after which another machine loses its name to this one",
        "",
    ),
    (
        "registration.removeStaleAfter",
        "Absence after which entries of the same service account are removed; `0s` for never",
        "",
    ),
    (
        "registration.gracePeriod",
        "How long istiod keeps the entry of a machine whose stream has ended; not shorter than istiod's",
        "`PILOT_WORKLOAD_ENTRY_GRACE_PERIOD` of istiod",
    ),
    (
        "proxy.binary",
        "Envoy; without it the first in `PATH`, then `/usr/local/bin/envoy`",
        "`ISTIO_BIN_BASE`",
    ),
    (
        "proxy.user",
        "User, by name or number, whom Envoy runs as; without one `istio-proxy`, or 1337 where there is none",
        "",
    ),
    (
        "proxy.logLevel",
        "Log level of Envoy, also by component: `warning,upstream:debug`",
        "`--proxyLogLevel`",
    ),
    (
        "proxy.adminPort",
        "Port of Envoy's admin interface, where it is not that of ProxyConfig",
        "`proxyAdminPort`",
    ),
    (
        "proxy.concurrency",
        "Worker threads of Envoy, where they are not those of ProxyConfig; 0 for one a core",
        "`ISTIO_CPU_LIMIT`, `concurrency`",
    ),
    (
        "proxy.terminationDrainDuration",
        "How long Envoy serves what it has when it is stopped, where that is not of ProxyConfig",
        "`terminationDrainDuration`",
    ),
    ("proxy.extraArgs", "Further arguments of Envoy", ""),
    (
        "proxy.secretDirectories",
        "Directories below which certificate and key files that the mesh's configuration names (`caCertificates`, `clientCertificate`, `privateKey`, `serverCertificate`) are served to Envoy, if its user may read them",
        "",
    ),
    (
        "capture.mode",
        "Whether and by what traffic is captured; `auto` is nftables where `nft` is installed, else iptables. With a `--root` of its own the default is `none`",
        "",
    ),
    (
        "capture.interception",
        "How inbound connections reach Envoy",
        "`ISTIO_INBOUND_INTERCEPTION_MODE`",
    ),
    ("capture.inboundPorts", "Inbound ports that go through Envoy", "`ISTIO_INBOUND_PORTS`"),
    (
        "capture.excludeInboundPorts",
        "Inbound ports that do not, besides SSH's and our own, which never do",
        "`ISTIO_LOCAL_EXCLUDE_PORTS`",
    ),
    (
        "capture.outboundRanges",
        "CIDRs of outbound connections that go through Envoy",
        "`ISTIO_SERVICE_CIDR`",
    ),
    ("capture.excludeOutboundRanges", "CIDRs of those that do not", "`ISTIO_SERVICE_EXCLUDE_CIDR`"),
    (
        "capture.includeOutboundPorts",
        "Outbound ports that go through Envoy wherever they lead",
        "`ISTIO_OUTBOUND_PORTS`",
    ),
    (
        "capture.excludeOutboundPorts",
        "Outbound ports that do not",
        "`ISTIO_LOCAL_OUTBOUND_PORTS_EXCLUDE`",
    ),
    (
        "capture.includeOutboundGroups",
        "Groups, by name or number, whose outbound connections are captured",
        "`ISTIO_OUTBOUND_OWNER_GROUPS`",
    ),
    (
        "capture.excludeOutboundGroups",
        "Groups whose outbound connections are not",
        "`ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE`",
    ),
    ("capture.excludeInterfaces", "Interfaces that are left alone", "`ISTIO_EXCLUDE_INTERFACES`"),
    (
        "capture.bridges",
        "Bridges of containers and guests, whose traffic is not inbound; never the machine's own uplink",
        "",
    ),
    (
        "capture.guestInterfaces",
        "Interfaces whose traffic counts as outbound",
        "`KUBE_VIRT_INTERFACES`",
    ),
    (
        "capture.loopbackRange",
        "IPv4 loopback range that is left alone",
        "`ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR`",
    ),
    (
        "capture.ipv6",
        "What becomes of IPv6, link-local addresses included: `redirect` sends it through Envoy, \
         `reject` refuses inbound connections and lets outbound ones pass without the mesh, `leave` \
         lets both pass without any policy; `auto` is `redirect` while Envoy listens on IPv6, else \
         `reject`",
        "",
    ),
    ("capture.dropInvalid", "Drop packets that belong to no connection", "`INVALID_DROP`"),
    (
        "capture.failPolicy",
        "What becomes of the rules when the agent stops in order, or Envoy is away for 30 s: `open` removes them, `closed` leaves them",
        "",
    ),
    (
        "dns.enabled",
        "Answer queries of applications, where traffic is captured",
        "`ISTIO_META_DNS_CAPTURE`",
    ),
    ("dns.port", "Where redirected queries arrive, on loopback", ""),
    (
        "dns.listen",
        "Further address, `IP:PORT`, for hosts that name the agent in `resolv.conf`",
        "`DNS_PROXY_ADDR`",
    ),
    (
        "dns.allowFrom",
        "Address ranges of other machines and containers that may ask at `dns.listen`; without any this \
         machine's own addresses only",
        "",
    ),
    (
        "dns.allQueries",
        "Capture queries to any resolver, and not only to the host's",
        "`CAPTURE_ALL_DNS`",
    ),
    (
        "dns.upstreams",
        "Resolvers for everything else; without them those of the host's `resolv.conf`",
        "",
    ),
    (
        "dns.domain",
        "Domain for short names of Kubernetes services; without one `NAMESPACE.svc.cluster.local`",
        "",
    ),
    (
        "health.probe",
        "Probe in the form of a WorkloadGroup: `httpGet`, `tcpSocket`, `exec` or `grpc`, with periods and thresholds; without one the WorkloadGroup's",
        "`spec.probe`, `readinessProbe`",
    ),
    (
        "health.host",
        "Where probes go that name no host; without one the machine's address",
        "`REWRITE_PROBE_LEGACY_LOCALHOST_DESTINATION`",
    ),
    ("status.address", "Where the status server listens", ""),
    ("status.port", "Its port; without one that of ProxyConfig", "`statusPort`"),
    ("status.metricsAccess", "Who may read metrics", "`METRICS_LOCALHOST_ACCESS_ONLY`"),
    ("status.access", "Who may see the status and its web page", ""),
    (
        "status.orders",
        "Who may `POST` to `/drain` and `/quitquitquit`: nobody, or processes of root that send `X-Vm-Agent-Order: 1`",
        "",
    ),
    ("status.proxyMetrics", "Append Envoy's metrics to ours", "`PILOT_AGENT_MERGE_ENVOY_STATS`"),
    (
        "status.applicationMetrics",
        "Page of the application's metrics, `http://…`, which is appended",
        "",
    ),
    ("log.format", "`text` or `json`", "`--log_as_json`"),
    ("log.level", "`error`, `warn`, `info`, `debug` or `trace`", "`--log_output_level`"),
];
