//! One exchange, the same for all: what is asked, what answers, and a caller who reads the answer to its end.

use std::{
    convert::Infallible,
    fmt,
    future::{Ready, ready},
    pin::pin,
    task::{Context, Poll},
};

use bytes::{Buf, Bytes};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, Uri, header};
use http_body::Body;
use http_body_util::{BodyExt, Full};
use tower::{Service, ServiceExt};

/// An upstream in memory: it answers at once, whatever is asked.
#[derive(Clone)]
pub(crate) struct Leaf {
    answer: Bytes,
}

impl Leaf {
    pub(crate) fn new() -> Self {
        let answer = r#"{"id":"gen-1763712000-AbCdEfGhIjKlMnOpQrSt","object":"chat.completion","created":1763712000,"model":"acme/swift-1","provider":"Acme","system_fingerprint":null,"choices":[{"index":0,"logprobs":null,"finish_reason":"stop","native_finish_reason":"stop","message":{"role":"assistant","content":"The quick brown fox jumps over the lazy dog, as it does in every test.","refusal":null,"reasoning":null}}],"usage":{"prompt_tokens":194,"completion_tokens":17,"total_tokens":211,"cost":0.00014725,"is_byok":false,"prompt_tokens_details":{"cached_tokens":0,"audio_tokens":0},"completion_tokens_details":{"reasoning_tokens":0}}}"#;
        Self { answer: Bytes::from(answer.to_owned()) }
    }
}

impl<B> Service<Request<B>> for Leaf {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<B>) -> Self::Future {
        let mut response = Response::new(Full::new(self.answer.clone()));
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        headers.insert(header::DATE, HeaderValue::from_static("Fri, 21 Nov 2025 08:00:00 GMT"));
        ready(Ok(response))
    }
}

/// What is asked: a chat of 1 KiB with eight headers.
#[derive(Clone)]
pub(crate) struct Asking {
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
}

impl Asking {
    pub(crate) fn new() -> Self {
        let (start, end) =
            (r#"{"model":"acme/swift-1","messages":[{"role":"user","content":""#, r#""}],"max_tokens":64}"#);
        let body = format!("{start}{}{end}", "words ".repeat(200).split_at(1024 - start.len() - end.len()).0);
        assert_eq!(body.len(), 1024);
        let headers = [
            ("host", "localhost:8080"),
            ("content-type", "application/json"),
            ("content-length", "1024"),
            ("accept", "application/json"),
            ("user-agent", "AsyncOpenAI/Python 1.109.1"),
            ("authorization", "Bearer token-of-the-caller"),
            ("x-stainless-lang", "python"),
            ("x-stainless-retry-count", "0"),
        ];
        let headers = headers.map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
        Self {
            uri: Uri::from_static("/v1/chat/completions"),
            headers: headers.into_iter().collect(),
            body: Bytes::from(body),
        }
    }

    fn request(&self) -> Request<Full<Bytes>> {
        let mut request =
            Request::post(self.uri.clone()).body(Full::new(self.body.clone())).expect("all parts are valid");
        *request.headers_mut() = self.headers.clone();
        request
    }
}

/// Asks once and reads the answer to its end.
pub(crate) async fn ask<S, ResB>(service: &mut S, asking: &Asking)
where
    S: Service<Request<Full<Bytes>>, Response = Response<ResB>, Error: fmt::Debug>,
    ResB: Body<Data = Bytes, Error: fmt::Debug>,
{
    let service = service.ready().await.expect("the service is ready");
    let response = service.call(asking.request()).await.expect("the leaf answers");
    assert!(response.status().is_success());
    let mut body = pin!(response.into_body());
    let mut length = 0;
    while let Some(frame) = body.frame().await {
        length += frame.expect("the body is whole").data_ref().map_or(0, Buf::remaining);
    }
    assert!(length > 500);
}
