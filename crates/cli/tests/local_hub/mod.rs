//! A hub on this machine: serves a listing and files over HTTP, with redirects, ranges, and the
//! faults that a network has. Each connection carries one request.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use sha2::{Digest, Sha256};

/// The commit that `main` means.
pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// How the hub misbehaves.
#[derive(Clone, Debug, Default)]
pub(crate) struct Faults {
    /// Closes each answer after this many bytes of body.
    pub(crate) cut_after: Option<usize>,
    /// Serves no ranges.
    pub(crate) ignores_ranges: bool,
    /// Changes the first byte of every body.
    pub(crate) corrupts: bool,
    /// Names of files in the listing beside those that exist.
    pub(crate) listed: Vec<String>,
    /// Waits this long before each file.
    pub(crate) delay_ms: u64,
    /// Says that the file is private.
    pub(crate) forbids: bool,
    /// The listing's commit instead of the true one.
    pub(crate) commit: Option<String>,
}

#[derive(Debug, Default)]
struct State {
    files: BTreeMap<String, Vec<u8>>,
    faults: Faults,
    requests: Vec<String>,
}

/// A running hub; its threads end with the test.
#[derive(Clone, Debug)]
pub(crate) struct LocalHub {
    pub(crate) endpoint: String,
    state: Arc<Mutex<State>>,
}

impl LocalHub {
    /// Serves one repository, `org/repo`.
    pub(crate) fn new(files: &[(&str, Vec<u8>)]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
        let files = files.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.clone()));
        let state = Arc::new(Mutex::new(State { files: files.collect(), ..State::default() }));
        let hub = Self { endpoint, state };
        let server = hub.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let server = server.clone();
                // A client that goes away is part of the tests.
                std::thread::spawn(move || drop(server.answer(stream)));
            }
        });
        hub
    }

    pub(crate) fn set_faults(&self, faults: Faults) {
        self.state.lock().unwrap().faults = faults;
    }

    /// `PATH RANGE` of each request so far.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.state.lock().unwrap().requests.clone()
    }

    fn answer(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
        let mut range = None;
        loop {
            let mut header = String::new();
            reader.read_line(&mut header)?;
            if let Some((name, value)) = header.trim().split_once(':')
                && name.eq_ignore_ascii_case("range")
            {
                range = Some(value.trim().to_owned());
            }
            if header.trim().is_empty() {
                break;
            }
        }
        let (files, faults) = {
            let mut state = self.state.lock().unwrap();
            state.requests.push(format!("{path} {}", range.as_deref().unwrap_or("-")));
            (state.files.clone(), state.faults.clone())
        };
        let (head, body) = respond(&path, range.as_deref(), &files, &faults);
        stream.write_all(head.as_bytes())?;
        let cut = faults.cut_after.filter(|_| path.starts_with("/cdn/")).unwrap_or(body.len());
        stream.write_all(&body[..cut.min(body.len())])
    }
}

/// SHA-256 in hexadecimal.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn respond(
    path: &str,
    range: Option<&str>,
    files: &BTreeMap<String, Vec<u8>>,
    faults: &Faults,
) -> (String, Vec<u8>) {
    let plain = |status: &str, body: &[u8]| {
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            body.len()
        );
        (head, body.to_vec())
    };
    if path.starts_with("/api/models/org/repo/revision/main") {
        return plain("200 OK", listing(files, faults).as_bytes());
    }
    if let Some(name) = path.strip_prefix(&format!("/org/repo/resolve/{COMMIT}/")) {
        let Some(bytes) = files.get(name) else { return plain("404 Not Found", b"") };
        if faults.forbids {
            return plain("403 Forbidden", b"");
        }
        let head = format!(
            "HTTP/1.1 302 Found\r\nLocation: /cdn/{name}\r\nX-Linked-ETag: \"{}\"\r\n\
             X-Linked-Size: {}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            sha256(bytes),
            bytes.len()
        );
        return (head, Vec::new());
    }
    let Some(bytes) = path.strip_prefix("/cdn/").and_then(|name| files.get(name)) else {
        return plain("404 Not Found", b"");
    };
    std::thread::sleep(std::time::Duration::from_millis(faults.delay_ms));
    let mut bytes = bytes.clone();
    if faults.corrupts {
        bytes[0] ^= 1;
    }
    let start = range
        .filter(|_| !faults.ignores_ranges)
        .and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
    match start {
        None => plain("200 OK", &bytes),
        Some(start) if start >= bytes.len() => plain("416 Range Not Satisfiable", b""),
        Some(start) => {
            let head = format!(
                "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {start}-{}/{}\r\n\
                 Content-Length: {}\r\nConnection: close\r\n\r\n",
                bytes.len() - 1,
                bytes.len(),
                bytes.len() - start
            );
            (head, bytes[start..].to_vec())
        }
    }
}

fn listing(files: &BTreeMap<String, Vec<u8>>, faults: &Faults) -> String {
    let existing = files.iter().map(|(name, bytes)| {
        // Small text files have no large-file record on the real hub either.
        if name.ends_with(".json") {
            serde_json::json!({"rfilename": name, "size": bytes.len()})
        } else {
            serde_json::json!({
                "rfilename": name,
                "size": bytes.len(),
                "lfs": {"sha256": sha256(bytes), "size": bytes.len(), "pointerSize": 134},
            })
        }
    });
    let invented = faults.listed.iter().map(|name| serde_json::json!({"rfilename": name}));
    serde_json::json!({
        "id": "org/repo",
        "sha": faults.commit.as_deref().unwrap_or(COMMIT),
        "siblings": existing.chain(invented).collect::<Vec<_>>(),
    })
    .to_string()
}
