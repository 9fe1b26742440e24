//! What would become of a request sent now, for an oracle that knows every quota and yet not who comes next.
//!
//! A balancer is judged by what was possible, and only the platform knows what was. It is asked here without sending
//! anything: nothing is counted, taken or drawn. Answers hold as long as nobody else is served and nobody changes the world
//! by hand; what depends on chance is left out: faults with a probability, and jitter.

use std::time::Duration;

use tokio::time::Instant;

use super::admission::prices;
use super::clock::{Now, Wall};
use super::delays::Delays;
use super::faults::{Stage, Target};
use super::money::DUST;
use super::request::{Asked, Dialect, ProviderChoice};
use super::routing;
use super::scenario::{InFlight, Model, Scenario, What};
use super::world::World;
use super::{Shared, Simulator};

mod room;
#[cfg(test)]
mod tests;

/// What [`Simulator::foresee`] says of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Foresight {
    /// Sent now it would be let in and answered whole.
    Now,
    /// Sent before this instant it would not. Then it may be, or the question be worth asking again. The end of a request
    /// that runs now may make room in the in-flight budget earlier, and a fault that begins may lead around another.
    At(Instant),
    /// Time alone will not bring it.
    Never,
}

impl Simulator {
    /// Whether a chat request sent now with the key of this label would be let in (by authentication, caps, credit, quotas,
    /// in-flight budget and a provider) and struck by no fault that is certain; else from when it may be.
    ///
    /// Providers are looked at in the order in which they would be asked now, and as fast as they are now, when the request
    /// would get to them; requests on their way to a provider's pool are thought to be there before.
    pub(crate) fn foresee(&self, label: &str, model: &str, prompt_tokens: u64, max_tokens: Option<u64>) -> Foresight {
        let shared: &Shared = &self.shared;
        let asked = Asked {
            dialect: Dialect::Chat,
            models: vec![model.to_owned()],
            stream: false,
            max_tokens,
            prompt_tokens,
            inputs: 1,
            provider: ProviderChoice::default(),
        };
        let now = shared.clock.now();
        let world = shared.lock();
        let inquiry = |key| Inquiry { world: &world, scenario: &shared.scenario, key, asked, now };
        let opens = world.key_labelled(label).and_then(|key| inquiry(key).opens());
        match opens {
            None => Foresight::Never,
            Some(at) if at <= now.elapsed => Foresight::Now,
            Some(at) => now.instant.checked_add(at - now.elapsed).map_or(Foresight::Never, Foresight::At),
        }
    }
}

/// A question to the platform. Times are since the simulator was made; none is never.
struct Inquiry<'a> {
    world: &'a World,
    scenario: &'a Scenario,
    key: usize,
    asked: Asked,
    now: Now,
}

impl Inquiry<'_> {
    /// The latest of what stands in the way.
    fn opens(&self) -> Option<Duration> {
        let (world, now) = (self.world, self.now);
        let key = &world.keys[self.key];
        let mut at = now.elapsed;
        for stage in [Stage::Edge, Stage::Authentication, Stage::Platform] {
            at = at.max(self.clear(stage, None, now.elapsed)?);
        }
        if key.management || key.expires.is_some_and(|end| end <= now.wall) {
            return None;
        }
        if !key.accepted(now.wall) {
            at = at.max(now.elapsed_at(key.known.changes(now.wall)?));
        }
        let (model, sort) = routing::resolve(self.scenario, &self.asked.models[0])?;
        let free = Model::is_free(&model.id);
        let account = &world.accounts[key.account];
        if let Some(quota) = &account.quota {
            at = at.max(after(now.elapsed, quota.opens(now.elapsed)?));
        }
        if free {
            at = at.max(now.elapsed_at(account.free.opens(account.free_daily_limit(), now.wall)?));
        }
        let providers = routing::route(world, self.scenario, self.key, &self.asked, (model, sort), now).ok()?;
        if self.asked.prompt_tokens + self.asked.max_tokens.unwrap_or(0) > model.context_length {
            return None;
        }
        let routed = self.routed_opens(model, &providers);
        if routed.is_some_and(|opens| opens <= now.elapsed) {
            return Some(at);
        }
        // The first provider decides what it costs, and may decide alone; another order may do better.
        let failed = providers.iter().filter_map(|index| world.endpoints[*index].failed);
        let reordered = failed.map(|failed| failed + routing::OUTAGE).filter(|over| *over > now.elapsed).min();
        Some(at.max(routed.into_iter().chain(reordered).min()?))
    }

    /// When it is paid for and served, if the providers are asked in this order.
    fn routed_opens(&self, model: &Model, providers: &[usize]) -> Option<Duration> {
        let (world, now) = (self.world, self.now);
        let free = Model::is_free(&model.id);
        let prices = prices(&self.scenario.endpoints[*providers.first()?]);
        let paid = world
            .check_budgets(self.key, now)
            .and_then(|()| world.check_balance(self.key, free, now))
            .and_then(|()| world.check_affordable(self.key, &self.asked, model, prices, now));
        let money = match paid {
            Err(_) => now.elapsed_at(self.money_changes()?),
            Ok(()) if free => now.elapsed,
            Ok(()) => self.in_flight_opens(prices)?,
        };
        Some(money.max(self.providers_open(providers)?))
    }

    /// When no certain fault of a stage strikes any more, from `at` on.
    fn clear(&self, stage: Stage, provider: Option<&str>, mut at: Duration) -> Option<Duration> {
        let target = Target { key: Some(self.key), models: &self.asked.models, provider };
        while let Some((what, until)) = self.world.sure(stage, target, at) {
            if matches!(what, What::Huge { .. }) {
                break;
            }
            at = until?;
        }
        Some(at)
    }

    /// When a budget or a cap starts anew, or the edge hears of a new cap or balance.
    fn money_changes(&self) -> Option<Wall> {
        let key = &self.world.keys[self.key];
        let now = self.now.wall;
        let budgets = self.world.workspaces[key.workspace].budgets.iter().map(|budget| budget.reset);
        let resets = budgets.chain([key.cap.seen(now).reset]).filter_map(|reset| reset.next(now));
        resets.chain(key.cap.changes(now)).chain(self.world.accounts[key.account].credits.changes(now)).min()
    }

    /// When the account's in-flight budget has room, if the requests that hold it now end no sooner than now.
    fn in_flight_opens(&self, prices: (f64, f64)) -> Option<Duration> {
        let now = self.now.elapsed;
        let Some((estimate, budget)) = self.world.weigh(self.key, &self.asked, prices, self.now) else {
            return Some(now);
        };
        let account = &self.world.accounts[self.world.keys[self.key].account];
        if estimate > budget + DUST {
            return Some(self.now.elapsed_at(account.credits.changes(self.now.wall)?));
        }
        let mut holds: Vec<_> =
            account.holds.iter().filter(|hold| hold.until.is_none_or(|until| now < until)).collect();
        holds.sort_by_key(|hold| hold.until.unwrap_or(Duration::MAX));
        let mut held: f64 = holds.iter().map(|hold| hold.amount).sum();
        let mut at = now;
        for hold in holds {
            if held + estimate <= budget + DUST {
                break;
            }
            // What still runs settles for so long after its end, which nobody knows.
            let settles = || now + Duration::from_secs_f64(settle_s(account.in_flight.as_ref()));
            at = at.max(hold.until.unwrap_or_else(settles));
            held -= hold.amount;
        }
        Some(at)
    }

    /// When one of the providers will take it and answer it.
    fn providers_open(&self, providers: &[usize]) -> Option<Duration> {
        let now = self.now.elapsed;
        let mut best: Option<Duration> = None;
        let (mut arrives, mut latest) = (now, now);
        for index in providers {
            let endpoint = &self.scenario.endpoints[*index];
            let name = Some(&*endpoint.provider);
            let target = Target { key: Some(self.key), models: &self.asked.models, provider: name };
            let slow = self.world.sure(Stage::Delay, target, arrives).map(|(what, _)| what);
            let (soon, late) = Delays::accept_between(endpoint, slow);
            (arrives, latest) = (arrives + soon, latest + late);
            // neither who is fast nor who is slow may be struck
            let clear = |stage| {
                let (soon, late) = (self.clear(stage, name, arrives)?, self.clear(stage, name, latest)?);
                Some(if late > latest { late } else { soon })
            };
            let opens = || {
                let endpoint = &self.world.endpoints[*index];
                let room = endpoint.pool.as_ref().map_or(Some(0.0), |pool| pool.opens(arrives, endpoint.asked));
                Some(clear(Stage::Provider)?.max(after(arrives, room?)))
            };
            let (takes, answers) = (opens(), clear(Stage::Body));
            let whole = takes.zip(answers).map(|(takes, answers)| takes.max(answers));
            if whole.is_some_and(|at| at <= arrives) {
                return Some(now);
            }
            let sent = whole.map(|at| at.saturating_sub(arrives - now));
            best = best.into_iter().chain(sent).min();
            let judges = matches!(
                self.world.sure(Stage::Provider, target, arrives),
                Some((What::ProviderFails { status: ..408 }, _))
            );
            // Its word is the last.
            if judges || takes.is_some_and(|at| at <= arrives) {
                break;
            }
        }
        best
    }
}

fn settle_s(rule: Option<&InFlight>) -> f64 {
    // Not at once, or who waits for it would ask all the time.
    rule.map_or(0.0, |rule| rule.settle_s).max(0.001)
}

fn after(at: Duration, seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).map_or(Duration::MAX / 2, |wait| at.saturating_add(wait))
}
