//! What hints promise, in small worlds of 3 to 31 members whose time, network and faults follow one seed: who crashes is known
//! (`living`), who moves is found (`moving`), and who lies reaches nothing that lasts (`liars`).

mod liars;
mod living;
mod moving;
mod world;
