//! Damage to bytes, drawn from a seed: what a bad disk, a bad link and a bad mind do. It knows no format; lengths and
//! numbers are guessed from their look.

use dwcp_base::Chance;

/// Inputs do not grow beyond this by mutation.
const BYTES_MAX: usize = 1 << 20;

/// Numbers at whose edges programs break.
const EDGES: [u64; 18] = [
    0,
    1,
    2,
    7,
    8,
    16,
    127,
    128,
    255,
    256,
    1 << 15,
    u16::MAX as u64,
    1 << 31,
    u32::MAX as u64,
    1 << 32,
    1 << 63,
    u64::MAX - 1,
    u64::MAX,
];

fn place(chance: &mut Chance, len: usize) -> usize {
    usize::try_from(chance.below(len as u64)).expect("a place in memory")
}

/// Some bytes of `bytes`: from, to.
fn span(chance: &mut Chance, len: usize) -> (usize, usize) {
    let from = place(chance, len);
    let long = if chance.per_mille(700) { 16 } else { len as u64 };
    let to = (from + 1 + place(chance, long as usize)).min(len);
    (from, to)
}

/// Damages `bytes` in one to four ways. `other` is a second good input to cross with. A `gentle` damage leaves every
/// byte where it was, so that what is read by position is still found.
pub fn damage(bytes: &mut Vec<u8>, other: &[u8], gentle: bool, chance: &mut Chance) {
    for _ in 0..chance.between(1, if gentle { 2 } else { 4 }) {
        damage_once(bytes, other, gentle, chance);
    }
    bytes.truncate(BYTES_MAX);
}

fn damage_once(bytes: &mut Vec<u8>, other: &[u8], gentle: bool, chance: &mut Chance) {
    if bytes.is_empty() {
        bytes.push(chance.next_u64() as u8);
        return;
    }
    match chance.below(if gentle { 5 } else { 12 }) {
        0 => {
            let at = place(chance, bytes.len());
            bytes[at] ^= 1 << chance.below(8);
        }
        1 => {
            let at = place(chance, bytes.len());
            // Small numbers are tags, lengths and flags.
            bytes[at] = if chance.per_mille(500) { chance.below(9) as u8 } else { chance.next_u64() as u8 };
        }
        2 | 3 => edge_number(bytes, chance),
        4 => step_number(bytes, chance),
        5 => bytes.truncate(place(chance, bytes.len())),
        6 => {
            let (from, to) = span(chance, bytes.len());
            bytes.drain(from..to);
        }
        7 => {
            let (from, to) = span(chance, bytes.len());
            let copy = bytes[from..to].to_vec();
            bytes.splice(to..to, copy);
        }
        8 => {
            let at = place(chance, bytes.len() + 1);
            let new: Vec<u8> = (0..chance.between(1, 24)).map(|_| chance.next_u64() as u8).collect();
            bytes.splice(at..at, new);
        }
        9 => length_field(bytes, chance),
        10 if !other.is_empty() => {
            let (from, to) = span(chance, other.len());
            let (at, end) = span(chance, bytes.len());
            bytes.splice(at..end, other[from..to].iter().copied());
        }
        _ if !other.is_empty() => {
            // The front of one, the back of the other.
            let at = place(chance, bytes.len());
            let from = place(chance, other.len());
            bytes.truncate(at);
            bytes.extend_from_slice(&other[from..]);
        }
        _ => bytes.push(0),
    }
}

/// `good` with the largest number there is written over every place of so many bytes.
#[must_use]
pub fn sweep(good: &[u8], widths: &[usize]) -> Vec<Vec<u8>> {
    let mut swept = Vec::new();
    for &width in widths {
        for at in 0..(good.len() + 1).saturating_sub(width) {
            let mut bytes = good.to_vec();
            bytes[at..at + width].fill(255);
            swept.push(bytes);
        }
    }
    swept
}

/// Writes an edge over a number of 1, 2, 4 or 8 bytes.
fn edge_number(bytes: &mut [u8], chance: &mut Chance) {
    let edge = EDGES[place(chance, EDGES.len())];
    let mut number = if chance.per_mille(500) { edge.to_le_bytes() } else { edge.to_be_bytes() };
    let width = 1usize << chance.below(4);
    if number[7] != 0 && number[0] == 0 {
        number.rotate_left(8 - width);
    }
    let at = place(chance, bytes.len());
    let end = (at + width).min(bytes.len());
    bytes[at..end].copy_from_slice(&number[..end - at]);
}

/// Adds or takes a little from a number of 4 or 8 bytes.
fn step_number(bytes: &mut [u8], chance: &mut Chance) {
    let at = place(chance, bytes.len());
    let step = chance.between(1, 9);
    let up = chance.per_mille(500);
    if let Some(field) = bytes[at..].first_chunk_mut::<8>() {
        let number = u64::from_le_bytes(*field);
        *field = if up { number.wrapping_add(step) } else { number.wrapping_sub(step) }.to_le_bytes();
    }
}

/// Finds four bytes that look like a length and makes them a lie.
fn length_field(bytes: &mut [u8], chance: &mut Chance) {
    let from = place(chance, bytes.len());
    let looks = |at: &usize| {
        bytes[*at..].first_chunk::<4>().is_some_and(|field| {
            let number = u32::from_le_bytes(*field) as usize;
            number > 0 && number <= bytes.len()
        })
    };
    let Some(at) = (from..bytes.len()).find(looks) else { return };
    let field: [u8; 4] = bytes[at..at + 4].try_into().expect("four bytes were cut");
    let number = u32::from_le_bytes(field);
    let lie = match chance.below(5) {
        0 => u32::MAX,
        1 => number.wrapping_sub(1),
        2 => number.wrapping_add(1),
        3 => 0x7fff_ffff,
        _ => chance.next_u64() as u32 >> chance.below(32),
    };
    bytes[at..at + 4].copy_from_slice(&lie.to_le_bytes());
}
