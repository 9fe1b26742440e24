//! What the gateway is measured with: an upstream that answers at once, two bare proxies, a load that keeps its own time, and clients
//! that never finish.

use std::{env, future::Future, io, process::ExitCode};

use tokio::net::{TcpListener, TcpStream};

mod axum_proxy;
mod dribble;
mod load;
mod proxy;
mod upstream;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let arguments: Vec<_> = env::args().skip(1).collect();
    let outcome = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["upstream", listen] => upstream::serve(listen),
        ["proxy", listen, upstream] => proxy::serve(listen, upstream),
        ["axum-proxy", listen, upstream] => axum_proxy::serve(listen, upstream),
        ["load", target, path, body, rate, seconds, connections] => {
            load::put(target, path, body, [rate, seconds, connections])
        }
        ["dribble", target, path, connections, within, seconds] => {
            dribble::send(target, path, connections, [within, seconds])
        }
        _ => Err(io::Error::other(
            "upstream LISTEN, proxy LISTEN UPSTREAM, axum-proxy LISTEN UPSTREAM, load TARGET PATH BODY RATE SECONDS CONNECTIONS, \
             or dribble TARGET PATH CONNECTIONS WITHIN SECONDS",
        )),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

/// Serves each connection by a task of its own, all of them on this thread.
fn serve<F>(listen: &str, connection: impl Fn(TcpStream) -> F) -> io::Result<()>
where
    F: Future<Output: Send> + Send + 'static,
{
    runtime()?.block_on(async {
        let listener = TcpListener::bind(listen).await?;
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            // that a connection ends is its client's doing
            tokio::spawn(connection(stream));
        }
    })
}
