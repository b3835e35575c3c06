//! Any list of ports, ranges and interfaces that the settings accept: each rule is one line of
//! plain words, for every tool.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use vm_agent::capture::{
    Backend, Config, DnsCapture, Groups, Inbound, Interception, Interfaces, Ipv6, Outbound, Owner,
    Ports, ProxyPorts, Ranges, parse_interface, parse_ports, rendered,
};

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    inbound: &'a str,
    excluded: &'a str,
    ranges: Vec<&'a str>,
    interfaces: Vec<&'a str>,
    groups: Option<Vec<u32>>,
    resolvers: Option<Vec<std::net::IpAddr>>,
    ipv6: u8,
    tproxy: bool,
    drop_invalid: bool,
    delay_inbound: bool,
}

fuzz_target!(|input: Input<'_>| {
    let Ok(ports) = Ports::parse(input.inbound) else { return };
    let Ok(excluded) = parse_ports(input.excluded) else { return };
    let ranges: Vec<_> = input.ranges.iter().filter_map(|text| text.parse().ok()).collect();
    let names: Vec<_> = input.interfaces.iter().filter_map(|t| parse_interface(t).ok()).collect();
    let config = Config {
        backend: Backend::Nftables,
        interception: if input.tproxy { Interception::Tproxy } else { Interception::Redirect },
        owner: Owner { uid: 1337, gid: 1337 },
        proxy_ports: ProxyPorts::with_admin(15000),
        inbound: Inbound { ports, excluded: excluded.clone() },
        outbound: Outbound {
            ranges: if ranges.is_empty() { Ranges::All } else { Ranges::Only(ranges.clone()) },
            excluded_ranges: ranges,
            included_ports: excluded.clone(),
            excluded_ports: excluded,
            groups: input.groups.map_or(Groups::AllBut(vec![7]), Groups::Only),
        },
        interfaces: Interfaces { excluded: names.clone(), bridges: names.clone(), guests: names },
        dns: Some(DnsCapture { port: 15053, servers: input.resolvers }),
        loopback: "127.0.0.1/32".parse().unwrap(),
        ipv6: match input.ipv6 % 4 {
            0 => Ipv6::Absent,
            1 => Ipv6::Redirect,
            2 => Ipv6::Reject,
            _ => Ipv6::Leave,
        },
        drop_invalid: input.drop_invalid,
        delay_inbound: input.delay_inbound,
    };
    let (table, tables) = rendered(&config);
    assert_eq!(table.matches('{').count(), table.matches('}').count());
    for text in tables.iter().chain([&table]) {
        let plain =
            |letter: char| letter == '\n' || letter == '\t' || (' '..='~').contains(&letter);
        assert!(text.chars().all(plain));
        assert!(
            !text.contains(';')
                || text.matches(';').count() == text.matches("policy accept;").count() * 2
        );
    }
    for text in &tables {
        for line in text.lines() {
            assert!(
                ["*", ":", "-A ", "COMMIT"].iter().any(|start| line.starts_with(start)),
                "{line}"
            );
        }
    }
});
