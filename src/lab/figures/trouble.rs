//! Which faults of a scenario take single keys out of service, from when to when.

use serde::Serialize;

use crate::{
    lab::Scenario,
    simulator::{Fault, What},
};

/// A time in which one key gives nothing, while others may.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Trouble {
    /// The index of the key in the scenario.
    pub key: usize,
    /// When it begins, seconds since the start.
    pub from_s: f64,
    /// When it ends, seconds since the start; `None`: not within the run.
    pub until_s: Option<f64>,
}

impl Scenario {
    /// The troubles of single keys, as the world's faults have them: those that strike more than half of what a key or an
    /// account is asked, and make it fail rather than slow, in the order of the faults.
    pub fn troubles(&self) -> Vec<Trouble> {
        let strikes = self.world.faults.iter().filter(|fault| fault.at_s < self.length_s && takes_out(fault));
        strikes.flat_map(|fault| self.keys_of(fault).map(move |key| self.trouble(fault, key))).collect()
    }

    fn keys_of(&self, fault: &Fault) -> impl Iterator<Item = usize> {
        let meant = |wanted: &Option<String>, found: &str| wanted.as_deref().is_none_or(|wanted| wanted == found);
        let keys = self.world.keys.iter().enumerate();
        keys.filter(move |(_, key)| meant(&fault.key, &key.label) && meant(&fault.account, &key.account))
            .map(|(at, _)| at)
    }

    fn trouble(&self, fault: &Fault, key: usize) -> Trouble {
        let end = fault.for_s.map(|seconds| fault.at_s + seconds);
        Trouble { key, from_s: fault.at_s, until_s: end.filter(|end| *end < self.length_s) }
    }
}

fn takes_out(fault: &Fault) -> bool {
    let of_keys = fault.key.is_some() || fault.account.is_some();
    let everywhere = fault.model.is_none() && fault.provider.is_none();
    let mostly = fault.probability > 0.5 && fault.times.is_none();
    of_keys && everywhere && mostly && !matches!(fault.what, What::Slow { .. })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_takes_single_keys_out_is_a_trouble() {
        let scenario = Scenario::from_toml(
            r#"
            name = "troubles"
            length_s = 600.0
            [world]
            accounts = [{ name = "a" }, { name = "b" }]
            keys = [{ label = "a-1", account = "a" }, { label = "b-1", account = "b" }, { label = "b-2", account = "b" }]
            faults = [
              { at_s = 60.0, for_s = 120.0, key = "b-2", what = { kind = "unauthorized" } },
              { at_s = 300.0, account = "b", what = { kind = "status", status = 503 } },
              { at_s = 60.0, what = { kind = "unauthorized" } },
              { key = "a-1", what = { kind = "slow", accept_ms = 900.0 } },
              { key = "a-1", probability = 0.1, what = { kind = "reset" } },
              { at_s = 900.0, key = "a-1", what = { kind = "reset" } },
            ]
            "#,
        )
        .unwrap();
        let trouble = |key, from_s, until_s| Trouble { key, from_s, until_s };
        let expected = [trouble(2, 60.0, Some(180.0)), trouble(1, 300.0, None), trouble(2, 300.0, None)];
        assert_eq!(scenario.troubles(), expected);
    }
}
