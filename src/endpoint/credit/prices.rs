use std::{collections::HashMap, fmt, sync::Arc};

use arc_swap::ArcSwap;

use super::Money;

/// What one token, and one request, of a model cost at most, and how many tokens it can take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Price {
    prompt: u64,
    completion: u64,
    request: u64,
    max_output: Option<u64>,
    context: Option<u64>,
}

/// Bytes of a body to one token of its prompt. English text in JSON has four and more, code three, so this counts too many
/// rather than too few.
const BYTES_PER_TOKEN: u64 = 3;
/// Prices are kept in pico-dollars, since the cheapest tokens cost a few nano-dollars and some a fraction more.
const PICOS: f64 = 1e12;

impl Price {
    /// Prices of one token of the prompt and one of the answer, in US dollars, as `GET /models` has them; what is negative
    /// or no number counts as nothing.
    pub fn per_token(prompt: f64, completion: f64) -> Self {
        Self { prompt: picos(prompt), completion: picos(completion), ..Self::default() }
    }

    /// The same for a million tokens, as price lists have them.
    pub fn per_million(prompt: f64, completion: f64) -> Self {
        Self::per_token(prompt / 1e6, completion / 1e6)
    }

    /// Adds a price for each request, in US dollars.
    #[must_use]
    pub fn request(mut self, usd: f64) -> Self {
        self.request = picos(usd);
        self
    }

    /// Says how many tokens an answer can have at most.
    #[must_use]
    pub fn max_output(mut self, tokens: Option<u64>) -> Self {
        self.max_output = tokens;
        self
    }

    /// Says how many tokens prompt and answer can have together.
    #[must_use]
    pub fn context(mut self, tokens: Option<u64>) -> Self {
        self.context = tokens;
        self
    }

    /// The most a request can cost whose body has `bytes` and which asks for at most `max_tokens`. A request that does not
    /// say counts with the model's own maximum, but with no more than `unsaid`.
    pub fn worst_case(&self, bytes: u64, max_tokens: Option<u64>, unsaid: u64) -> Money {
        let prompt = bytes.div_ceil(BYTES_PER_TOKEN).min(self.context.unwrap_or(u64::MAX));
        let most = self.max_output.unwrap_or(u64::MAX);
        let answer = max_tokens.unwrap_or(unsaid).min(most).min(self.context.unwrap_or(u64::MAX));
        let picos = (u128::from(prompt) * u128::from(self.prompt))
            .saturating_add(u128::from(answer) * u128::from(self.completion))
            .saturating_add(u128::from(self.request));
        Money::from_nanos(i64::try_from(picos.div_ceil(1000)).unwrap_or(i64::MAX))
    }

    /// Whether it costs nothing.
    pub fn is_free(&self) -> bool {
        (self.prompt, self.completion, self.request) == (0, 0, 0)
    }
}

fn picos(usd: f64) -> u64 {
    (usd * PICOS).round() as u64
}

/// What models cost: one table for a pool, replaced as a whole, read without a lock. Cheap to clone; clones are the same.
#[derive(Clone)]
pub struct Prices(Arc<ArcSwap<HashMap<Box<str>, Price>>>);

impl Prices {
    /// Replaces the table.
    pub fn set(&self, prices: impl IntoIterator<Item = (Box<str>, Price)>) {
        self.0.store(Arc::new(prices.into_iter().collect()));
    }

    /// The price of a model; a variant such as `:nitro` that has none of its own costs what its model does.
    pub fn get(&self, model: &str) -> Option<Price> {
        let table = self.0.load();
        table.get(model).copied().or_else(|| {
            if model.ends_with(":free") {
                return Some(Price::default());
            }
            model.rsplit_once(':').and_then(|(base, _)| table.get(base).copied())
        })
    }

    /// How many models have a price.
    pub fn len(&self) -> usize {
        self.0.load().len()
    }

    /// Whether no model has one.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Default for Prices {
    fn default() -> Self {
        Self(Arc::new(ArcSwap::from_pointee(HashMap::new())))
    }
}

impl fmt::Debug for Prices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Prices").field("models", &self.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_worst_case_is_the_whole_prompt_and_every_token_allowed() {
        let price = Price::per_million(1.0, 10.0).max_output(Some(8_000)).context(Some(20_000));
        for (name, bytes, max_tokens, usd) in [
            ("as asked", 3_000, Some(100), 0.001 + 0.001),
            ("unsaid", 3_000, None, 0.001 + 0.04),
            ("more than the model gives", 3_000, Some(1_000_000), 0.001 + 0.08),
            ("more than the model takes", 3_000_000, Some(0), 0.02),
            ("an odd byte is a token", 1, Some(0), 0.000_001),
        ] {
            assert_eq!(price.worst_case(bytes, max_tokens, 4_000), Money::from_usd(usd), "{name}");
        }
        assert_eq!(price.request(0.5).worst_case(0, Some(0), 0), Money::from_usd(0.5));
    }

    #[test]
    fn variants_cost_what_their_model_does_and_free_ones_nothing() {
        let prices = Prices::default();
        let price = Price::per_million(1.0, 2.0);
        prices.set([("acme/swift".into(), price)]);
        assert_eq!(prices.get("acme/swift"), Some(price));
        assert_eq!(prices.get("acme/swift:nitro"), Some(price));
        assert!(prices.get("acme/swift:free").unwrap().is_free());
        assert_eq!(prices.get("acme/other"), None);
    }

    proptest! {
        #[test]
        fn r118_no_worst_case_overflows_or_is_negative(
            prompt in any::<f64>(), completion in any::<f64>(), bytes in any::<u64>(), asked in any::<Option<u64>>(), unsaid in any::<u64>(),
        ) {
            let worst = Price::per_token(prompt, completion).worst_case(bytes, asked, unsaid);
            prop_assert!(worst >= Money::ZERO);
        }

        #[test]
        fn asking_for_more_never_costs_less(bytes in 0u64..1_000_000, asked in 0u64..1_000_000, more in 0u64..1_000_000) {
            let price = Price::per_million(0.4, 1.7);
            prop_assert!(price.worst_case(bytes, Some(asked), 0) <= price.worst_case(bytes + more, Some(asked + more), 0));
        }
    }
}
