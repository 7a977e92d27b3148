//! The same store under the virtual log: whole replicas with an open Raft segment, as a node drives them.

use crate::load::{Clients, QUOTA_BYTES};
use crate::world::{Arrival, NODES, Node, Wish, World};
use anyhow::ensure;
use bytes::Bytes;
use dwcp_base::{Genesis, Incarnation, Micros, Mutants, Now, ReplicaId};
use dwcp_raft::OwnRaft;
use dwcp_replica::{
    ClientId, ClientReply, ClientRequest, Effect, Event, Input, Outbox, Recovery, Replica, Settings, Setup,
};
use dwcp_state::kv::Kv;
use std::sync::Arc;

pub struct Whole {
    pub replica: Replica<Kv>,
    out: Outbox,
}

/// Three of them with a segment open, and who leads it.
pub fn world(
    genesis: &Arc<Genesis>,
    clients: &Clients,
    settings: Settings,
) -> anyhow::Result<(World<Whole>, ReplicaId)> {
    let start = |id| start(genesis, clients, settings, id);
    let nodes: Vec<Whole> = (0..NODES).map(start).collect::<Result<_, _>>()?;
    let mut world = World::new(nodes);
    for id in 0..NODES {
        for peer in (0..NODES).filter(|peer| *peer != id) {
            let node = &mut world.nodes[usize::from(id)];
            let now = World::<Whole>::beginning();
            node.replica.step(now, Input::LinkUp { peer: ReplicaId(peer) }, &mut node.out);
        }
    }
    world.pass(Micros::from_millis(1_000));
    let now = world.clock();
    let led_by = |node: &Whole| node.replica.status(now).segment.and_then(|segment| segment.leader);
    let leaders: Vec<_> = world.nodes.iter().map(led_by).collect();
    ensure!(leaders.windows(2).all(|pair| pair[0] == pair[1]), "not all follow one leader: {leaders:?}");
    let leader = leaders[0].ok_or_else(|| anyhow::anyhow!("no segment is open after a second"))?;
    Ok((world, leader))
}

fn start(genesis: &Arc<Genesis>, clients: &Clients, settings: Settings, id: u8) -> anyhow::Result<Whole> {
    let setup = Setup {
        genesis: Arc::clone(genesis),
        me: ReplicaId(id),
        incarnation: Incarnation(0),
        settings,
        raft: Some(Arc::new(OwnRaft)),
        // No part of the log: what it costs is another table's.
        sync: None,
        seed: id.into(),
        mutants: Mutants::default(),
    };
    let recovery = Recovery { next_ticket: dwcp_base::Ticket(1), ..Recovery::default() };
    let make = Arc::new(|| Kv::new(QUOTA_BYTES));
    let (crypto, now) = (clients.crypto(genesis, id), World::<Whole>::beginning());
    let mut out = Outbox::default();
    let replica = Replica::recover(setup, make, crypto, recovery, now, &mut out)?;
    Ok(Whole { replica, out })
}

impl Node for Whole {
    fn step(&mut self, now: Now, burst: Vec<Arrival>, wishes: &mut Vec<Wish>) {
        let inputs = burst.into_iter().map(|arrival| match arrival {
            Arrival::Peer { from, bytes } => Input::Peer { from, incarnation: Incarnation(0), bytes },
            Arrival::Frame { client, bytes } => {
                let request = ClientRequest::Frame { bytes, ack: None };
                Input::Client { client: ClientId(client), request }
            }
            Arrival::Durable(through) => Input::Durable { through },
            Arrival::Saved(sequence) => Input::SnapshotSaved { sequence },
            Arrival::Wake => Input::Wake,
        });
        self.replica.step_all(now, inputs, &mut self.out);
        self.replica.step(now, Input::Settle, &mut self.out);
        for effect in self.out.drain() {
            match effect {
                Effect::Persist { ticket, record, .. } => {
                    wishes.push(Wish::Record { ticket, bytes: Bytes::from(record) });
                }
                Effect::Send { to, bytes, .. } => wishes.push(Wish::Send { to, bytes }),
                Effect::Reply { reply: ClientReply::Executed(reply), .. } => {
                    wishes.push(Wish::Reply(reply));
                }
                Effect::Reply { reply, .. } => wishes.push(Wish::Refused(format!("{reply:?}"))),
                Effect::SaveSnapshot { sequence, .. } => wishes.push(Wish::Save(sequence)),
                Effect::Event(Event::Anchored { .. }) => wishes.push(Wish::Anchored),
                Effect::Event(Event::Refused { reason, .. }) => wishes.push(Wish::Refused(reason.into())),
                Effect::Halt { reason } => wishes.push(Wish::Refused(reason)),
                Effect::Event(_)
                | Effect::DropSnapshot { .. }
                | Effect::DiscardLog { .. }
                | Effect::MemberChanged { .. }
                | Effect::SaveChunk { .. }
                | Effect::FinishSnapshot { .. }
                | Effect::ReadChunk { .. } => {}
            }
        }
    }

    fn next_wakeup(&self) -> Micros {
        self.replica.next_wakeup()
    }

    /// It does at every Tick.
    fn digest(&mut self) {}
}
