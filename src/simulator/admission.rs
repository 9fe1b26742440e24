//! The platform's checks, in the order the service documents them.
//!
//! Authentication comes before this file. Then: budgets (workspace, key cap), balance, quota, free quota, routing,
//! affordability of key and account, in-flight hold. Providers come after.

use super::clock::Now;
use super::money::DUST;
use super::refusal::{
    self, Refusal, bad_request, cannot_afford, in_flight_exhausted, insufficient_credits, invalid_model,
    key_cannot_afford, key_limit, not_found, platform_limit, weight_exceeds_budget, workspace_budget,
};
use super::request::{Asked, Dialect};
use super::routing;
use super::scenario::{Model, ProviderEndpoint, Scenario};
use super::world::{FreeVerdict, Hold, World};

/// USD per token of prompt and completion.
pub(super) type Prices = (f64, f64);

pub(super) fn prices(endpoint: &ProviderEndpoint) -> Prices {
    (endpoint.prompt_price / 1e6, endpoint.completion_price / 1e6)
}

/// Leave to ask the providers.
#[derive(Debug)]
pub(super) struct Admission<'a> {
    pub(super) model: &'a Model,
    /// Indices of endpoints, best first.
    pub(super) providers: Vec<usize>,
    /// The hold to give back.
    pub(super) hold: Option<u64>,
}

impl World {
    /// Checks one candidate model of a request.
    pub(super) fn admit<'a>(
        &mut self,
        scenario: &'a Scenario,
        key: usize,
        asked: &Asked,
        model: &'a str,
        now: Now,
    ) -> Result<Admission<'a>, Refusal> {
        let Some((model, sort)) = routing::resolve(scenario, model) else {
            return Err(unknown_model(scenario, model));
        };
        let free = Model::is_free(&model.id);
        self.check_budgets(key, now)?;
        self.check_balance(key, free, now)?;
        self.check_quota(key, now)?;
        if free {
            self.check_free_quota(key, now)?;
        }
        let providers = routing::route(self, scenario, key, asked, (model, sort), now)?;
        let wanted = asked.max_tokens.unwrap_or(0);
        if asked.prompt_tokens + wanted > model.context_length {
            let message = format!(
                "This endpoint's maximum context length is {} tokens. However, you requested about {} tokens \
                 ({} of text input, {wanted} in the output). Please reduce the length of either one.",
                model.context_length,
                asked.prompt_tokens + wanted,
                asked.prompt_tokens
            );
            return Err(Refusal { error_type: Some("context_length_exceeded"), ..bad_request(message) });
        }
        let Some(first) = providers.first().map(|index| &scenario.endpoints[*index]) else {
            return Err(not_found(format!("No endpoints found for {}.", model.id)));
        };
        let prices = prices(first);
        self.check_affordable(key, asked, model, prices, now)?;
        let hold = if free { None } else { self.take_hold(key, asked, prices, now)? };
        Ok(Admission { model, providers, hold })
    }

    pub(super) fn check_budgets(&self, key: usize, now: Now) -> Result<(), Refusal> {
        let key = &self.keys[key];
        let workspace = &self.workspaces[key.workspace];
        for budget in &workspace.budgets {
            if workspace.spend.since(budget.reset, now.wall) >= budget.limit - DUST {
                return Err(workspace_budget(budget.reset, budget.limit));
            }
        }
        match key.remaining(now.wall) {
            Some(left) if left <= DUST => Err(key_limit(key.cap.seen(now.wall).reset, &key.hash)),
            _ => Ok(()),
        }
    }

    pub(super) fn check_balance(&self, key: usize, free: bool, now: Now) -> Result<(), Refusal> {
        let account = &self.accounts[self.keys[key].account];
        let balance = account.balance(now.wall);
        // A negative balance closes free models too.
        if balance < -DUST || (balance <= DUST && !free) {
            return Err(insufficient_credits(account.ever_purchased > 0.0));
        }
        Ok(())
    }

    fn check_quota(&mut self, key: usize, now: Now) -> Result<(), Refusal> {
        let account = self.keys[key].account;
        let Some(quota) = &mut self.accounts[account].quota else { return Ok(()) };
        quota.take(now.elapsed).map_err(|wait| {
            let reset = now.wall.later(wait * 1e3).millis();
            // both were rounded down, and before its time the next would be refused again
            platform_limit(quota.rule.requests, reset + 2, !quota.rule.hints)
        })
    }

    fn check_free_quota(&mut self, key: usize, now: Now) -> Result<(), Refusal> {
        let account = self.keys[key].account;
        let account = &mut self.accounts[account];
        let daily = account.free_daily_limit();
        match account.free.take(daily, now.wall) {
            FreeVerdict::Granted => Ok(()),
            FreeVerdict::MinuteFull => Err(refusal::free_per_minute(account.free.per_minute, now.wall)),
            FreeVerdict::DayFull => Err(refusal::free_per_day(daily, account.ever_purchased >= 9.0, now.wall)),
        }
    }

    /// The worst case: the whole prompt and as many completion tokens as may come.
    pub(super) fn check_affordable(
        &self,
        key: usize,
        asked: &Asked,
        model: &Model,
        (prompt, completion): Prices,
        now: Now,
    ) -> Result<(), Refusal> {
        let wanted = match asked.dialect {
            Dialect::Embeddings => 0,
            _ => asked.max_tokens.unwrap_or(model.max_output).min(model.max_output),
        };
        let fixed = asked.prompt_tokens as f64 * prompt;
        let worst = fixed + wanted as f64 * completion;
        let affordable = |money: f64| {
            if completion > 0.0 { ((money - fixed + DUST).max(0.0) / completion) as u64 } else { 0 }
        };
        let key = &self.keys[key];
        if let Some(left) = key.remaining(now.wall).filter(|left| worst > *left + DUST) {
            return Err(key_cannot_afford(wanted, affordable(left), key.cap.seen(now.wall).reset));
        }
        let balance = self.accounts[key.account].balance(now.wall);
        if worst > balance + DUST {
            return Err(cannot_afford(wanted, affordable(balance)));
        }
        Ok(())
    }

    /// What such a request would hold, and the budget it must fit; none when no hold is asked of it. In USD.
    pub(super) fn weigh(
        &self,
        key: usize,
        asked: &Asked,
        (prompt, completion): Prices,
        now: Now,
    ) -> Option<(f64, f64)> {
        let account = &self.accounts[self.keys[key].account];
        let balance = account.balance(now.wall);
        let rule = account.in_flight.as_ref().filter(|rule| balance < rule.below_balance)?;
        let tokens = asked.max_tokens.unwrap_or(rule.completion_cap).min(rule.completion_cap);
        let estimate = asked.prompt_tokens as f64 * prompt + tokens as f64 * completion;
        Some((estimate, (rule.fraction * balance).min(rule.ceiling)))
    }

    fn take_hold(&mut self, key: usize, asked: &Asked, prices: Prices, now: Now) -> Result<Option<u64>, Refusal> {
        let Some((estimate, budget)) = self.weigh(key, asked, prices, now) else {
            return Ok(None);
        };
        if estimate > budget + DUST {
            return Err(weight_exceeds_budget());
        }
        let number = self.next_hold;
        let account = self.keys[key].account;
        let account = &mut self.accounts[account];
        account.holds.retain(|hold| hold.until.is_none_or(|until| now.elapsed < until));
        let held: f64 = account.holds.iter().map(|hold| hold.amount).sum();
        if held + estimate > budget + DUST {
            let retry_after_s = account.in_flight.as_ref().map_or(0, |rule| rule.retry_after_s);
            return Err(in_flight_exhausted(retry_after_s));
        }
        account.holds.push(Hold { number, amount: estimate, until: None });
        self.next_hold += 1;
        Ok(Some(number))
    }
}

fn unknown_model(scenario: &Scenario, id: &str) -> Refusal {
    let paid = id.strip_suffix(":free").filter(|base| routing::resolve(scenario, base).is_some());
    match paid {
        Some(base) => not_found(format!("{id} is unavailable for free. The paid version is available as {base}.")),
        None => invalid_model(id),
    }
}
