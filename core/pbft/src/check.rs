//! What must always hold, checked by the simulator after every step.

use crate::state::Pbft;
use dwcp_base::Sequence;

impl Pbft {
    /// Checks the invariants of the protocol's state.
    ///
    /// # Panics
    /// When one does not hold, saying which.
    pub fn check(&self) {
        if self.mutants.any() {
            return; // The judges must notice by themselves.
        }
        let stable = self.stable_sequence();
        assert!(self.next_sequence > self.delivered.min(stable), "a primary never proposes what is settled");
        let lowest = stable.min(self.delivered);
        for (sequence, slot) in &self.slots {
            assert!(*sequence > lowest, "settled slots are forgotten");
            let highest = stable.max(self.delivered).max(self.reached);
            assert!(sequence.0 <= highest.0 + self.window, "slots stay inside the window");
            if let Some(accepted) = slot.accepted {
                assert!(accepted.statement.claim.view == self.view, "assignments are of the current view");
                assert!(self.active, "nothing is accepted between views");
            }
            if let Some(prepared) = &slot.prepared {
                assert!(prepared.view() <= self.view, "nothing is prepared in views to come");
            }
            if let (Some(decided), Some(prepared)) = (&slot.decided, &slot.prepared)
                && prepared.view() >= decided.claim.view
            {
                assert!(prepared.digest() == decided.claim.digest, "what is decided stays prepared");
            }
        }
        assert!(self.active || self.own_view_change.is_some(), "a view is left with a VIEW-CHANGE");
        assert!(
            self.history.keys().next_back().is_none_or(|last| *last <= self.delivered),
            "only delivered slots are history"
        );
        assert!(self.own_digests.keys().all(|at| *at > Sequence::ZERO), "the genesis has no checkpoint");
    }
}
