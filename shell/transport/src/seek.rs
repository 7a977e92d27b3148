//! Whose address is this? Dialled once, as any of the peers: the key that answers says which, and an answer to a hello for
//! nobody says that links are answered there, and not clients. No link comes of it: that is `dial.rs`, once it knows where
//! to look.

use tokio::io::AsyncWriteExt;

use crate::config::PeerId;
use crate::dial::{connect, shake_hands};
use crate::handshake::{linger, read_hello, stream_end};
use crate::hello::{Answer, NOBODY};
use crate::identity::{key_text, peer_public_key};
use crate::peer::Shared;
use crate::reason::{LinkEnd, Reason};

/// The peer that proved its key at `addr`.
pub(crate) async fn who_is_at(shared: &Shared, addr: &str) -> Result<PeerId, LinkEnd> {
    let patience = shared.limits.handshake_timeout;
    tokio::time::timeout(patience, ask(shared, addr)).await.unwrap_or_else(|_| {
        Err(LinkEnd::new(
            Reason::HandshakeTimeout,
            format!("{addr} did not say who it is within {patience:?}"),
        ))
    })
}

async fn ask(shared: &Shared, addr: &str) -> Result<PeerId, LinkEnd> {
    let tcp = connect(addr, shared.limits.connect_timeout, |_| ()).await?;
    let mut stream = shake_hands(shared, tcp, addr, &shared.pins).await?;
    let key = peer_public_key(stream.get_ref().1.peer_certificates());
    let Some(peer) = key.as_ref().and_then(|key| shared.peer_of_key(key)) else {
        // A key that was pinned a moment ago and is no more.
        let shown = key.map_or_else(|| "none".to_string(), |key| key_text(&key));
        return Err(LinkEnd::new(
            Reason::UnknownKey,
            format!("{addr} showed key {shown}, which is no peer's"),
        ));
    };
    // A hello for the peer itself would take the place of the link that it may have from here.
    stream.write_all(&shared.local.hello(NOBODY).encode()).await.map_err(|error| stream_end(&error))?;
    stream.flush().await.map_err(|error| stream_end(&error))?;
    let answer = Answer::decode(&read_hello(&mut stream).await?)?;
    linger(&mut stream).await;
    match answer.refused {
        Some(Reason::WrongReplica) if answer.from == peer.id => Ok(PeerId(peer.id)),
        Some(reason) => Err(LinkEnd::told(reason, format!("{addr} refused this replica"))),
        None => Err(LinkEnd::new(Reason::WrongReplica, format!("{addr} welcomes a replica that nobody is"))),
    }
}
