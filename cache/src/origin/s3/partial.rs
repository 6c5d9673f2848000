//! Answers to requests for a range, as HTTP has them.
//!
//! Their status is 206 (RFC 9110, section 15.3.7). Some servers, `rclone serve s3` among them, send
//! the range that was asked for, name it in `Content-Range`, and say 200 all the same, which
//! `object_store` refuses. Which range came is looked at in any case; without the header it is all
//! of the object, and stays refused.

use async_trait::async_trait;
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpRequest, HttpResponse, HttpService, ReqwestConnector,
};
use reqwest::StatusCode;
use reqwest::header::{CONTENT_RANGE, RANGE};

/// Makes the clients that requests are sent with.
#[derive(Debug, Default)]
pub(super) struct Connector(ReqwestConnector);

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let client = self.0.connect(options)?;
        Ok(HttpClient::new(Client(client)))
    }
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
        Ok(answer)
    }
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
