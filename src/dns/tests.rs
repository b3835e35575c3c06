use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, SOA};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use proptest::prelude::*;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{mpsc, watch};

use super::exchange::{read_message, write_message};
use super::*;
use crate::base::clock;
use crate::base::tasks::Tasks;
use crate::proto::names::{self, LeftOut, Names};
use crate::proto::nds::{NameInfo, NameTable};

fn info(ips: &[&str], registry: &str, short: (&str, &str)) -> NameInfo {
    NameInfo {
        ips: ips.iter().map(|ip| (*ip).to_owned()).collect(),
        registry: registry.to_owned(),
        shortname: short.0.to_owned(),
        namespace: short.1.to_owned(),
        ..NameInfo::default()
    }
}

fn mesh() -> NameTable {
    let many: Vec<String> = (0..100).map(|n| format!("10.9.0.{n}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let table = [
        ("details.internal.com", info(&["240.1.2.3"], "External", ("", ""))),
        ("dual.internal.com", info(&["240.1.2.4", "2001:2::4"], "External", ("", ""))),
        ("*.wild.internal.com", info(&["240.1.2.5"], "External", ("", ""))),
        ("many.internal.com", info(&many, "External", ("", ""))),
        ("reviews.vms.svc.cluster.local", info(&["10.0.0.1"], "Kubernetes", ("reviews", "vms"))),
        ("web.shop.svc.cluster.local", info(&["10.0.0.2"], "Kubernetes", ("web", "shop"))),
    ];
    NameTable { table: table.map(|(name, info)| (name.to_owned(), info)).into() }
}

/// A table of which nothing is left out.
fn whole(table: NameTable) -> Names {
    Names { table, left_out: LeftOut::default() }
}

fn query(name: &str, kind: RecordType) -> Message {
    let mut message = Message::query();
    message.metadata.id = 7;
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

/// What the table alone says.
fn local(name: &str, kind: RecordType) -> Option<Message> {
    let table = Table::new(&mesh(), "vms.svc.cluster.local");
    let search = ["vms.svc.cluster.local", "corp.example"].map(str::to_owned);
    let packet = query(name, kind).to_vec().unwrap();
    match answer_packet(&table, &search, &packet, Transport::Udp) {
        Reply::Answer(bytes) => Some(Message::from_vec(&bytes).unwrap()),
        _ => None,
    }
}

fn addresses(message: &Message) -> Vec<String> {
    message.answers.iter().map(|record| record.data.to_string()).collect()
}

#[test]
fn a_name_of_the_mesh_has_its_addresses_and_no_others() {
    let answer = local("details.internal.com.", RecordType::A).unwrap();
    assert_eq!(addresses(&answer), ["240.1.2.3"]);
    assert!(answer.metadata.authoritative && answer.metadata.id == 7);
    assert_eq!(answer.answers[0].ttl, 30);
    let six = local("details.internal.com.", RecordType::AAAA).unwrap();
    assert_eq!((six.answers.len(), six.metadata.response_code), (0, ResponseCode::NoError));
    assert_eq!(addresses(&local("DUAL.Internal.com.", RecordType::AAAA).unwrap()), ["2001:2::4"]);
    assert!(local("details.internal.com.", RecordType::HTTPS).unwrap().answers.is_empty());
    assert!(local("details.internal.com.", RecordType::TXT).is_none());
    assert!(local("example.org.", RecordType::A).is_none());
}

#[test]
fn short_names_are_those_of_the_own_namespace_and_cluster() {
    for name in ["reviews.", "reviews.vms.", "reviews.vms.svc.", "reviews.vms.svc.cluster.local."] {
        assert_eq!(addresses(&local(name, RecordType::A).unwrap()), ["10.0.0.1"], "{name}");
    }
    assert_eq!(addresses(&local("web.shop.", RecordType::A).unwrap()), ["10.0.0.2"]);
    assert!(local("web.", RecordType::A).is_none());
}

#[test]
fn every_search_domain_leads_to_the_name_without_it() {
    for domain in ["vms.svc.cluster.local", "corp.example"] {
        let asked = format!("details.internal.com.{domain}.");
        let answer = local(&asked, RecordType::A).unwrap();
        assert_eq!(addresses(&answer), ["details.internal.com.", "240.1.2.3"]);
        assert_eq!(answer.answers[0].name.to_ascii(), asked);
    }
}

#[test]
fn a_wildcard_answers_for_what_is_below_it_with_the_name_that_was_asked() {
    let answer = local("a.b.wild.internal.com.", RecordType::A).unwrap();
    assert_eq!(answer.answers[0].name.to_ascii(), "a.b.wild.internal.com.");
    assert!(local("wild.internal.com.", RecordType::A).is_none());
}

#[test]
fn an_answer_that_is_too_large_for_a_datagram_says_so() {
    let cut = local("many.internal.com.", RecordType::A).unwrap();
    assert!(cut.metadata.truncation && cut.answers.len() < 100);
    let table = Table::new(&mesh(), "vms.svc.cluster.local");
    let mut large = query("many.internal.com.", RecordType::A);
    let mut edns = Edns::new();
    edns.set_max_payload(4096);
    large.set_edns(edns);
    let packet = large.to_vec().unwrap();
    let Reply::Answer(bytes) = answer_packet(&table, &[], &packet, Transport::Udp) else {
        panic!()
    };
    let answer = Message::from_vec(&bytes).unwrap();
    assert!(answer.answers.len() == 100 && answer.edns.is_some());
}

#[test]
fn what_is_no_query_gets_an_error_or_nothing() {
    let table = Table::default();
    let reply = |packet: &[u8]| answer_packet(&table, &[], packet, Transport::Udp);
    let code = |reply: Reply| match reply {
        Reply::Answer(bytes) => Some(Message::from_vec(&bytes).unwrap().metadata.response_code),
        _ => None,
    };
    assert_eq!(code(reply(&Message::query().to_vec().unwrap())), Some(ResponseCode::FormErr));
    assert_eq!(
        code(reply(&[0, 1, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 255])),
        Some(ResponseCode::FormErr)
    );
    assert_eq!(code(reply(&[1, 2, 3])), None);
    let answer = Message::new(1, MessageType::Response, OpCode::Query).to_vec().unwrap();
    assert_eq!(code(reply(&answer)), None);
    let update = Message::new(1, MessageType::Query, OpCode::Update).to_vec().unwrap();
    assert_eq!(code(reply(&update)), Some(ResponseCode::NotImp));
}

/// A resolver that answers as it is told, and tells what it was asked.
struct Resolver {
    address: SocketAddr,
    asked: mpsc::UnboundedReceiver<String>,
}

fn resolver(
    tasks: &Tasks,
    answer: impl Fn(&Message) -> Option<Message> + Send + Copy + 'static,
) -> Resolver {
    let (udp, tcp) = both_at_one_port();
    let address = udp.local_addr().unwrap();
    let (tell, asked) = mpsc::unbounded_channel();
    let told = tell.clone();
    tasks.spawn("resolver", async move {
        let mut buffer = [0; 4096];
        loop {
            let (size, from) = udp.recv_from(&mut buffer).await.unwrap();
            let query = Message::from_vec(&buffer[..size]).unwrap();
            tell.send(format!("udp {}", query.queries[0].name())).unwrap();
            if let Some(answer) = answer(&query) {
                udp.send_to(&answer.to_vec().unwrap(), from).await.unwrap();
            }
        }
    });
    tasks.spawn("resolver-streams", async move {
        loop {
            let (mut stream, _) = tcp.accept().await.unwrap();
            let query = Message::from_vec(&read_message(&mut stream).await.unwrap()).unwrap();
            told.send(format!("tcp {}", query.queries[0].name())).unwrap();
            if let Some(mut answer) = answer(&query) {
                answer.metadata.truncation = false;
                write_message(&mut stream, &answer.to_vec().unwrap()).await.unwrap();
            }
        }
    });
    Resolver { address, asked }
}

/// A port that is free for datagrams may be somebody's for streams. The ones that did not fit are
/// held until one does, so that none is offered twice.
fn both_at_one_port() -> (UdpSocket, TcpListener) {
    let mut unfit = Vec::new();
    let (udp, tcp) = loop {
        let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        match std::net::TcpListener::bind(udp.local_addr().unwrap()) {
            Ok(tcp) => break (udp, tcp),
            Err(error) => {
                assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
                unfit.push(udp);
            }
        }
    };
    udp.set_nonblocking(true).unwrap();
    tcp.set_nonblocking(true).unwrap();
    (UdpSocket::from_std(udp).unwrap(), TcpListener::from_std(tcp).unwrap())
}

fn reply_to(query: &Message, code: ResponseCode, ttl: Option<u32>) -> Message {
    let mut answer = Message::new(query.metadata.id, MessageType::Response, OpCode::Query);
    answer.metadata.response_code = code;
    answer.metadata.recursion_available = true;
    answer.add_query(query.queries[0].clone());
    if let Some(ttl) = ttl {
        let data = RData::A(A(Ipv4Addr::new(192, 0, 2, 9)));
        answer.add_answer(Record::from_rdata(query.queries[0].name().clone(), ttl, data));
    }
    answer
}

struct World {
    tasks: Tasks,
    names: watch::Sender<Option<Arc<Names>>>,
    handle: Handle,
    directory: tempfile::TempDir,
    address: SocketAddr,
}

impl World {
    async fn new(tasks: Tasks, upstreams: Upstreams, directory: tempfile::TempDir) -> Self {
        let doors = Doors { doors: vec![both_at_one_port()] };
        let address = doors.addresses()[0];
        let listen = vec![address];
        let config = Config {
            listen,
            allow_from: Vec::new(),
            upstreams,
            domain: "vms.svc.cluster.local".to_owned(),
            last_table: directory.path().join("names.pb"),
        };
        let (server, handle) = Server::new(config, doors, clock::system(), tasks.clone());
        let (names, table) = watch::channel(None);
        tasks.critical("dns", server.run(table));
        Self { tasks, names, handle, directory, address }
    }

    async fn with(resolvers: &[&Resolver], tasks: Tasks) -> Self {
        let servers = resolvers.iter().map(|resolver| resolver.address).collect();
        Self::new(tasks, Upstreams::Fixed(servers), tempfile::tempdir().unwrap()).await
    }

    async fn ask(&self, message: &Message) -> Message {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.send_to(&message.to_vec().unwrap(), self.address).await.unwrap();
        let mut buffer = [0; 4096];
        let size = socket.recv(&mut buffer).await.unwrap();
        Message::from_vec(&buffer[..size]).unwrap()
    }

    async fn name(&self, name: &str) -> Message {
        self.ask(&query(name, RecordType::A)).await
    }
}

#[tokio::test]
async fn public_names_work_before_the_first_table_and_mesh_names_after_it() {
    let tasks = Tasks::new().0;
    let mut world_wide =
        resolver(&tasks, |query| Some(reply_to(query, ResponseCode::NoError, Some(60))));
    let world = World::with(&[&world_wide], tasks).await;
    assert_eq!(addresses(&world.name("example.org.").await), ["192.0.2.9"]);
    assert_eq!(world_wide.asked.recv().await.unwrap(), "udp example.org.");
    let mut state = world.handle.watch();
    world.names.send_replace(Some(Arc::new(whole(mesh()))));
    state.wait_for(|state| state.names > 0).await.unwrap();
    assert_eq!(addresses(&world.name("details.internal.com.").await), ["240.1.2.3"]);
    let state = world.handle.snapshot();
    assert_eq!((state.queries, state.answered, state.forwarded), (2, 1, 1));
    assert!(world_wide.asked.try_recv().is_err());
}

#[tokio::test]
async fn an_incomplete_table_answers_what_it_has_and_is_a_condition_until_one_is_whole() {
    let tasks = Tasks::new().0;
    let well = resolver(&tasks, |query| Some(reply_to(query, ResponseCode::NoError, Some(1))));
    let world = World::with(&[&well], tasks).await;
    let mut state = world.handle.watch();
    let left_out = LeftOut { names: 7, addresses: 2 };
    world.names.send_replace(Some(Arc::new(Names { table: mesh(), left_out })));
    let trouble = state.wait_for(|state| state.names > 0).await.unwrap().trouble.clone();
    let trouble = trouble.expect("a condition");
    assert!(trouble.what.contains("7 names and 2 addresses"), "{trouble}");
    assert_eq!(addresses(&world.name("details.internal.com.").await), ["240.1.2.3"]);
    world.names.send_replace(Some(Arc::new(whole(mesh()))));
    state.wait_for(|state| state.trouble.as_ref() != Some(&trouble)).await.unwrap();
    assert_eq!(world.handle.snapshot().names, Table::new(&mesh(), "vms.svc.cluster.local").len());
}

#[test]
fn a_table_has_a_limit_of_names_and_counts_what_is_beyond_it() {
    let service = |n: usize| {
        let mut service = info(&["10.0.0.1"], "Kubernetes", (&format!("s{n:06}"), "vms"));
        service.alt_hosts = vec![format!("s{n:06}.other.example")];
        (format!("s{n:06}.vms.svc.cluster.local"), service)
    };
    let table = NameTable { table: (0..names::HOSTS).map(service).collect() };
    let made = Table::new(&table, "vms.svc.cluster.local");
    assert_eq!((made.len(), made.left_out().names), (4 * names::HOSTS, names::HOSTS));
    assert!(made.find("s100000", &[]).is_some(), "names of the first hundred thousand services");
    assert!(made.find("s199999.vms.svc.cluster.local", &[]).is_none());
}

#[tokio::test]
async fn the_last_table_answers_after_a_restart_without_a_control_plane() {
    let tasks = Tasks::new().0;
    let nobody = Upstreams::Fixed(Vec::new());
    let world = World::new(tasks, nobody.clone(), tempfile::tempdir().unwrap()).await;
    let mut state = world.handle.watch();
    world.names.send_replace(Some(Arc::new(whole(mesh()))));
    state.wait_for(|state| state.names > 0).await.unwrap();
    // The table is kept before the next one is looked at.
    world.name("details.internal.com.").await;
    let World { tasks, directory, .. } = world;
    assert!(tasks.finish(Duration::from_secs(10)).await);
    let world = World::new(Tasks::new().0, nobody, directory).await;
    assert!(world.handle.snapshot().from_disk);
    assert_eq!(addresses(&world.name("details.internal.com.").await), ["240.1.2.3"]);
    std::fs::write(world.directory.path().join("names.pb"), b"\xff\xff").unwrap();
    let World { tasks, directory, .. } = world;
    assert!(tasks.finish(Duration::from_secs(10)).await);
    let world = World::new(Tasks::new().0, Upstreams::Fixed(Vec::new()), directory).await;
    assert_eq!(world.handle.snapshot().names, 0);
}

#[tokio::test]
async fn streams_carry_several_queries_and_large_answers() {
    let tasks = Tasks::new().0;
    let world = World::with(&[], tasks).await;
    let mut state = world.handle.watch();
    world.names.send_replace(Some(Arc::new(whole(mesh()))));
    state.wait_for(|state| state.names > 0).await.unwrap();
    let mut stream = TcpStream::connect(world.address).await.unwrap();
    for _ in 0..3 {
        let packet = query("many.internal.com.", RecordType::A).to_vec().unwrap();
        write_message(&mut stream, &packet).await.unwrap();
        let answer = Message::from_vec(&read_message(&mut stream).await.unwrap()).unwrap();
        assert_eq!(answer.answers.len(), 100);
    }
}

#[tokio::test]
async fn a_resolver_that_cannot_say_is_not_the_last_one_that_is_asked() {
    let tasks = Tasks::new().0;
    let mut unsure = resolver(&tasks, |query| Some(reply_to(query, ResponseCode::ServFail, None)));
    let mut sure = resolver(&tasks, |query| Some(reply_to(query, ResponseCode::NXDomain, None)));
    let world = World::with(&[&unsure, &sure], tasks).await;
    let answer = world.name("no.example.").await;
    assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain);
    unsure.asked.recv().await.unwrap();
    sure.asked.recv().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_silent_resolver_is_asked_last_and_the_next_one_answers() {
    let tasks = Tasks::new().0;
    let mut silent = resolver(&tasks, |_| None);
    let well = resolver(&tasks, |query| Some(reply_to(query, ResponseCode::NoError, Some(1))));
    let world = World::with(&[&silent, &well], tasks).await;
    assert_eq!(addresses(&world.name("one.example.").await), ["192.0.2.9"]);
    assert_eq!(silent.asked.recv().await.unwrap(), "udp one.example.");
    // Our own probe finds it silent, each try for as long as an answer may take.
    for _ in 0..2 {
        assert_eq!(silent.asked.recv().await.unwrap(), "udp .");
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(addresses(&world.name("two.example.").await), ["192.0.2.9"]);
    while let Ok(asked) = silent.asked.try_recv() {
        assert_eq!(asked, "udp .", "it was silent a moment ago");
    }
}

/// A resolver that answers for everything but for names that somebody wants to be slow.
fn resolver_with_slow_names(tasks: &Tasks) -> Resolver {
    resolver(tasks, |query| {
        let is_slow = query.queries[0].name().to_ascii().contains("slow");
        (!is_slow).then(|| reply_to(query, ResponseCode::NoError, Some(1)))
    })
}

#[tokio::test(start_paused = true)]
async fn names_that_nobody_answers_for_are_no_silence_of_the_resolver() {
    let tasks = Tasks::new().0;
    let mut first = resolver_with_slow_names(&tasks);
    let other = resolver(&tasks, |query| Some(reply_to(query, ResponseCode::NXDomain, None)));
    let world = World::with(&[&first, &other], tasks).await;
    world.name("slow.example.").await;
    let only = World::with(&[&first], Tasks::new().0).await;
    let answer = only.name("slow.example.").await;
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
    while first.asked.recv().await.unwrap() != "udp ." {}
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(only.handle.snapshot().trouble, None, "the condition cannot be forged");
    assert_eq!(only.handle.snapshot().failures, 1);
    assert_eq!(addresses(&world.name("x.example.").await), ["192.0.2.9"], "still asked first");
}

// Time stands still while they are sent, so none of them is too old meanwhile.
#[tokio::test(start_paused = true)]
async fn slow_names_of_one_user_do_not_take_the_places_of_others() {
    // Each query that waits has a socket.
    let files = nix::sys::resource::Resource::RLIMIT_NOFILE;
    let (_, most) = nix::sys::resource::getrlimit(files).unwrap();
    nix::sys::resource::setrlimit(files, most, most).unwrap();
    let tasks = Tasks::new().0;
    let slow = resolver_with_slow_names(&tasks);
    let world = World::with(&[&slow], tasks).await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    for number in 0..1500 {
        let packet = query(&format!("slow{number}.example."), RecordType::A).to_vec().unwrap();
        socket.send_to(&packet, world.address).await.unwrap();
        tokio::task::yield_now().await;
    }
    assert_eq!(addresses(&world.name("x.example.").await), ["192.0.2.9"]);
    let state = world.handle.snapshot();
    assert!(state.dropped > 0, "{state:?}");
}

#[tokio::test]
async fn streams_that_are_held_open_do_not_keep_others_out() {
    let world = World::with(&[], Tasks::new().0).await;
    let mut state = world.handle.watch();
    world.names.send_replace(Some(Arc::new(whole(mesh()))));
    state.wait_for(|state| state.names > 0).await.unwrap();
    let mut held = Vec::new();
    for _ in 0..140 {
        held.push(TcpStream::connect(world.address).await.unwrap());
    }
    let mut stream = TcpStream::connect(world.address).await.unwrap();
    let packet = query("details.internal.com.", RecordType::A).to_vec().unwrap();
    write_message(&mut stream, &packet).await.unwrap();
    let answer = Message::from_vec(&read_message(&mut stream).await.unwrap()).unwrap();
    assert_eq!(addresses(&answer), ["240.1.2.3"]);
    assert!(read_message(&mut held[0]).await.is_err(), "the oldest one was closed for it");
}

#[test]
fn who_may_not_ask_is_refused_with_no_more_bytes_than_came() {
    let packet = query("details.internal.com.", RecordType::A).to_vec().unwrap();
    let bytes = answer::refused(&packet).unwrap();
    let answer = Message::from_vec(&bytes).unwrap();
    assert_eq!((answer.metadata.id, answer.metadata.response_code), (7, ResponseCode::Refused));
    assert!(bytes.len() <= packet.len() && answer.answers.is_empty());
    assert_eq!(answer::refused(&bytes), None, "an answer is not answered");
    assert_eq!(answer::refused(b"x"), None);
}

#[tokio::test]
async fn an_answer_that_was_cut_is_fetched_whole() {
    let tasks = Tasks::new().0;
    let mut cut = resolver(&tasks, |query| {
        let mut answer = reply_to(query, ResponseCode::NoError, Some(60));
        answer.metadata.truncation = true;
        Some(answer)
    });
    let world = World::with(&[&cut], tasks).await;
    let answer = world.name("large.example.").await;
    assert!(!answer.metadata.truncation && answer.answers.len() == 1);
    assert_eq!(cut.asked.recv().await.unwrap(), "udp large.example.");
    assert_eq!(cut.asked.recv().await.unwrap(), "tcp large.example.");
}

#[tokio::test]
async fn what_was_said_is_kept_for_a_short_time_and_nothing_too() {
    let tasks = Tasks::new().0;
    let mut said = resolver(&tasks, |query| {
        let name = query.queries[0].name().to_ascii();
        if name.starts_with("no.") {
            let mut answer = reply_to(query, ResponseCode::NXDomain, None);
            let soa = SOA::new(Name::root(), Name::root(), 1, 2, 3, 4, 60);
            answer.add_authority(Record::from_rdata(Name::root(), 60, RData::SOA(soa)));
            return Some(answer);
        }
        Some(reply_to(query, ResponseCode::NoError, Some(60)))
    });
    let world = World::with(&[&said], tasks).await;
    for name in ["yes.example.", "no.example."] {
        let first = world.name(name).await;
        let mut again = query(&name.to_uppercase(), RecordType::A);
        again.metadata.id = 99;
        let second = world.ask(&again).await;
        assert_eq!(second.metadata.id, 99);
        assert_eq!(second.metadata.response_code, first.metadata.response_code);
        assert_eq!(addresses(&second), addresses(&first));
        said.asked.recv().await.unwrap();
    }
    assert!(said.asked.try_recv().is_err());
    assert_eq!(world.handle.snapshot().cached, 2);
}

#[tokio::test]
async fn without_any_resolver_the_answer_is_an_error_and_the_reason_is_told() {
    let world = World::with(&[], Tasks::new().0).await;
    let answer = world.name("example.org.").await;
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
    assert!(world.handle.snapshot().trouble.is_some());
}

#[tokio::test(start_paused = true)]
async fn a_silence_is_a_condition_until_the_resolver_answers_our_own_probe() {
    static IS_WELL: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);
    let tasks = Tasks::new().0;
    let silent = resolver(&tasks, |query| {
        let is_well = IS_WELL.load(std::sync::atomic::Ordering::Relaxed);
        is_well.then(|| reply_to(query, ResponseCode::NoError, None))
    });
    let world = World::with(&[&silent], tasks).await;
    world.name("example.org.").await;
    let mut state = world.handle.watch();
    let found = state.wait_for(|state| state.trouble.is_some()).await.unwrap().clone();
    assert!(found.trouble.unwrap().what.contains("no resolver answers"));
    IS_WELL.store(true, std::sync::atomic::Ordering::Relaxed);
    state.wait_for(|state| state.trouble.is_none()).await.unwrap();
}

#[tokio::test]
async fn a_resolver_that_is_the_agent_itself_is_left_out_and_said() {
    let own: SocketAddr = "127.0.0.1:53".parse().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("resolv.conf");
    std::fs::write(&file, "nameserver 127.0.0.1\nnameserver 192.0.2.1\nsearch A.example. b\n")
        .unwrap();
    let resolvers = resolvers::Resolvers::new(Upstreams::ResolvConf(file), vec![own]);
    assert_eq!(resolvers.servers(), ["192.0.2.1:53".parse().unwrap()]);
    assert_eq!(resolvers.search(), ["a.example", "b"]);
    assert!(resolvers.problem().unwrap().contains("the agent itself"));
}

#[tokio::test(start_paused = true)]
async fn a_changed_resolver_file_is_read_anew() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("resolv.conf");
    let write =
        |text: &str| crate::base::fsio::replace(Path::new(&file), text.as_bytes(), 0o644).unwrap();
    write("nameserver 192.0.2.1\n");
    let mut resolvers = resolvers::Resolvers::new(Upstreams::ResolvConf(file.clone()), Vec::new());
    write("nameserver 192.0.2.2\n");
    assert!(!resolvers.refresh(), "it was looked at a moment ago");
    tokio::time::advance(Duration::from_secs(2)).await;
    assert!(resolvers.refresh());
    assert_eq!(resolvers.servers(), ["192.0.2.2:53".parse().unwrap()]);
    std::fs::remove_file(&file).unwrap();
    tokio::time::advance(Duration::from_secs(2)).await;
    resolvers.refresh();
    assert!(resolvers.problem().is_some());
    assert_eq!(resolvers.servers().len(), 1, "the ones before are better than none");
}

proptest! {
    #[test]
    fn any_bytes_get_an_answer_to_themselves_or_nothing(packet in prop::collection::vec(any::<u8>(), 0..600)) {
        let table = Table::new(&mesh(), "vms.svc.cluster.local");
        for transport in [Transport::Udp, Transport::Tcp] {
            if let Reply::Answer(bytes) = answer_packet(&table, &[], &packet, transport) {
                prop_assert_eq!(&bytes[..2], &packet[..2]);
            }
        }
    }

    #[test]
    fn every_name_of_any_table_is_found(names in prop::collection::btree_set("[a-z0-9-]{1,20}(\\.[a-z0-9-]{1,20}){0,4}", 1..20)) {
        let table = names.iter().map(|name| (name.clone(), info(&["10.0.0.1"], "External", ("", ""))));
        let table = Table::new(&NameTable { table: table.collect() }, "vms.svc.cluster.local");
        for name in &names {
            prop_assert!(table.find(name, &[]).is_some());
        }
    }
}
