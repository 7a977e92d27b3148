//! One GET over loopback or a private network: readiness of a node and its metrics. Not an HTTP client: no TLS, no
//! redirects, answers up to a bound.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Longer answers are refused.
const ANSWER_BYTES_MAX: u64 = 4 << 20;

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub body: String,
}

/// # Errors
/// A node that cannot be reached, takes longer than `patience`, or does not speak HTTP.
pub async fn get(address: SocketAddr, path: &str, patience: Duration) -> Result<Answer, String> {
    match tokio::time::timeout(patience, exchange(address, path)).await {
        Ok(Ok(bytes)) => parse(&bytes).ok_or_else(|| format!("{address} does not speak HTTP")),
        Ok(Err(error)) => Err(format!("{address}: {error}")),
        Err(_) => Err(format!("{address}: no answer within {} ms", patience.as_millis())),
    }
}

async fn exchange(address: SocketAddr, path: &str) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut bytes = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut bytes).await?;
    Ok(bytes)
}

/// The answer in these bytes, if they are one.
pub fn parse(bytes: &[u8]) -> Option<Answer> {
    let text = String::from_utf8_lossy(bytes);
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.split_whitespace().nth(1)?.parse().ok()?;
    let chunked =
        head.lines().any(|line| line.to_ascii_lowercase().starts_with("transfer-encoding: chunked"));
    Some(Answer { status, body: if chunked { unchunk(body) } else { body.to_string() } })
}

fn unchunk(mut body: &str) -> String {
    let mut whole = String::new();
    while let Some((length, rest)) = body.split_once("\r\n") {
        let length = usize::from_str_radix(length.trim(), 16).unwrap_or(0);
        let Some(chunk) = rest.get(..length).filter(|_| length > 0) else { break };
        whole.push_str(chunk);
        body = rest[length..].trim_start_matches("\r\n");
    }
    whole
}

/// Samples of a Prometheus text page by name, summed over labels.
pub fn samples(page: &str) -> BTreeMap<String, f64> {
    let mut sums = BTreeMap::new();
    for line in page.lines().filter(|line| !line.starts_with('#')) {
        let Some((series, value)) = line.rsplit_once(' ') else { continue };
        let name = series.split('{').next().unwrap_or(series).trim();
        if let Ok(value) = value.parse::<f64>() {
            *sums.entry(name.to_string()).or_insert(0.0) += value;
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_a_body_are_read() {
        let plain = parse(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc").unwrap();
        assert_eq!((plain.status, plain.body.as_str()), (200, "abc"));
        let chunked =
            parse(b"HTTP/1.1 503 No\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")
                .unwrap();
        assert_eq!((chunked.status, chunked.body.as_str()), (503, "abcde"));
        assert!(parse(b"SSH-2.0").is_none());
        assert!(
            parse(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabc").unwrap().body.is_empty()
        );
    }

    #[test]
    fn samples_are_summed_over_labels() {
        let page = "# HELP a b\na{x=\"1\"} 2\na{x=\"2\"} 3.5\nb 7\nno value\n";
        let sums = samples(page);
        assert_eq!((sums["a"], sums["b"], sums.len()), (5.5, 7.0, 2));
    }
}
