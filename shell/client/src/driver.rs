//! Feeds the engine: one task that takes calls and connections' happenings in bursts, hands all of them in, lets the
//! callers it just answered speak again, and only then builds frames, so that what belongs together leaves together.
//!
//! It decides nothing. Its channels are bounded; callers wait when they are full.

use crate::connection::Happening;
use crate::engine::{Answers, Counters, Engine, Now};
use crate::reads::ReadAnswer;
use bytes::Bytes;
use dwcp_base::Ack;
use dwcp_proto::v3::ClientMessage;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinSet, yield_now};
use tokio::time::sleep_until;

/// Calls handed in and not yet looked at.
pub(crate) const OPS_MAX: usize = 8192;
/// Happenings not yet looked at.
pub(crate) const HAPPENINGS_MAX: usize = 256;
/// Taken at once.
const BURST: usize = 1024;
/// How soon a connection that had no room is offered its messages again.
const BLOCKED_PAUSE: Duration = Duration::from_millis(1);

/// What an application asks of the engine.
#[derive(Debug)]
pub(crate) enum Op {
    Call {
        session: u64,
        commands: Vec<Bytes>,
        timeout: Duration,
        ack: Option<Ack>,
        answer: oneshot::Sender<Answers>,
    },
    Read {
        query: Bytes,
        timeout: Duration,
        ack: Option<Ack>,
        answer: oneshot::Sender<ReadAnswer>,
    },
    Forget {
        session: u64,
    },
    Counters {
        answer: oneshot::Sender<Counters>,
    },
}

#[derive(Debug)]
pub(crate) struct Driver {
    pub engine: Engine,
    pub ops: mpsc::Receiver<Op>,
    pub happenings: mpsc::Receiver<(usize, Happening)>,
    pub wires: Vec<Option<mpsc::Sender<ClientMessage>>>,
    /// Held so that they end with the driver.
    #[allow(dead_code)]
    pub connections: JoinSet<()>,
}

fn now() -> Now {
    let wall_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis());
    Now { instant: Instant::now(), wall_ms: u64::try_from(wall_ms).unwrap_or(u64::MAX) }
}

impl Driver {
    /// Runs until the last handle of the client is dropped.
    pub async fn run(mut self) {
        let (mut ops, mut happenings) = (Vec::with_capacity(BURST), Vec::with_capacity(HAPPENINGS_MAX));
        let mut blocked = false;
        let far = Duration::from_secs(24 * 3600);
        let sleep = sleep_until(tokio::time::Instant::now() + far);
        tokio::pin!(sleep);
        let mut set_for = None;
        loop {
            let mut wake_at = self.engine.wake_at();
            if blocked {
                let soon = Instant::now() + BLOCKED_PAUSE;
                wake_at = Some(wake_at.map_or(soon, |at| at.min(soon)));
            }
            // Waking too early is harmless and setting a timer is not free: move it only when it would ring too late,
            // or has rung.
            if let Some(at) = wake_at
                && set_for.is_none_or(|set| at < set)
            {
                sleep.as_mut().reset(at.into());
                set_for = Some(at);
            }
            tokio::select! {
                taken = self.ops.recv_many(&mut ops, BURST) => {
                    if taken == 0 {
                        return;
                    }
                }
                _ = self.happenings.recv_many(&mut happenings, HAPPENINGS_MAX) => {}
                () = &mut sleep, if set_for.is_some() => set_for = None,
            }
            let mut at = now();
            let answered = !happenings.is_empty();
            self.hand_in(at, &mut ops, &mut happenings);
            if answered {
                yield_now().await;
                while ops.len() < BURST
                    && let Ok(op) = self.ops.try_recv()
                {
                    ops.push(op);
                }
                at = now();
                self.hand_in(at, &mut ops, &mut happenings);
            }
            self.engine.on_wake(at);
            self.engine.flush(at);
            blocked = self.hand_over();
        }
    }

    fn hand_in(&mut self, at: Now, ops: &mut Vec<Op>, happenings: &mut Vec<(usize, Happening)>) {
        for (node, happening) in happenings.drain(..) {
            match happening {
                Happening::Connected { wire, challenge } => {
                    self.wires[node] = Some(wire);
                    self.engine.on_connected(at, node, challenge);
                }
                Happening::Message(message) => self.engine.on_message(at, node, message),
                Happening::Disconnected(reason) => {
                    self.wires[node] = None;
                    self.engine.on_disconnected(at, node, reason);
                }
            }
        }
        for op in ops.drain(..) {
            match op {
                Op::Call { session, commands, timeout, ack, answer } => {
                    self.engine.on_call(at, session, commands, timeout, ack, answer);
                }
                Op::Read { query, timeout, ack, answer } => {
                    self.engine.on_read(at, query, timeout, ack, answer);
                }
                Op::Forget { session } => self.engine.on_forget(session),
                Op::Counters { answer } => {
                    let _ = answer.send(self.engine.counters());
                }
            }
        }
    }

    /// True when a connection had no room for all of its messages.
    fn hand_over(&mut self) -> bool {
        let mut blocked = false;
        for (node, wire) in self.wires.iter().enumerate() {
            let Some(wire) = wire else { continue };
            let nodes = self.engine.nodes();
            while nodes.outgoing(node).is_some() {
                match wire.try_reserve() {
                    Ok(permit) => permit.send(nodes.sent(node).expect("just seen")),
                    Err(TrySendError::Full(())) => {
                        blocked = true;
                        break;
                    }
                    // The connection's end is on its way here.
                    Err(TrySendError::Closed(())) => break,
                }
            }
        }
        blocked
    }
}
