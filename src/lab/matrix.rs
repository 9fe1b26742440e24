//! Many runs on all cores: every scenario with every stack and every seed.

use std::{
    collections::BTreeMap,
    num::NonZeroUsize,
    sync::{
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
};

use tower::BoxError;

use super::{Run, Scenario, Stack, run};

/// Which runs there are, in the order in which they are told: by scenario, then by stack, then by seed.
///
/// ```
/// use std::num::NonZeroUsize;
/// use tower_openrouter::lab::{Matrix, Scenario, stacks};
///
/// let scenario = Scenario::from_toml(
///     r#"
///     name = "quiet"
///     length_s = 10.0
///     [world]
///     accounts = [{ name = "a", credits = 1.0 }]
///     keys = [{ label = "a-1", account = "a" }]
///     models = [{ id = "acme/swift-1" }]
///     endpoints = [{ model = "acme/swift-1", provider = "One" }]
///     "#,
/// )?;
/// let matrix = Matrix { scenarios: &[scenario], stacks: &[Box::new(stacks::DefaultStack)], seeds: 2 };
/// let mut seeds = Vec::new();
/// matrix.run(NonZeroUsize::MIN, |_, run| seeds.push(run.seed))?;
/// assert_eq!(seeds, [1, 2]);
/// # Ok::<(), tower::BoxError>(())
/// ```
pub struct Matrix<'a> {
    /// The scenarios.
    pub scenarios: &'a [Scenario],
    /// The stacks.
    pub stacks: &'a [Box<dyn Stack>],
    /// How many seeds, from 1 on.
    pub seeds: u64,
}

impl std::fmt::Debug for Matrix<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let stacks: Vec<_> = self.stacks.iter().map(|stack| stack.name()).collect();
        let scenarios: Vec<_> = self.scenarios.iter().map(|scenario| &scenario.name).collect();
        f.debug_struct("Matrix")
            .field("scenarios", &scenarios)
            .field("stacks", &stacks)
            .field("seeds", &self.seeds)
            .finish()
    }
}

/// One of the runs.
type Place<'a> = (&'a Scenario, &'a dyn Stack, u64);

impl Matrix<'_> {
    /// How many runs there are.
    pub fn len(&self) -> usize {
        let seeds = usize::try_from(self.seeds).unwrap_or(usize::MAX);
        self.scenarios.len().saturating_mul(self.stacks.len()).saturating_mul(seeds)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn place(&self, index: usize) -> Place<'_> {
        let seeds = usize::try_from(self.seeds).unwrap_or(usize::MAX);
        let (pair, seed) = (index / seeds, index % seeds);
        let (scenario, stack) = (pair / self.stacks.len(), pair % self.stacks.len());
        (&self.scenarios[scenario], &*self.stacks[stack], seed as u64 + 1)
    }

    /// Runs all, so many at once, and hands each out in order, after the number of those that are done.
    ///
    /// # Errors
    /// The first that cannot be built, by scenario and stack; those after it are not run.
    pub fn run(&self, jobs: NonZeroUsize, mut each: impl FnMut(usize, Run)) -> Result<(), BoxError> {
        let next = AtomicUsize::new(0);
        thread::scope(|scope| {
            // gone when this ends early, so that no worker waits for room in it
            let (tell, told) = mpsc::sync_channel(jobs.get());
            for _ in 0..jobs.get().min(self.len()) {
                let (next, tell) = (&next, tell.clone());
                scope.spawn(move || self.work(next, &tell));
            }
            drop(tell);
            let (mut early, mut due) = (BTreeMap::new(), 0);
            for (done, (index, run)) in told.iter().enumerate() {
                early.insert(index, run);
                while let Some(run) = early.remove(&due) {
                    let run = run.inspect_err(|_| next.store(self.len(), Ordering::Relaxed))?;
                    each(done + 1, run);
                    due += 1;
                }
            }
            Ok(())
        })
    }

    /// One of the workers: takes what is next until nothing is left, or nobody listens.
    fn work(&self, next: &AtomicUsize, tell: &mpsc::SyncSender<(usize, Result<Run, BoxError>)>) {
        let take = || Some(next.fetch_add(1, Ordering::Relaxed)).filter(|index| *index < self.len());
        for index in std::iter::from_fn(take) {
            let (scenario, stack, seed) = self.place(index);
            let named = |error| format!("scenario {}, stack {}: {error}", scenario.name, stack.name()).into();
            if tell.send((index, run(scenario, stack, seed).map_err(named))).is_err() {
                break;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::stack_fn;

    fn scenario(name: &str) -> Scenario {
        let world = r#"
            length_s = 1.0
            [world]
            accounts = [{ name = "a", credits = 1.0 }]
            keys = [{ label = "a-1", account = "a" }]
            models = [{ id = "acme/swift-1" }]
            endpoints = [{ model = "acme/swift-1", provider = "One" }]
        "#;
        Scenario::from_toml(&format!("name = \"{name}\"\n{world}")).unwrap()
    }

    fn stack(name: &str) -> Box<dyn Stack> {
        Box::new(stack_fn(name, |world| crate::lab::stacks::DefaultStack.build(world)))
    }

    #[test]
    fn runs_are_told_in_order_however_many_run_at_once() {
        let (scenarios, stacks) = ([scenario("one"), scenario("two")], [stack("x"), stack("y")]);
        let matrix = Matrix { scenarios: &scenarios, stacks: &stacks, seeds: 3 };
        let told = |jobs: usize| {
            let mut told = Vec::new();
            let each = |_, run: Run| told.push(format!("{} {} {}", run.scenario, run.stack, run.seed));
            matrix.run(jobs.try_into().unwrap(), each).unwrap();
            told
        };
        let one = told(1);
        assert_eq!((one.len(), &*one[0], &*one[3], &*one[11]), (matrix.len(), "one x 1", "one y 1", "two y 3"));
        assert_eq!(told(5), one);
    }

    #[test]
    fn a_stack_that_cannot_be_built_is_named_and_ends_it() {
        let bad: Box<dyn Stack> = Box::new(stack_fn("bad", |_| Err("no such layer".into())));
        let (scenarios, stacks) = ([scenario("one")], [stack("x"), bad, stack("y")]);
        let matrix = Matrix { scenarios: &scenarios, stacks: &stacks, seeds: 1 };
        let mut told = 0;
        let error = matrix.run(2.try_into().unwrap(), |_, _| told += 1).unwrap_err();
        assert_eq!((error.to_string().as_str(), told), ("scenario one, stack bad: no such layer", 1));
    }
}
