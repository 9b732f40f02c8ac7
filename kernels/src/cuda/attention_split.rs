//! How long the pieces of a launch may be, so that its blocks end at about the same time.
//!
//! A pure function of the tiles' lengths and of the places that the device has for them. A piece costs
//! its units and about one more; all pieces are started in the order of their length.

/// Where pieces run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Split {
    /// Pieces that the device runs at once.
    pub(crate) places: u32,
    /// Splitting may make as many pieces as fill the device so often.
    pub(crate) turns: u32,
}

/// What a piece costs beside its units: its queries, the first copies, its part of a merge.
const PIECE_COST: u64 = 1;

impl Split {
    /// Units that a piece may have at most, for tiles of so many units.
    pub(crate) fn longest_piece(&self, tiles: impl Iterator<Item = u32> + Clone) -> u32 {
        let longest = tiles.clone().max().unwrap_or(0).max(1);
        let (num_tiles, total) =
            tiles.clone().fold((0, 0), |(num, total), units| (num + 1, total + u64::from(units)));
        let places = u64::from(self.places);
        // Where a turn's end does not matter, neither do pieces.
        if num_tiles > u64::from(self.turns) * places && u64::from(longest) <= total / places {
            return longest;
        }
        let time = |longest: u32| {
            let num_pieces = pieces(tiles.clone(), longest);
            let piece = u64::from(longest) + PIECE_COST;
            // However lengths are mixed; and where they are alike.
            let mixed = (total + num_pieces * PIECE_COST) / places + piece;
            (num_pieces.div_ceil(places) * piece).min(mixed)
        };
        let rooms = (1..=self.turns).map(|turn| places * u64::from(turn));
        let rooms = rooms.chain([num_tiles + places]).filter(|&room| room >= num_tiles);
        let mut best = (time(longest), longest);
        for room in rooms {
            let shorter = shortest_within(tiles.clone(), room, longest);
            let of_shorter = time(shorter);
            // More pieces for little are more to merge for nothing.
            if of_shorter * 8 <= best.0 * 7 {
                best = (of_shorter, shorter);
            }
        }
        best.1
    }
}

/// Pieces of tiles, none longer than `longest`.
fn pieces(tiles: impl Iterator<Item = u32>, longest: u32) -> u64 {
    tiles.map(|units| u64::from(units.div_ceil(longest).max(1))).sum()
}

/// The least length of which tiles are no more than `room` pieces, up to `longest`, of which they are.
fn shortest_within(tiles: impl Iterator<Item = u32> + Clone, room: u64, longest: u32) -> u32 {
    let (mut low, mut high) = (1, longest);
    while low < high {
        let middle = low + (high - low) / 2;
        if pieces(tiles.clone(), middle) <= room {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    high
}
