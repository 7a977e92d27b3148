//! What must hold in every state, and what must be reached in some, lest the checker agree with an idle cluster.

use dwcp_base::{Hash, Sequence, View};
use stateright::{Model, Property};
use std::collections::BTreeMap;

use crate::cluster::{Action, Cluster, State};

/// No two honest replicas deliver different payloads for one sequence.
pub const AGREEMENT: &str = "agreement";
/// No two digests are prepared for one view and sequence (OSDI '99 section 4.2).
pub const ONE_PREPARED: &str = "one digest prepared per slot and view";
/// Only what somebody proposed, and what the application allows, is delivered.
pub const VALIDITY: &str = "validity";

fn agreement(_: &Cluster, state: &State) -> bool {
    let mut all: BTreeMap<Sequence, Hash> = BTreeMap::new();
    let mut delivered = state.honest().flat_map(|(_, node)| &node.delivered);
    delivered.all(|(sequence, digest)| *all.entry(*sequence).or_insert(*digest) == *digest)
}

fn one_prepared(_: &Cluster, state: &State) -> bool {
    let mut all: BTreeMap<(View, Sequence), Hash> = BTreeMap::new();
    let mut prepared = state.honest().flat_map(|(_, node)| &node.prepared);
    prepared.all(|(view, sequence, digest)| *all.entry((*view, *sequence)).or_insert(*digest) == *digest)
}

fn validity(_: &Cluster, state: &State) -> bool {
    state.honest().flat_map(|(_, node)| node.delivered.values()).all(|digest| state.proposed.contains(digest))
}

fn all_deliver(_: &Cluster, state: &State) -> bool {
    state.honest().all(|(_, node)| !node.delivered.is_empty())
}

fn nobody_halts(_: &Cluster, state: &State) -> bool {
    state.honest().all(|(_, node)| !node.halted)
}

fn delivered_in_a_later_view(_: &Cluster, state: &State) -> bool {
    state.honest().any(|(_, node)| node.pbft().view() > View(1) && node.delivered.len() > 1)
}

fn carried_over(_: &Cluster, state: &State) -> bool {
    state.honest().any(|(_, node)| node.carried > 0 && !node.delivered.is_empty())
}

impl Model for Cluster {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![self.begin()]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        self.possible(state, actions);
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        self.follow(state, action)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            Property::always(AGREEMENT, agreement),
            Property::always(ONE_PREPARED, one_prepared),
            Property::always(VALIDITY, validity),
            Property::always("an intact disk is never turned away", nobody_halts),
            Property::sometimes("every honest replica delivers", all_deliver),
        ];
        if self.view_changes {
            properties.push(Property::sometimes("a later view delivers", delivered_in_a_later_view));
            properties.push(Property::sometimes("a new view carries a slot over", carried_over));
        }
        properties
    }

    fn within_boundary(&self, state: &State) -> bool {
        self.inside(state)
    }
}
