use std::collections::BTreeSet;
use std::net::IpAddr;

use proptest::prelude::*;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::rule::Family;
use super::*;

pub(super) fn config() -> Config {
    Config {
        backend: Backend::Nftables,
        interception: Interception::Redirect,
        owner: Owner { uid: 1337, gid: 1338 },
        proxy_ports: ProxyPorts::with_admin(15000),
        inbound: Inbound { ports: Ports::All, excluded: BTreeSet::from([22, 15020]) },
        outbound: Outbound {
            ranges: Ranges::All,
            excluded_ranges: Vec::new(),
            included_ports: BTreeSet::new(),
            excluded_ports: BTreeSet::new(),
            groups: Groups::AllBut(Vec::new()),
        },
        interfaces: Interfaces { bridges: vec!["docker*".to_owned()], ..Interfaces::default() },
        dns: Some(DnsCapture { port: 15053, servers: Some(vec!["127.0.0.53".parse().unwrap()]) }),
        loopback: "127.0.0.1".parse().unwrap(),
        ipv6: Ipv6::Absent,
        drop_invalid: false,
        delay_inbound: false,
    }
}

/// The usual machine: one IPv4 address, systemd-resolved.
const USUAL: &str = r#"table inet vm_agent {
	chain raw_prerouting {
		type filter hook prerouting priority raw; policy accept;
		meta nfproto ipv6 return comment "no IPv6 here"
		udp sport 53 ip saddr 127.0.0.53 ct zone set 1 comment "answers of resolvers"
	}

	chain raw_output {
		type filter hook output priority raw; policy accept;
		meta nfproto ipv6 return comment "no IPv6 here"
		udp dport 53 meta skgid 1338 ct zone set 1 comment "queries of the agent"
		udp sport 15053 meta skgid 1338 ct zone set 2 comment "answers of the agent"
		udp dport 53 ip daddr 127.0.0.53 meta skgid != 1338 ct zone set 2 comment "queries of applications"
	}

	chain nat_prerouting {
		type nat hook prerouting priority dstnat + 5; policy accept;
		meta nfproto ipv6 return comment "no IPv6 here"
		iifname "docker*" return comment "of containers"
		tcp dport 15008 return comment "tunnels of the mesh"
		tcp dport 22 return comment "excluded port"
		tcp dport 15020 return comment "excluded port"
		fib daddr type local tcp flags syn redirect to :15006 comment "inbound"
	}

	chain nat_output {
		type nat hook output priority -95; policy accept;
		meta nfproto ipv6 return comment "no IPv6 here"
		oifname "lo" ip saddr 127.0.0.6 return comment "from the proxy to the application"
		oifname "lo" ip daddr != 127.0.0.1 tcp dport != { 53, 15008 } tcp flags syn meta skuid 1337 redirect to :15006 comment "of the proxy to its own machine"
		oifname "lo" tcp dport != 53 meta skuid != 1337 return comment "within the machine"
		meta skuid 1337 return comment "of the proxy"
		meta skgid 1338 return comment "of the agent"
		ip daddr 127.0.0.53 tcp dport 53 tcp flags syn redirect to :15053 comment "DNS"
		ip daddr 127.0.0.53 udp dport 53 redirect to :15053 comment "DNS"
		ip daddr 127.0.0.1 return comment "loopback"
		tcp flags syn redirect to :15001 comment "outbound"
	}

	chain filter_output {
		type filter hook output priority filter; policy accept;
		meta nfproto ipv6 return comment "no IPv6 here"
		oifname "lo" tcp dport 15000 meta skuid != 0 meta skuid != 1337 reject with tcp reset comment "admin port of the proxy"
		tcp sport 15001 tcp flags syn meta skuid != 1337 drop comment "only the proxy answers here"
		tcp sport 15006 tcp flags syn meta skuid != 1337 drop comment "only the proxy answers here"
	}
}
"#;

#[test]
fn the_usual_machine_gets_istios_rules_in_one_table() {
    assert_eq!(nft::table(&rules(&config())), USUAL);
}

/// The same rules for iptables.
const USUAL_IPTABLES: &str = "*filter
:VM_AGENT_FILTER_OUT - [0:0]
-I OUTPUT 1 -j VM_AGENT_FILTER_OUT
-A VM_AGENT_FILTER_OUT -o lo -p tcp -m tcp --dport 15000 -m owner ! --uid-owner 0 -m owner ! --uid-owner 1337 -j REJECT --reject-with tcp-reset
-A VM_AGENT_FILTER_OUT -p tcp -m tcp --sport 15001 -m tcp --tcp-flags SYN SYN -m owner ! --uid-owner 1337 -j DROP
-A VM_AGENT_FILTER_OUT -p tcp -m tcp --sport 15006 -m tcp --tcp-flags SYN SYN -m owner ! --uid-owner 1337 -j DROP
COMMIT
*nat
:VM_AGENT_NAT_IN - [0:0]
:VM_AGENT_NAT_OUT - [0:0]
-A PREROUTING -j VM_AGENT_NAT_IN
-A VM_AGENT_NAT_IN -i docker+ -j RETURN
-A VM_AGENT_NAT_IN -p tcp -m tcp --dport 15008 -j RETURN
-A VM_AGENT_NAT_IN -p tcp -m tcp --dport 22 -j RETURN
-A VM_AGENT_NAT_IN -p tcp -m tcp --dport 15020 -j RETURN
-A VM_AGENT_NAT_IN -m addrtype --dst-type LOCAL -p tcp -m tcp --tcp-flags SYN SYN -j REDIRECT --to-ports 15006
-A OUTPUT -j VM_AGENT_NAT_OUT
-A VM_AGENT_NAT_OUT -o lo -s 127.0.0.6 -j RETURN
-A VM_AGENT_NAT_OUT -o lo ! -d 127.0.0.1 -p tcp -m multiport ! --dports 15008 -m tcp --tcp-flags SYN SYN -m owner --uid-owner 1337 -j REDIRECT --to-ports 15006
-A VM_AGENT_NAT_OUT -o lo -m owner ! --uid-owner 1337 -j RETURN
-A VM_AGENT_NAT_OUT -m owner --uid-owner 1337 -j RETURN
-A VM_AGENT_NAT_OUT -m owner --gid-owner 1338 -j RETURN
-A VM_AGENT_NAT_OUT -d 127.0.0.1 -j RETURN
-A VM_AGENT_NAT_OUT -p tcp -m tcp --tcp-flags SYN SYN -j REDIRECT --to-ports 15001
COMMIT
";

#[test]
fn iptables_gets_the_same_rules_in_chains_of_our_own() {
    let rules = rules(&Config { dns: None, ipv6: Ipv6::Redirect, ..config() });
    assert_eq!(iptables::replacement(&rules, Family::V4, ""), USUAL_IPTABLES);
    let six = iptables::replacement(&rules, Family::V6, "");
    assert!(six.contains("-o lo -s ::6 -j RETURN") && !six.contains("127.0.0"), "{six}");
}

#[test]
fn rules_of_any_earlier_configuration_are_found_and_removed() {
    let saved = "*filter\n:INPUT ACCEPT [1:2]\n-A INPUT -p tcp -j ACCEPT\nCOMMIT\n*nat\n\
                 :OUTPUT ACCEPT [0:0]\n:VM_AGENT_OLD - [0:0]\n-A OUTPUT -j VM_AGENT_OLD\n\
                 -A OUTPUT -p udp -j ACCEPT\n-A VM_AGENT_OLD -j RETURN\nCOMMIT\n";
    let expected = "*nat\n-D OUTPUT -j VM_AGENT_OLD\n-F VM_AGENT_OLD\n-X VM_AGENT_OLD\nCOMMIT\n";
    assert_eq!(iptables::removal(saved), expected);
    assert!(
        iptables::replacement(&rules(&config()), Family::V4, saved).contains("-X VM_AGENT_OLD")
    );
    assert_eq!(iptables::removal("*nat\n:OUTPUT ACCEPT [0:0]\nCOMMIT\n"), "");
    let listed =
        "table ip nat {\n\tchain OUTPUT {\n\t\ttype nat hook output\n\t}\n}\ntable ip raw {\n}\n";
    assert_eq!(iptables::chains(listed), ["nat", "nat OUTPUT", "raw"]);
    assert!(iptables::is_bare("*nat\n:OUTPUT ACCEPT [0:0]\nCOMMIT\n", "nat OUTPUT"));
    assert!(!iptables::is_bare(saved, "nat OUTPUT"));
}

fn lines(config: &Config) -> Vec<String> {
    nft::table(&rules(config)).lines().map(|line| line.trim().to_owned()).collect()
}

fn position(lines: &[String], what: &str) -> usize {
    lines.iter().position(|line| line.starts_with(what)).unwrap_or_else(|| panic!("no {what}"))
}

#[test]
fn what_is_excluded_comes_before_what_is_captured() {
    let mut config = config();
    config.outbound.excluded_ranges = vec!["10.96.0.0/12".parse().unwrap()];
    config.outbound.included_ports = BTreeSet::from([8443]);
    config.outbound.excluded_ports = BTreeSet::from([25]);
    config.outbound.ranges = Ranges::Only(vec!["10.0.0.0/8".parse().unwrap()]);
    config.outbound.groups = Groups::Only(vec![5, 6]);
    config.interfaces.excluded = vec!["eth9".to_owned()];
    let lines = lines(&config);
    let order = [
        "oifname \"eth9\" return",
        "tcp dport 25 return",
        "udp dport 25 return",
        "meta skuid 1337 return",
        "meta skgid != 5 meta skgid != 6 return",
        "ip daddr 127.0.0.1 return",
        "ip daddr 10.96.0.0/12 return",
        "tcp dport 8443 tcp flags syn redirect to :15001",
        "ip daddr 10.0.0.0/8 tcp flags syn redirect to :15001",
    ];
    let found: Vec<usize> = order.iter().map(|what| position(&lines, what)).collect();
    assert!(found.is_sorted(), "{found:?} of {lines:#?}");
    assert!(!lines.iter().any(|line| line.starts_with("tcp flags syn redirect to :15001")));
}

#[test]
fn ipv6_has_rules_of_its_own_where_the_host_has_ipv6() {
    let lines = lines(&Config { ipv6: Ipv6::Redirect, dns: None, ..config() });
    assert!(!lines.iter().any(|line| line.contains("no IPv6")));
    position(&lines, "oifname \"lo\" ip6 saddr ::6 return");
    position(&lines, "ip6 daddr ::1 return");
    position(&lines, "ip6 daddr fe80::/10 return comment \"link-local\"");
    assert!(!lines.iter().any(|line| line.contains("chain filter_input")), "it is redirected");
}

#[test]
fn ipv6_without_a_listener_is_refused_inbound_and_passes_outbound() {
    for interception in [Interception::Redirect, Interception::Tproxy] {
        let mut config = Config { ipv6: Ipv6::Reject, interception, ..config() };
        config.inbound.ports = Ports::Only(BTreeSet::from([80]));
        config.dns =
            Some(DnsCapture { port: 15053, servers: Some(vec!["fd00::53".parse().unwrap()]) });
        let lines = lines(&config);
        let input: Vec<&str> =
            lines[position(&lines, "chain filter_input")..].iter().map(String::as_str).collect();
        let first = input.iter().find(|line| line.contains("reject")).unwrap();
        assert!(first.starts_with("tcp dport 80 tcp flags syn reject with tcp reset"), "{first}");
        let output = position(&lines, "chain nat_output");
        let dns = output + position(&lines[output..], "ip6 daddr fd00::53 udp dport 53 redirect");
        let end = output + position(&lines[output..], "meta nfproto ipv6 return");
        let outbound = output + position(&lines[output..], "tcp flags syn redirect to :15001");
        assert!(dns < end && end < outbound, "{lines:#?}");
        assert!(
            !lines.iter().any(|line| line.contains("ip6")
                && line.contains(":150")
                && !line.contains(":15053")),
            "{lines:#?}"
        );
    }
}

#[test]
fn a_transparent_connection_without_a_listener_is_refused() {
    let config = Config { interception: Interception::Tproxy, ..config() };
    let lines = lines(&config);
    let chain = position(&lines, "chain filter_input");
    let taken = position(&lines[chain..], "meta l4proto tcp meta mark 0x00000539 return");
    let refused = position(&lines[chain..], "tcp flags syn reject with tcp reset");
    assert!(position(&lines[chain..], "tcp flags ack return") < taken && taken < refused);
}

#[test]
fn new_connections_of_others_wait_for_the_services_and_those_within_the_machine_do_not() {
    let plain = lines(&config());
    assert!(!plain.iter().any(|line| line.contains("waits for its services")));
    for (interception, first) in [
        (Interception::Redirect, "tcp dport 15006 tcp flags syn"),
        (Interception::Tproxy, "tcp flags syn meta mark 0x00000539"),
    ] {
        let lines = lines(&Config { delay_inbound: true, interception, ..config() });
        let chain = position(&lines, "chain filter_input {");
        let dropped = position(&lines[chain..], &format!("{first} drop"));
        assert!(position(&lines[chain..], "iifname \"lo\" return") < dropped);
    }
}

#[test]
fn transparent_interception_marks_instead_of_redirecting_inbound() {
    let config = Config { interception: Interception::Tproxy, ..config() };
    let text = nft::table(&rules(&config));
    assert!(text.contains("tproxy ip to :15006 meta mark set 0x00000539 accept"), "{text}");
    assert!(!text.contains("chain nat_prerouting"), "{text}");
    let saved = iptables::replacement(&rules(&config), Family::V4, "");
    assert!(saved.contains("-j TPROXY --on-port 15006 --tproxy-mark 1337"), "{saved}");
}

#[test]
fn the_uplink_is_no_bridge_of_containers() {
    let named = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let interfaces = Interfaces { bridges: named(&["docker0", "br-*"]), ..Interfaces::default() };
    let with = |uplink| interfaces.clone().with_uplink(uplink).bridges;
    assert_eq!(with(Some("br-ex")), named(&["docker0"]));
    assert_eq!(with(Some("eth0")), named(&["docker0", "br-*"]));
}

#[test]
fn lists_say_what_is_wrong_in_them() {
    assert_eq!(Ports::parse("*"), Ok(Ports::All));
    assert_eq!(Ports::parse(" 80, 443,"), Ok(Ports::Only(BTreeSet::from([80, 443]))));
    assert_eq!(Ports::parse(""), Ok(Ports::Only(BTreeSet::new())));
    for (text, part) in [("80,http", "http"), ("0", "0"), ("65536", "65536"), ("80;81", "80;81")] {
        let error = Ports::parse(text).unwrap_err();
        assert!(error.contains(&format!("{part:?}")), "{error}");
    }
    assert_eq!("10.1.2.3/8".parse::<Cidr>().unwrap().to_string(), "10.0.0.0/8");
    assert_eq!("fd00::1".parse::<Cidr>().unwrap().to_string(), "fd00::1");
    assert_eq!("0.0.0.0/0".parse::<Cidr>().unwrap().to_string(), "0.0.0.0/0");
    for wrong in ["10.0.0.0/33", "10.0.0", "*", "::/129", "10.0.0.0/", "a/8"] {
        assert!(wrong.parse::<Cidr>().is_err(), "{wrong}");
    }
    for wrong in ["", "*", "eth0\"", "a b", "sixteen-letters-", "x;drop"] {
        assert!(parse_interface(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn ssh_is_found_wherever_it_listens() {
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("sshd_config");
    std::fs::create_dir(directory.path().join("sshd_config.d")).unwrap();
    std::fs::write(&config, "#Port 23\nPort 2222\nListenAddress 0.0.0.0:2200\n").unwrap();
    std::fs::write(directory.path().join("sshd_config.d/own.conf"), "port=2022\n").unwrap();
    let own: IpAddr = "10.0.0.2".parse().unwrap();
    let addresses = [("eth0".to_owned(), own)];
    let facts = host_facts(&addresses, Some(own), &config);
    assert_eq!(facts.ssh_ports, BTreeSet::from([22, 2022, 2200, 2222]));
    assert_eq!(facts.own_interface.as_deref(), Some("eth0"));
}

#[tokio::test]
async fn a_journal_of_another_boot_has_nothing_to_undo() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state/capture.json");
    let undo = vec![journal::Undo::Address { address: "::6/128".to_owned() }];
    let mut then = journal::Journal { boot: journal::boot(), undo, ..journal::Journal::default() };
    then.write(&path).unwrap();
    assert_eq!(journal::Journal::read(&path), Some(then.clone()));
    assert_eq!(Capture::new(path.clone()).look().await.unwrap(), Found::Broken);
    then.boot = "another".to_owned();
    then.write(&path).unwrap();
    assert_eq!(journal::Journal::read(&path), None);
    assert_eq!(Capture::new(path).look().await.unwrap(), Found::Absent);
}

/// A host on which exactly these rules stand, as far as the journal can tell: they left no trace but
/// an address, which is as missing as it was.
fn left_behind(config: &Config) -> (tempfile::TempDir, Capture) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state/capture.json");
    let undo = vec![journal::Undo::Address { address: "::6/128".to_owned() }];
    let (shown, rules) = (Some("-".to_owned()), Some(apply::described(config)));
    let journal = journal::Journal::default();
    journal::Journal { boot: journal::boot(), undo, shown, rules, ..journal }.write(&path).unwrap();
    (directory, Capture::new(path))
}

#[tokio::test]
async fn rules_stand_only_while_they_are_the_ones_that_are_wanted() {
    let (_root, capture) = left_behind(&config());
    assert!(capture.stands(&config()).await.unwrap());
    let mut other = config();
    other.inbound.excluded.insert(9);
    assert!(!capture.stands(&other).await.unwrap(), "another port");
    other = config();
    other.backend = Backend::Iptables(Flavour::Nft);
    assert!(!capture.stands(&other).await.unwrap(), "another tool");
    let closed = capture.clone().with_restore_at_boot(true);
    assert!(!closed.stands(&config()).await.unwrap(), "another fail policy");
    let nothing = tempfile::tempdir().unwrap();
    let nothing = Capture::new(nothing.path().join("capture.json"));
    assert!(!nothing.stands(&config()).await.unwrap());
}

#[tokio::test]
async fn rules_of_an_earlier_agent_go_on_before_the_proxy_is_ready() {
    let (_root, capture) = left_behind(&config());
    let (_proxy, is_up) = watch::channel(false);
    let (state, mut shown) = watch::channel(CaptureState::waiting(Backend::Nftables));
    let (policy, clock) = (FailPolicy::Open, crate::base::clock::system());
    let (kept, current) = (capture.clone(), config);
    let (delay, delayed) = (watch::channel(None).1, watch::Sender::new(false));
    let registered = None;
    let keeper =
        Keeper { capture, current, policy, registered, proxy: is_up, delay, delayed, state, clock };
    let stop = CancellationToken::new();
    let seen = async {
        let state = shown.wait_for(|state| state.phase == CapturePhase::Active).await.unwrap();
        assert_eq!(state.probed.as_deref(), Some("as an earlier agent left them"));
        stop.cancel();
    };
    tokio::join!(keeper.run(stop.clone()), seen);
    assert!(kept.stands(&config()).await.unwrap(), "they were left alone");
}

#[tokio::test]
async fn only_rules_of_a_closed_policy_are_restored_and_a_config_survives_the_journal() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("capture.json");
    let capture = Capture::new(path.clone());
    assert_eq!(capture.restore().await.unwrap(), Restored::Nothing);
    let mut config = config();
    config.inbound.ports = Ports::Only(BTreeSet::from([80]));
    config.outbound.ranges = Ranges::Only(vec!["10.0.0.0/8".parse().unwrap()]);
    let journal = journal::Journal { config: Some(config.clone()), ..journal::Journal::default() };
    journal.write(&path).unwrap();
    assert_eq!(capture.restore().await.unwrap(), Restored::Nothing, "it was open");
    assert_eq!(capture.last_config(), Some(config));
    std::fs::write(&path, r#"{"boot": "x", "undo": [], "shown": null}"#).unwrap();
    assert_eq!(capture.last_config(), None, "of an older agent");
}

fn ranges() -> impl Strategy<Value = Vec<Cidr>> {
    let four = (any::<u32>(), 0..=32_u8)
        .prop_map(|(ip, p)| format!("{}/{p}", std::net::Ipv4Addr::from(ip)));
    let six = (any::<u128>(), 0..=128_u8)
        .prop_map(|(ip, p)| format!("{}/{p}", std::net::Ipv6Addr::from(ip)));
    prop::collection::vec(prop_oneof![four, six].prop_map(|text| text.parse().unwrap()), 0..4)
}

proptest! {
    #[test]
    fn any_configuration_gives_whole_lines_for_both_tools(
        ports in prop::collection::btree_set(1..=u16::MAX, 0..5),
        only in ranges(),
        excluded in ranges(),
        ipv6 in prop::sample::select(vec![Ipv6::Absent, Ipv6::Redirect, Ipv6::Reject, Ipv6::Leave]),
        tproxy: bool,
    ) {
        let mut config = config();
        config.ipv6 = ipv6;
        config.inbound.ports = Ports::Only(ports);
        config.outbound.ranges = Ranges::Only(only);
        config.outbound.excluded_ranges = excluded;
        config.interception = if tproxy { Interception::Tproxy } else { Interception::Redirect };
        let rules = rules(&config);
        let is_off = matches!(ipv6, Ipv6::Absent | Ipv6::Leave);
        let at_all = |rule: &Rule| rule.family() == Some(Family::V6) && rule.action != Action::Return;
        prop_assert!(!is_off || !rules.iter().any(at_all));
        let table = nft::table(&rules);
        let whole = |line: &&str| line.contains("comment \"");
        prop_assert_eq!(table.lines().filter(whole).count(), rules.len());
        for family in [Family::V4, Family::V6] {
            let text = iptables::replacement(&rules, family, "");
            prop_assert_eq!(text.matches("COMMIT").count(), text.matches('*').count());
            let removed = iptables::removal(&text);
            prop_assert_eq!(removed.matches("-X ").count(), text.matches("\n:VM_AGENT_").count());
        }
    }
}

#[test]
fn a_part_of_the_kernel_that_is_missing_is_named_with_its_module() {
    for (said, module) in [
        (
            "iptables-restore v1.8.9: can't initialize iptables table `nat': Table does not exist",
            "iptable_nat",
        ),
        ("Couldn't load match `owner':No such file or directory", "xt_owner"),
        ("Couldn't load target `TPROXY':No such file or directory", "xt_TPROXY"),
    ] {
        assert_eq!(diagnose::lacking_iptables(said).map(|(_, module)| module), Some(module));
    }
    assert_eq!(diagnose::lacking_iptables("line 7 failed"), None);
}

#[tokio::test]
async fn a_refusal_that_is_about_rights_says_who_may() {
    let said = "Operation not permitted (you must be root)".to_owned();
    let failed = ToolError::Failed { command: "nft -f -".to_owned(), said };
    let error = diagnose::explain(failed, "", true).await;
    assert!(error.to_string().contains("no right"), "{error}");
    assert!(error.hint().unwrap().contains("root"));
}
