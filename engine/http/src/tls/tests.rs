//! Certificates made here, handshakes over real sockets, and pairs that must not be served.

use std::fs::write;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use hyper::body::Incoming;
use hyper::{Request, StatusCode};
use rcgen::{CertificateParams, KeyPair, date_time_ymd};
use rustls::pki_types::ServerName;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ClientConnection, RootCertStore, SupportedProtocolVersion};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_rustls::{TlsConnector, client};

use super::*;
use crate::limits::Limits;
use crate::peer::Peer;
use crate::reply::{Record, Reply, ReplyBody, with_type};
use crate::server::{Answer, Server, Settings};

/// A folder with a pair of files.
struct Folder {
    folder: TempDir,
    files: TlsFiles,
}

/// A certificate and its key.
struct Made {
    certificate: String,
    key: String,
    der: CertificateDer<'static>,
}

/// A certificate of its own for 127.0.0.1 and `a.example`, from 2020 until the end of a year.
fn made(until_year: i32) -> Made {
    let names = vec!["127.0.0.1".to_string(), "a.example".to_string()];
    let mut params = CertificateParams::new(names).unwrap();
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(until_year, 12, 31);
    let key = KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap();
    let der = certificate.der().clone();
    Made { certificate: certificate.pem(), key: key.serialize_pem(), der }
}

fn now() -> SystemTime {
    SystemTime::now()
}

impl Folder {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name| folder.path().join(name);
        let files = TlsFiles { certificate: path("cert.pem"), key: path("key.pem") };
        Folder { folder, files }
    }

    fn hold(&self, certificate: &str, key: &str) {
        write(&self.files.certificate, certificate).unwrap();
        write(&self.files.key, key).unwrap();
    }

    fn of(made: &Made) -> Self {
        let folder = Folder::new();
        folder.hold(&made.certificate, &made.key);
        folder
    }

    fn load(&self) -> Result<Arc<Tls>, TlsError> {
        Tls::load(self.files.clone(), now())
    }

    /// What is wrong with the files, without their folder.
    fn refused(&self) -> String {
        let error = self.load().err().unwrap();
        let source = std::error::Error::source(&error).map(|source| format!(": {source}"));
        let text = format!("{error}{}", source.unwrap_or_default());
        text.replace(&format!("{}/", self.folder.path().display()), "")
    }
}

/// Says who asked; at `/large` as often as makes 64 MiB, and tells when that is over.
struct Who {
    over: Arc<AtomicU32>,
}

struct OneRecord(Arc<AtomicU32>);

impl Record for OneRecord {
    fn complete(&mut self) {
        self.0.fetch_add(1, SeqCst);
    }
}

impl Drop for OneRecord {
    fn drop(&mut self) {
        self.0.fetch_add(10, SeqCst);
    }
}

/// Of the answer at `/large`.
const LARGE_FRAMES: usize = 1 << 10;
const LARGE_BYTES: usize = LARGE_FRAMES << 16;

impl Answer for Who {
    async fn answer(&self, request: Request<Incoming>, peer: Peer) -> Reply {
        if request.uri().path() == "/large" {
            let frames = stream::repeat(Bytes::from(vec![b'x'; 1 << 16])).take(LARGE_FRAMES);
            let record = Box::new(OneRecord(self.over.clone()));
            return Reply::new(ReplyBody::frames(frames.boxed()).recorded(record));
        }
        let text = format!("{:?} {} {}", request.version(), peer.address, peer.is_tls);
        with_type(StatusCode::OK, "text/plain", text)
    }
}

/// A listener, told to drain when the sender says so.
async fn listen(tls: &Arc<Tls>, handshake_timeout: Duration) -> (u16, watch::Sender<bool>) {
    let limits = Limits { handshake_timeout, ..Limits::default() };
    listen_with(tls, limits, Arc::default()).await
}

async fn listen_with(
    tls: &Arc<Tls>,
    limits: Limits,
    over: Arc<AtomicU32>,
) -> (u16, watch::Sender<bool>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (drain, draining) = watch::channel(false);
    let settings = Settings { limits, tls: Some(tls.clone()), ..Settings::default() };
    tokio::spawn(Server::new(Arc::new(Who { over }), settings, draining).run(listener));
    (port, drain)
}

const LONG: Duration = Duration::from_secs(600);

/// A client that knows this certificate, and offers these protocols.
struct Client {
    connector: TlsConnector,
    name: ServerName<'static>,
}

impl Client {
    fn of(made: &Made, version: &'static SupportedProtocolVersion, alpn: &[&str]) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add(made.der.clone()).unwrap();
        let mut config =
            ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
                .with_protocol_versions(&[version])
                .unwrap()
                .with_root_certificates(roots)
                .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        // An address is no name, so none is sent.
        let name = ServerName::from(IpAddr::from([127, 0, 0, 1]));
        Client { connector: TlsConnector::from(Arc::new(config)), name }
    }

    async fn connect(&self, port: u16) -> io::Result<client::TlsStream<TcpStream>> {
        let socket = TcpStream::connect(("127.0.0.1", port)).await?;
        self.connector.connect(self.name.clone(), socket).await
    }
}

async fn ask(socket: &mut client::TlsStream<TcpStream>) -> String {
    socket.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut said = String::new();
    while !said.ends_with("true") {
        let mut some = [0; 1024];
        let count = socket.read(&mut some).await.unwrap();
        assert!(count > 0, "{said}");
        said.push_str(std::str::from_utf8(&some[..count]).unwrap());
    }
    said
}

#[tokio::test]
async fn both_versions_are_spoken_and_the_protocol_is_chosen_by_name() {
    let made = made(2099);
    let tls = Folder::of(&made).load().unwrap();
    let (port, _drain) = listen(&tls, LONG).await;
    for version in [&TLS12, &TLS13] {
        for (alpn, chosen) in
            [(&["h2", "http/1.1"][..], Some("h2")), (&["http/1.1"], Some("http/1.1")), (&[], None)]
        {
            let mut socket = Client::of(&made, version, alpn).connect(port).await.unwrap();
            let session: &ClientConnection = socket.get_ref().1;
            assert_eq!(session.alpn_protocol(), chosen.map(str::as_bytes));
            assert_eq!(session.protocol_version(), Some(version.version));
            if chosen != Some("h2") {
                assert!(ask(&mut socket).await.ends_with("HTTP/1.1 127.0.0.1 true"));
            }
        }
    }
    let mut by_name = Client::of(&made, &TLS13, &[]);
    by_name.name = ServerName::try_from("a.example").unwrap();
    assert!(ask(&mut by_name.connect(port).await.unwrap()).await.starts_with("HTTP/1.1 200"));
    assert!(Client::of(&made, &TLS13, &["spdy/3"]).connect(port).await.is_err());
}

#[tokio::test]
async fn a_large_answer_comes_whole_and_ends_when_nobody_takes_it() {
    let made = made(2099);
    let tls = Folder::of(&made).load().unwrap();
    let over = Arc::new(AtomicU32::new(0));
    let ask = async |write_timeout| {
        let limits = Limits { write_timeout, ..Limits::default() };
        let (port, _drain) = listen_with(&tls, limits, over.clone()).await;
        let mut socket = Client::of(&made, &TLS13, &[]).connect(port).await.unwrap();
        let request = b"GET /large HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        socket.write_all(request).await.unwrap();
        socket
    };
    let mut bytes = Vec::new();
    ask(LONG).await.read_to_end(&mut bytes).await.unwrap();
    assert!(bytes.len() > LARGE_BYTES && bytes.ends_with(b"0\r\n\r\n"));
    assert_eq!(over.swap(0, SeqCst), 11);
    let mut socket = ask(Duration::from_millis(200)).await;
    while over.load(SeqCst) == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(over.load(SeqCst), 10, "it was not sent whole");
    bytes.clear();
    assert!(socket.read_to_end(&mut bytes).await.is_err() && bytes.len() < LARGE_BYTES);
}

#[tokio::test]
async fn whoever_does_not_shake_hands_is_let_go() {
    let made = made(2099);
    let tls = Folder::of(&made).load().unwrap();
    let (port, _drain) = listen(&tls, Duration::from_millis(50)).await;
    let hello = &[0x16, 3, 1, 2, 0][..];
    for opening in [b"GET / HTTP/1.1\r\nhost: x\r\n\r\n".as_slice(), hello, b"\x16", b""] {
        let mut socket = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        socket.write_all(opening).await.unwrap();
        let mut bytes = Vec::new();
        // The connection may be reset over what was not read.
        let _ = socket.read_to_end(&mut bytes).await;
        assert!(!bytes.starts_with(b"HTTP"), "{bytes:?}");
    }
    // A drain cuts those that are on the way.
    let (port, drain) = listen(&tls, LONG).await;
    let mut socket = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    socket.write_all(hello).await.unwrap();
    drain.send(true).unwrap();
    let _ = socket.read_to_end(&mut Vec::new()).await;
}

#[tokio::test]
async fn a_new_pair_is_for_new_connections_and_a_bad_one_for_none() {
    let (old, new) = (made(2098), made(2099));
    let folder = Folder::of(&old);
    let tls = folder.load().unwrap();
    let (port, _drain) = listen(&tls, LONG).await;
    let (knows_old, knows_new) = (Client::of(&old, &TLS13, &[]), Client::of(&new, &TLS13, &[]));
    let mut running = knows_old.connect(port).await.unwrap();
    assert!(!tls.reload(now()).unwrap());
    let expired = made(2021);
    for (certificate, key) in [
        (&new.certificate, &old.key),
        (&expired.certificate, &expired.key),
        (&old.certificate, &String::new()),
    ] {
        folder.hold(certificate, key);
        assert!(tls.reload(now()).is_err());
        assert!(knows_old.connect(port).await.is_ok());
    }
    std::fs::remove_file(&folder.files.key).unwrap();
    assert!(matches!(tls.reload(now()), Err(TlsError::Read { .. })));
    folder.hold(&new.certificate, &new.key);
    assert!(tls.reload(now()).unwrap());
    assert!(!tls.reload(now()).unwrap());
    assert!(knows_new.connect(port).await.is_ok());
    assert!(knows_old.connect(port).await.is_err());
    assert!(ask(&mut running).await.starts_with("HTTP/1.1 200"), "what runs goes on");
}

#[test]
fn a_pair_that_cannot_be_used_is_told_by_file_and_reason() {
    let (made, other) = (made(2099), made(2099));
    let folder = Folder::new();
    assert!(folder.refused().starts_with("cannot read cert.pem: No such file"));
    let refused = |certificate: &str, key: &str| {
        folder.hold(certificate, key);
        folder.refused()
    };
    let Made { certificate, key, .. } = &made;
    let chain = format!("{certificate}{}", other.certificate);
    folder.hold(&chain, key);
    assert_eq!(folder.load().unwrap().pair.0.read().unwrap().cert.len(), 2);
    let damaged = certificate.replace("\nMII", "\n!!!");
    let not_x509 = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n";
    let encrypted = key.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY");
    let no_key = "-----BEGIN PRIVATE KEY-----\nMAA=\n-----END PRIVATE KEY-----\n";
    for (certificate, key, told) in [
        ("", key.as_str(), "cert.pem holds no certificate in PEM"),
        (key, key, "cert.pem holds no certificate in PEM"),
        (&damaged, key, "cert.pem is damaged: it is no PEM"),
        (not_x509, key, "cert.pem does not begin with an X.509 certificate"),
        (certificate, certificate, "key.pem holds no unencrypted private key in PEM"),
        (certificate, &encrypted, "key.pem holds no unencrypted private key in PEM"),
        (certificate, &other.key, "the key in key.pem is not that of the certificate in cert.pem"),
        (&other.certificate, key, "the key in key.pem is not that of the certificate in cert.pem"),
    ] {
        assert_eq!(refused(certificate, key), told);
    }
    assert!(refused(certificate, no_key).starts_with("key.pem cannot be used: "));
    assert!(refused(&"x".repeat(1 << 21), key).starts_with("cert.pem is larger than"));
    let expired = super::tests::made(2021);
    assert_eq!(
        refused(&expired.certificate, &expired.key),
        "cert.pem holds a certificate that expired on 2021-12-31 00:00:00 UTC"
    );
    folder.hold(certificate, key);
    let early = Tls::load(folder.files.clone(), UNIX_EPOCH).err().unwrap().to_string();
    assert!(early.ends_with("that is not valid before 2020-01-01 00:00:00 UTC"), "{early}");
}

#[test]
fn a_fault_is_told_once_if_it_lasts_and_whenever_somebody_asks() {
    let mut faults = Faults::default();
    let mut tells = |fault: &str, is_asked| faults.is_to_tell(fault.into(), is_asked);
    assert!(!tells("a", false), "the other file may follow");
    assert!(tells("a", false));
    assert!(!tells("a", false));
    assert!(tells("a", true));
    assert!(!tells("b", false) && !tells("c", false) && tells("c", false));
    assert!(tells("d", true) && !tells("d", false));
}
