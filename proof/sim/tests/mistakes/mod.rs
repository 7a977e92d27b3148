//! The mistakes that others shipped, one by one. Each test states a rule, shows that the core keeps it, then switches
//! the rule off (or writes the mistake out, where the core offers no switch) and watches the violation happen.
//!
//! Deterministic and small: no random seeds, no generated faults; for those there is the simulator itself.
//! In the order of Castro & Liskov, OSDI '99: `normal_case` (sections 3 to 4.2), `checkpoints` (4.3),
//! `view_changes` (4.4), `liveness` and `lost_letters` (4.5), `recovery` (what a disk remembers), `epochs` (segments).

mod cluster;
mod table;

mod checkpoints;
mod clients;
mod epochs;
mod liveness;
mod lost_letters;
mod normal_case;
mod recovery;
mod view_changes;
