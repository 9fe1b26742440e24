//! What makes no sense, found before anything is sent.

use super::preferences::{MaxPrice, Percentiles, ProviderPreferences, Threshold, Variant};

/// Preferences that cannot be used.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum PreferenceError {
    /// A list, or a group of numbers, is empty.
    #[error("{0} is empty: leave it out")]
    Empty(&'static str),
    /// A name is empty or padded.
    #[error("{member} holds {name:?}, which is no name")]
    BadName {
        /// The member.
        member: &'static str,
        /// What it holds.
        name: Box<str>,
    },
    /// A name is given twice.
    #[error("{member} holds {name:?} twice")]
    Twice {
        /// The member.
        member: &'static str,
        /// The name.
        name: Box<str>,
    },
    /// A provider is asked for and left out.
    #[error("{member} holds {name:?}, which ignore leaves out: take it from one of them")]
    Ignored {
        /// `only` or `order`.
        member: &'static str,
        /// The provider.
        name: Box<str>,
    },
    /// A provider is to be asked, and is not among those allowed.
    #[error("order holds {0:?}, which only does not allow: add it there, or leave it out")]
    NotAllowed(Box<str>),
    /// Two settings each say in which order providers are asked.
    #[error("{0} and {1} are both set, and each says in which order providers are asked: choose one")]
    TwoOrders(&'static str, &'static str),
    /// There are two variants.
    #[error("the variants {0} and {1} are both set: a model has one")]
    TwoVariants(&'static str, &'static str),
    /// A number is out of range.
    #[error("{member} is {value}: it must be a number {range}")]
    BadNumber {
        /// The member.
        member: &'static str,
        /// The number.
        value: f64,
        /// What it must be.
        range: &'static str,
    },
}

/// Whether `wider` names `narrower` too: the same provider, or one whose endpoint it is.
pub(super) fn covers(wider: &str, narrower: &str) -> bool {
    let slug = |name: &str| name.to_ascii_lowercase().replace(' ', "-");
    let (wider, narrower) = (slug(wider), slug(narrower));
    narrower.strip_prefix(&wider).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// A list of names, each proper and there once.
pub(super) fn names(member: &'static str, list: &[Box<str>]) -> Result<(), PreferenceError> {
    if list.is_empty() {
        return Err(PreferenceError::Empty(member));
    }
    for (at, name) in list.iter().enumerate() {
        if name.is_empty() || name.trim() != &**name {
            return Err(PreferenceError::BadName { member, name: name.clone() });
        }
        if list[..at].iter().any(|other| covers(other, name) && covers(name, other)) {
            return Err(PreferenceError::Twice { member, name: name.clone() });
        }
    }
    Ok(())
}

impl ProviderPreferences {
    pub(super) fn check(&self) -> Result<(), PreferenceError> {
        let lists = [("order", &self.order), ("only", &self.only), ("ignore", &self.ignore)];
        for (member, list) in lists {
            list.as_deref().map_or(Ok(()), |list| names(member, list))?;
        }
        let ignore = self.ignore.as_deref().unwrap_or_default();
        for (member, list) in [("only", &self.only), ("order", &self.order)] {
            let mut all = list.iter().flatten();
            if let Some(name) = all.find(|name| ignore.iter().any(|ignored| covers(ignored, name))) {
                return Err(PreferenceError::Ignored { member, name: name.clone() });
            }
        }
        if let (Some(only), Some(order)) = (&self.only, &self.order)
            && let Some(name) =
                order.iter().find(|name| !only.iter().any(|other| covers(other, name) || covers(name, other)))
        {
            return Err(PreferenceError::NotAllowed(name.clone()));
        }
        if self.sort.is_some() && self.order.is_some() {
            return Err(PreferenceError::TwoOrders("sort", "order"));
        }
        if let Some(levels) = &self.quantizations {
            let text = |level| serde_json::to_value(level).ok().and_then(|level| Some(level.as_str()?.into()));
            names("quantizations", &levels.iter().filter_map(text).collect::<Vec<_>>())?;
        }
        if let Some(options) = &self.options {
            names("options", &options.keys().cloned().collect::<Vec<_>>())?;
        }
        if let Some(MaxPrice { prompt, completion, request, image, audio }) = self.max_price {
            numbers("max_price", &[prompt, completion, request, image, audio], |price| price >= 0.0, "of 0 or more")?;
        }
        let thresholds = [
            ("preferred_min_throughput", self.preferred_min_throughput),
            ("preferred_max_latency", self.preferred_max_latency),
        ];
        for (member, threshold) in thresholds {
            let values = match threshold {
                None => continue,
                Some(Threshold::Median(value)) => [Some(value), None, None, None],
                Some(Threshold::Percentiles(Percentiles { p50, p75, p90, p99 })) => [p50, p75, p90, p99],
            };
            numbers(member, &values, |value| value > 0.0, "above 0")?;
        }
        Ok(())
    }

    /// Whether a variant goes with them.
    pub(super) fn check_variant(&self, variant: Variant) -> Result<(), PreferenceError> {
        let other = match (&self.sort, &self.order) {
            (Some(_), _) => "sort",
            (None, Some(_)) => "order",
            (None, None) => return Ok(()),
        };
        if variant.sorts() { Err(PreferenceError::TwoOrders(variant.as_str(), other)) } else { Ok(()) }
    }
}

fn numbers(
    member: &'static str,
    values: &[Option<f64>],
    fits: impl Fn(f64) -> bool,
    range: &'static str,
) -> Result<(), PreferenceError> {
    let mut given = values.iter().flatten().peekable();
    if given.peek().is_none() {
        return Err(PreferenceError::Empty(member));
    }
    match given.find(|value| !value.is_finite() || !fits(**value)) {
        Some(value) => Err(PreferenceError::BadNumber { member, value: *value, range }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::openrouter::{Quantization, SortBy};

    #[test]
    fn what_contradicts_itself_is_refused_by_name() {
        let new = ProviderPreferences::new;
        let price = |prompt| MaxPrice { prompt: Some(prompt), ..MaxPrice::default() };
        let none: [&str; 0] = [];
        for (preferences, said) in [
            (new().only(none), "only is empty"),
            (new().order(none), "order is empty"),
            (new().ignore(none), "ignore is empty"),
            (new().quantizations([]), "quantizations is empty"),
            (new().only([" a"]), "only holds \" a\""),
            (new().order(["a", "A"]), "order holds \"A\" twice"),
            (new().ignore(["Google Vertex", "google-vertex"]), "ignore holds \"google-vertex\" twice"),
            (new().quantizations([Quantization::Fp8, Quantization::Fp8]), "quantizations holds \"fp8\" twice"),
            (new().only(["a", "b"]).ignore(["B"]), "only holds \"b\", which ignore"),
            (new().only(["b/fp8"]).ignore(["b"]), "only holds \"b/fp8\", which ignore"),
            (new().order(["a"]).ignore(["a"]), "order holds \"a\", which ignore"),
            (new().order(["a", "c"]).only(["a", "b"]), "order holds \"c\", which only"),
            (new().order(["a"]).sort(SortBy::Price), "sort and order"),
            (new().max_price(MaxPrice::default()), "max_price is empty"),
            (new().max_price(price(-1.0)), "max_price is -1"),
            (new().max_price(price(f64::NAN)), "max_price is NaN"),
            (new().preferred_min_throughput(0.0), "preferred_min_throughput is 0"),
            (new().preferred_max_latency(f64::INFINITY), "preferred_max_latency is inf"),
            (new().preferred_max_latency(Percentiles::default()), "preferred_max_latency is empty"),
        ] {
            let refused = preferences.check().expect_err(said).to_string();
            assert!(refused.contains(said), "{refused:?} does not say {said:?}");
        }
        for preferences in [
            new(),
            new().only(["b"]).ignore(["b/fp8"]),
            new().order(["b/fp8", "a"]).only(["a", "b"]),
            new().only(["deepinfra"]).ignore(["deep"]),
            new().max_price(price(0.0)).sort(SortBy::Latency),
        ] {
            assert_eq!(preferences.check(), Ok(()), "{preferences:?}");
        }
    }
}
