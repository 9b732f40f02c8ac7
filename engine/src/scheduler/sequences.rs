//! All sequences on the engine thread, in a slab with room for the most there can be.

use crate::kv::block_table::BlockTable;
use crate::sequence::{SeqId, Sequence, SequenceGroup};

/// Groups of sequences by index.
#[derive(Debug)]
pub struct Sequences {
    groups: Vec<Option<Box<SequenceGroup>>>,
    free: Vec<u32>,
    num_groups: usize,
    /// A planted fault: see [`Sequences::take_stale`].
    takes_stale: bool,
}

impl Sequences {
    /// Room for `capacity` groups.
    pub fn with_room(capacity: usize) -> Self {
        Sequences {
            groups: (0..capacity).map(|_| None).collect(),
            free: (0..capacity as u32).rev().collect(),
            num_groups: 0,
            takes_stale: false,
        }
    }

    /// Whether another group finds room.
    pub fn has_room(&self) -> bool {
        !self.free.is_empty()
    }

    /// Whether there is no group.
    pub fn is_empty(&self) -> bool {
        self.num_groups == 0
    }

    /// Takes a group in. The caller asked [`Sequences::has_room`].
    pub fn insert(&mut self, group: Box<SequenceGroup>) -> u32 {
        let index = self.free.pop();
        assert!(index.is_some(), "the queue's limit bounds the groups");
        let index = index.unwrap_or_default();
        self.groups[index as usize] = Some(group);
        self.num_groups += 1;
        index
    }

    /// Takes a group out.
    pub fn remove(&mut self, index: u32) -> Option<Box<SequenceGroup>> {
        let group = self.groups[index as usize].take()?;
        self.free.push(index);
        self.num_groups -= 1;
        Some(group)
    }

    /// Indexes of all slots, taken or not.
    pub fn indexes(&self) -> std::ops::Range<u32> {
        0..self.groups.len() as u32
    }

    /// The group at `index`, if there is one.
    pub fn group(&self, index: u32) -> Option<&SequenceGroup> {
        self.groups[index as usize].as_deref()
    }

    /// The group at `index`, if there is one.
    pub fn group_mut(&mut self, index: u32) -> Option<&mut SequenceGroup> {
        self.groups[index as usize].as_deref_mut()
    }

    /// The sequence that `id` names now, if there is one.
    pub fn find(&self, id: SeqId) -> Option<&Sequence> {
        self.group(id.group)?.sequences.get(id.choice as usize)
    }

    /// The sequence `id` if this stay among the running ones still lasts. What a step brings for
    /// any other is out of date.
    pub fn in_run(&mut self, id: SeqId, run: u64) -> Option<&mut SequenceGroup> {
        let takes_stale = self.takes_stale;
        let group = self.groups[id.group as usize].as_deref_mut()?;
        let is_current = group.sequences.get(id.choice as usize)?.run == Some(run);
        (is_current || takes_stale).then_some(group)
    }

    /// From now on outcomes that are out of date count. A defect that simulations plant to show that
    /// they would notice it.
    pub fn take_stale(&mut self) {
        self.takes_stale = true;
    }

    /// Tables of all sequences.
    pub fn tables(&self) -> impl Iterator<Item = &[BlockTable]> {
        let sequences = self.groups.iter().flatten().flat_map(|group| &group.sequences);
        sequences.map(|sequence| &sequence.tables[..])
    }
}

impl std::ops::Index<SeqId> for Sequences {
    type Output = Sequence;

    fn index(&self, id: SeqId) -> &Sequence {
        match &self.groups[id.group as usize] {
            Some(group) => &group.sequences[id.choice as usize],
            None => unreachable!("{id:?} was removed"),
        }
    }
}

impl std::ops::IndexMut<SeqId> for Sequences {
    fn index_mut(&mut self, id: SeqId) -> &mut Sequence {
        match &mut self.groups[id.group as usize] {
            Some(group) => &mut group.sequences[id.choice as usize],
            None => unreachable!("{id:?} was removed"),
        }
    }
}
