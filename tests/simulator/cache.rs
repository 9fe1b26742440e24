//! The response cache, for who asks for it.

use serde_json::Value;
use tokio::time::advance;
use tower_openrouter::simulator::{Fault, InBand, Simulator, What};

use crate::support::*;

/// A chat request that asks for the cache, with more headers.
async fn ask(simulator: &Simulator, label: &str, path: &str, body: &Value, more: &[(&'static str, &str)]) -> Answer {
    let mut request = post(simulator, label, path, body);
    request.headers_mut().insert("x-openrouter-cache", "true".parse().unwrap());
    for (name, value) in more {
        request.headers_mut().insert(*name, value.parse().unwrap());
    }
    call(simulator, request).await
}

fn status(answer: &Answer) -> &str {
    answer.header("x-openrouter-cache-status").unwrap_or("none")
}

#[tokio::test(start_paused = true)]
async fn the_same_request_of_the_same_key_is_answered_again_for_nothing() {
    let simulator = simulator(scenario());
    for (path, tokens) in
        [("chat/completions", "total_tokens"), ("messages", "output_tokens"), ("responses", "output_tokens")]
    {
        let mut body = chat_body(PAID);
        body["input"] = "Hello".into();
        let first = ask(&simulator, "a1", path, &body, &[]).await;
        assert_eq!((status(&first), first.header("x-openrouter-cache-ttl")), ("MISS", Some("300")));
        let spent = simulator.counts().keys["a1"].cost;
        advance(seconds(7)).await;
        let again = ask(&simulator, "a1", path, &body, &[]).await;
        assert_eq!((again.status, status(&again), again.header("x-openrouter-cache-age")), (200, "HIT", Some("7")));
        assert_eq!(again.header("x-openrouter-cache-source-id"), first.header("x-generation-id"));
        assert_ne!(again.header("x-generation-id"), first.header("x-generation-id"));
        let said = |answer: &Answer| match path {
            "chat/completions" => answer.json()["choices"][0]["message"]["content"].clone(),
            "messages" => answer.json()["content"][0]["text"].clone(),
            _ => answer.json()["output"][0]["content"][0]["text"].clone(),
        };
        assert_eq!(said(&again), said(&first));
        assert!(said(&first).as_str().is_some_and(|text| !text.is_empty()), "{path}");
        assert!(first.json()["usage"][tokens].as_u64().unwrap() > 0, "{path}");
        assert_eq!(
            (&again.json()["usage"][tokens], &again.json()["usage"]["cost"]),
            (&0.into(), &0.0.into()),
            "{path}"
        );
        assert_eq!(simulator.counts().keys["a1"].cost, spent);
    }
}

#[tokio::test(start_paused = true)]
async fn another_key_another_body_another_path_and_later_times_miss() {
    let simulator = simulator(scenario());
    let (body, mut longer) = (chat_body(PAID), chat_body(PAID));
    longer["max_tokens"] = 99.into();
    let chat = "chat/completions";
    ask(&simulator, "a1", chat, &body, &[("x-openrouter-cache-ttl", "60")]).await;
    assert_eq!(status(&ask(&simulator, "a2", chat, &body, &[]).await), "MISS", "of the same account, but another key");
    assert_eq!(status(&ask(&simulator, "a1", chat, &longer, &[]).await), "MISS");
    assert_eq!(status(&ask(&simulator, "a1", "messages", &body, &[]).await), "MISS");
    let unasked = call(&simulator, post(&simulator, "a1", chat, &body)).await;
    assert_eq!(status(&unasked), "none");
    assert!(unasked.json()["usage"]["cost"].as_f64().unwrap() > 0.0);
    advance(seconds(59)).await;
    assert_eq!(status(&ask(&simulator, "a1", chat, &body, &[]).await), "HIT");
    advance(seconds(1)).await;
    assert_eq!(status(&ask(&simulator, "a1", chat, &body, &[]).await), "MISS", "over after its own minute");
    let clear = [("x-openrouter-cache-clear", "true")];
    assert_eq!(status(&ask(&simulator, "a1", chat, &body, &clear).await), "MISS");
    assert_eq!(status(&ask(&simulator, "a1", chat, &body, &[]).await), "HIT", "of the answer to that");
}

#[tokio::test(start_paused = true)]
async fn only_whole_answers_are_kept_and_streams_are_told_as_streams() {
    let simulator = simulator(scenario());
    let mut body = chat_body(PAID);
    simulator.inject(Fault::new(What::ProviderFails { status: 502 }).times(1)).unwrap();
    assert_ne!(ask(&simulator, "a1", "chat/completions", &body, &[]).await.status, 200);
    let in_band = What::InBand { form: InBand::Standard, after_tokens: 0, code: 502 };
    simulator.inject(Fault::new(in_band).times(1)).unwrap();
    assert_eq!(status(&ask(&simulator, "a1", "chat/completions", &body, &[]).await), "MISS");
    assert_eq!(status(&ask(&simulator, "a1", "chat/completions", &body, &[]).await), "MISS", "an error is not kept");
    body["stream"] = true.into();
    let first = ask(&simulator, "a1", "chat/completions", &body, &[]).await;
    let again = ask(&simulator, "a1", "chat/completions", &body, &[]).await;
    assert_eq!((status(&first), status(&again)), ("MISS", "HIT"));
    let (first, again) = (events(&first.body), events(&again.body));
    assert_eq!(first.len(), again.len());
    assert_eq!(again.last().unwrap()["usage"]["total_tokens"], 0);
}
