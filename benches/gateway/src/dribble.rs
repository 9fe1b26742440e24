//! Clients that never finish: each sends the beginning of a head, or of a body, and then a byte a second. Who is closed comes
//! again.

use std::{
    cell::RefCell,
    io,
    rc::Rc,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::LocalSet,
    time::{sleep, sleep_until, timeout},
};

/// Between two bytes of one client.
const EVERY: Duration = Duration::from_secs(1);

/// How many connections were closed, and how long the longest one lasted.
#[derive(Default)]
struct Closed {
    count: u64,
    longest: Duration,
}

/// `within` is over when all of them have come, one after the other: all at once they would also be closed all at once.
pub(crate) fn send(target: &str, path: &str, count: &str, [within, seconds]: [&str; 2]) -> io::Result<()> {
    let (Ok(count), Ok(within), Ok(seconds)) = (count.parse::<u32>(), within.parse::<f64>(), seconds.parse::<f64>())
    else {
        return Err(io::Error::other("CONNECTIONS, WITHIN and SECONDS are numbers"));
    };
    let within = Duration::from_secs_f64(within);
    let head = format!("POST {path} HTTP/1.1\r\nhost: {target}\r\ncontent-type: application/json\r\nx-long: ");
    let body = format!("POST {path} HTTP/1.1\r\nhost: {target}\r\ncontent-length: 100000\r\n\r\n{{");
    let (beginnings, target) = (Rc::new([head, body]), Rc::<str>::from(target));
    let closed = Rc::<RefCell<Closed>>::default();
    let ends = Instant::now() + within + Duration::from_secs_f64(seconds);
    LocalSet::new().block_on(&crate::runtime()?, async {
        for number in 0..count {
            let (beginnings, target, closed) = (beginnings.clone(), target.clone(), closed.clone());
            tokio::task::spawn_local(async move {
                sleep(within * number / count).await;
                loop {
                    let begun = Instant::now();
                    // what was refused or reset is tried again, as soon as another would be
                    if client(&target, beginnings[number as usize % 2].as_bytes()).await.is_err() {
                        sleep(EVERY / 10).await;
                    }
                    let mut closed = closed.borrow_mut();
                    closed.count += 1;
                    closed.longest = closed.longest.max(begun.elapsed());
                }
            });
        }
        sleep(within).await;
        println!("open");
        sleep_until(ends.into()).await;
    });
    let closed = closed.borrow();
    println!("{} {}", closed.count, closed.longest.as_nanos());
    Ok(())
}

/// Dribbles until it is closed.
async fn client(target: &str, beginning: &[u8]) -> io::Result<()> {
    let mut stream = TcpStream::connect(target).await?;
    stream.set_nodelay(true)?;
    stream.write_all(beginning).await?;
    let mut answer = [0; 1024];
    loop {
        match timeout(EVERY, stream.read(&mut answer)).await {
            Err(_) => stream.write_all(b"x").await?,
            Ok(read) => {
                if read? == 0 {
                    return Ok(());
                }
            }
        }
    }
}
