//! What both ends of a new connection do alike: read length-prefixed hellos, tell TLS failures apart, and close so
//! that the last words arrive.

use std::io;
use std::time::Duration;

use rustls::{AlertDescription, CertificateError, Error as TlsError, OtherError, PeerIncompatible};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::hello::HELLO_BYTES_MAX;
use crate::identity::{NotPinned, key_text};
use crate::reason::{LinkEnd, Reason};

/// How long a closing side waits for the other to hang up.
const LINGER: Duration = Duration::from_millis(500);
const LINGER_BYTES_MAX: usize = 1024 * 1024;

/// Reads one length-prefixed hello or answer.
pub(crate) async fn read_hello(stream: &mut (impl AsyncRead + Unpin)) -> Result<Vec<u8>, LinkEnd> {
    let length = stream.read_u16().await.map_err(|error| stream_end(&error))? as usize;
    if length > HELLO_BYTES_MAX {
        let detail = format!("a hello of {length} bytes, {HELLO_BYTES_MAX} are allowed");
        return Err(LinkEnd::new(Reason::NotLinkProtocol, detail));
    }
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).await.map_err(|error| stream_end(&error))?;
    Ok(bytes)
}

/// Names the failure of a TLS handshake or of an established TLS stream.
pub(crate) fn stream_end(error: &io::Error) -> LinkEnd {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<TlsError>()) {
        Some(tls) => tls_end(tls),
        None if error.kind() == io::ErrorKind::UnexpectedEof => {
            LinkEnd::new(Reason::Closed, "the peer closed the connection")
        }
        None => LinkEnd::io(error),
    }
}

fn tls_end(error: &TlsError) -> LinkEnd {
    match error {
        TlsError::InvalidCertificate(CertificateError::Other(OtherError(cause))) => {
            match cause.downcast_ref::<NotPinned>() {
                Some(NotPinned { offered }) => {
                    let detail =
                        format!("the peer showed key {}, which is not pinned here", key_text(offered));
                    LinkEnd::new(Reason::UnknownKey, detail)
                }
                None => LinkEnd::new(Reason::TlsFailed, error.to_string()),
            }
        }
        TlsError::InvalidCertificate(cause) => {
            LinkEnd::new(Reason::UnknownKey, format!("the peer's certificate is unusable ({cause})"))
        }
        TlsError::NoCertificatesPresented => LinkEnd::new(Reason::UnknownKey, "the peer showed no key"),
        TlsError::PeerIncompatible(
            PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
            | PeerIncompatible::SupportedVersionsExtensionRequired
            | PeerIncompatible::Tls12NotOfferedOrEnabled
            | PeerIncompatible::Tls12NotOffered
            | PeerIncompatible::ServerDoesNotSupportTls12Or13,
        )
        | TlsError::AlertReceived(AlertDescription::ProtocolVersion) => {
            LinkEnd::new(Reason::TlsVersion, "the peer does not offer TLS 1.3")
        }
        TlsError::AlertReceived(
            AlertDescription::CertificateUnknown
            | AlertDescription::BadCertificate
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied
            | AlertDescription::CertificateRequired
            | AlertDescription::DecryptError,
        ) => LinkEnd::told(Reason::KeyRefusedByPeer, "the peer does not know this replica's key"),
        TlsError::InvalidMessage(_) | TlsError::InappropriateMessage { .. } => {
            LinkEnd::new(Reason::NotTls, format!("what the peer sent is not TLS ({error})"))
        }
        other => LinkEnd::new(Reason::TlsFailed, other.to_string()),
    }
}

/// Hangs up politely: a socket closed with unread bytes is reset, and a reset may overtake our last words.
pub(crate) async fn linger<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S) {
    let drain = async {
        stream.shutdown().await?;
        let mut buffer = [0u8; 4096];
        let mut drained = 0;
        while drained < LINGER_BYTES_MAX {
            match stream.read(&mut buffer).await? {
                0 => break,
                count => drained += count,
            }
        }
        io::Result::Ok(())
    };
    // The peer's manners do not matter any more; the bound on time does.
    let _ = tokio::time::timeout(LINGER, drain).await;
}
