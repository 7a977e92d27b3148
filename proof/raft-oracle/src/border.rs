//! What may come in. The foreign library trusts its peers and panics where one of them lies (a heartbeat whose commit lies
//! past the log is enough), so every message is read and judged here before the library sees it. A Marker's rules, which
//! it does not know, are kept here too.

use crate::log::{Log, body_of};
use dwcp_base::limits::MESSAGE_BYTES_MAX;
use dwcp_base::{Epoch, ReplicaId};
use dwcp_raft::Kind;
use protobuf::Message as _;
use raft::Raft;
use raft::eraftpb::{Message, MessageType};

/// Terms and indices beyond are from nowhere: no segment lives so long, and the library's arithmetic would run out.
pub const NUMBER_MAX: u64 = 1 << 48;

/// The library's name of a member; 0 is nobody there.
pub fn foreign_id(id: ReplicaId) -> u64 {
    u64::from(id.0) + 1
}

pub fn own_id(id: u64) -> Option<ReplicaId> {
    u8::try_from(id.checked_sub(1)?).ok().map(ReplicaId)
}

pub fn to_bytes(epoch: Epoch, message: &Message) -> bytes::Bytes {
    let body = message.write_to_bytes().expect("a message of the library can be written");
    let mut bytes = Vec::with_capacity(body.len() + 12);
    bytes.extend_from_slice(&epoch.0.to_le_bytes());
    bytes.extend_from_slice(&u32::try_from(body.len()).expect("messages are small").to_le_bytes());
    bytes.extend_from_slice(&body);
    bytes.into()
}

/// The message in these bytes, if they are one of this epoch's.
pub fn read(epoch: Epoch, bytes: &[u8]) -> Result<Message, &'static str> {
    if bytes.len() > MESSAGE_BYTES_MAX {
        return Err("too long");
    }
    let (head, body) = bytes.split_at_checked(12).ok_or("no message")?;
    if head[..8] != epoch.0.to_le_bytes() {
        return Err("another epoch");
    }
    if u32::try_from(body.len()).map(u32::to_le_bytes).ok().as_ref().map(|l| &l[..]) != Some(&head[8..]) {
        return Err("no message");
    }
    let mut message = Message::default();
    message.merge_from_bytes(body).map_err(|_| "no message")?;
    Ok(message)
}

/// Lets a message pass, perhaps without what may not be acknowledged or confirmed, or says why not.
pub fn admit(raft: &Raft<Log>, me: u64, from: u64, mut message: Message) -> Result<Message, &'static str> {
    use MessageType as T;
    if message.from != from || message.to != me {
        return Err("not whom the link proved");
    }
    if message.has_snapshot() || message.request_snapshot != 0 {
        return Err("snapshots travel on other roads");
    }
    let numbers = [message.term, message.log_term, message.index, message.commit, message.commit_term];
    if message.term == 0
        || numbers.iter().any(|number| *number > NUMBER_MAX)
        || message.reject_hint > NUMBER_MAX
    {
        return Err("a number from nowhere");
    }
    let kind = message.get_msg_type();
    if !message.entries.is_empty() && kind != T::MsgAppend {
        return Err("entries where none belong");
    }
    let log = &raft.raft_log;
    let last = log.last_index();
    match kind {
        T::MsgAppend => admit_append(raft, message),
        T::MsgHeartbeat => {
            if message.term >= raft.term && message.commit > last {
                return Err("a commit past the log");
            }
            // A member that holds a Marker confirms no read: the answer repeats the context.
            if log.store().has_marker() {
                message.context = bytes::Bytes::new().to_vec().into();
            }
            Ok(message)
        }
        T::MsgAppendResponse => {
            if message.term == raft.term && !message.reject && message.index > last {
                return Err("an acknowledgement past the log");
            }
            Ok(message)
        }
        T::MsgRequestVoteResponse | T::MsgRequestPreVoteResponse => {
            // A candidate's request leaves after all it holds is durable; an earlier answer answers nothing, and the
            // library asserts as much when it takes office.
            if log.persisted != last || log.unstable_snapshot().is_some() {
                return Err("an answer before the question");
            }
            Ok(message)
        }
        T::MsgTimeoutNow if log.applied() < log.store().border.index.0 => {
            Err("a snapshot is being installed")
        }
        T::MsgHeartbeatResponse | T::MsgRequestVote | T::MsgRequestPreVote | T::MsgTimeoutNow => Ok(message),
        _ => Err("not a peer's message"),
    }
}

fn admit_append(raft: &Raft<Log>, mut message: Message) -> Result<Message, &'static str> {
    let log = &raft.raft_log;
    let mut term = message.log_term;
    for (index, entry) in (message.index + 1..).zip(message.entries.iter()) {
        if entry.index != index || entry.term < term || entry.term > message.term {
            return Err("entries that follow from nothing");
        }
        if body_of(entry).is_none() {
            return Err("an entry without meaning");
        }
        term = entry.term;
        if index <= log.committed && index >= log.first_index() && log.term(index).ok() != Some(entry.term) {
            return Err("against what is committed");
        }
    }
    if message.term < raft.term {
        return Ok(message);
    }
    if message.log_term > message.term {
        return Err("entries that follow from nothing");
    }
    let committed_term = log.term(log.committed).unwrap_or(0);
    if message.index >= log.committed && message.log_term < committed_term {
        return Err("against what is committed");
    }
    // Nothing past a Marker is acknowledged, so nothing past it is taken.
    let store = log.store();
    if let Some(marker) = store.marker() {
        let matches = log.match_term(message.index, message.log_term);
        if matches && message.index > marker.0 {
            return Err("past a Marker");
        }
        let differs = |entry: &raft::eraftpb::Entry| {
            entry.index <= marker.0 && !log.match_term(entry.index, entry.term)
        };
        if matches && !message.entries.iter().any(differs) {
            cut_after(&mut message, marker.0);
            return Ok(message);
        }
    }
    let new = message
        .entries
        .iter()
        .find(|entry| body_of(entry).is_some_and(|body| body.kind() == Kind::Marker))
        .map(|entry| entry.index);
    if let Some(marker) = new {
        cut_after(&mut message, marker);
    }
    Ok(message)
}

/// Leaves only entries up to this index.
fn cut_after(message: &mut Message, index: u64) {
    let kept = message.take_entries().into_iter().filter(|entry| entry.index <= index).collect::<Vec<_>>();
    message.set_entries(kept.into());
}
