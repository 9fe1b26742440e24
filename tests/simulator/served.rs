//! Over a real socket, so with real time; nothing here waits for a timer.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tower_openrouter::simulator::{Fault, Simulator, What, serve};

use crate::support::*;

async fn listening() -> (Simulator, SocketAddr) {
    let simulator = simulator(scenario());
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(serve(listener, simulator.clone()));
    (simulator, address)
}

async fn ask(simulator: &Simulator, address: SocketAddr, stream: bool) -> TcpStream {
    let mut body = chat_body(PAID);
    body["stream"] = stream.into();
    let body = body.to_string();
    let head = format!(
        "POST /api/v1/chat/completions HTTP/1.1\r\nHost: sim\r\nAuthorization: Bearer {}\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n",
        secret(simulator, "a1"),
        body.len()
    );
    let mut socket = TcpStream::connect(address).await.expect("a connection");
    socket.write_all(format!("{head}{body}").as_bytes()).await.expect("a sent request");
    socket
}

#[tokio::test]
async fn answers_travel_over_http() {
    let (simulator, address) = listening().await;
    for (stream, end) in [(false, "}"), (true, "data: [DONE]\n\n")] {
        let mut text = String::new();
        let mut socket = ask(&simulator, address, stream).await;
        socket.read_to_string(&mut text).await.expect("an answer");
        assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
        assert!(text.ends_with(&format!("{end}\r\n0\r\n\r\n")), "{text}");
    }
    assert_eq!(simulator.counts().finished, 2);
}

#[tokio::test]
async fn a_reset_aborts_the_connection() {
    let (simulator, address) = listening().await;
    simulator.inject(Fault::new(What::Reset)).expect("a valid fault");
    let mut socket = ask(&simulator, address, false).await;
    let error = socket.read_to_end(&mut Vec::new()).await.expect_err("a reset, not an end");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_cut_body_has_no_last_chunk() {
    let (simulator, address) = listening().await;
    simulator.inject(Fault::new(What::Cut { after_tokens: 3, reset: false, half: false })).expect("a valid fault");
    let mut text = String::new();
    let mut socket = ask(&simulator, address, true).await;
    socket.read_to_string(&mut text).await.expect("a quiet end");
    assert_eq!(text.matches("chat.completion.chunk").count(), 3, "{text}");
    assert!(!text.ends_with("0\r\n\r\n"));
}

#[tokio::test]
async fn a_client_that_hangs_up_is_counted_as_gone() {
    let (simulator, address) = listening().await;
    simulator.inject(Fault::new(What::Hang { after_tokens: 1 })).expect("a valid fault");
    let mut socket = ask(&simulator, address, true).await;
    let mut some = [0; 16];
    socket.read_exact(&mut some).await.expect("the beginning");
    drop(socket);
    while simulator.counts().abandoned == 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(simulator.counts().in_flight, 0);
}
