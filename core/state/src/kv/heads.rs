//! Finding a key in a sorted list without looking at the keys. A comparison of two keys touches memory that is rarely in
//! the cache; so the list's common prefix is kept once, and of each key the eight bytes after it, as a number, side by
//! side. A search goes over the numbers and compares whole keys only where those are equal.

use alloc::vec::Vec;

/// See the head of this file. The keys themselves are the caller's, who gives them by place. Eight bytes a key.
#[derive(Clone, Debug, Default)]
pub(crate) struct Heads {
    /// Every key of the list begins with it; not always the longest such prefix.
    prefix: Vec<u8>,
    /// Of each key the bytes after the prefix, big-endian, filled up with zeros: sorted as the keys are, with ties.
    numbers: Vec<u64>,
}

fn shared(one: &[u8], other: &[u8]) -> usize {
    one.iter().zip(other).take_while(|(one, other)| one == other).count()
}

/// `key`'s eight bytes from `from` on.
fn number(key: &[u8], from: usize) -> u64 {
    let rest = key.get(from..).unwrap_or(&[]);
    if let Some(bytes) = rest.first_chunk() {
        return u64::from_be_bytes(*bytes);
    }
    let mut bytes = [0; 8];
    bytes[..rest.len()].copy_from_slice(rest);
    u64::from_be_bytes(bytes)
}

impl Heads {
    /// Of `count` keys in strictly rising order.
    pub(crate) fn of<'k>(count: usize, key: impl Fn(usize) -> &'k [u8]) -> Self {
        let Some(last) = count.checked_sub(1) else { return Self::default() };
        // What the smallest and the largest share, all between them share.
        let prefix = &key(0)[..shared(key(0), key(last))];
        let numbers = (0..count).map(|place| number(key(place), prefix.len())).collect();
        Self { prefix: prefix.to_vec(), numbers }
    }

    /// Where the key is, or would be inserted.
    pub(crate) fn search<'k>(&self, wanted: &[u8], key: impl Fn(usize) -> &'k [u8]) -> Result<usize, usize> {
        let same = shared(wanted, &self.prefix);
        if same < self.prefix.len() {
            // A proper beginning of the prefix is below all that have it whole.
            let below = wanted.get(same).is_none_or(|byte| byte < &self.prefix[same]);
            return Err(if below { 0 } else { self.numbers.len() });
        }
        let wanted_number = number(wanted, same);
        let from = self.numbers.partition_point(|number| *number < wanted_number);
        let tie = |place: usize| self.numbers.get(place) == Some(&wanted_number);
        // Most often there is no tie, and the one that has the number is the key itself.
        let ties = match tie(from + 1) {
            false => usize::from(tie(from)),
            true => self.numbers[from..].partition_point(|number| *number == wanted_number),
        };
        let (mut low, mut high) = (from, from + ties);
        while low < high {
            let middle = usize::midpoint(low, high);
            match key(middle).cmp(wanted) {
                core::cmp::Ordering::Equal => return Ok(middle),
                core::cmp::Ordering::Less => low = middle + 1,
                core::cmp::Ordering::Greater => high = middle,
            }
        }
        Err(low)
    }

    /// A key was inserted at `place`, where [`Heads::search`] said; there are now `count`, given by `key`.
    pub(crate) fn insert<'k>(&mut self, place: usize, count: usize, key: impl Fn(usize) -> &'k [u8]) {
        let new = key(place);
        if self.numbers.is_empty() || shared(new, &self.prefix) < self.prefix.len() {
            *self = Self::of(count, key);
        } else {
            self.numbers.insert(place, number(new, self.prefix.len()));
        }
    }

    /// The key at `place` is gone.
    pub(crate) fn remove(&mut self, place: usize) {
        self.numbers.remove(place);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dwcp_base::Chance;

    /// Keys over a tiny alphabet with zeros, of all short lengths, so that prefixes, ties and keys that end inside the
    /// number are common; the list agrees with a plain binary search at every step.
    #[test]
    fn agrees_with_a_plain_search_whatever_is_inserted_and_removed() {
        let mut chance = Chance::new(11);
        for round in 0..200 {
            let mut keys: Vec<Vec<u8>> = Vec::new();
            let mut heads = Heads::default();
            let common = chance.below(12) as usize;
            let draw = |chance: &mut Chance| {
                let mut key = alloc::vec![b'k'; if chance.per_mille(970) { common } else { 0 }];
                let length = chance.below(14);
                key.extend((0..length).map(|_| [0, 1, b'k', 255][chance.below(4) as usize]));
                key
            };
            for _ in 0..300 {
                let key = draw(&mut chance);
                let found = heads.search(&key, |place| &keys[place]);
                assert_eq!(found, keys.binary_search(&key), "round {round}");
                match found {
                    Ok(place) if chance.per_mille(500) => {
                        keys.remove(place);
                        heads.remove(place);
                    }
                    Ok(_) => {}
                    Err(place) => {
                        keys.insert(place, key);
                        heads.insert(place, keys.len(), |place| &keys[place]);
                    }
                }
                if chance.per_mille(20) {
                    heads = Heads::of(keys.len(), |place| &keys[place]);
                }
            }
        }
    }
}
