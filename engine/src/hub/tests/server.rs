//! A hub on this machine for tests: real sockets, a model of real files, and answers that a test may
//! spoil before they are sent.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};

use crate::hub::digest::Digest;

/// Commit of every model here.
pub(super) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A request that came.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) method: String,
    /// Without a query.
    pub(super) path: String,
    pub(super) headers: BTreeMap<String, String>,
    /// How many requests of this path came before.
    pub(super) before: usize,
}

impl Seen {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// Name of the file that is asked for; the revision if it is a list.
    pub(super) fn file(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or_default()
    }

    pub(super) fn range_start(&self) -> Option<usize> {
        self.header("range")?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
    }
}

/// An answer, and what becomes of it.
#[derive(Clone, Debug)]
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
    /// Bytes of the body that are sent before the connection is cut.
    pub(super) cut: Option<usize>,
    /// Whether the connection stays open instead, and silent.
    pub(super) stalls: bool,
}

impl Reply {
    pub(super) fn of(status: u16, body: impl Into<Vec<u8>>) -> Self {
        let body = body.into();
        let headers = vec![("content-length".to_owned(), body.len().to_string())];
        Reply { status, headers, body, cut: None, stalls: false }
    }

    pub(super) fn with(mut self, name: &str, value: impl ToString) -> Self {
        self.headers.retain(|(known, _)| known != name);
        self.headers.push((name.to_owned(), value.to_string()));
        self
    }

    pub(super) fn cut(self, at: usize) -> Self {
        Reply { cut: Some(at), ..self }
    }
}

/// The files of a model.
#[derive(Clone, Debug, Default)]
pub(super) struct Files(pub(super) BTreeMap<String, Vec<u8>>);

impl Files {
    /// Those of a golden's checkpoint that a hub would have.
    pub(super) fn of_golden(name: &str) -> Self {
        let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/goldens");
        let mut files = Files::default();
        for entry in std::fs::read_dir(goldens.join(name)).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            files.0.insert(name, std::fs::read(path).unwrap());
        }
        files
    }

    pub(super) fn with(mut self, name: &str, content: impl Into<Vec<u8>>) -> Self {
        self.0.insert(name.to_owned(), content.into());
        self
    }

    pub(super) fn without(mut self, name: &str) -> Self {
        self.0.remove(name);
        self
    }

    fn is_large(name: &str) -> bool {
        name.ends_with(".safetensors") || name.ends_with(".bin")
    }

    /// The checksum that a hub tells of a file.
    pub(super) fn digest(&self, name: &str) -> Digest {
        let bytes = &self.0[name];
        let kind = if Self::is_large(name) { "0".repeat(64) } else { "0".repeat(40) };
        let mut hasher = Digest::parse(&kind).unwrap().hasher(bytes.len() as u64);
        hasher.update(bytes);
        hasher.digest()
    }

    /// The list of files, as the hub gives it.
    pub(super) fn listing(&self) -> Value {
        let siblings = self.0.keys().map(|name| {
            let (size, digest) = (self.0[name].len(), self.digest(name).to_string());
            match Self::is_large(name) {
                true => json!({
                    "rfilename": name, "size": size, "blobId": "f".repeat(40),
                    "lfs": {"sha256": digest, "size": size, "pointerSize": 134},
                }),
                false => json!({"rfilename": name, "size": size, "blobId": digest}),
            }
        });
        json!({"id": "org/name", "sha": COMMIT, "siblings": siblings.collect::<Vec<_>>()})
    }

    /// What an honest hub answers.
    pub(super) fn answer(&self, seen: &Seen) -> Reply {
        if seen.path.starts_with("/api/models/org/name/revision/") {
            return Reply::of(200, self.listing().to_string());
        }
        let prefix = format!("/org/name/resolve/{COMMIT}/");
        let file = seen.path.strip_prefix(&prefix).and_then(|name| self.0.get(name));
        let Some(bytes) = file else {
            return Reply::of(404, "").with("x-error-code", "EntryNotFound");
        };
        let tag = format!("\"{}\"", self.digest(seen.file()));
        let reply = match seen.range_start() {
            None => Reply::of(200, bytes.clone()),
            Some(start) if start >= bytes.len() => Reply::of(416, ""),
            Some(start) => {
                let range = format!("bytes {start}-{}/{}", bytes.len() - 1, bytes.len());
                Reply::of(206, &bytes[start..]).with("content-range", range)
            }
        };
        reply.with("etag", tag)
    }
}

/// A server, until its test ends.
pub(super) struct Hub {
    /// `http://127.0.0.1:port`.
    pub(super) endpoint: String,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Hub {
    /// Answers by `answer`.
    pub(super) fn new(answer: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (answer, kept) = (Arc::new(answer), seen.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (answer, kept) = (answer.clone(), kept.clone());
                std::thread::spawn(move || serve(stream.unwrap(), &*answer, &kept));
            }
        });
        Hub { endpoint, seen }
    }

    /// An honest one.
    pub(super) fn of(files: &Files) -> Self {
        let files = files.clone();
        Hub::new(move |seen| files.answer(seen))
    }

    /// Requests so far.
    pub(super) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// Requests of a file so far.
    pub(super) fn seen_of(&self, file: &str) -> Vec<Seen> {
        self.seen().into_iter().filter(|seen| seen.file() == file).collect()
    }
}

fn serve(stream: TcpStream, answer: &dyn Fn(&Seen) -> Reply, kept: &Mutex<Vec<Seen>>) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    let Some(Ok(first)) = lines.next() else { return };
    let mut words = first.split(' ').map(str::to_owned);
    let (method, path) = (words.next().unwrap(), words.next().unwrap());
    let path = path.split('?').next().unwrap().to_owned();
    let heads = lines.map_while(Result::ok).take_while(|line| !line.is_empty());
    let headers = heads.filter_map(|line| {
        let (name, value) = line.split_once(':')?;
        Some((name.to_ascii_lowercase(), value.trim().to_owned()))
    });
    let headers = headers.collect();
    let request = {
        let mut kept = kept.lock().unwrap();
        let before = kept.iter().filter(|seen| seen.path == path).count();
        let request = Seen { method, path, headers, before };
        kept.push(request.clone());
        request
    };
    send(stream, &request, &answer(&request));
}

/// Sends what there is to send; a client that has enough may close before.
fn send(mut stream: TcpStream, request: &Seen, reply: &Reply) {
    let mut head = format!("HTTP/1.1 {} X\r\nconnection: close\r\n", reply.status);
    for (name, value) in &reply.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    let is_head = request.method == "HEAD";
    let body = if is_head { &[][..] } else { &reply.body[..] };
    let part = &body[..reply.cut.unwrap_or(body.len()).min(body.len())];
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(part));
    if reply.stalls {
        std::thread::sleep(Duration::from_secs(60));
    }
}
