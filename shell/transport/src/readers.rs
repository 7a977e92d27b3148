//! What the other end of a link says, read from bytes that are all there: the readers and judges of `accept.rs` and `dial.rs`
//! without a connection around them. For those who damage bytes by the hundred thousand (`proof/decoders`), for whom a
//! handshake each is too dear. Nothing that runs a link uses it.

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};

use crate::VersionRange;
use crate::frame::{Arrival, Class, Reading, Reassembler};
use crate::handshake::read_hello;
use crate::hello::{Answer, Hello, Local};
use crate::reason::LinkEnd;

/// Who reads.
#[derive(Clone, Copy, Debug)]
pub struct Reader {
    pub cluster: [u8; 32],
    pub me: u8,
    pub versions: VersionRange,
    pub frame_bytes_max: usize,
}

/// What was read until the bytes ended or were refused.
#[derive(Debug)]
pub struct Heard {
    /// The hello or answer as this program says it, without its length.
    pub opening: Vec<u8>,
    /// The version both would speak from there on.
    pub version: u16,
    pub frames: Vec<(Class, Bytes)>,
    /// Pings, pongs, beats and farewells.
    pub words: usize,
    /// Why the link would end there.
    pub end: Option<LinkEnd>,
}

impl Reader {
    fn local(&self) -> Local {
        Local { cluster: self.cluster, me: self.me, incarnation: 0, versions: self.versions }
    }

    /// As an acceptor reads what its dialler says, all but the key.
    ///
    /// # Errors
    /// What is no hello, or one that is refused.
    pub fn accept(&self, bytes: &[u8]) -> Result<Heard, LinkEnd> {
        let (opening, rest) = opening(bytes)?;
        let hello = Hello::decode(&opening)?;
        let version = hello.judge(&self.local())?;
        let frames = Reassembler::new(Reading::Frames, self.frame_bytes_max);
        Ok(heard(hello.encode(), version, frames, rest))
    }

    /// As a dialler of replica `to` reads what it is answered.
    ///
    /// # Errors
    /// What is no answer, or a refusal, or a welcome that was not asked for.
    pub fn dial(&self, to: u8, bytes: &[u8]) -> Result<Heard, LinkEnd> {
        let (opening, rest) = opening(bytes)?;
        let answer = Answer::decode(&opening)?;
        answer.judge(&self.local().hello(to))?;
        Ok(heard(answer.encode(), answer.version, Reassembler::new(Reading::Control, 0), rest))
    }
}

/// The first words, and what stands behind them.
fn opening(mut bytes: &[u8]) -> Result<(Vec<u8>, &[u8]), LinkEnd> {
    let read = pin!(read_hello(&mut bytes)).poll(&mut Context::from_waker(Waker::noop()));
    match read {
        Poll::Ready(opening) => Ok((opening?, bytes)),
        Poll::Pending => unreachable!("bytes in memory are never waited for"),
    }
}

fn heard(said: Vec<u8>, version: u16, mut reader: Reassembler, rest: &[u8]) -> Heard {
    let mut heard = Heard { opening: said[2..].to_vec(), version, frames: Vec::new(), words: 0, end: None };
    let mut buffer = BytesMut::from(rest);
    loop {
        match reader.next(&mut buffer) {
            Ok(Some(Arrival::Frame(class, frame))) => heard.frames.push((class, frame)),
            Ok(Some(Arrival::Ping(_) | Arrival::Pong(_) | Arrival::Beat | Arrival::Bye(_))) => {
                heard.words += 1
            }
            Ok(None) => return heard,
            Err(end) => {
                heard.end = Some(end);
                return heard;
            }
        }
    }
}
