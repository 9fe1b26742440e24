//! gRPC on both sides: a tonic service that protects itself, and a tonic client that balances over several credentials.
//!
//! A gRPC call is an HTTP 200 whatever became of it, so a layer that reads status codes sees nothing but success: a breaker
//! never opens, an account that is used up is asked again and again. With [`Grpc`] for their judge the same layers read
//! `grpc-status` where it stands, in the head or at the end of a stream, and how long to stay away
//! (`google.rpc.RetryInfo`). `server.rs` has the one side, `client.rs` the other; `chat.rs` is made from `chat.proto`.
//!
//! `cargo run --example tonic` runs both over loopback and needs nothing else.

use tonic::{Code, Request, Status, transport::Channel};
use tower::BoxError;
use tower_openrouter::{Snapshot, select::Pool};

#[allow(missing_docs, clippy::all, unreachable_pub)]
mod chat {
    include!("chat.rs");
}
mod client;
mod server;

use chat::{Prompt, chat_client::ChatClient};
use client::{Balanced, balanced, credentials};
use server::{Account, Model};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), BoxError> {
    let model = Model::default();
    let (address, server) = server::serve(model.clone()).await?;
    let channel = Channel::from_shared(format!("http://{address}"))?.connect().await?;

    println!("1. Several credentials, one client");
    for (streams, what) in [(false, "unary calls"), (true, "streams")] {
        // `small` has three answers left, `large` enough, and of `revoked` the service knows nothing
        *model.accounts() = [("small", 3), ("large", 100)].map(account).into();
        let pool = credentials(["small", "large", "revoked"])?;
        let mut client = balanced(channel.clone(), pool.clone());
        for _ in 0..12 {
            let text = if streams { stream(&mut client, "a b").await? } else { complete(&mut client, "a b").await? };
            assert_eq!(text, "A B");
        }
        // each was refused once, and then left alone for as long as it asked
        let accounts = model.accounts().clone();
        let counts = |name: &str| (accounts[name].served, accounts[name].refused);
        println!(
            "   12 {what}: (served, refused) {:?}",
            accounts.keys().map(|name| (name, counts(name))).collect::<Vec<_>>()
        );
        assert_eq!((counts("small"), counts("large"), counts("revoked")), ((3, 1), (9, 0), (0, 1)));
        assert_eq!(outcomes(&pool), ["complete 12", "invalid_key 1", "platform_limit 1"]);
    }

    println!("2. A stream that breaks after it has begun");
    let pool = credentials(["large"])?;
    let mut client = balanced(channel.clone(), pool.clone());
    let broken = stream(&mut client, "so far and no cut further").await.unwrap_err();
    println!("   the caller is told: {:?}, {}", broken.code(), broken.message());
    assert_eq!(broken.code(), Code::Unavailable);
    assert_eq!(outcomes(&pool), ["provider_unavailable 1"], "not repeated, since the caller has seen some of it");

    println!("3. Nobody is left");
    let mut client = balanced(channel.clone(), credentials(["small"])?);
    complete(&mut client, "hello").await.unwrap_err();
    let calls = model.calls();
    let refusal = complete(&mut client, "hello").await.unwrap_err();
    let pushback = refusal.metadata().get("grpc-retry-pushback-ms").map(|value| value.to_str()).transpose()?;
    println!("   {:?}, come back in {} ms: {}", refusal.code(), pushback.unwrap_or("?"), refusal.message());
    assert_eq!((refusal.code(), model.calls()), (Code::ResourceExhausted, calls), "by our own stack: nothing was sent");
    let millis: u64 = pushback.unwrap_or_default().parse()?;
    assert!((55_000..=66_000).contains(&millis), "as the service said, and a little jitter");

    println!("4. The service protects itself");
    // as a plain client sees it, with one credential
    let mut plain = ChatClient::new(channel);
    let request = |text: &str| {
        let mut request = Request::new(Prompt { text: text.into() });
        request.metadata_mut().insert("authorization", "Bearer large".parse().expect("it is ASCII"));
        request
    };
    let held = [plain.stream(request("go on …")).await?, plain.stream(request("and on …")).await?];
    let calls = model.calls();
    let third = plain.complete(request("hello")).await.unwrap_err();
    println!("   a third call beside two that run: {:?}, {}", third.code(), third.message());
    assert_eq!((third.code(), model.calls()), (Code::ResourceExhausted, calls), "the model never heard of it");
    drop(held);
    while server.figures().in_flight() > 0 {
        tokio::task::yield_now().await; // the permits are back when the server has seen the streams go
    }
    assert_eq!(plain.complete(request("hello")).await?.into_inner().text, "HELLO");
    for _ in 0..3 {
        assert_eq!(plain.complete(request("fail")).await.unwrap_err().code(), Code::Internal);
    }
    let calls = model.calls();
    let fourth = plain.complete(request("hello")).await.unwrap_err();
    println!("   after three failures in a row: {:?}, {}", fourth.code(), fourth.message());
    assert_eq!((fourth.code(), model.calls()), (Code::Unavailable, calls), "the breaker is open");
    println!("   what the server's monitor saw: {:?}", server.measures().outcomes);
    assert_eq!(server.measures().outcomes["refused"], 2);
    Ok(())
}

fn account((name, left): (&str, u32)) -> (String, Account) {
    (name.to_owned(), Account { left, ..Account::default() })
}

async fn complete(client: &mut Balanced, text: &str) -> Result<String, Status> {
    Ok(client.complete(Prompt { text: text.into() }).await?.into_inner().text)
}

async fn stream(client: &mut Balanced, text: &str) -> Result<String, Status> {
    let mut deltas = client.stream(Prompt { text: text.into() }).await?.into_inner();
    let mut words = Vec::new();
    while let Some(delta) = deltas.message().await? {
        words.push(delta.text);
    }
    Ok(words.join(" "))
}

/// How the attempts on the pool's credentials ended.
fn outcomes(pool: &Pool) -> Vec<String> {
    let total = Snapshot::of(&*pool.endpoints()).total;
    total.outcomes.iter().map(|(name, count)| format!("{name} {count}")).collect()
}
