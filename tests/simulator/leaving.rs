//! Callers that leave: who notices, and who pays (§13, item 20).

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use futures_util::poll;
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::advance;
use tower_openrouter::simulator::{Ending, InFlight, Scenario, Simulator, serve};

use crate::support::*;

/// Ten tokens, a dollar each; a second to accept, then one a second.
fn slow(cancel: bool) -> Scenario {
    let mut scenario = scenario();
    (scenario.reply.min_tokens, scenario.reply.max_tokens) = (10, 10);
    let endpoint = &mut scenario.endpoints[0];
    (endpoint.prompt_price, endpoint.completion_price) = (0.0, 1e6);
    (endpoint.accept_ms, endpoint.first_token_ms, endpoint.tokens_per_second) = (1_000.0, 1_000.0, 1.0);
    endpoint.cancel = cancel;
    scenario.accounts[0].credits = 1e6;
    scenario
}

fn cost(simulator: &Simulator) -> f64 {
    simulator.counts().keys["a1"].cost
}

#[tokio::test(start_paused = true)]
async fn who_leaves_before_the_head_pays_unless_a_stream_is_cancelled() {
    for (cancel, streamed, dollars) in
        [(true, true, 0.0), (false, true, 10.0), (true, false, 10.0), (false, false, 10.0)]
    {
        let simulator = simulator(slow(cancel));
        let mut body = chat_body(PAID);
        body["stream"] = streamed.into();
        let mut answer = Box::pin(send(&simulator, post(&simulator, "a1", "chat/completions", &body)));
        assert!(poll!(&mut answer).is_pending());
        advance(Duration::from_millis(500)).await;
        assert!(poll!(&mut answer).is_pending());
        drop(answer);
        assert_eq!(cost(&simulator), dollars, "cancel {cancel}, streamed {streamed}");
        let counts = simulator.counts();
        assert_eq!((counts.abandoned, counts.unanswered, counts.in_flight), (1, 1, 0));
        assert_eq!(simulator.log()[0].ending, Ending::Abandoned);
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_left_before_its_first_token_is_free_where_it_is_cancelled() {
    for (cancel, dollars) in [(true, 0.0), (false, 10.0)] {
        let simulator = simulator(slow(cancel));
        drop(stream(&simulator, "a1", PAID).await);
        assert_eq!(cost(&simulator), dollars, "cancel {cancel}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_nobody_hears_keeps_its_hold_until_it_is_written() {
    for (cancel, free_after) in [(true, 0), (false, 9)] {
        let mut scenario = slow(cancel);
        scenario.accounts[0].credits = 1e3;
        // room for one of them
        let rule = InFlight { fraction: 1.0, ceiling: 105.0, below_balance: 1e9, settle_s: 0.0, ..InFlight::default() };
        scenario.accounts[0].in_flight = Some(rule);
        scenario.endpoints[0].accept_ms = 0.0;
        scenario.endpoints[0].first_token_ms = 0.0;
        scenario.endpoints[0].tokens_per_second = 1.0;
        let simulator = simulator(scenario);
        let mut body = stream(&simulator, "a1", PAID).await.into_body();
        body.frame().await.expect("a frame").expect("no failure");
        drop(body);
        // the hold is what it cost by now; another one of a hundred tokens fits beside less than five dollars
        for second in 0..12 {
            let answer = stream(&simulator, "a2", PAID).await;
            assert_eq!(answer.status() == 200, second >= free_after, "cancel {cancel}, after {second} s");
            if answer.status() == 200 {
                break;
            }
            advance(seconds(1)).await;
        }
    }
}

async fn listening(scenario: Scenario) -> (Simulator, SocketAddr) {
    let simulator = simulator(scenario);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(serve(listener, simulator.clone()));
    (simulator, address)
}

#[tokio::test]
async fn over_http_a_closed_connection_is_noticed_before_the_head_and_in_the_stream() {
    for (accept_ms, reads, streamed) in [(60_000.0, false, true), (60_000.0, false, false), (0.0, true, true)] {
        let mut scenario = slow(false);
        scenario.endpoints[0].accept_ms = accept_ms;
        let (simulator, address) = listening(scenario).await;
        let mut body = chat_body(PAID);
        body["stream"] = streamed.into();
        let body = body.to_string();
        let head = format!(
            "POST /api/v1/chat/completions HTTP/1.1\r\nHost: sim\r\nAuthorization: Bearer {}\r\nContent-Length: {}\r\n\r\n",
            secret(&simulator, "a1"),
            body.len()
        );
        let mut socket = TcpStream::connect(address).await.expect("a connection");
        socket.write_all(format!("{head}{body}").as_bytes()).await.expect("a sent request");
        if reads {
            socket.read_exact(&mut [0; 16]).await.expect("the beginning");
        }
        while simulator.counts().in_flight == 0 {
            tokio::task::yield_now().await;
        }
        drop(socket);
        let left = Instant::now();
        while simulator.counts().abandoned == 0 {
            assert!(left.elapsed() < seconds(5), "nobody notices");
            tokio::task::yield_now().await;
        }
        assert_eq!((simulator.counts().in_flight, cost(&simulator)), (0, 10.0), "it works on, and is paid");
    }
}
