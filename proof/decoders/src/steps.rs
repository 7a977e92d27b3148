//! An input that is a list of steps: for each a tag, a length (u32) and a body. Any bytes are some list. What tags mean is
//! each target's own business.

use dwcp_base::Chance;

/// Steps of one input; what follows is not read.
const STEPS_MAX: usize = 1_024;

/// What happens, and with which bytes.
pub type Step = (u8, Vec<u8>);

/// The bytes of a list.
#[must_use]
pub fn write(steps: &[Step]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (tag, body) in steps {
        bytes.push(*tag);
        bytes.extend_from_slice(&u32::try_from(body.len()).expect("steps are small").to_le_bytes());
        bytes.extend_from_slice(body);
    }
    bytes
}

/// The list that these bytes are. A last step whose length lies has what is left.
#[must_use]
pub fn read(mut bytes: &[u8]) -> Vec<Step> {
    let mut steps = Vec::new();
    while let Some((tag, rest)) = bytes.split_first()
        && steps.len() < STEPS_MAX
    {
        let (len, rest) = rest
            .split_first_chunk::<4>()
            .map_or((usize::MAX, rest), |(len, rest)| (u32::from_le_bytes(*len) as usize, rest));
        let (body, rest) = rest.split_at(len.min(rest.len()));
        steps.push((*tag, body.to_vec()));
        bytes = rest;
    }
    steps
}

/// Damages a list as a whole or in one of its steps.
pub fn damage(bytes: &mut Vec<u8>, other: &[u8], gentle: bool, chance: &mut Chance) {
    let mut steps = read(bytes);
    let others = read(other);
    if steps.is_empty() || (!gentle && chance.per_mille(50)) {
        return crate::mutate::damage(bytes, other, gentle, chance);
    }
    let place = |chance: &mut Chance, len: usize| usize::try_from(chance.below(len as u64)).expect("a place");
    for _ in 0..chance.between(1, 3) {
        let at = place(chance, steps.len());
        match chance.below(10) {
            0 if steps.len() > 1 => {
                steps.remove(at);
            }
            1 => {
                let to = place(chance, steps.len());
                let step = steps[at].clone();
                steps.insert(to, step);
            }
            2 => {
                let to = place(chance, steps.len());
                steps.swap(at, to);
            }
            3 if !others.is_empty() => {
                let step = others[place(chance, others.len())].clone();
                steps.insert(at, step);
            }
            _ => {
                let donor = chance.pick(&others).map(|(_, body)| body.clone()).unwrap_or_default();
                let body = &mut steps[at].1;
                crate::mutate::damage(body, &donor, gentle || chance.per_mille(600), chance);
            }
        }
    }
    *bytes = write(&steps);
}
