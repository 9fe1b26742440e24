//! What picks compare of endpoints, and what successes count, those of a pool side by side.
//!
//! A pick looks at two endpoints of ten thousand, of which no cache holds anything, nor knows in which page of memory they
//! lie. So the two words it compares are kept apart from all else: 16 bytes for each endpoint, 160 KB for ten thousand. The
//! [`Tally`] of an endpoint is one line of the cache, which only a place among others like it can promise.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicU32, Ordering},
};

use tokio::time::Instant;

use super::{Endpoint, peak::Peak, tally::Tally};
use crate::{clock, sync::lock_std};

/// Most places of a block: their numbers fit 16 bits.
const MOST: usize = 1 << 16;
/// Places of a block that is added later.
const MORE: usize = 256;

/// One endpoint's.
#[derive(Debug, Default)]
pub(super) struct Load {
    /// Requests in flight, bodies included.
    pub(super) in_flight: AtomicU32,
    /// When the last penalty is over, in [`Tick`]s, rounded up; 0 when there never was one.
    punished_until: AtomicU32,
    pub(super) recent_first_byte: Peak,
}

/// 67 ms, so that ten years of them fit 32 bits.
struct Tick;

impl Tick {
    fn of(at: Instant) -> u32 {
        u32::try_from(clock::nanos(at) >> 26).unwrap_or(u32::MAX)
    }
}

impl Load {
    /// Notes that virtual requests count until then.
    pub(super) fn punish(&self, until: Instant) {
        self.punished_until.fetch_max(Tick::of(until).saturating_add(1), Ordering::Release);
    }

    /// Forgets virtual requests, and how slow it was.
    pub(super) fn forgive(&self) {
        self.punished_until.store(0, Ordering::Release);
        self.recent_first_byte.forget();
    }

    /// Whether virtual requests may be left; if not, what is in flight is all there is.
    pub(super) fn is_punished(&self, now: Instant) -> bool {
        let until = self.punished_until.load(Ordering::Acquire);
        until != 0 && until > Tick::of(now)
    }

    pub(super) fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }
}

/// Places side by side.
#[derive(Debug)]
struct Block {
    loads: Box<[Load]>,
    tallies: Box<[Tally]>,
    free: Mutex<Vec<u16>>,
}

impl Block {
    fn new(places: usize) -> Arc<Self> {
        let places = places.clamp(1, MOST);
        let free = (0..places).rev().map(|at| at as u16).collect();
        Arc::new(Self {
            loads: (0..places).map(|_| Load::default()).collect(),
            tallies: (0..places).map(|_| Tally::default()).collect(),
            free: Mutex::new(free),
        })
    }

    fn take(self: &Arc<Self>) -> Option<Place> {
        let at = lock_std(&self.free).pop()?;
        Some(Place { block: self.clone(), at })
    }
}

/// The place of one endpoint, given back when dropped.
#[derive(Debug)]
pub(super) struct Place {
    block: Arc<Block>,
    at: u16,
}

impl Place {
    pub(super) fn load(&self) -> &Load {
        &self.block.loads[usize::from(self.at)]
    }

    pub(super) fn tally(&self) -> &Tally {
        &self.block.tallies[usize::from(self.at)]
    }
}

impl Default for Place {
    /// Outside any pool.
    fn default() -> Self {
        Place { block: Block::new(1), at: 0 }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let load = self.load();
        load.in_flight.store(0, Ordering::Relaxed);
        load.punished_until.store(0, Ordering::Relaxed);
        load.recent_first_byte.forget();
        self.tally().clear();
        lock_std(&self.block.free).push(self.at);
    }
}

/// All places of a pool's endpoints.
#[derive(Debug, Default)]
pub(super) struct Places(Mutex<Vec<Arc<Block>>>);

impl Places {
    /// Sees to it that so many endpoints find their places in one block.
    pub(super) fn reserve(&self, places: usize) {
        let mut blocks = lock_std(&self.0);
        // what only this list knows of, nobody uses any more
        blocks.retain(|block| Arc::strong_count(block) > 1);
        if places > 0 {
            blocks.push(Block::new(places));
        }
    }

    pub(super) fn take(&self) -> Place {
        let mut blocks = lock_std(&self.0);
        if let Some(place) = blocks.iter().rev().find_map(Block::take) {
            return place;
        }
        let block = Block::new(MORE);
        let place = block.take().expect("it has places");
        blocks.push(block);
        place
    }
}

/// The loads of a snapshot's endpoints, by their index: what a pick that goes by load prepares.
#[derive(Debug)]
pub(crate) struct Loads {
    blocks: Vec<Arc<Block>>,
    /// Block and place of each; nothing when all lie in the one block in order.
    places: Option<Box<[(u16, u16)]>>,
}

impl Loads {
    pub(crate) fn of(endpoints: &[Endpoint]) -> Option<Self> {
        let mut blocks = Vec::<Arc<Block>>::new();
        let mut places = Vec::with_capacity(endpoints.len());
        for endpoint in endpoints {
            let Place { block, at } = endpoint.figures().place();
            // nearly always the one before it
            let known = blocks.iter().rposition(|known| Arc::ptr_eq(known, block));
            let number = known.unwrap_or_else(|| {
                blocks.push(block.clone());
                blocks.len() - 1
            });
            places.push((u16::try_from(number).ok()?, *at));
        }
        let in_order =
            places.iter().enumerate().all(|(index, place)| *place == (0, index as u16)) && places.len() <= MOST;
        Some(Self { blocks, places: (!in_order).then(|| places.into()) })
    }

    fn get(&self, index: usize) -> &Load {
        let (block, at) = self.places.as_ref().map_or((0, index as u16), |places| places[index]);
        &self.blocks[usize::from(block)].loads[usize::from(at)]
    }

    /// Requests in flight of an endpoint, real and virtual, where they can be told from here.
    pub(crate) fn load(&self, index: usize, now: Instant) -> Option<f64> {
        let load = self.get(index);
        (!load.is_punished(now)).then(|| f64::from(load.in_flight()))
    }

    /// See [`Figures::recent_first_byte`](super::Figures::recent_first_byte).
    pub(crate) fn recent_first_byte(&self, index: usize, now: Instant) -> Option<std::time::Duration> {
        self.get(index).recent_first_byte.read(now)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        ApiKey,
        endpoint::PoolState,
        outcome::{Cause, Fault, Scope},
    };

    fn endpoints(state: &Arc<PoolState>, count: usize) -> Vec<Endpoint> {
        state.expect(count);
        (0..count).map(|n| Endpoint::in_pool(ApiKey::new(format!("key-{n}")).unwrap(), state.clone())).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_read_here_is_what_the_figures_say() {
        let state = Arc::<PoolState>::default();
        let mut endpoints = endpoints(&state, 5);
        assert!(Loads::of(&endpoints).unwrap().places.is_none(), "those of one pool lie in order");
        endpoints.remove(1);
        endpoints.push(Endpoint::in_pool(ApiKey::new("later").unwrap(), state.clone()));
        endpoints.push(Endpoint::new(ApiKey::new("alone").unwrap()));
        let (loads, now) = (Loads::of(&endpoints).unwrap(), Instant::now());
        for (index, endpoint) in endpoints.iter().enumerate() {
            (0..=index).for_each(|_| endpoint.figures().start());
            endpoint.figures().first_byte(Duration::from_secs(1 + index as u64), now);
        }
        for (index, endpoint) in endpoints.iter().enumerate() {
            assert_eq!(loads.load(index, now), Some(endpoint.figures().load(now)));
            assert_eq!(loads.recent_first_byte(index, now), endpoint.figures().recent_first_byte(now));
        }
        endpoints[2].figures().fail(&Fault::new(Cause::KeyLimit, Scope::Key), Duration::ZERO, now);
        assert_eq!(loads.load(2, now), None, "the figures must be asked");
        assert_eq!(endpoints[2].figures().load(now), 4.0);
        assert_eq!(loads.load(2, now + Duration::from_secs(6)), Some(3.0));
    }

    #[test]
    fn r132_places_of_keys_that_are_gone_are_given_back() {
        let state = Arc::<PoolState>::default();
        for _ in 0..100 {
            for endpoint in endpoints(&state, 300) {
                endpoint.figures().start();
                endpoint.figures().succeed(Duration::ZERO, Duration::ZERO);
            }
        }
        assert!(lock_std(&state.places.0).len() <= 2);
        let figures = endpoints(&state, 1)[0].clone();
        let figures = figures.figures();
        assert_eq!((figures.in_flight(), figures.started(), figures.succeeded()), (0, 0, 0));
        assert!(figures.times().is_none());
    }
}
