//! A value derived from something that changes, read by everybody and made anew by whoever finds it stale.

use crate::sync::{Loaded, Mutex, Slot, lock};

/// The derived value, and under its lock what is needed to make it.
pub(super) struct Swap<T, M> {
    slot: Slot<T>,
    making: Mutex<M>,
}

impl<T, M> Swap<T, M> {
    pub(super) fn new(value: T, making: M) -> Self {
        Self { slot: Slot::new(value), making: Mutex::new(making) }
    }

    /// The value, made anew unless it is `fresh`.
    ///
    /// The new value is stored under the lock, else a slower maker could put an older one in its place.
    pub(super) fn current(&self, fresh: impl Fn(&T) -> bool, make: impl FnOnce(&mut M) -> T) -> Loaded<T> {
        let value = self.slot.load();
        if fresh(&value) {
            return value;
        }
        drop(value);
        let mut making = lock(&self.making);
        let value = self.slot.load();
        if fresh(&value) {
            return value;
        }
        drop(value);
        let value = make(&mut making);
        self.slot.store(value);
        self.slot.load()
    }

    /// Changes what the value is made of. The caller marks it stale.
    pub(super) fn change<R>(&self, change: impl FnOnce(&mut M) -> R) -> R {
        change(&mut lock(&self.making))
    }
}

#[cfg(all(test, tower_openrouter_loom))]
mod model {
    use loom::thread;

    use super::*;
    use crate::sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    };

    struct Source {
        version: AtomicU64,
        keys: Mutex<Vec<u32>>,
    }

    impl Source {
        fn remove(&self, key: u32) {
            lock(&self.keys).retain(|other| *other != key);
            self.version.fetch_add(1, Ordering::AcqRel);
        }
    }

    fn read(swap: &Swap<(u64, Vec<u32>), ()>, source: &Source) -> Vec<u32> {
        swap.current(
            |(version, _)| *version == source.version.load(Ordering::Acquire),
            |()| (source.version.load(Ordering::Acquire), lock(&source.keys).clone()),
        )
        .1
        .clone()
    }

    #[test]
    fn r020_no_snapshot_read_after_a_removal_holds_the_key() {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(|| {
            let source = Arc::new(Source { version: AtomicU64::new(0), keys: Mutex::new(vec![1, 2, 3]) });
            let swap = Arc::new(Swap::new((u64::MAX, Vec::new()), ()));
            let other = {
                let (source, swap) = (source.clone(), swap.clone());
                thread::spawn(move || {
                    source.remove(1);
                    assert!(!read(&swap, &source).contains(&1));
                })
            };
            source.remove(2);
            assert!(!read(&swap, &source).contains(&2));
            other.join().unwrap();
            assert_eq!(read(&swap, &source), [3]);
        });
    }
}
