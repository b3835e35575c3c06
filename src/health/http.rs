//! A page as a probe.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, Response, Uri, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;

use super::connect::Way;
use super::{HttpProbe, danger};
use crate::base::printable::is_printable;

/// Asks for the page; 200 to 399 is good. A redirection within the host is followed, one to
/// another host is good by itself (as kubelet has it).
pub(super) async fn check(way: Way, probe: &HttpProbe) -> Result<(), String> {
    let mut path = probe.path.clone();
    for _ in 0..REDIRECTIONS {
        let (status, location, body) = ask(way, probe, &path).await.map_err(|e| e.to_string())?;
        let next = location.filter(|_| status.is_redirection());
        match next.and_then(|next| inside(probe, &next)) {
            Some(next) => path = next,
            None if status.is_success() || status.is_redirection() => return Ok(()),
            None => {
                let said = quoted(&body);
                let colon = if said.is_empty() { "" } else { ": " };
                return Err(format!("HTTP {}{colon}{said}", status.as_u16()));
            }
        }
    }
    Err(format!("more than {REDIRECTIONS} redirections"))
}

/// The path of a redirection that stays with this host and port.
fn inside(probe: &HttpProbe, next: &Uri) -> Option<String> {
    let path = next.path_and_query()?.as_str().to_owned();
    let Some(authority) = next.authority() else { return path.starts_with('/').then_some(path) };
    let scheme = if probe.tls { "https" } else { "http" };
    let usual = if probe.tls { 443 } else { 80 };
    let same = next.scheme_str() == Some(scheme)
        && authority.port_u16().unwrap_or(usual) == probe.port
        && probe.host.as_deref().is_none_or(|host| host == authority.host());
    same.then_some(path)
}

type Answer = (http::StatusCode, Option<Uri>, Bytes);

async fn ask(way: Way, probe: &HttpProbe, path: &str) -> io::Result<Answer> {
    let stream = way.connect(probe.host.as_deref(), probe.port).await?;
    if !probe.tls {
        return exchange(stream, probe, path, way).await;
    }
    let config = danger::unverified().map_err(io::Error::other)?;
    let name = match probe.host.clone().map(ServerName::try_from) {
        Some(Ok(name)) => name,
        _ => ServerName::from(way.target),
    };
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
    exchange(stream, probe, path, way).await
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    probe: &HttpProbe,
    path: &str,
    way: Way,
) -> io::Result<Answer> {
    let request = request(probe, path, way)?;
    let mut builder = hyper::client::conn::http1::Builder::new();
    builder.max_headers(HEADERS).max_buf_size(HEAD);
    let made = builder.handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = made.map_err(io::Error::other)?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(io::Error::other)?;
        read(response).await
    };
    let (mut answer, mut connection) = (std::pin::pin!(answer), std::pin::pin!(connection));
    tokio::select! {
        answer = &mut answer => answer,
        _ = &mut connection => answer.await,
    }
}

fn request(probe: &HttpProbe, path: &str, way: Way) -> io::Result<Request<Empty<Bytes>>> {
    let host = probe.host.clone().unwrap_or_else(|| way.target.to_string());
    let host = if host.contains(':') { format!("[{host}]") } else { host };
    let mut request = Request::get(path).body(Empty::new()).map_err(io::Error::other)?;
    let headers = request.headers_mut();
    let authority = format!("{host}:{}", probe.port);
    headers.insert(header::HOST, HeaderValue::from_str(&authority).map_err(io::Error::other)?);
    headers.insert(header::USER_AGENT, HeaderValue::from_static(USER_AGENT));
    headers.insert(header::ACCEPT, HeaderValue::from_static("*/*"));
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    for (name, value) in &probe.headers {
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(io::Error::other)?;
        headers.insert(name, HeaderValue::from_str(value).map_err(io::Error::other)?);
    }
    Ok(request)
}

/// The status, and the beginning of the body: a page without an end is as good as any.
async fn read(response: Response<Incoming>) -> io::Result<Answer> {
    let status = response.status();
    let location = response.headers().get(header::LOCATION);
    let location = location.and_then(|value| value.to_str().ok()?.parse().ok());
    if status.is_success() || status.is_redirection() {
        return Ok((status, location, Bytes::new()));
    }
    let body = Limited::new(response.into_body(), BODY).collect().await;
    Ok((status, location, body.map(|body| body.to_bytes()).unwrap_or_default()))
}

/// The beginning of what somebody said, fit for a message: one line of printable characters.
#[must_use]
pub fn quoted(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes.get(..bytes.len().min(BODY)).unwrap_or_default());
    let words = text.split(|letter: char| letter.is_whitespace() || !is_printable(letter));
    let words: Vec<&str> = words.filter(|word| !word.is_empty()).collect();
    words.join(" ").chars().take(QUOTE).collect()
}

const USER_AGENT: &str = concat!("vm-agent-probe/", env!("CARGO_PKG_VERSION"));
const REDIRECTIONS: usize = 10;
const HEADERS: usize = 100;
const HEAD: usize = 64 * 1024;
const BODY: usize = 4096;
const QUOTE: usize = 200;
