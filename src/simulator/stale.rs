//! Changes the edge notices late.
//!
//! The real edge answers from caches of keys, caps and balances, so that for a while a revoked key works, a new one does not,
//! and a counter tells the past. What a change goes through is kept here: as the database has it, and as the edge sees it.

use std::collections::VecDeque;

use super::clock::Wall;

/// A value that changes now, and is seen to change later.
#[derive(Clone, Debug, Default)]
pub(super) struct Delayed<T> {
    seen: T,
    /// Newer values, each with the instant from which it is seen, in order.
    coming: VecDeque<(Wall, T)>,
}

impl<T: Copy> Delayed<T> {
    /// A value that everybody knows.
    pub(super) fn new(value: T) -> Self {
        Self { seen: value, coming: VecDeque::new() }
    }

    /// Changes it; the edge sees that `delay_ms` from now.
    pub(super) fn set(&mut self, value: T, now: Wall, delay_ms: f64) {
        while let Some((from, value)) = self.coming.front().copied()
            && from <= now
        {
            self.seen = value;
            self.coming.pop_front();
        }
        self.coming.push_back((now.later(delay_ms), value));
    }

    /// As the edge sees it.
    pub(super) fn seen(&self, now: Wall) -> T {
        let due = self.coming.partition_point(|(from, _)| *from <= now);
        due.checked_sub(1).map_or(self.seen, |last| self.coming[last].1)
    }

    /// When the edge will see it change next.
    #[cfg(feature = "lab")]
    pub(super) fn changes(&self, now: Wall) -> Option<Wall> {
        self.coming.iter().map(|(from, _)| *from).find(|from| *from > now)
    }

    /// As the database has it.
    pub(super) fn latest(&self) -> T {
        self.coming.back().map_or(self.seen, |(_, value)| *value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_seen_after_its_delay_and_in_order() {
        let at = Wall::from_millis;
        let mut value = Delayed::new('a');
        value.set('b', at(1_000), 500.0);
        value.set('c', at(1_200), 500.0);
        for (now, seen) in [(1_000, 'a'), (1_499, 'a'), (1_500, 'b'), (1_699, 'b'), (1_700, 'c')] {
            assert_eq!((value.seen(at(now)), value.latest()), (seen, 'c'), "at {now}");
        }
        value.set('d', at(2_000), 0.0);
        assert_eq!((value.seen(at(2_000)), value.coming.len()), ('d', 1), "what is seen already is not kept");
    }
}
