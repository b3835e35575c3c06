//! The metrics of others, appended to ours as they come: nothing is kept, whatever their size.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use futures_util::stream::{self, StreamExt};
use http::{Request, Uri, header};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

/// Whose metrics are shown beside ours.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// Envoy's page.
    pub proxy: Option<Uri>,
    /// The application's page.
    pub application: Option<Uri>,
}

/// How often pages were asked for, and how often one of the others failed.
#[derive(Debug, Default)]
pub(super) struct Scrapes {
    pub(super) total: AtomicU64,
    pub(super) proxy_failures: AtomicU64,
    pub(super) application_failures: AtomicU64,
}

/// Our page, then the others' pages, with at most `limit` for all of them. A page that fails ends
/// where it failed.
pub(super) fn merged(
    own: String,
    sources: &Sources,
    query: Option<&str>,
    limit: Duration,
    scrapes: std::sync::Arc<Scrapes>,
) -> Body {
    scrapes.total.fetch_add(1, Ordering::Relaxed);
    let deadline = Instant::now() + limit;
    let query = query.map(str::to_owned);
    let others =
        [(Whose::Proxy, sources.proxy.clone()), (Whose::Application, sources.application.clone())];
    let others = others.into_iter().filter_map(|(whose, uri)| Some((whose, uri?)));
    let others = stream::iter(others).flat_map(move |(whose, uri)| {
        let query = query.clone().filter(|_| whose == Whose::Proxy);
        page(whose, uri, query, deadline, scrapes.clone())
    });
    let own = stream::once(async move { Ok::<_, Infallible>(Bytes::from(own)) });
    Body::from_stream(own.chain(others))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whose {
    Application,
    Proxy,
}

/// One page as a stream. It never fails towards the one who reads: what came so far is good.
fn page(
    whose: Whose,
    uri: Uri,
    query: Option<String>,
    deadline: Instant,
    scrapes: std::sync::Arc<Scrapes>,
) -> impl stream::Stream<Item = Result<Bytes, Infallible>> + Send {
    let start = State::Ask { uri, query };
    stream::unfold((start, b'\n'), move |(state, last)| {
        let scrapes = scrapes.clone();
        async move {
            let step = timeout_at(deadline, step(state)).await;
            let step = step.unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut)));
            match step {
                Ok(Some((bytes, open))) => {
                    let last = bytes.last().copied().unwrap_or(last);
                    Some((Ok(bytes), (State::Read(open), last)))
                }
                // A page that ends within a line must not run into the next one.
                Ok(None) if last != b'\n' => {
                    Some((Ok(Bytes::from_static(b"\n")), (State::End, b'\n')))
                }
                Ok(None) => None,
                Err(error) => {
                    tracing::debug!(%error, ?whose, "Metrics could not be read.");
                    let counter = match whose {
                        Whose::Application => &scrapes.application_failures,
                        Whose::Proxy => &scrapes.proxy_failures,
                    };
                    counter.fetch_add(1, Ordering::Relaxed);
                    Some((Ok(Bytes::from_static(b"\n")), (State::End, b'\n')))
                }
            }
        }
    })
}

enum State {
    Ask { uri: Uri, query: Option<String> },
    Read(Open),
    End,
}

/// An answer that is being read.
struct Open {
    body: Incoming,
    connection: Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>,
    connected: bool,
    left: u64,
}

async fn step(state: State) -> io::Result<Option<(Bytes, Open)>> {
    match state {
        State::End => Ok(None),
        State::Ask { uri, query } => open(&uri, query.as_deref()).await?.next().await,
        State::Read(open) => open.next().await,
    }
}

async fn open(uri: &Uri, query: Option<&str>) -> io::Result<Open> {
    let host = uri.host().unwrap_or("127.0.0.1");
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let stream = TcpStream::connect((host, uri.port_u16().unwrap_or(80))).await?;
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(io::Error::other)?;
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let path = query.map_or_else(|| path.to_owned(), |query| format!("{path}?{query}"));
    let authority = uri.authority().map_or("localhost", |authority| authority.as_str());
    let request = Request::get(path)
        .header(header::HOST, authority)
        .header(header::ACCEPT, ACCEPT)
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(io::Error::other)?;
    let mut connection: Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>> =
        Box::pin(connection);
    let mut answer = std::pin::pin!(sender.send_request(request));
    // A short answer is whole when its connection ends: then the answer still counts.
    let (response, connected) = tokio::select! {
        response = &mut answer => (response, true),
        _ = &mut connection => (answer.await, false),
    };
    let response = response.map_err(io::Error::other)?;
    if !response.status().is_success() {
        return Err(io::Error::other(format!("HTTP {}", response.status())));
    }
    Ok(Open { body: response.into_body(), connection, connected, left: BYTES })
}

impl Open {
    async fn next(mut self) -> io::Result<Option<(Bytes, Self)>> {
        loop {
            let frame = tokio::select! {
                frame = self.body.frame() => frame,
                _ = &mut self.connection, if self.connected => {
                    self.connected = false;
                    continue;
                }
            };
            let Some(frame) = frame else { return Ok(None) };
            let Ok(bytes) = frame.map_err(io::Error::other)?.into_data() else { continue };
            let size = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
            let Some(left) = self.left.checked_sub(size) else {
                return Err(io::Error::other("it is too large"));
            };
            self.left = left;
            return Ok(Some((bytes, self)));
        }
    }
}

/// The form that pages can be appended in.
const ACCEPT: &str = "text/plain; version=0.0.4";
/// More than the page of a proxy with many thousand clusters; an endless page ends here.
const BYTES: u64 = 256 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// Serves one answer; gives the page's address and the request that it got.
    async fn serve(answer: &'static str) -> (Uri, tokio::task::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let uri = format!("http://{}/metrics", listener.local_addr().unwrap()).parse().unwrap();
        let served = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 4096];
            let read = stream.read(&mut request).await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
            String::from_utf8_lossy(&request[..read]).into_owned()
        });
        (uri, served)
    }

    async fn page_of(sources: Sources, query: Option<&str>) -> (String, Arc<Scrapes>) {
        let scrapes = Arc::new(Scrapes::default());
        let limit = Duration::from_secs(30);
        let body = merged("ours 1\n".to_owned(), &sources, query, limit, scrapes.clone());
        let bytes = body.collect().await.unwrap().to_bytes();
        (String::from_utf8_lossy(&bytes).into_owned(), scrapes)
    }

    #[tokio::test]
    async fn the_pages_follow_each_other_each_from_the_beginning_of_a_line() {
        let (proxy, asked) = serve("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nenvoy 2 \n").await;
        let (application, _) = serve("HTTP/1.1 200 OK\r\n\r\napp 3").await;
        let sources = Sources { proxy: Some(proxy), application: Some(application) };
        let (page, scrapes) = page_of(sources, Some("usedonly")).await;
        assert_eq!(page, "ours 1\nenvoy 2 \napp 3\n");
        assert_eq!(scrapes.total.load(Ordering::Relaxed), 1);
        assert!(asked.await.unwrap().starts_with("GET /metrics?usedonly HTTP/1.1"));
    }

    #[tokio::test]
    async fn a_page_that_fails_is_counted_and_the_others_are_shown() {
        let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let proxy = Some(format!("http://{nobody}/").parse().unwrap());
        let (application, _) = serve("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\napp 3\n").await;
        let sources = Sources { proxy, application: Some(application) };
        let (page, scrapes) = page_of(sources, None).await;
        assert!(page.starts_with("ours 1\n") && page.ends_with("app 3\n"), "{page}");
        assert_eq!(scrapes.proxy_failures.load(Ordering::Relaxed), 1);
        let (refused, _) = serve("HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n").await;
        let sources = Sources { proxy: None, application: Some(refused) };
        assert_eq!(page_of(sources, None).await.1.application_failures.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn an_answer_that_is_cut_off_ends_with_a_whole_line() {
        let (proxy, _) = serve("HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nenvoy 2").await;
        let (page, scrapes) =
            page_of(Sources { proxy: Some(proxy), application: None }, None).await;
        assert_eq!(page, "ours 1\nenvoy 2\n");
        assert_eq!(scrapes.proxy_failures.load(Ordering::Relaxed), 1);
    }
}
