//! The way to an upstream over TLS.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener},
    sync::{Arc, Mutex},
    thread,
};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, date_time_ymd};
use rustls::{
    ServerConfig, ServerConnection, Stream,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer},
};

use super::support::*;

/// A server with a certificate of its own; what it was told once TLS stood.
struct Server {
    address: SocketAddr,
    heard: Arc<Mutex<Vec<u8>>>,
    asked: Arc<Mutex<usize>>,
}

impl Server {
    fn start(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Self {
        let config =
            ServerConfig::builder_with_provider(ring::default_provider().into()).with_safe_default_protocol_versions();
        let config = Arc::new(config.unwrap().with_no_client_auth().with_single_cert(chain, key).unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (heard, asked) = <(Arc<Mutex<Vec<u8>>>, Arc<Mutex<usize>>)>::default();
        let (hears, asks) = (heard.clone(), asked.clone());
        thread::spawn(move || {
            for mut tcp in listener.incoming().map_while(Result::ok) {
                *asks.lock().unwrap() += 1;
                let mut tls = ServerConnection::new(config.clone()).unwrap();
                let mut buffer = [0; 4096];
                if let Ok(read @ 1..) = Stream::new(&mut tls, &mut tcp).read(&mut buffer) {
                    hears.lock().unwrap().extend_from_slice(&buffer[..read]);
                    let _ = Stream::new(&mut tls, &mut tcp).write_all(response("200 OK", "", "{}").as_bytes());
                }
            }
        });
        Self { address, heard, asked }
    }
}

/// A key and the certificate for `localhost` that an authority nobody knows signs, or for another name, or of a time gone by.
fn signed(name: &str, expired: bool) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let mut authority = CertificateParams::new([]).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
    let mut params = CertificateParams::new([name.to_owned()]).unwrap();
    if expired {
        (params.not_before, params.not_after) = (date_time_ymd(2019, 1, 1), date_time_ymd(2020, 1, 1));
    }
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, &authority).unwrap();
    (vec![certificate.into(), authority.der().clone()], PrivateKeyDer::try_from(key.serialize_der()).unwrap())
}

#[test]
fn r116_no_server_is_told_anything_whose_certificate_is_not_good() {
    let key = KeyPair::generate().unwrap();
    let own = CertificateParams::new(["localhost".to_owned()]).unwrap().self_signed(&key).unwrap();
    let own = (vec![own.into()], PrivateKeyDer::try_from(key.serialize_der()).unwrap());
    for (what, (chain, key)) in [
        ("self-signed", own),
        ("of an unknown authority", signed("localhost", false)),
        ("for another name", signed("openrouter.ai", false)),
        ("expired", signed("localhost", true)),
    ] {
        let server = Server::start(chain, key);
        for variables in [&[][..], &[("SSL_CERT_FILE", "/dev/null"), ("NODE_TLS_REJECT_UNAUTHORIZED", "0")]] {
            let upstream = format!("https://localhost:{}/api/v1", server.address.port());
            let variables = [&[("OPENROUTER_API_KEY", "sk-or-v1-one")], variables].concat();
            let gateway = Gateway::start(&["--upstream", &upstream, "--attempts", "1"], &variables);
            let reply = gateway.chat("");
            let reason = &reply.json()["error"]["metadata"]["reason"];
            assert_eq!((reply.status, reason), (502, &"connect".into()), "{what}: {reply:?}");
        }
        assert!(*server.asked.lock().unwrap() >= 2, "{what}: nobody came");
        assert!(server.heard.lock().unwrap().is_empty(), "{what}");
    }
}

#[test]
fn r116_proxies_named_in_the_environment_are_not_used() {
    let canary = TcpListener::bind("127.0.0.1:0").unwrap();
    canary.set_nonblocking(true).unwrap();
    let proxy = format!("http://{}", canary.local_addr().unwrap());
    let names = ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"];
    let mut variables: Vec<_> = names.iter().map(|name| (*name, &*proxy)).collect();
    variables.push(("OPENROUTER_API_KEY", "sk-or-v1-one"));
    let upstream = Upstream::fine();
    assert_eq!(Gateway::start(&["--upstream", &upstream.base()], &variables).chat("").status, 200);
    let nobody = "https://127.0.0.1:1/api/v1";
    assert_eq!(Gateway::start(&["--upstream", nobody, "--attempts", "1"], &variables).chat("").status, 502);
    assert!(canary.accept().is_err());
    assert_eq!(upstream.seen().len(), 1);
}
