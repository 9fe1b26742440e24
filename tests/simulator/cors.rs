//! What browsers are told.

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use tower_openrouter::simulator::Reason;

use crate::support::*;

#[tokio::test(start_paused = true)]
async fn a_browser_may_ask_from_anywhere_and_needs_no_key_to_ask_whether_it_may() {
    let simulator = simulator(scenario());
    let preflight = Request::options("/api/v1/chat/completions")
        .header("origin", "https://app.example")
        .header("access-control-request-method", "POST")
        .body(Full::<Bytes>::default())
        .unwrap();
    let answer = call(&simulator, preflight).await;
    assert_eq!((answer.status, &*answer.body), (204, &b""[..]));
    assert_eq!(answer.header("access-control-allow-origin"), Some("*"));
    let allowed = answer.header("access-control-allow-headers").unwrap().to_ascii_lowercase();
    assert!(allowed.contains("authorization") && allowed.contains("idempotency-key"), "{allowed}");
    assert!(!allowed.contains("x-openrouter-metadata"), "{allowed}");
    assert_eq!((simulator.counts().attempts, simulator.counts().lookups), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_page_may_read_the_answer_but_not_when_to_come_back() {
    let simulator = struck(tower_openrouter::simulator::What::Refuse { reason: Reason::InFlightBudget });
    let mut request = post(&simulator, "a1", "chat/completions", &chat_body(PAID));
    request.headers_mut().insert("origin", "https://app.example".parse().unwrap());
    let answer = call(&simulator, request).await;
    assert_eq!((answer.status, answer.header("access-control-allow-origin")), (402, Some("*")));
    assert!(answer.header("retry-after").is_some());
    assert_eq!(
        answer.header("access-control-expose-headers"),
        Some("X-Generation-Id,X-Provider-Name,request-id,cf-ray")
    );
    let plain = chat(&simulator, "a1", PAID).await;
    assert_eq!(plain.header("access-control-allow-origin"), None);
}
