//! A page of a machine, over plain HTTP.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// The body of a good answer.
pub(super) async fn fetch(address: SocketAddr, path: &str) -> io::Result<Bytes> {
    let late = |_| io::Error::from(io::ErrorKind::TimedOut);
    tokio::time::timeout(PATIENCE, ask(address, path)).await.map_err(late)?
}

async fn ask(address: SocketAddr, path: &str) -> io::Result<Bytes> {
    let stream = TcpStream::connect(address).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(io::Error::other)?;
    let request = Request::get(path)
        .header(header::HOST, address.to_string())
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(io::Error::other)?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(io::Error::other)?;
        if !response.status().is_success() {
            return Err(io::Error::other(format!("HTTP {}", response.status())));
        }
        let body = Limited::new(response.into_body(), BYTES);
        Ok(body.collect().await.map_err(io::Error::other)?.to_bytes())
    };
    let mut answer = std::pin::pin!(answer);
    tokio::select! {
        answer = &mut answer => answer,
        // What was read before the connection ended still counts.
        _ = connection => answer.await,
    }
}

/// Pages come from the same host.
const PATIENCE: Duration = Duration::from_millis(900);
/// Far more than an Envoy of a small mesh has to say.
const BYTES: usize = 16 * 1024 * 1024;
