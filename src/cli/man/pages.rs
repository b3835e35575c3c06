//! What the manual pages say beside `--help`.

use std::path::Path;

use crate::config::Paths;

/// A command line worth knowing.
pub(in crate::cli) struct Example {
    /// The page that shows it.
    pub(in crate::cli) page: &'static str,
    /// What it is good for.
    pub(in crate::cli) does: &'static str,
    /// The line.
    pub(in crate::cli) line: &'static str,
}

const fn example(page: &'static str, does: &'static str, line: &'static str) -> Example {
    Example { page, does, line }
}

/// What a command does beyond its one sentence, paragraph by paragraph.
pub(super) const DESCRIPTIONS: &[(&str, &str)] = &[
    (
        "vm-agent",
        "The daemon gets the machine a certificate for its service account and renews it for \
         life, registers the machine as a WorkloadEntry, starts Envoy, feeds and supervises it, \
         redirects the host's traffic through it, and answers the mesh's names. It takes the \
         place of pilot-agent, with an unmodified istiod. The other commands talk to the daemon, \
         or look at the machine without it.",
    ),
    (
        "vm-agent-join",
        "All checks come first: nothing on the host is changed unless they pass, and what was \
         written is undone when a step fails. Joining again with the same source changes \
         nothing; with a new one it replaces what is old. Where systemd runs the machine, the \
         service is enabled and started, and watched until the machine is ready.",
    ),
    (
        "vm-agent-join",
        "Ctrl-C before the machine is ready undoes the join as a failure does. A machine that \
         takes longer than --timeout is left to the service, which goes on trying.",
    ),
    (
        "vm-agent-run",
        "It needs the configuration that `vm-agent join` wrote. SIGHUP has it read that again; \
         SIGTERM and SIGINT stop it after the proxy is drained.",
    ),
    ("vm-agent-status", "What is wrong stands below the table, each with what to do."),
    (
        "vm-agent-status",
        "With --watch the table is drawn anew on a terminal whenever something changes. \
         Elsewhere each change is a line, or with --json a whole snapshot on one line. An agent \
         that is away is said, and waited for.",
    ),
    (
        "vm-agent-cert-rotate",
        "The old certificate serves until the new one is here, and goes on when there is none. \
         Certificates that come from files or a SPIFFE Workload API are renewed there.",
    ),
    (
        "vm-agent-cert-export",
        "What is written are copies, under the names that Istio's agent uses: key.pem, \
         cert-chain.pem and root-cert.pem. They come from the copy on disk, so that no agent has \
         to run. Nothing is written into a directory that belongs to somebody else or that others \
         can write.",
    ),
    (
        "vm-agent-leave",
        "The proxy is drained, the WorkloadEntry removed, the service stopped and disabled, the \
         redirect rules taken away, and keys, tokens and configuration are wiped. The package \
         stays, and so does what others have put into /etc/vm-agent.",
    ),
    (
        "vm-agent-doctor",
        "The checks go from the configuration to the data path, in the order in which one needs \
         the other, so that the first failure is the one to mend. It works without the daemon, \
         too, and before the machine has joined. The exit status tells what the first failure is \
         about.",
    ),
    (
        "vm-agent-bundle-create",
        "A bundle is one file with all that a machine needs to join: addresses, roots, settings \
         and a token. Whoever has it can join until it expires. In the cluster it makes the \
         service account where it is missing, the least rights, and an admission policy by which \
         a machine can write no WorkloadEntry but those of its own service account.",
    ),
    (
        "vm-agent-capture-remove",
        "The running agent puts them back within seconds; stop it first, or set capture.mode to \
         none.",
    ),
];

/// The agent's files, and what each is.
pub(super) fn files() -> Vec<(String, &'static str)> {
    let paths = Paths::new(Path::new("/"));
    let rows = [
        (paths.config_file(), "The configuration, which join writes. Everyone may read it."),
        (paths.root_cert(), "The root certificates of the mesh."),
        (paths.kube_ca(), "The root certificates of the Kubernetes API."),
        (
            paths.state_directory(),
            "What outlives a restart, for root alone: tokens, the last good identity, the last \
             name table, the journal of the redirect rules.",
        ),
        (
            paths.run_directory(),
            "What ends with the machine: sockets, the proxy's bootstrap, the lock.",
        ),
    ];
    rows.into_iter().map(|(path, meaning)| (path.display().to_string(), meaning)).collect()
}

/// Where the packages put the documents.
pub(super) const DOCUMENTS: &str = "/usr/share/doc/vm-agent";

/// Variables of the environment that we read.
pub(super) const ENVIRONMENT: [(&str, &str); 5] = [
    ("VM_AGENT_ROOT", "The same as --root."),
    (
        "VM_AGENT_SECTION_SETTING",
        "A setting: VM_AGENT_WORKLOAD_SERVICE_ACCOUNT is workload.serviceAccount. The value is \
         YAML. Flags win over the environment, which wins over the configuration file.",
    ),
    ("KUBECONFIG", "The kubeconfigs of bundle create, as kubectl reads them."),
    ("NO_COLOR", "Set to anything: no colours."),
    (
        "NOTIFY_SOCKET, WATCHDOG_USEC",
        "Set by systemd for run: where to say that it is ready and alive.",
    ),
];

/// In the order in which a page shows them.
pub(in crate::cli) const EXAMPLES: &[Example] = &[
    example(
        "vm-agent",
        "A machine joins with a bundle of the cluster's operator, and is looked at:",
        "vm-agent join details.yaml && vm-agent status",
    ),
    example("vm-agent-join", "With a bundle:", "vm-agent join details.yaml"),
    example(
        "vm-agent-join",
        "With a bundle from elsewhere, which is then on no disk:",
        "ssh operator@admin cat details.yaml | vm-agent join -",
    ),
    example(
        "vm-agent-join",
        "With the directory of istioctl, under another name and with a label:",
        "vm-agent join ./client --name vm1 --label version=v2",
    ),
    example(
        "vm-agent-join",
        "Without a service manager, as in a container or for a try:",
        "vm-agent join ./client --root /tmp/vm1 --foreground --capture none",
    ),
    example(
        "vm-agent-join",
        "What would be changed, without changing it:",
        "vm-agent join details.yaml --dry-run",
    ),
    example(
        "vm-agent-join",
        "For a program that shows the phases:",
        "vm-agent join details.yaml --json",
    ),
    example("vm-agent-run", "By hand, to see the log:", "vm-agent run -v"),
    example("vm-agent-status", "For a program:", "vm-agent status --json | jq .phase"),
    example("vm-agent-status", "As it changes:", "vm-agent status --watch"),
    example(
        "vm-agent-wait",
        "Before a program that needs the mesh:",
        "vm-agent wait --for ready --timeout 60s && exec my-service",
    ),
    example(
        "vm-agent-reload",
        "After an edit of the configuration:",
        "vm-agent config check && vm-agent reload",
    ),
    example("vm-agent-leave", "What would be undone:", "vm-agent leave --dry-run"),
    example("vm-agent-leave", "When the cluster is gone:", "vm-agent leave --force"),
    example("vm-agent-doctor", "When something is wrong:", "vm-agent doctor"),
    example(
        "vm-agent-bugreport",
        "For somebody who helps:",
        "vm-agent bugreport --output report.json",
    ),
    example(
        "vm-agent-bundle-create",
        "For the machines of the WorkloadGroup details in the namespace vms:",
        "vm-agent bundle create details -n vms -o details.yaml",
    ),
    example(
        "vm-agent-bundle-create",
        "What would be made in the cluster:",
        "vm-agent bundle create details -n vms --dry-run",
    ),
    example(
        "vm-agent-bundle-inspect",
        "How long it can still be used:",
        "vm-agent bundle inspect details.yaml",
    ),
    example(
        "vm-agent-capture-plan",
        "With the other tool:",
        "vm-agent capture plan --capture iptables",
    ),
    example(
        "vm-agent-capture-apply",
        "After somebody flushed the rules:",
        "vm-agent capture apply",
    ),
    example(
        "vm-agent-capture-remove",
        "When the machine must be reachable without its proxy:",
        "vm-agent capture remove",
    ),
    example("vm-agent-cert-show", "For a program:", "vm-agent cert show --json"),
    example(
        "vm-agent-cert-rotate",
        "After somebody may have seen the key:",
        "vm-agent cert rotate",
    ),
    example(
        "vm-agent-cert-export",
        "For a program that reads files:",
        "vm-agent cert export /etc/my-service/mesh",
    ),
    example(
        "vm-agent-config-check",
        "Before a reload, with one value tried:",
        "vm-agent config check --set identity.ttl=12h",
    ),
    example("vm-agent-config-show", "What counts, and from where:", "vm-agent config show"),
    example(
        "vm-agent-config-reference",
        "To read it as a page:",
        "vm-agent config reference | less",
    ),
    example(
        "vm-agent-proxy-restart",
        "After Envoy's binary was replaced:",
        "vm-agent proxy restart",
    ),
    example(
        "vm-agent-proxy-drain",
        "Before work on the application, and after it:",
        "vm-agent proxy drain && systemctl restart my-service && vm-agent proxy undrain",
    ),
    example("vm-agent-proxy-undrain", "When the work is done:", "vm-agent proxy undrain"),
    example("vm-agent-facts", "What templates can say here:", "vm-agent facts"),
    example(
        "vm-agent-completions",
        "For the shell that runs:",
        "vm-agent completions bash > ~/.local/share/bash-completion/completions/vm-agent",
    ),
    example("vm-agent-version", "For a bug report:", "vm-agent version"),
];
