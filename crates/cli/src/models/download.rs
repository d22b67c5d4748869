//! One file over HTTP: an address and what is known of the bytes enter, a whole and checked file
//! leaves. A broken connection leaves a part behind, and the next try asks for the rest of it
//! (`Range`), as long as the server still names the same bytes (`ETag`).

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow, bail, ensure};
use sha2::{Digest, Sha256};
use ureq::http::{HeaderMap, Response, StatusCode, header};
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body};

use super::cache::{Cache, copy_hashed, hex, is_hex, make_dir, publish, write_file};
use super::progress::{Progress, Unit};
use crate::failure::Interrupted;
use crate::interrupt::Graceful;

/// Redirects that one request may take.
const MAX_REDIRECTS: usize = 10;
/// Attempts in a row that may bring nothing, once something has come.
const MAX_BARREN: u32 = 3;
/// Bytes taken from the network at a time.
const CHUNK: usize = 1 << 16;

/// Speaks HTTP to one server, and to those that it sends us to.
#[derive(Debug)]
pub(crate) struct Client {
    agent: Agent,
    /// `scheme://host[:port]` of the server.
    origin: String,
    /// Sent to that server and to no other.
    token: Option<String>,
}

/// What is to be fetched.
#[derive(Debug)]
pub(crate) struct Wanted<'a> {
    /// Where from.
    pub(crate) url: &'a str,
    /// What to call it in messages.
    pub(crate) name: &'a str,
    /// Length, where the listing told it.
    pub(crate) size: Option<u64>,
    /// SHA-256, where it is known beforehand.
    pub(crate) sha256: Option<&'a str>,
}

/// The server cannot be reached at all.
#[derive(Debug)]
pub(crate) struct Unreachable(pub(crate) String);

impl std::fmt::Display for Unreachable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unreachable {}

/// What the first answer says of the bytes, before any redirect.
#[derive(Debug, Default)]
struct Identity {
    /// `X-Linked-ETag` (the hub's name of a large file: its SHA-256), else `ETag`.
    etag: Option<String>,
    size: Option<u64>,
}

impl Identity {
    fn of(headers: &HeaderMap) -> Self {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let etag = text("x-linked-etag").or_else(|| text("etag"));
        Self {
            etag: etag.map(|etag| etag.trim_start_matches("W/").trim_matches('"').to_owned()),
            size: text("x-linked-size").and_then(|size| size.parse().ok()),
        }
    }

    fn sha256(&self) -> Option<&str> {
        self.etag.as_deref().filter(|etag| is_hex(etag, 64))
    }
}

/// Why an attempt did not bring the whole file.
enum Broken {
    /// The network; another attempt may go on.
    Network(anyhow::Error),
    /// Anything that another attempt would meet again.
    Fatal(anyhow::Error),
}

impl<E: Into<anyhow::Error>> From<E> for Broken {
    fn from(error: E) -> Self {
        Self::Fatal(error.into())
    }
}

impl Client {
    /// A client of the server at `endpoint`, an `http://` or `https://` address.
    pub(crate) fn new(endpoint: &str, token: Option<String>) -> anyhow::Result<Self> {
        let origin = origin(endpoint)
            .ok_or_else(|| anyhow!("'{endpoint}' is not an address; write https://HOST"))?;
        let config = Agent::config_builder()
            .tls_config(TlsConfig::builder().root_certs(root_certs()?).build())
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("puna/", env!("CARGO_PKG_VERSION")))
            // A compressed body has no use for ranges.
            .accept_encoding("identity")
            .timeout_connect(Some(Duration::from_secs(10)))
            .timeout_recv_response(Some(Duration::from_secs(60)))
            .timeout_per_read(Some(Duration::from_secs(60)))
            .build();
        Ok(Self { agent: config.into(), origin: origin.to_owned(), token })
    }

    /// The body of a small text, at most `limit` bytes.
    pub(crate) fn text(&self, url: &str, limit: u64) -> anyhow::Result<String> {
        let (mut response, _) = self.get(url, 0)?;
        expect_success(response.status(), url)?;
        response
            .body_mut()
            .with_config()
            .limit(limit)
            .read_to_string()
            .with_context(|| format!("cannot read {url}"))
    }

    /// Fetches a file to `to`, going on where an earlier attempt stopped.
    pub(crate) fn fetch(
        &self,
        cache: &Cache,
        wanted: &Wanted<'_>,
        to: &Path,
    ) -> anyhow::Result<()> {
        let mut part = Part::open(cache.part(wanted.url))?;
        match self.receive_whole(wanted, &mut part) {
            Ok(()) => part.finish(wanted, to),
            Err(error) => {
                if part.len == 0 {
                    part.remove();
                } else if error.is::<Interrupted>() {
                    eprintln!(
                        "{}: stopped at byte {}; the same command goes on from there",
                        wanted.name, part.len
                    );
                }
                Err(error)
            }
        }
    }

    /// Attempts until the part is the whole, as long as each brings something.
    fn receive_whole(&self, wanted: &Wanted<'_>, part: &mut Part) -> anyhow::Result<()> {
        let interrupts = Graceful::new();
        let mut barren = 0;
        loop {
            let before = part.len;
            match self.attempt(wanted, part, &interrupts) {
                Ok(()) => return Ok(()),
                Err(Broken::Fatal(error)) => return Err(error),
                Err(Broken::Network(error)) => {
                    barren = if part.len > before { 0 } else { barren + 1 };
                    if part.len == 0 {
                        return Err(error);
                    }
                    if barren >= MAX_BARREN {
                        return Err(error.context(format!(
                            "the download of {} broke off after {} bytes; run the same command \
                             again to go on from there",
                            wanted.name, part.len
                        )));
                    }
                    eprintln!("{}: {error:#}; going on at byte {}", wanted.name, part.len);
                    pause(Duration::from_secs(1), &interrupts)?;
                }
            }
        }
    }

    fn attempt(
        &self,
        wanted: &Wanted<'_>,
        part: &mut Part,
        interrupts: &Graceful,
    ) -> Result<(), Broken> {
        let (mut response, mut identity) =
            self.get(wanted.url, part.len).map_err(Broken::Network)?;
        let tells = response.status().is_success()
            || response.status() == StatusCode::RANGE_NOT_SATISFIABLE;
        if tells && part.len > 0 && identity.etag != part.etag {
            part.restart()?;
            (response, identity) = self.get(wanted.url, 0).map_err(Broken::Network)?;
        }
        if !tells && !response.status().is_server_error() {
            expect_success(response.status(), wanted.name)?;
        }
        check_identity(wanted, &identity)?;
        match response.status() {
            StatusCode::PARTIAL_CONTENT => {
                ensure_range(response.headers(), part.len)?;
            }
            StatusCode::RANGE_NOT_SATISFIABLE
                if wanted.size.or(identity.size) == Some(part.len) =>
            {
                return Ok(());
            }
            StatusCode::RANGE_NOT_SATISFIABLE => {
                part.restart()?;
                return Err(Broken::Network(anyhow!("the server refused to go on")));
            }
            status if status.is_server_error() => {
                return Err(Broken::Network(anyhow!("the server answered {status}")));
            }
            _ => part.restart()?,
        }
        part.remember(identity.etag)?;
        let length = content_length(response.headers());
        let total = length.map(|length| part.len.saturating_add(length));
        if let (Some(total), Some(size)) = (total, wanted.size.or(identity.size))
            && total != size
        {
            return Err(Broken::Fatal(anyhow!(
                "{} has {total} bytes on the server where its listing says {size}",
                wanted.name
            )));
        }
        let limit = total.or(wanted.size).or(identity.size);
        part.receive(response.into_body(), limit, wanted.name, interrupts)
    }

    /// Sends a request for the bytes from `start`, follows redirects, and gives the last answer
    /// and what the first one said of the bytes.
    fn get(&self, url: &str, start: u64) -> anyhow::Result<(Response<Body>, Identity)> {
        let mut url = url.to_owned();
        let mut identity = None;
        for _ in 0..=MAX_REDIRECTS {
            let mut request = self.agent.get(&url);
            if let Some(token) = &self.token
                && origin(&url) == Some(&self.origin)
            {
                request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
            }
            if start > 0 {
                request = request.header(header::RANGE, format!("bytes={start}-"));
            }
            let response = request.call().map_err(|error| {
                Unreachable(format!("cannot reach {}: {error}", origin(&url).unwrap_or(&url)))
            })?;
            let identity = identity.get_or_insert_with(|| Identity::of(response.headers()));
            if !response.status().is_redirection() {
                return Ok((response, std::mem::take(identity)));
            }
            url = redirect_target(&url, response.headers())?;
        }
        bail!("more than {MAX_REDIRECTS} redirects from {url}")
    }
}

/// The bytes that have come so far, on disk.
#[derive(Debug)]
struct Part {
    path: PathBuf,
    file: File,
    len: u64,
    /// The server's name of the bytes, kept beside them.
    etag: Option<String>,
    hasher: Sha256,
}

impl Part {
    fn open(path: PathBuf) -> anyhow::Result<Self> {
        if let Some(parent) = path.parent() {
            make_dir(parent)?;
        }
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .with_context(|| format!("cannot open {}", path.display()))?;
        let mut hasher = Sha256::new();
        let len = copy_hashed(&mut file, &mut io::sink(), &mut hasher)
            .with_context(|| format!("cannot read {}", path.display()))?;
        let etag = fs::read_to_string(path.with_extension("etag")).ok();
        Ok(Self { path, file, len, etag, hasher })
    }

    /// Throws away what has come.
    fn restart(&mut self) -> anyhow::Result<()> {
        self.file
            .set_len(0)
            .and_then(|()| self.file.seek(SeekFrom::Start(0)))
            .with_context(|| format!("cannot write {}", self.path.display()))?;
        self.etag = None;
        self.len = 0;
        self.hasher = Sha256::new();
        Ok(())
    }

    /// Keeps the server's name of the bytes for the next program.
    fn remember(&mut self, etag: Option<String>) -> anyhow::Result<()> {
        if let Some(etag) = &etag
            && self.etag.as_ref() != Some(etag)
        {
            write_file(&self.path.with_extension("etag"), etag.as_bytes())?;
        }
        self.etag = etag;
        Ok(())
    }

    /// Appends a body; `limit` is the length that the file must come to.
    fn receive(
        &mut self,
        body: Body,
        limit: Option<u64>,
        name: &str,
        interrupts: &Graceful,
    ) -> Result<(), Broken> {
        let mut progress = Progress::new(name, Unit::Bytes, self.len, limit.unwrap_or(0));
        let mut reader = body.into_reader();
        let mut buffer = vec![0; CHUNK];
        loop {
            interrupts.check()?;
            let n = reader
                .read(&mut buffer)
                .map_err(|error| Broken::Network(anyhow!("the connection broke: {error}")))?;
            if n == 0 {
                break;
            }
            let room = limit.map_or(u64::MAX, |limit| limit - self.len);
            if n as u64 > room {
                return Err(Broken::Fatal(anyhow!("the server sent more than it promised")));
            }
            self.file.write_all(&buffer[..n]).map_err(|error| self.full(&error))?;
            self.hasher.update(&buffer[..n]);
            self.len += n as u64;
            progress.add(n as u64);
        }
        match limit {
            Some(limit) if self.len < limit => {
                Err(Broken::Network(anyhow!("the connection closed early")))
            }
            _ => Ok(()),
        }
    }

    fn full(&self, error: &io::Error) -> anyhow::Error {
        anyhow!(
            "cannot write {} beyond {} bytes: {error}; make room, or set PUNA_HOME to a folder \
             on another disk, and run the same command again: it goes on from there",
            self.path.display(),
            self.len
        )
    }

    /// Leaves nothing behind. What cannot be removed is gone on with next time, or overwritten.
    fn remove(&self) {
        let _ = fs::remove_file(&self.path);
        let _ = fs::remove_file(self.path.with_extension("etag"));
    }

    /// Checks the whole and gives it its name.
    fn finish(mut self, wanted: &Wanted<'_>, to: &Path) -> anyhow::Result<()> {
        let from_etag = self.etag.clone().filter(|etag| is_hex(etag, 64));
        if let Some(expected) = wanted.sha256.or(from_etag.as_deref()) {
            let found = hex(&std::mem::take(&mut self.hasher).finalize());
            if found != expected {
                self.remove();
                bail!(
                    "{} arrived broken: its SHA-256 is {found} and should be {expected}; what \
                     came was removed, run the same command to fetch it again",
                    wanted.name
                );
            }
        }
        self.file.sync_all().with_context(|| format!("cannot write {}", self.path.display()))?;
        publish(&self.path, to)?;
        self.remove();
        Ok(())
    }
}

/// Who vouches for servers: the authorities in `$SSL_CERT_FILE`, as behind a company's proxy, else
/// Mozilla's list.
fn root_certs() -> anyhow::Result<RootCerts> {
    let Some(path) = std::env::var_os("SSL_CERT_FILE").filter(|path| !path.is_empty()) else {
        return Ok(RootCerts::WebPki);
    };
    let pem = fs::read(&path).with_context(|| {
        format!("cannot read SSL_CERT_FILE {}; unset it", Path::new(&path).display())
    })?;
    let certificates = parse_pem(&pem).filter_map(|item| match item {
        Ok(PemItem::Certificate(certificate)) => Some(certificate),
        _ => None,
    });
    Ok(RootCerts::from(certificates))
}

/// The server must not name other bytes than those that are expected.
fn check_identity(wanted: &Wanted<'_>, identity: &Identity) -> anyhow::Result<()> {
    if let (Some(expected), Some(found)) = (wanted.sha256, identity.sha256()) {
        ensure!(
            expected == found,
            "the server has another {}: SHA-256 {found}, expected {expected}",
            wanted.name
        );
    }
    Ok(())
}

fn ensure_range(headers: &HeaderMap, start: u64) -> anyhow::Result<()> {
    let range = headers.get(header::CONTENT_RANGE).and_then(|value| value.to_str().ok());
    let begins = range
        .and_then(|range| range.strip_prefix("bytes "))
        .and_then(|range| range.split('-').next())
        .and_then(|first| first.parse().ok());
    ensure!(begins == Some(start), "asked for the bytes from {start}, the server sent others");
    Ok(())
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

fn expect_success(status: StatusCode, what: &str) -> anyhow::Result<()> {
    match status.as_u16() {
        200..=299 => Ok(()),
        401 | 403 => bail!(
            "the hub refuses {what} ({status}): it does not exist, or is private or gated; accept \
             its terms on the hub's page and set HF_TOKEN"
        ),
        404 => bail!("the hub has no {what} (404 Not Found); check the name and the revision"),
        _ => bail!("the hub answered {status} for {what}"),
    }
}

/// `scheme://host[:port]` of an address, lower-case as written.
fn origin(url: &str) -> Option<&str> {
    let start = if url.starts_with("https://") {
        8
    } else if url.starts_with("http://") {
        7
    } else {
        return None;
    };
    let end = url[start..].find(['/', '?', '#']).map_or(url.len(), |at| start + at);
    (end > start).then(|| &url[..end])
}

/// Where a redirect leads. From `https` never to `http`.
fn redirect_target(from: &str, headers: &HeaderMap) -> anyhow::Result<String> {
    let target = headers
        .get(header::LOCATION)
        .and_then(|value| value.to_str().ok())
        .ok_or_else(|| anyhow!("{from} redirects to nowhere"))?;
    if target.starts_with('/') && !target.starts_with("//") {
        return Ok(format!("{}{target}", origin(from).unwrap_or_default()));
    }
    ensure!(origin(target).is_some(), "{from} redirects to '{target}', which is no address");
    ensure!(
        target.starts_with("https://") || !from.starts_with("https://"),
        "{from} redirects to an unprotected address"
    );
    Ok(target.to_owned())
}

/// Sleeps, but not through a Ctrl-C.
fn pause(time: Duration, interrupts: &Graceful) -> Result<(), Interrupted> {
    for _ in 0..10 {
        interrupts.check()?;
        std::thread::sleep(time / 10);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins() {
        assert_eq!(origin("https://a.b/c?d"), Some("https://a.b"));
        assert_eq!(origin("http://127.0.0.1:80"), Some("http://127.0.0.1:80"));
        assert_eq!(origin("https://a@evil/"), Some("https://a@evil"));
        assert_eq!(origin("https:///x"), None);
        assert_eq!(origin("file:///x"), None);
        assert_eq!(origin("/x"), None);
    }

    #[test]
    fn redirects_do_not_lose_their_protection() {
        let to = |target: &'static str| {
            HeaderMap::from_iter([(header::LOCATION, target.parse().unwrap())])
        };
        assert_eq!(redirect_target("https://a/b", &to("/c")).unwrap(), "https://a/c");
        assert_eq!(redirect_target("http://a/b", &to("https://c/d")).unwrap(), "https://c/d");
        assert!(redirect_target("https://a/b", &to("http://c/d")).is_err());
        assert!(redirect_target("https://a/b", &to("//c/d")).is_err());
        assert!(redirect_target("https://a/b", &to("file:///etc/passwd")).is_err());
        assert!(redirect_target("https://a/b", &HeaderMap::new()).is_err());
    }
}
