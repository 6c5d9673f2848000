//! How requests are sent, and what is taken of their answers.
//!
//! A part of an object comes with status 206 (RFC 9110, section 15.3.7). Some servers, `rclone serve s3`
//! among them, send the range that was asked for, name it in `Content-Range`, and say 200 all the same,
//! which `object_store` refuses. Which range came is looked at in any case; without the header it is all
//! of the object, and stays refused.
//!
//! A server may send us on to another path of its own, and nowhere else: where an origin is, and whom a
//! node asks in somebody's name, is for the origin's URL to say. What is not a part of an object is read
//! to memory by the library, so it is bounded here.

use std::time::Duration;

use async_trait::async_trait;
use http_body_util::{BodyExt, Limited};
use object_store::ClientOptions;
use object_store::client::{
    ClientConfigKey, HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest,
    HttpResponse, HttpResponseBody, HttpService,
};
use reqwest::StatusCode;
use reqwest::Url;
use reqwest::header::{CONTENT_RANGE, RANGE};
use reqwest::redirect::{Attempt, Policy};

use super::RequestBudget;

/// How often a server may send us on.
const REDIRECTS: usize = 5;
/// The longest answer that is no part of an object: some millions of paths.
pub(super) const MAX_ANSWER_BYTES: usize = 128 << 20;

/// Makes the clients that requests are sent with.
#[derive(Debug)]
pub(super) struct Connector(pub(super) RequestBudget);

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let said = |key| options.get_config_value(&key);
        let plain = said(ClientConfigKey::AllowHttp).is_some_and(|it| it == "true");
        // The library asks the services of a machine, which may not be there, for less long.
        let connect = said(ClientConfigKey::ConnectTimeout)
            .and_then(|text| text.strip_suffix('s')?.parse().ok())
            .map_or(self.0.connect, |seconds| {
                self.0.connect.min(Duration::from_secs(seconds))
            });
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("trackbed/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(connect)
            .timeout(self.0.request)
            .redirect(Policy::custom(follow))
            .https_only(!plain)
            .http1_only()
            // An encoded body would have another length than the object.
            .no_gzip()
            .no_brotli()
            .no_zstd()
            .no_deflate();
        if said(ClientConfigKey::NoSystemCertificates).is_some_and(|it| it == "true") {
            builder = builder.tls_certs_only([]);
        }
        if let Some(headers) = options.get_default_headers() {
            builder = builder.default_headers(headers.clone());
        }
        let client = builder
            .build()
            .map_err(|error| object_store::Error::Generic {
                store: "HTTP",
                source: Box::new(error),
            })?;
        Ok(HttpClient::new(Client(HttpClient::new(client))))
    }
}

/// Where a server sends us that we do not go.
#[derive(Debug, thiserror::Error)]
#[error(
    "the server sends requests on to {0}: name that in the origin's URL if it is the right place"
)]
struct SentAway(String);

fn follow(attempt: Attempt<'_>) -> reqwest::redirect::Action {
    let same = attempt
        .previous()
        .first()
        .is_some_and(|first| server_of(first) == server_of(attempt.url()));
    if same && attempt.previous().len() <= REDIRECTS {
        return attempt.follow();
    }
    let to = match same {
        true => "one path after another".to_owned(),
        false => server_of(attempt.url()),
    };
    attempt.error(SentAway(to))
}

fn server_of(url: &Url) -> String {
    url.origin().ascii_serialization()
}

#[derive(Debug)]
struct Client(HttpClient);

#[async_trait]
impl HttpService for Client {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let asked_for_a_part = request.headers().contains_key(RANGE);
        let mut answer = self.0.execute(request).await?;
        if asked_for_a_part
            && answer.status() == StatusCode::OK
            && answer.headers().contains_key(CONTENT_RANGE)
        {
            *answer.status_mut() = StatusCode::PARTIAL_CONTENT;
        }
        let is_a_part = answer.status() == StatusCode::PARTIAL_CONTENT;
        Ok(if is_a_part { answer } else { bounded(answer) })
    }
}

/// The answer, whose body is an error from where it becomes too long.
fn bounded(answer: HttpResponse) -> HttpResponse {
    answer.map(|body| {
        let body = Limited::new(body, MAX_ANSWER_BYTES).map_err(|error| {
            match error.downcast::<HttpError>() {
                Ok(own) => *own,
                Err(other) => HttpError::new_boxed(HttpErrorKind::Decode, other),
            }
        });
        HttpResponseBody::new(body)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::executor::block_on;
    use object_store::client::HttpRequestBody;
    use reqwest::header::HeaderValue;

    /// Says 200, and which range it sends if it is to.
    #[derive(Debug)]
    struct Server {
        names_range: bool,
    }

    #[async_trait]
    impl HttpService for Server {
        async fn call(&self, _: HttpRequest) -> Result<HttpResponse, HttpError> {
            let mut answer = HttpResponse::new(Vec::from(*b"0123456789").into());
            if self.names_range {
                let range = HeaderValue::from_static("bytes 0-9/100");
                answer.headers_mut().insert(CONTENT_RANGE, range);
            }
            Ok(answer)
        }
    }

    #[test]
    fn a_part_is_taken_for_one_where_the_server_says_which_it_is() {
        let status = |asks: bool, names_range| {
            let client = Client(HttpClient::new(Server { names_range }));
            let mut request = HttpRequest::new(HttpRequestBody::empty());
            if asks {
                let range = HeaderValue::from_static("bytes=0-9");
                request.headers_mut().insert(RANGE, range);
            }
            block_on(client.call(request)).expect("answered").status()
        };
        assert_eq!(status(true, true), StatusCode::PARTIAL_CONTENT);
        assert_eq!(status(true, false), StatusCode::OK);
        assert_eq!(status(false, true), StatusCode::OK);
    }
}
