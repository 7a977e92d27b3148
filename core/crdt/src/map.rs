//! The map: names to values of any kind, maps included (an observed-remove map; Almeida, Shoker & Baquero, JPDC 2018,
//! section 7.4). A field exists while something live is below it. Removing a field removes what its writer saw below it,
//! so an update made at the same time inside the field survives and keeps the field: update wins.

use crate::node::Node;
use crate::value::View;
use crate::wire::{Malformed, Reader, put_bytes, put_number};
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use bytes::Bytes;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Map {
    pub(crate) fields: BTreeMap<Bytes, Node>,
}

impl Map {
    pub(crate) fn is_empty(&self) -> bool {
        self.fields.is_empty()
    }

    pub(crate) fn is_live(&self) -> bool {
        self.fields.values().any(Node::is_live)
    }

    pub(crate) fn view(&self, show: &dyn Fn(&Node) -> Option<View>) -> BTreeMap<Bytes, View> {
        self.fields.iter().filter_map(|(name, node)| Some((name.clone(), show(node)?))).collect()
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        put_number(out, self.fields.len() as u64);
        for (name, node) in &self.fields {
            put_bytes(out, name);
            node.encode(out);
        }
    }

    /// `depth_left` is what the caller may still nest, checked before going down.
    pub(crate) fn decode(reader: &mut Reader, depth_left: usize) -> Result<Self, Malformed> {
        let mut fields = BTreeMap::new();
        for _ in 0..reader.count(usize::MAX)? {
            let name = Bytes::copy_from_slice(&reader.bytes(usize::MAX)?);
            fields.insert(name, Node::decode(reader, depth_left)?);
        }
        Ok(Self { fields })
    }
}
