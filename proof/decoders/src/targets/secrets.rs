//! Key files: a vote key's one line, and the TLS key as PEM. Text here; that a file is its owner's alone is the reader's own
//! business and looked at before. What is refused is refused in one line, and no line and no `Debug` has a secret in it.

use crate::Seal::Form;
use crate::meter::bounded;
use crate::{Target, Verdict};
use dwcp_node::keys::{KeyError, SecretSeed, parse_tls_identity};
use dwcp_transport::TlsIdentity;
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject;
use std::path::Path;

pub static VOTE_KEY: Target = Target::new("vote_key", run_seed, seeds, Form(is_seed)).bombs(seed_bombs);
pub static TLS_PEM: Target = Target::new("tls_pem", run_pem, pems, Form(is_pem)).bombs(pem_bombs);

fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok()
}

/// In one line, without any word of the file that may be the secret.
fn refuse(error: &KeyError, file: &str) -> Verdict {
    let told = error.to_string();
    assert!(!told.is_empty() && !told.contains('\n'), "a refusal is one line: {told:?}");
    let secret = file.split_whitespace().find(|word| word.len() >= 32 && told.contains(word));
    assert!(secret.is_none(), "a refusal says what the file does: {told:?}");
    Verdict::Refused
}

fn is_seed(bytes: &[u8]) -> bool {
    let digits = text(bytes).map(str::trim);
    digits.is_some_and(|digits| digits.len() == 64 && digits.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

fn run_seed(bytes: &[u8]) -> Verdict {
    let Some(text) = text(bytes) else { return Verdict::Refused };
    let read = bounded(bytes, || SecretSeed::parse(Path::new("vote.key"), text));
    assert!(
        read.is_ok() == is_seed(bytes),
        "a seed is one line of 64 hexadecimal digits, and nothing else is"
    );
    match read {
        Ok(seed) => {
            let shown = format!("{seed:?}");
            assert!(!shown.contains(&text.trim().to_lowercase()), "a secret is shown");
            Verdict::Accepted
        }
        Err(error) => refuse(&error, text),
    }
}

fn is_pem(bytes: &[u8]) -> bool {
    PrivatePkcs8KeyDer::from_pem_slice(bytes).is_ok()
}

/// Accepted when the key survives its own text.
fn run_pem(bytes: &[u8]) -> Verdict {
    let Some(text) = text(bytes) else { return Verdict::Refused };
    let path = Path::new("tls.pem");
    match bounded(bytes, || parse_tls_identity(path, text)) {
        Ok(identity) => {
            let own = identity.to_pem();
            let again = parse_tls_identity(path, &own).expect("its own text");
            assert!(again.public_key() == identity.public_key(), "a key does not survive its own text");
            Verdict::Accepted
        }
        Err(error) => refuse(&error, text),
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let digits = "0123456789abcdef".repeat(4);
    let spaced = format!("\n  {}\r\n\n", digits.to_uppercase());
    vec![format!("{digits}\n").into_bytes(), digits.clone().into_bytes(), spaced.into_bytes()]
}

fn seed_bombs() -> Vec<Vec<u8>> {
    vec![vec![b'a'; 64 << 10], vec![b' '; 64 << 10], vec![b'\n'; 64 << 10]]
}

fn pems() -> Vec<Vec<u8>> {
    let pem = |seed: u8| TlsIdentity::from_seed(&[seed; 32]).expect("any seed is a key").to_pem();
    let explained = format!("Bag Attributes\n    name: x\n{}", pem(2));
    let twice = [pem(3), pem(4)].concat();
    vec![
        pem(1).into_bytes(),
        pem(1).replace("\r\n", "\n").into_bytes(),
        explained.into_bytes(),
        twice.into_bytes(),
    ]
}

fn pem_bombs() -> Vec<Vec<u8>> {
    const LONG: usize = 64 << 10;
    let label = ["-----BEGIN ", &"A".repeat(LONG), "-----\n"].concat();
    let body = ["-----BEGIN PRIVATE KEY-----\n", &"AAAA".repeat(LONG / 4), "\n-----END PRIVATE KEY-----\n"];
    let begins = "-----BEGIN PRIVATE KEY-----\n".repeat(2_000);
    vec![label.into_bytes(), body.concat().into_bytes(), begins.into_bytes(), vec![b'-'; LONG]]
}
