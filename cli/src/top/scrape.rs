//! Asking one daemon for its metrics, within bounds of time and size.

use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::HOST;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::samples::Samples;
use super::target::Target;

/// How long a daemon may take for all of its answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// The most bytes of an answer. One of a node with 10,000 datasets has some 2 MiB.
const MAX_BYTES: usize = 16 << 20;

/// What it says now; why there is none, as a few words.
pub(crate) async fn scrape(target: &Target) -> Result<Samples, String> {
    match tokio::time::timeout(ANSWER_WITHIN, ask(target)).await {
        Ok(answered) => answered,
        Err(_) => Err(format!("no answer within {ANSWER_WITHIN:?}")),
    }
}

async fn ask(target: &Target) -> Result<Samples, String> {
    let stream = TcpStream::connect(&target.address).await;
    let stream = stream.map_err(|error| match error.kind() {
        std::io::ErrorKind::ConnectionRefused => "nobody listens there".to_owned(),
        _ => error.to_string(),
    })?;
    let words = |error: hyper::Error| error.to_string();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(words)?;
    // Ends with this call, however that ends.
    let mut driving = JoinSet::new();
    driving.spawn(connection);
    let request = Request::get(target.path()).header(HOST, &target.address);
    let request = request.body(Empty::<Bytes>::new());
    let request = request.map_err(|error| error.to_string())?;
    let response = sender.send_request(request).await.map_err(words)?;
    if response.status() != StatusCode::OK {
        return Err(format!("it answers {}", response.status()));
    }
    let body = Limited::new(response.into_body(), MAX_BYTES)
        .collect()
        .await;
    let body = body.map_err(|error| error.to_string())?.to_bytes();
    let text = std::str::from_utf8(&body).map_err(|error| error.to_string())?;
    Samples::parse(text).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    /// What comes of an answer of these bytes, or of none.
    async fn answered(answer: Option<Vec<u8>>) -> Result<Samples, String> {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listens");
        let address = listener.local_addr().expect("bound").to_string();
        let serving = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            let mut request = [0; 1024];
            let _ = stream.read(&mut request).await;
            match answer {
                // Whoever has enough hangs up.
                Some(answer) => drop(stream.write_all(&answer).await),
                None => std::future::pending().await,
            }
        });
        let said = scrape(&address.parse().expect("an address")).await;
        serving.abort();
        said
    }

    #[tokio::test]
    async fn a_daemon_is_heard() {
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 13\r\n\r\ntrackbed_a 1\n";
        let samples = answered(Some(answer.to_vec())).await.expect("heard");
        assert_eq!(samples.sum("trackbed_a"), Some(1.0));
    }

    #[tokio::test]
    async fn what_is_no_answer_is_told_in_words_and_ends() {
        let refused = |answer: &[u8]| answered(Some(answer.to_vec()));
        let said = refused(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n").await;
        assert!(said.unwrap_err().contains("404"));
        let said = refused(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\n<html>").await;
        assert!(said.unwrap_err().contains("line 1"));
        let said = refused(b"\xff\xfe\x00 not http\r\n\r\n").await;
        assert!(said.is_err());
        let mut endless = b"HTTP/1.1 200 OK\r\n\r\n".to_vec();
        endless.resize(MAX_BYTES + 4096, b'\n');
        let said = answered(Some(endless)).await;
        assert!(said.unwrap_err().contains("limit"));
        let said = answered(None).await;
        assert!(said.unwrap_err().contains("no answer"));
        let gone: Target = "127.0.0.1:1".parse().expect("an address");
        let said = scrape(&gone).await;
        assert!(said.unwrap_err().contains("nobody listens"));
    }
}
